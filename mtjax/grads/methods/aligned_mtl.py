"""Aligned-MTL: gradients made orthogonal and of equal length."""

import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, preferred, presence, stateless


def aligned_mtl(mode: str = "min", preference: Array | None = None) -> Weighting:
    """Aligned-MTL (Senushkin et al., CVPR 2023, arXiv 2305.19000, Algorithm 1).

    Sets all non-zero singular values of the Jacobian to σ: w = σ V Λ^(−½) Vᵀ p, with G = VΛVᵀ over
    the eigenvalues above rounding error.

    Properties: never conflicts with the aligned gradients, which are orthogonal, but may conflict with the
    original ones; permutation equivariant; homogeneous. Discontinuous where the rank changes. Cost: one
    T×T eigendecomposition.

    Use when: training is unstable because the gradient system is ill-conditioned.

    Args:
      mode: σ² is the "min" eigenvalue (the paper), the "median" or the mean ("rmse").
      preference: p [T], default 1/T (LibMTL uses 1, which multiplies the learning rate by T).

    Raises:
      ValueError: an unknown `mode`; from the update, a `preference` whose length is not T.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.aligned_mtl().update(jnp.diag(jnp.array([1.0, 4.0])), ())
      >>> [round(float(w), 3) for w in weights]
      [0.5, 0.25]
    """
    if mode not in ("min", "median", "rmse"):
        raise ValueError(f'mode must be "min", "median" or "rmse", not {mode!r}')

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        pull = preferred(preference, gram, mask)
        top = jnp.max(jnp.diagonal(gram))
        here = presence(gram.shape[-1], mask) > 0
        scaled = jnp.where(here[:, None] & here[None, :], gram / jnp.where(top > 0, top, 1), 0)
        return _align(scaled, pull, mode), state

    return Weighting(stateless, update)


def _align(gram: Array, pull: Array, mode: str) -> Array:
    """σ V Λ^(−½) Vᵀ p [T]."""
    values, vectors = jnp.linalg.eigh(gram)
    cut = gram.shape[-1] * jnp.finfo(gram.dtype).eps * jnp.max(jnp.abs(values))
    kept = values > cut
    rank = jnp.maximum(jnp.sum(kept), 1)
    if mode == "min":
        scale = jnp.min(jnp.where(kept, values, jnp.inf))
    elif mode == "rmse":
        scale = jnp.sum(jnp.where(kept, values, 0)) / rank
    else:  # the lower median, as in torch: eigenvalues ascend, so the kept ones come last
        scale = values[values.shape[0] - rank + (rank - 1) // 2]
    scale = jnp.where(jnp.any(kept), scale, 0)
    root = jnp.where(kept, jnp.sqrt(scale / jnp.where(kept, values, 1)), 0)
    return vectors @ (root * (vectors.T @ pull))
