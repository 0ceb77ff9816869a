"""Trimmed mean: a robust baseline, for each parameter alone."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import Array, State, Transform, check_whole, default_float, presence, uniform
from mtjax.grads.gram import accumulator, by_columns, constant_like, multiplied, power_above, saturated


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

    Raises:
      ValueError: `trim` below 0; from `init`, 2 × `trim` ≥ T.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.trimmed_mean(1), num_tasks=4)
      >>> updates, _ = tx.update(jnp.array([[1.0], [2.0], [4.0], [1e30]]), tx.init(jnp.zeros(1)))
      >>> float(updates[0])
      3.0
    """
    check_whole("trim", trim, low=0)

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
    power = power_above(g.shape[0])
    total = jnp.sum(jnp.where(kept, ordered / power, 0), axis=0)
    return saturated(multiplied(total / jnp.maximum(count - 2 * drop, 1), power), g.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _middle(g: Array, trim: int) -> Array:
    """Mean over axis 0 without `trim` values at each end.

    If a sum is not finite it is taken again, of values over a power of two: to divide them at first would take up to
    2.5 times as long (10 × 1M). A loop of no or one step, since a `cond` under vmap would always take both branches.
    """
    flat = g.reshape(g.shape[0], math.prod(g.shape[1:]))
    plain = by_columns(partial(_selected, trim=trim), flat)
    wide = plain.astype(accumulator(g))
    wrong = ~jnp.isfinite(jnp.vdot(wide, wide, precision="highest"))  # of numbers above 10¹⁹, too, to no harm

    def again(carry: tuple) -> tuple:
        return carry[0] & False, by_columns(partial(_selected, trim=trim, power=power_above(g.shape[0])), flat)

    return lax.while_loop(lambda carry: carry[0], again, (wrong, plain))[1].reshape(g.shape[1:])


@_middle.defjvp
def _derivative(trim: int, point: tuple, change: tuple) -> tuple[Array, Array]:
    """That of the plain mean: a loop of unknown length has no reverse mode."""
    (g,), (dg,) = point, change
    flat, df = (x.reshape(x.shape[0], math.prod(x.shape[1:])) for x in (g, dg))
    return _middle(g, trim), jax.jvp(partial(_selected, trim=trim), (flat,), (df,))[1].reshape(g.shape[1:])


def _selected(g: Array, trim: int, power: float = 1.0) -> Array:
    """Passes each row of g [T, P] through the `trim` largest and smallest so far; adds what falls out of both [P]."""
    dtype = accumulator(g)

    def upper(row: Array, high: tuple) -> tuple[tuple, Array]:
        """Each place keeps the larger of two and hands on the other."""
        value, kept = g[row].astype(dtype) / power, []
        for place in high:
            kept.append(jnp.maximum(place, value))
            value = jnp.minimum(place, value)
        return tuple(kept), value

    def lower(row: Array, high: tuple, low: tuple) -> tuple[tuple, tuple, Array]:
        high, value = upper(row, high)
        kept = []
        for place in low:
            kept.append(jnp.minimum(place, value))
            value = jnp.maximum(place, value)
        return high, tuple(kept), value

    def add(row: Array, carry: tuple) -> tuple:
        high, low, total = carry
        high, low, value = lower(row, high, low)
        return high, low, total + value

    # The first rows fill the largest, the next ones the smallest: what falls out is the filling itself.
    high = lax.fori_loop(0, trim, lambda row, h: upper(row, h)[0], (constant_like(g[0], -jnp.inf, dtype),) * trim)
    low = (constant_like(g[0], jnp.inf, dtype),) * trim
    high, low = lax.fori_loop(trim, 2 * trim, lambda row, kept: lower(row, *kept)[:2], (high, low))
    total = lax.fori_loop(2 * trim, g.shape[0], add, (high, low, constant_like(g[0], 0, dtype)))[2]
    mean = total / (g.shape[0] - 2 * trim)
    return saturated(multiplied(mean, power) if power > 1 else mean, g.dtype)
