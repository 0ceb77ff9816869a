"""Measures of conflict, from a Gram matrix that has been computed anyway. All are jit-safe and vmap."""

import jax.numpy as jnp

from mtjax.grads.base import Array, cosines, norms, presence, safe_divide
from mtjax.grads.methods.mgda import min_norm


def conflict(gram: Array) -> dict[str, Array]:
    """How much the tasks' gradients disagree.

    Args:
      gram: [T, T], such as `find_state(opt_state).gram`.

    Returns:
      `cosine` [T, T]; `norms` [T]; `conflicting`, the share of the T(T−1)/2 pairs with a negative
      cosine; `mean_cosine` and `min_cosine` over the pairs; `norm_ratio`, largest over smallest
      non-zero norm; `cancellation`, 1 − ‖Σg_i‖ / Σ‖g_i‖, which is 0 when all agree and 1 when the sum vanishes.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> float(grads.conflict(jnp.array([[1.0, -1.0], [-1.0, 4.0]]))["conflicting"])
      1.0
    """
    num_tasks = gram.shape[-1]
    cosine, norm = cosines(gram), norms(gram)
    pairs = jnp.triu(jnp.ones_like(cosine), 1)
    count = max(num_tasks * (num_tasks - 1) // 2, 1)
    nonzero = norm > 0
    largest = jnp.max(norm)
    smallest = jnp.min(jnp.where(nonzero, norm, largest))
    length = jnp.sqrt(jnp.maximum(jnp.sum(gram), 0))
    return {
        "cosine": cosine,
        "norms": norm,
        "conflicting": jnp.sum(pairs * (cosine < 0)) / count,
        "mean_cosine": jnp.sum(pairs * cosine) / count,
        "min_cosine": jnp.min(jnp.where(pairs > 0, cosine, 1)),
        "norm_ratio": safe_divide(largest, smallest),
        "cancellation": jnp.where(largest > 0, 1 - safe_divide(length, jnp.sum(norm)), 0),
    }


def pareto_distance(gram: Array) -> Array:
    """Distance to Pareto-stationarity, min over the simplex of ‖Jᵀw‖: 0 when no direction improves
    all tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> round(float(grads.pareto_distance(jnp.eye(4))), 3)
      0.5
    """
    weights = min_norm(gram, presence(gram.shape[-1], None, gram.dtype))
    scaled = weights * norms(gram)
    return jnp.sqrt(jnp.maximum(scaled @ (cosines(gram) @ scaled), 0))


def residual(name: str, gram: Array, weights: Array, alpha: float = 1.0) -> Array:
    """How far a solver's weights are from its equations: 0 is exact, a small multiple of the
    dtype's precision is what rounding leaves. Relative to the gradients' scale.

    Args:
      name: "mgda": the gap wᵀGw − min(Gw), over wᵀ diag(G) w; "nash_mtl" and "fairgrad":
        max |w_i (Gw)_i^α − 1|, with zero gradients left out (for weights that were not clipped);
        "dualproj" and "upgrad": how far the direction is outside the dual cone, max(0, −cos(g_i, d)).
      gram: [T, T].
      weights: [T].
      alpha: FairGrad's.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> gram = jnp.array([[2.0, -1.0], [-1.0, 1.0]])
      >>> weights, _ = grads.nash_mtl().update(gram, ())
      >>> bool(grads.residual("nash_mtl", gram, weights) < 1e-4)
      True
    """
    norm = norms(gram)
    scaled = weights * norm
    along = cosines(gram) @ scaled  # (Gw)_i / d_i
    if name == "mgda":
        image = along * norm
        return safe_divide(jnp.dot(weights, image) - jnp.min(image), jnp.sum(weights * scaled * norm))
    if name in ("nash_mtl", "fairgrad"):
        rate = jnp.maximum(along * norm, 0) ** alpha * weights
        return jnp.max(jnp.where(norm > 0, jnp.abs(rate - 1), 0))
    if name in ("dualproj", "upgrad"):
        length = jnp.sqrt(jnp.maximum(jnp.dot(scaled, along), 0))
        return jnp.maximum(jnp.max(-safe_divide(along, length)), 0)
    raise ValueError(f"no residual for {name!r}: mgda, nash_mtl, fairgrad, dualproj or upgrad")
