"""IMTL-G: equal projections on all gradients."""

import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, cosines, norms, presence, safe_divide, stateless


def imtl_g() -> Weighting:
    """IMTL-G (Liu et al., ICLR 2021, "Towards Impartial Multi-task Learning", section 3.1,
    https://openreview.net/forum?id=IMPnRXEWpvr).

    The direction with equal projections on every gradient's unit vector, g·u_i = g·u_j, and
    Σw = 1: w ∝ D⁻¹ C⁺ 1, with C⁺ the pseudo-inverse, so that duplicate gradients share their weight
    (anchoring on task 0, as in the paper, is singular there). Σw = 1 fixes the sign, and is singular
    where 1ᵀD⁻¹C⁺1 is 0: the direction is then 0.

    Properties: permutation equivariant; homogeneous. Weights may be negative, so it may oppose all
    tasks at once. Cost: one T×T eigendecomposition.

    Use when: no task may dominate by its scale, and gradients are not nearly linearly dependent.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.imtl_g().update(jnp.diag(jnp.array([1.0, 9.0])), ())
      >>> [round(float(w), 3) for w in weights]
      [0.75, 0.25]
    """

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        raw = equal_projections(gram, mask)
        total = jnp.sum(raw)
        sound = jnp.abs(total) > 32 * jnp.finfo(raw.dtype).eps * jnp.sum(jnp.abs(raw))
        return jnp.where(sound, safe_divide(raw, total), 0), state

    return Weighting(stateless, update)


def equal_projections(gram: Array, mask: Array | None) -> Array:
    """v = D⁻¹ C⁺ 1 [T]: Jᵀv has projection 1 on every unit gradient where that is possible.

    The norms are relative to the smallest non-zero one, so that v neither over- nor underflows.
    """
    here = presence(gram.shape[-1], mask, gram.dtype) * (jnp.diagonal(gram) > 0)
    cosine = cosines(gram) * here[:, None] * here[None, :]
    values, vectors = jnp.linalg.eigh(cosine)
    cut = 4 * gram.shape[-1] * jnp.finfo(gram.dtype).eps * jnp.max(jnp.abs(values))
    inverse = jnp.where(values > cut, 1 / jnp.where(values > cut, values, 1), 0)
    solution = vectors @ (inverse * (vectors.T @ here))
    norm = norms(gram)
    smallest = jnp.min(jnp.where(here > 0, norm, jnp.inf))
    smallest = jnp.where(jnp.isfinite(smallest), smallest, 1)
    return here * solution * smallest / jnp.where(here > 0, norm, 1)
