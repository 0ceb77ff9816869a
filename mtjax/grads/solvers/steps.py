"""What every interior-point step needs."""

import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import Array


def longest_step(x: Array, dx: Array) -> Array:
    """The largest step that keeps x + step·dx ≥ 0."""
    return jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), 1e6))


def cholesky(matrix: Array) -> Array:
    return lax.linalg.cholesky(matrix, symmetrize_input=False)
