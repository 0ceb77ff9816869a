"""Measures of conflict, from a Gram matrix that has been computed anyway. All are jit-safe and vmap."""

import jax.numpy as jnp

from mtjax.grads.base import Array, cosines, norms, safe_divide


def conflict(gram: Array) -> dict[str, Array]:
    """How much the tasks' gradients disagree.

    Args:
      gram: [T, T], such as `find_state(opt_state).gram`.

    Returns:
      `cosine` [T, T]; `norms` [T]; `conflicting`, the share of the T(T−1)/2 pairs with a negative cosine; `mean_cosine`
      and `min_cosine` over the pairs; `norm_ratio`, largest over smallest non-zero norm; `cancellation`,
      1 − ‖Σg_i‖ / Σ‖g_i‖, which is 0 when all agree and 1 when the sum vanishes.

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
