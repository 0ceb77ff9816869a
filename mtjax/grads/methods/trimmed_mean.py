"""Trimmed mean: a robust baseline, for each parameter alone."""

import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import Array, State, Transform, default_float, presence, uniform
from mtjax.grads.gram import accumulator, constant_like


def trimmed_mean(trim: int = 1) -> Transform:
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018, arXiv 1803.01498).

    For each parameter, the mean of the T values without the `trim` largest and `trim` smallest.
    One pass over the tasks moves each value through the sorted largest and smallest seen so far;
    what falls out is added, so nothing large is added and subtracted again.

    Properties: elementwise; permutation invariant; homogeneous; may conflict; robust to `trim`
    outliers. Cost: O(T · trim · P), no sort, no Gram; with a mask, a sort of [T, P]. Of n present
    tasks with n ≤ 2·trim the median is left.

    Use when: a few tasks' gradients may be corrupt.

    Args:
      trim: how many values to drop at each end; 2·trim < T.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.trimmed_mean(1), num_tasks=4)
      >>> updates, _ = tx.update(jnp.array([[1.0], [2.0], [4.0], [1e30]]), tx.init(jnp.zeros(1)))
      >>> float(updates[0])
      3.0
    """
    if trim < 0:
        raise ValueError(f"trim must not be negative, got {trim}")

    def init(num_tasks: int, params: list[Array]) -> State:
        if 2 * trim >= num_tasks:
            raise ValueError(f"trimmed_mean(trim={trim}) leaves nothing of {num_tasks} tasks")
        return ()

    def update(task_grads, state, gram, *, losses=None, mask=None):
        num_tasks = task_grads[0].shape[0]
        weights = uniform(num_tasks, mask, default_float())
        # One row carries the mean, and Σ w_i = 1.
        if mask is None:
            middle = [_middle(g, trim) for g in task_grads]
        else:
            middle = [_middle_of_present(g, trim, presence(num_tasks, mask)) for g in task_grads]
        return [m[None] for m in middle], weights, state

    return Transform(init, update)


def _middle_of_present(g: Array, trim: int, here: Array) -> Array:
    """The same of the rows that are present: sorted, the absent ones last."""
    dtype = accumulator(g)
    count = jnp.sum(here > 0)
    shape = (-1,) + (1,) * (g.ndim - 1)
    ordered = jnp.sort(jnp.where(here.reshape(shape) > 0, g.astype(dtype), jnp.inf), axis=0)
    drop = jnp.minimum(trim, jnp.maximum(count - 1, 0) // 2)
    rank = jnp.arange(g.shape[0])
    kept = ((rank >= drop) & (rank < count - drop)).reshape(shape)
    total = jnp.sum(jnp.where(kept, ordered, 0), axis=0)
    return (total / jnp.maximum(count - 2 * drop, 1)).astype(g.dtype)


def _middle(g: Array, trim: int) -> Array:
    """Mean over axis 0 without `trim` values at each end."""
    dtype = accumulator(g)

    def take(row: Array, carry: tuple) -> tuple:
        high, low, total = carry
        value = g[row].astype(dtype)
        kept_high, kept_low = [], []
        for n in range(trim):  # each keeps the more extreme of two, and passes on the other
            kept_high.append(jnp.maximum(high[n], value))
            value = jnp.minimum(high[n], value)
        for n in range(trim):
            # −inf, an empty place of `high`, must not enter `low`.
            empty = jnp.isneginf(value)
            kept_low.append(jnp.where(empty, low[n], jnp.minimum(low[n], value)))
            value = jnp.where(empty, value, jnp.maximum(low[n], value))
        high = jnp.stack(kept_high) if trim else high
        low = jnp.stack(kept_low) if trim else low
        return high, low, total + jnp.where(jnp.isfinite(value), value, 0)

    row = g[0]
    edge = jnp.broadcast_to(row, (trim, *row.shape))
    start = tuple(constant_like(x, value, dtype) for x, value in ((edge, -jnp.inf), (edge, jnp.inf), (row, 0)))
    total = lax.fori_loop(0, g.shape[0], take, start)[2]
    return (total / (g.shape[0] - 2 * trim)).astype(g.dtype)
