"""PCGrad: projecting conflicting gradients."""

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import Array, Weighting, presence


def pcgrad(reduction: str = "sum") -> Weighting:
    """PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782, Algorithm 1).

    For each task i, and each j ≠ i in a random order drawn afresh for every i: if g_iᴾᶜ·g_j < 0,
    subtract (g_iᴾᶜ·g_j / ‖g_j‖²) g_j, with g_j the original gradient. Returns Σ_i g_iᴾᶜ.

    The computation uses coefficients: row i of A, with g_iᴾᶜ = Σ_j A_ij g_j, starts as e_i. The T steps
    are a scan that updates all rows in parallel; M = A G holds the inner products.

    Properties: permutation equivariant in distribution; homogeneous; for T = 2 conflicts with no
      task (for T > 2 a later projection may undo an earlier one).

    Cost: T steps of O(T²).

    Use when: you want a cheap, robust first try with few tasks; not with losses on very different scales.

    Args:
      reduction: "sum", as printed in the paper, or "mean" (over the present tasks).

    Raises:
      ValueError: an unknown `reduction`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.pcgrad()
      >>> weights, _ = method.update(jnp.array([[1.0, -0.5], [-0.5, 1.0]]), method.init(2))
      >>> [float(w) for w in weights]
      [1.5, 1.5]
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction must be "sum" or "mean", not {reduction!r}')

    def init(num_tasks: int) -> Array:
        return jax.random.key(0)

    def update(gram: Array, key: Array, *, losses=None, mask=None) -> tuple[Array, Array]:
        num_tasks = gram.shape[-1]
        key, draw = jax.random.split(key)
        here = presence(num_tasks, mask, gram.dtype)
        orders = jnp.argsort(jax.random.uniform(draw, (num_tasks, num_tasks)), axis=0)
        weights = project(gram, orders, here)
        return weights / jnp.maximum(jnp.sum(here), 1) if reduction == "mean" else weights, key

    return Weighting(init, update)


def project(gram: Array, orders: Array, here: Array) -> Array:
    """Column sums of the coefficients A [T] after the projections, in the given orders.

    Args:
      gram: [T, T].
      orders: [T steps, T rows]; column i is the order in which row i meets the tasks (meeting itself
        is a no-op).
      here: [T], 1 for present tasks and 0 for absent ones.
    """
    gram = gram * here[:, None] * here[None, :]
    squared = jnp.diagonal(gram)
    inverse = jnp.where(squared > 0, 1 / jnp.where(squared > 0, squared, 1), 0)
    rows = jnp.arange(gram.shape[-1])

    def meet(products: Array, others: Array) -> tuple[Array, Array]:
        along = jnp.take_along_axis(products, others[:, None], axis=1)[:, 0]
        conflict = (along < 0) & (others != rows)
        step = jnp.where(conflict, along * inverse[others], 0)
        return products - step[:, None] * gram[others], step

    _, steps = lax.scan(meet, gram, orders)
    return here - jnp.zeros_like(here).at[orders].add(steps)
