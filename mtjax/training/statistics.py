"""Measures over tasks and seeds, with bootstrap intervals.

One seed is one multi-task agent. Mean, median and worst are taken over the tasks of each agent and then
averaged over agents, so "worst" is the expectation of one agent's worst task. The interquartile mean (IQM) is that of
Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice": the mean of the
middle half of all S × T values.

Intervals are percentile bootstraps. By default whole agents are resampled: the tasks of one agent share its
parameters, so they succeed and fail together. ``stratify=True`` resamples every task independently, as that
paper and rliable do for separately trained tasks; for a multi-task agent, those intervals are too narrow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]  # [..., S, T] -> [...]


def mean(values: np.ndarray, *, skip_missing: bool = False) -> np.ndarray:
    """Mean over tasks: [..., T] -> [...].

    Args:
        values: [..., T].
        skip_missing: ignore NaN (a task of which no episode has ended yet) unless all values are NaN.
            Otherwise a NaN makes the result NaN, so that a diverged agent cannot go unnoticed.
    """
    return _reduce(np.nanmean if skip_missing else np.mean, values)


def median(values: np.ndarray, *, skip_missing: bool = False) -> np.ndarray:
    """Median over tasks: [..., T] -> [...]. See :func:`mean`."""
    return _reduce(np.nanmedian if skip_missing else np.median, values)


def worst(values: np.ndarray, *, skip_missing: bool = False) -> np.ndarray:
    """Minimum over tasks: [..., T] -> [...]. See :func:`mean`."""
    return _reduce(np.nanmin if skip_missing else np.min, values)


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean of all seeds and tasks: [..., S, T] -> [...]. A NaN makes it NaN."""
    import scipy.stats  # takes longer to import than jax: only where it is needed

    flat = _matrix(values).reshape(*np.shape(values)[:-2], -1)
    trimmed = scipy.stats.trim_mean(flat, proportiontocut=0.25, axis=-1)
    return np.where(np.isnan(flat).any(axis=-1), np.nan, trimmed)


STATISTICS: Mapping[str, Statistic] = {
    "mean": lambda values: mean(values).mean(axis=-1),
    "median": lambda values: median(values).mean(axis=-1),
    "worst": lambda values: worst(values).mean(axis=-1),
    "iqm": iqm,
}


def summarize(
    values: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    stratify: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Mean, median, worst and IQM of a measure, each with its interval over seeds.

    Args:
        values: [S, T], e.g. the return of every seed and task.
        confidence: nominal coverage of the interval.
        resamples: number of bootstrap samples.
        stratify: resample tasks independently (see the module docstring).
        seed: seed of the bootstrap.

    Returns:
        ``{"mean": {"value", "low", "high"}, "median": …, "worst": …, "iqm": …}``. With one seed, or where
        the value is not finite, low and high are None; a value that is not finite is None.

    Raises:
        ValueError: ``values`` is not [S, T] with at least one of each.
    """
    values = _matrix(values, dimensions=2)
    summary: dict[str, dict[str, float | None]] = {}
    for name, statistic in STATISTICS.items():
        value = float(statistic(values))
        interval = None
        if np.isfinite(values).all():
            interval = bootstrap(
                values, statistic, confidence=confidence, resamples=resamples, stratify=stratify, seed=seed
            )
        low, high = interval or (None, None)
        summary[name] = {"value": value if np.isfinite(value) else None, "low": low, "high": high}
    return summary


def bootstrap(
    values: np.ndarray,
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    stratify: bool = False,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval of a statistic over seeds, in one vectorised call.

    Args:
        values: [S, T].
        statistic: [..., S, T] -> [...].
        confidence, resamples, stratify, seed: as in :func:`summarize`.

    Returns:
        (low, high), or None with one seed, as there is nothing to resample.
    """
    values = _matrix(values, dimensions=2)
    seeds, tasks = values.shape
    if seeds < 2:
        return None
    generator = np.random.default_rng(seed)
    rows = generator.integers(seeds, size=(resamples, seeds, tasks if stratify else 1))
    return _percentiles(statistic(values[rows, np.arange(tasks)]), confidence)


def probability_of_improvement(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    stratify: bool = False,
    seed: int = 0,
) -> dict[str, float | None]:
    """Probability that one of our agents beats one of theirs on a random task; a tie counts one half.

    Args:
        ours: [S, T].
        theirs: [S', T], the same tasks in the same order.
        confidence, resamples, stratify, seed: as in :func:`summarize`.

    Returns:
        ``{"value", "low", "high"}``; low and high are None unless both have two seeds or more.

    Raises:
        ValueError: the numbers of tasks differ.
    """
    ours, theirs = _matrix(ours, dimensions=2), _matrix(theirs, dimensions=2)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"cannot compare {ours.shape[1]} tasks with {theirs.shape[1]}")
    x, y = ours[:, None], theirs[None]
    wins = np.where(np.isnan(x) | np.isnan(y), np.nan, (x > y) + 0.5 * (x == y))  # [S, S', T]
    value = float(wins.mean())
    if min(len(ours), len(theirs)) < 2:
        return {"value": value, "low": None, "high": None}
    generator = np.random.default_rng(seed)
    strata = ours.shape[1] if stratify else 1
    share_x = _resampled_shares(generator, len(ours), (resamples, strata))  # [R, strata, S]
    share_y = _resampled_shares(generator, len(theirs), (resamples, strata))
    if stratify:
        samples = np.einsum("rta,rtb,abt->r", share_x, share_y, wins, optimize=True) / strata
    else:
        samples = np.einsum("ra,rb,ab->r", share_x[:, 0], share_y[:, 0], wins.mean(axis=-1), optimize=True)
    low, high = _percentiles(samples, confidence)
    return {"value": value, "low": low, "high": high}


def performance_profile(
    values: np.ndarray,
    thresholds: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    stratify: bool = False,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of all seeds and tasks whose value exceeds each threshold.

    Args:
        values: [S, T].
        thresholds: [K].
        confidence, resamples, stratify, seed: as in :func:`summarize`.

    Returns:
        (share, low, high), all [K]; with one seed, low and high equal the share.
    """
    values = _matrix(values, dimensions=2)
    above = values[..., None] > np.asarray(thresholds, float)  # [S, T, K]
    share = above.mean(axis=(0, 1))
    seeds, tasks = values.shape
    if seeds < 2:
        return share, share, share
    generator = np.random.default_rng(seed)
    shares = _resampled_shares(generator, seeds, (resamples, tasks if stratify else 1))  # [R, T or 1, S]
    if stratify:
        samples = np.einsum("rts,stk->rk", shares, above, optimize=True) / tasks
    else:
        samples = shares[:, 0] @ above.mean(axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(samples, [tail, 100.0 - tail], axis=0)
    return share, low, high


def _resampled_shares(generator: np.random.Generator, seeds: int, shape: tuple[int, ...]) -> np.ndarray:
    """How often each seed is drawn in a bootstrap sample, as fractions that sum to one: [*shape, seeds]."""
    return generator.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=shape) / seeds


def _percentiles(samples: np.ndarray, confidence: float) -> Interval:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return float(low), float(high)


def _reduce(function: Callable[..., Any], values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's nan-functions warn if all values are NaN
        return function(np.asarray(values, float), axis=-1)


def _matrix(values: np.ndarray, dimensions: int | None = None) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim < 2 or (dimensions and values.ndim != dimensions) or not values.size:
        raise ValueError(f"expected values of shape [seeds, tasks], got {list(values.shape)}")
    return values
