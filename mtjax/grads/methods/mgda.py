"""MGDA: the minimum-norm point in the convex hull of the gradients."""

import jax.numpy as jnp

from mtjax.grads.base import (
    Array,
    State,
    Weighting,
    cosines,
    need_losses,
    norms,
    positive,
    presence,
    safe_divide,
    stateless,
)
from mtjax.grads.solvers.simplex import simplex_newton


def mgda(normalize: str | None = None) -> Weighting:
    """MGDA (Désidéri 2012; Sener and Koltun, NeurIPS 2018, arXiv 1810.04650).

    w = argmin over the simplex of ‖Jᵀw‖² = wᵀGw, to the dtype's precision, with an interior-point method
    (Frank-Wolfe with the usual tolerances is off by 0.4% to 33%).

    Properties: with normalize=None it never conflicts, and its direction is 0 exactly at
    Pareto-stationary points; permutation equivariant; homogeneous. Dominated by the task with the
    smallest gradient. Cost: about 12 T×T Cholesky factors.

    Use when: you want a Pareto-stationary point, and gradients have similar scales.

    Args:
      normalize: what gradients are divided by while w is computed: "l2", their norms; "loss", the
        losses; "loss+", both. The weights apply to the original gradients.

    Raises:
      ValueError: an unknown `normalize`; from the update, no losses although it divides by them.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.mgda().update(jnp.diag(jnp.array([1.0, 3.0])), ())
      >>> [round(float(w), 3) for w in weights]
      [0.75, 0.25]
    """
    if normalize not in (None, "l2", "loss", "loss+"):
        raise ValueError(f'normalize must be None, "l2", "loss" or "loss+", not {normalize!r}')

    def divided(gram: Array, losses: Array | None) -> Array:
        scale, norm = jnp.ones(gram.shape[-1], gram.dtype), norms(gram)
        longest = jnp.sqrt(jnp.finfo(gram.dtype).max) / (4.0 * gram.shape[-1])  # its square is still finite
        if normalize in ("loss", "loss+"):
            losses = need_losses(f"mgda(normalize={normalize!r})", losses)
            scale = jnp.maximum(positive(jnp.abs(losses)).astype(gram.dtype), norm / longest)
        if normalize in ("l2", "loss+"):
            scale = scale * jnp.where(norm > 0, norm, 1)
        return gram / scale[:, None] / scale[None, :]

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        return min_norm(divided(gram, losses), presence(gram.shape[-1], mask, gram.dtype)), state

    def residual(gram: Array, weights: Array, *, losses=None, mask=None) -> Array:
        return duality_gap(divided(gram, losses), weights, presence(gram.shape[-1], mask, gram.dtype))

    return Weighting(stateless, update, residual=residual)


def mgda_ub(normalize: str | None = None) -> Weighting:
    """MGDA-UB (arXiv 1810.04650, section 3.3): MGDA on the gradients of a shared representation Z.

    Minimises ‖Σ_i w_i ∂L_i/∂Z‖² over the simplex, an upper bound of MGDA's objective up to the norm of
    ∂Z/∂θ. The T gradients stop at Z, so that the trunk needs only one backward pass: compute the weights
    from the Gram of ∂L_i/∂Z, then differentiate Σ_i w_i L_i. Inside `aggregate`, pass that Gram:
    `tx.update(task_grads, state, gram=gram_matrix(representation_grads))`.

    Properties: those of `mgda` if ∂Z/∂θ has full row rank. Cost: as `mgda`, on [T, T] only.

    Use when: one encoder feeds all tasks, and T backward passes through it are too expensive.

    Args:
      normalize: as for `mgda`.

    Raises:
      ValueError: as for `mgda`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> dz = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # ∂L_i/∂Z [T, B, features]
      >>> weights, _ = grads.mgda_ub().update(grads.gram_matrix(dz), ())
      >>> [round(float(w), 3) for w in weights]
      [0.5, 0.5]
    """
    return mgda(normalize)._replace(on_representation=True)


def min_norm(gram: Array, here: Array) -> Array:
    """argmin of wᵀGw over the simplex of the tasks present [T]."""
    squared = jnp.maximum(jnp.diagonal(gram), 0)
    top = jnp.max(squared * here)
    top = jnp.where(top > 0, top, 1)
    # Absent tasks become orthogonal to the others, with the largest norm: this only scales the others' weights.
    alone = jnp.diag(1 - here)
    gram = gram / top * here[:, None] * here[None, :] + alone
    squared = jnp.where(here > 0, jnp.maximum(squared / top, 1e-13), 1)
    # The exact solution for orthogonal gradients, which sets the scale: F(start) ≤ about 1.
    start = 1 / squared / jnp.sum(1 / squared)
    gram = gram / jnp.sum(start**2 * squared)
    weights = simplex_newton(lambda w, mu: (gram @ w, gram), start) * here
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)


def duality_gap(gram: Array, weights: Array, here: Array) -> Array:
    """wᵀGw − min_i (Gw)_i over the tasks present, relative to wᵀ diag(G) w: 0 at the minimum []."""
    norm = norms(gram) * here
    scaled = weights * norm
    image = norm * (cosines(gram) @ scaled)
    gap = jnp.dot(weights, image) - jnp.min(jnp.where(here > 0, image, jnp.inf))
    return safe_divide(jnp.maximum(gap, 0), jnp.dot(scaled, scaled))
