"""Running mean and variance, one row per task: training never pools observations or returns over tasks."""

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
    """Statistics before any sample: mean 0, variance 1, so that normalising is the identity."""
    full = (num_tasks, *shape)
    return Statistics(jnp.zeros((num_tasks,), jnp.float32), jnp.zeros(full, jnp.float32), jnp.ones(full, jnp.float32))


def moments(samples: Array, axes: tuple[int, ...], weight: Array | None = None) -> tuple[Array, Array, Array | float]:
    """Mean, variance and number of the samples with weight 1, over ``axes`` (all 0 where there are none).

    Args:
        samples: any shape.
        axes: the axes to reduce.
        weight: 0 or 1, of the same shape as ``samples``; None means 1 everywhere.
    """
    if weight is None:
        return samples.mean(axis=axes), samples.var(axis=axes), float(_size(samples, axes))
    number = weight.sum(axis=axes)
    share = weight / jnp.maximum(number, 1.0).reshape([1 if n in axes else d for n, d in enumerate(weight.shape)])
    mean = (share * samples).sum(axis=axes, keepdims=True)
    return mean.squeeze(axes), (share * jnp.square(samples - mean)).sum(axis=axes), number


def update(statistics: Statistics, samples: Array, axes: tuple[int, ...], weight: Array | None = None) -> Statistics:
    """Merge new samples into the statistics (Chan et al. 1979; exact up to rounding, however samples are grouped).

    Args:
        statistics: of T tasks.
        samples: [..., T, ..., *shape]; reducing ``axes`` leaves [T, *shape].
        axes: the axes to reduce.
        weight: as in :func:`moments`; only for scalar samples.

    Returns:
        Statistics of the old and new samples together.
    """
    mean, variance, number = moments(samples, axes, weight)
    number = jnp.asarray(number, jnp.float32)
    total = statistics.count + number
    wide = (-1,) + (1,) * (mean.ndim - 1)
    share = (number / (total if weight is None else jnp.maximum(total, 1.0))).reshape(wide)
    delta = mean - statistics.mean
    return Statistics(
        count=total,
        mean=statistics.mean + delta * share,
        variance=jnp.where(
            (statistics.count > 0).reshape(wide),
            statistics.variance * (1 - share) + variance * share + jnp.square(delta) * share * (1 - share),
            variance if weight is None else jnp.where(number > 0, variance, statistics.variance),
        ),
    )


def normalize(statistics: Statistics, x: Array, *, clip: float) -> Array:
    """(x − mean) / deviation, clipped to ± clip. ``x`` is [T, E, *shape], or [..., *shape] of one task."""
    mean, variance = statistics.mean, statistics.variance
    extra = x.ndim - mean.ndim
    if extra and statistics.count.ndim:  # [T, *shape] against [T, E, *shape]
        mean = mean.reshape(mean.shape[:1] + (1,) * extra + mean.shape[1:])
        variance = variance.reshape(mean.shape)
    return jnp.clip((x - mean) * jax.lax.rsqrt(variance + 1e-6), -clip, clip)


def pooled(statistics: Statistics, weights: Array | None = None) -> Statistics:
    """Statistics of several tasks together, for an unseen task. Drops the task axis.

    Args:
        statistics: of T tasks.
        weights: [T] of the tasks, with sum 1; tasks of weight 0 do not count. None: all tasks equally.
    """
    if weights is None:
        mean = statistics.mean.mean(axis=0)
        variance = (statistics.variance + jnp.square(statistics.mean - mean)).mean(axis=0)
        return Statistics(statistics.count.sum(), mean, variance)
    mean = jnp.tensordot(weights, statistics.mean, axes=1, precision="highest")
    squares = statistics.variance + jnp.square(statistics.mean - mean)
    variance = jnp.tensordot(weights, squares, axes=1, precision="highest")
    return Statistics(jnp.sum(statistics.count, where=weights > 0), mean, variance)


def _size(x: Array, axes: tuple[int, ...]) -> int:
    size = 1
    for axis in axes:
        size *= x.shape[axis]
    return size
