"""A run's record, sorted into series, from which plots, reports and tables are made."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from mtjax.training import record

POINTS = 100  # maximum number of points of a curve; more entries are averaged in groups


class Series(NamedTuple):
    """One quantity over a run: steps [N] and values [N, ...]."""

    steps: np.ndarray
    values: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Series:
        return Series(self.steps, function(self.values))


class Run(NamedTuple):
    """A run's record, sorted for drawing.

    Attributes:
        tasks: names, [T].
        train: by name, the metrics of the recorded updates.
        evaluations: by split and name, the measures of the deterministic evaluations.
        updates, times: [N] number and time (in seconds) of every recorded update.
    """

    tasks: tuple[str, ...]
    train: dict[str, Series]
    evaluations: dict[str, dict[str, Series]]
    updates: np.ndarray
    times: np.ndarray


def load(run_dir: str | os.PathLike) -> Run:
    """Read a run's record. Raises like :func:`mtjax.training.record.read`."""
    return sort(record.read(run_dir))


def sort(lines: Sequence[Mapping[str, Any]]) -> Run:
    """Sort the lines of a record, as :func:`mtjax.training.record.read` returns them."""
    train = [line for line in lines if line["kind"] == "train"]
    evaluations: dict[str, dict[str, Series]] = {}
    measured = [line for line in lines if line["kind"] == "evaluation"]
    measured.sort(key=lambda line: line["step"])  # an old checkpoint may be evaluated after the run is over
    for split in dict.fromkeys(line["split"] for line in measured):
        of_split = [line for line in measured if line["split"] == split and line["mode"] == "deterministic"]
        evaluations[split] = _series(of_split)
    tasks = record.task_names(lines)
    updates, times = (np.array([line[name] for line in train], float) for name in ("update", "time"))
    return Run(tasks, _series(train), evaluations, updates, times)


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Stack the values of lines by name; if a name's shape changed, only lines with the newest shape are used."""
    series = {}
    for name in dict.fromkeys(name for line in lines for name in line["values"]):
        shape = next(line["values"][name].shape for line in reversed(lines) if name in line["values"])
        have = [x for x in lines if name in x["values"] and x["values"][name].shape == shape]
        values = np.stack([line["values"][name] for line in have])
        series[name] = Series(np.array([line["step"] for line in have], float), values)
    return series


def thin(series: Series, points: int = POINTS) -> Series:
    """Average neighbouring entries, ignoring NaN, so that at most ``points`` are left."""
    if len(series.steps) <= points:
        return series
    starts = np.linspace(0, len(series.steps), points + 1).astype(int)
    groups = [slice(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    steps = np.array([series.steps[group].mean() for group in groups])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of a group that is all NaN is NaN
        return Series(steps, np.stack([np.nanmean(series.values[group], axis=0) for group in groups]))


def snapshots(series: Series, times: int) -> Series:
    """The series at ``times`` even points from its first to its last known entry, each averaged over a twentieth."""
    there = np.isfinite(series.values).reshape(len(series.steps), -1).any(axis=1)
    if there.any():  # SAC's metrics are NaN until its warm start is over
        series = Series(series.steps[there], series.values[there])
    total = len(series.steps)
    width = max(1, total // 20)
    starts = np.unique(np.linspace(0, total - width, times).astype(int))
    values = [np.nanmean(series.values[start : start + width], axis=0) for start in starts]
    return Series(np.array([series.steps[start : start + width].mean() for start in starts]), np.stack(values))


def known(series: Series | None) -> TypeGuard[Series]:
    """True if the series exists and contains a finite value."""
    return series is not None and bool(np.isfinite(series.values).any())
