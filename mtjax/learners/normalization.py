"""Running mean and variance, one row a task: observations and returns are never pooled over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Statistics(NamedTuple):
    """Moments of everything seen so far.

    Attributes:
        count: [T] number of samples.
        mean: [T, ...].
        variance: [T, ...], of the population.
    """

    count: Array
    mean: Array
    variance: Array


def init(num_tasks: int, shape: Sequence[int] = ()) -> Statistics:
    """Statistics of nothing: mean 0, variance 1, so that normalising is the identity."""
    full = (num_tasks, *shape)
    return Statistics(jnp.zeros((num_tasks,), jnp.float32), jnp.zeros(full, jnp.float32), jnp.ones(full, jnp.float32))


def update(statistics: Statistics, samples: Array, axes: tuple[int, ...]) -> Statistics:
    """Merge new samples (Chan et al. 1979; exact in any grouping up to rounding).

    Args:
        statistics: of T tasks.
        samples: [..., T, ..., *shape]; reducing ``axes`` leaves [T, *shape].
        axes: the axes to reduce.

    Returns:
        Statistics of the old and the new samples together.
    """
    number = jnp.asarray(_size(samples, axes), jnp.float32)
    mean = samples.mean(axis=axes)
    variance = samples.var(axis=axes)
    total = statistics.count + number
    wide = (-1,) + (1,) * (mean.ndim - 1)
    share = (number / total).reshape(wide)
    delta = mean - statistics.mean
    return Statistics(
        count=total,
        mean=statistics.mean + delta * share,
        variance=jnp.where(
            (statistics.count > 0).reshape(wide),
            statistics.variance * (1 - share) + variance * share + jnp.square(delta) * share * (1 - share),
            variance,
        ),
    )


def normalize(statistics: Statistics, x: Array, *, clip: float) -> Array:
    """(x − mean) / deviation, clipped to ± clip. ``x`` is [T, E, *shape] or [..., *shape] of one task."""
    mean, variance = statistics.mean, statistics.variance
    extra = x.ndim - mean.ndim
    if extra and statistics.count.ndim:  # [T, *shape] against [T, E, *shape]
        mean = mean.reshape(mean.shape[:1] + (1,) * extra + mean.shape[1:])
        variance = variance.reshape(mean.shape)
    return jnp.clip((x - mean) * jax.lax.rsqrt(variance + 1e-6), -clip, clip)


def pooled(statistics: Statistics) -> Statistics:
    """Statistics of all tasks together, for a task that was never seen. Drops the task axis."""
    mean = statistics.mean.mean(axis=0)
    variance = (statistics.variance + jnp.square(statistics.mean - mean)).mean(axis=0)
    return Statistics(statistics.count.sum(), mean, variance)


def _size(x: Array, axes: tuple[int, ...]) -> int:
    size = 1
    for axis in axes:
        size *= x.shape[axis]
    return size
