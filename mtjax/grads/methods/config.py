"""ConFIG: IMTL-G's direction with a length that follows the gradients."""

import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, safe_divide, stateless
from mtjax.grads.methods.imtl_g import equal_projections


def config() -> Weighting:
    """ConFIG (Liu et al., ICLR 2025, arXiv 2408.11104, equations 2 and 3).

    u is the unit vector with equal, positive projections on all gradients, u ∝ Û⁺ 1 with Û the unit
    gradients [T, P]; the direction is (Σ_i g_i·u) u. In terms of G: v = D⁻¹C⁺1 and
    w = v (1ᵀGv)/(vᵀGv).

    Properties: with linearly independent gradients it conflicts with none, and all loss decrease
    rates d_i⁻¹ g_i·d are equal; permutation equivariant; homogeneous. Cost: one T×T
    eigendecomposition.

    Use when: losses of different scales conflict (the paper: physics-informed networks).

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.config().update(jnp.eye(2), ())
      >>> [round(float(w), 3) for w in weights]
      [1.0, 1.0]
    """

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        raw = equal_projections(gram, mask)
        top = jnp.max(jnp.diagonal(gram))
        scaled = gram / jnp.where(top > 0, top, 1)
        image = scaled @ raw
        present = raw != 0
        return raw * safe_divide(jnp.sum(image * present), jnp.maximum(jnp.dot(raw, image), 0)), state

    return Weighting(stateless, update)
