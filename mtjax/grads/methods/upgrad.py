"""UPGrad and DualProj: projections onto the dual cone of the gradients."""

import jax.numpy as jnp

from mtjax.grads.base import (
    Array,
    State,
    Weighting,
    cosines,
    norms,
    preferred,
    presence,
    safe_divide,
    stateless,
)
from mtjax.grads.solvers.cone import dual_cone


def upgrad(preference: Array | None = None) -> Weighting:
    """UPGrad (Quinton and Rey, "Jacobian descent for multi-objective optimization", arXiv 2406.16232).

    Each p_i g_i is projected onto the dual cone {d : Jd ≥ 0}, and the projections are summed: for
    each i, min vᵀGv subject to v ≥ p_i e_i, and w = Σ v.

    Properties: never conflicts; linear under scaling of single gradients (doubling g_i doubles its
    projection); permutation equivariant; 0 only where no direction improves one task without hurting
    another. Cost: ADMM with one shared inverse, a few tens of [T, T] products, then T Cholesky factors
    of T×T if needed.

    Use when: no task may be hurt, and larger gradients should keep their weight.

    Args:
      preference: p [T], default 1/T.

    Raises:
      ValueError: from the update, a `preference` whose length is not T.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.upgrad().update(jnp.array([[1.0, -0.5], [-0.5, 1.0]]), ())
      >>> [round(float(w), 3) for w in weights]
      [0.75, 0.75]
    """

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        pull = preferred(preference, gram, mask)
        return jnp.sum(_project(gram, jnp.diag(pull), mask), axis=0), state

    def residual(gram: Array, weights: Array, *, losses=None, mask=None) -> Array:
        pulls = jnp.diag(preferred(preference, gram, mask))
        apart = _project(gram, pulls, mask)  # the sum does not tell how exact its terms are: solve again
        norm = norms(gram)
        far = jnp.max(jnp.abs(jnp.sum(apart, axis=0) - weights) * norm)
        return jnp.maximum(_violation(gram, apart, pulls, mask), safe_divide(far, jnp.max(jnp.abs(pulls) @ norm)))

    return Weighting(stateless, update, residual=residual)


def dualproj(preference: Array | None = None) -> Weighting:
    """DualProj (Lopez-Paz and Ranzato's GEM, NeurIPS 2017, arXiv 1706.08840, equation 11).

    The mean gradient, projected onto the dual cone {d : Jd ≥ 0}: min vᵀGv subject to v ≥ p.

    Properties: never conflicts; permutation equivariant; homogeneous. Cost: as `upgrad`, for one
    right-hand side.

    Use when: you want the mean gradient wherever it hurts no task.

    Args:
      preference: p [T], default 1/T.

    Raises:
      ValueError: from the update, a `preference` whose length is not T.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.dualproj().update(jnp.array([[1.0, -1.0], [-1.0, 4.0]]), ())
      >>> [round(float(w), 3) for w in weights]
      [0.5, 0.5]
    """

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        pull = preferred(preference, gram, mask)
        return _project(gram, pull[None], mask)[0], state

    def residual(gram: Array, weights: Array, *, losses=None, mask=None) -> Array:
        return _violation(gram, weights[None], preferred(preference, gram, mask)[None], mask)

    return Weighting(stateless, update, residual=residual)


def _project(gram: Array, pulls: Array, mask: Array | None) -> Array:
    """Weights [N, T] of the projection of each row of `pulls` [N, T], solved in cosine space."""
    norm = norms(gram)
    here = presence(gram.shape[-1], mask, gram.dtype) * (norm > 0)
    both = here[:, None] * here[None, :]
    cosine = jnp.where(jnp.eye(gram.shape[0]) > 0, 1, cosines(gram) * both)
    top = jnp.max(norm)
    relative = jnp.where(here > 0, norm / jnp.where(top > 0, top, 1), 1)
    solution = dual_cone(cosine, pulls * here * relative) / relative
    # Rounding must not violate the constraint v ≥ p; a zero gradient keeps its p.
    return jnp.maximum(solution * here, pulls)


def _violation(gram: Array, weights: Array, pulls: Array, mask: Array | None) -> Array:
    """The largest violation |min(v − p, Gv)| of the optimality conditions, in cosine space, relative to max |p| []."""
    norm = norms(gram)
    here = (presence(gram.shape[-1], mask, gram.dtype) > 0) & (norm > 0)
    slack, image = (weights - pulls) * norm, (weights * norm) @ cosines(gram)
    wrong = jnp.where(here, jnp.abs(jnp.minimum(slack, image)), 0)
    return safe_divide(jnp.max(wrong), jnp.max(jnp.abs(pulls) * norm))
