"""The statistics of a report: curves over training, and the measures of rliable over tasks and seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtjax.report.data import Method, Suite
from mtjax.training import series, statistics
from mtjax.training.series import Series

RESAMPLES = 1000
SMOOTH = 40  # points of a curve of training measurements, each of which has few episodes or minibatches
AGGREGATES = ("mean", "median", "worst")


class Curve(NamedTuple):
    """A line with its interval; every field is [N]."""

    steps: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def primary(suite: Suite) -> str:
    """The measure that the suite is judged by: success if its environments report it, else return."""
    evaluated = [method.final["train"] for method in suite.methods if method.final.get("train")]
    success = evaluated and all("success_any" in values for values in evaluated)
    return "success_any" if success else "return"


def title(measure: str) -> str:
    """A measure's name for display."""
    return {"success_any": "success", "success_last": "success at the end"}.get(measure, measure)


def curve(source: Series | None, aggregate: str, points: int = series.POINTS) -> Curve | None:
    """An aggregate over tasks, averaged over seeds, with a 95% bootstrap interval over seeds.

    Args:
        source: values [N, S, T].
        aggregate: "mean", "median" or "worst".
        points: most points of the curve; more are averaged in groups.
    """
    if not series.known(source) or source.values.ndim != 3:
        return None
    thinned = series.thin(source, points)
    per_seed = getattr(statistics, aggregate)(thinned.values, skip_missing=True)  # [N, S]
    return over_seeds(Series(thinned.steps, per_seed))


def over_seeds(per_seed: Series) -> Curve:
    """Mean over seeds of [N, S] with a 95% percentile bootstrap, of the finite values; one seed has no interval."""
    values = per_seed.values
    known = np.isfinite(values)
    steps, values, known = (x[known.any(axis=1)] for x in (per_seed.steps, values, known))
    middle = np.nanmean(values, axis=1)
    low, high = middle.copy(), middle.copy()
    for seeds in np.unique(known, axis=0):
        count, here = seeds.sum(), (known == seeds).all(axis=1)
        if count > 1:
            rows = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
            means = values[np.ix_(here, seeds)][:, rows].mean(axis=-1)
            low[here], high[here] = np.percentile(means, [2.5, 97.5], axis=1)
    return Curve(steps, middle, low, high)


def finals(suite: Suite, measure: str, split: str = "train") -> dict[str, np.ndarray]:
    """Final values [S, T] of every method that was evaluated on a split, by its label."""
    return {m.label: m.final[split][measure] for m in suite.methods if measure in m.final.get(split, {})}


def common_scale(values: Mapping[str, np.ndarray], measure: str) -> dict[str, np.ndarray]:
    """Scores that may be averaged over tasks: success unchanged, returns scaled to 0 to 1 within each task.

    0 is the worst seed of any method on that task, 1 the best. The result is empty for the returns of a single method,
    which would be compared only with itself.
    """
    if measure.startswith("success"):
        return dict(values)
    if len(values) < 2:
        return {}
    everything = np.concatenate(list(values.values()))
    low, high = np.fmin.reduce(everything), np.fmax.reduce(everything)  # NaN only where all are NaN
    return {label: (value - low) / np.where(high > low, high - low, 1.0) for label, value in values.items()}


def aggregates(values: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Mean, median and worst of the measure, and the IQM of the scores if there are scores, with intervals."""
    table = {}
    for label, value in values.items():
        table[label] = statistics.summarize(value)
        if label in scores:
            table[label]["iqm"] = statistics.summarize(scores[label])["iqm"]
    return table


def improvement(values: Mapping[str, np.ndarray]) -> dict[tuple[str, str], dict]:
    """For all ordered pairs, the probability that the first method beats the second on a random task."""
    return {
        (ours, theirs): statistics.probability_of_improvement(values[ours], values[theirs], resamples=RESAMPLES)
        for ours in values
        for theirs in values
        if ours != theirs and np.isfinite(values[ours]).all() and np.isfinite(values[theirs]).all()
    }


def profiles(scores: Mapping[str, np.ndarray]) -> dict[str, Curve]:
    """Share of seeds and tasks whose score exceeds each threshold from 0 to 1, with intervals."""
    thresholds = np.linspace(0.0, 1.0, 101)
    return {
        label: Curve(thresholds, *statistics.performance_profile(score, thresholds))
        for label, score in scores.items()
        if np.isfinite(score).all()
    }


def conflict(method: Method) -> tuple[Curve | None, Curve | None]:
    """(mean cosine between the gradients of pairs of tasks, share of pairs that conflict) over training."""
    cosine = method.run.train.get("grads/cosine")
    if not series.known(cosine) or cosine.values.ndim != 4 or cosine.values.shape[-1] < 2:
        return None, None
    pairs = ~np.eye(cosine.values.shape[-1], dtype=bool)
    between = cosine.map(lambda values: values[..., pairs])  # [N, S, pairs]
    share = between.map(lambda values: np.where(np.isfinite(values), values < 0, np.nan))  # before averaging
    mean = functools.partial(statistics.mean, skip_missing=True)
    curves = [over_seeds(series.thin(part.map(mean), SMOOTH)) for part in (between, share)]
    return curves[0], curves[1]


def last_cosine(method: Method) -> np.ndarray | None:
    """Cosines [T, T] between the tasks' gradients, averaged over the last tenth of training and over seeds.

    None if none is finite, as at the end of a run that has diverged.
    """
    cosine = method.run.train.get("grads/cosine")
    if not series.known(cosine) or cosine.values.ndim != 4 or cosine.values.shape[-1] < 2:
        return None
    tail = max(1, len(cosine.steps) // 10)
    last = cosine.values[-tail:].reshape(-1, *cosine.values.shape[2:])
    last = statistics.mean(np.moveaxis(last, 0, -1), skip_missing=True)
    return last if np.isfinite(last).any() else None


def last_shares(method: Method) -> dict[str, np.ndarray]:
    """Final routing or mixing weights [T, F] by network, of the first seed, as seeds number experts differently."""
    found = {}
    for name, source in method.run.train.items():
        kind, _, network = name.partition("/")
        if kind in ("routing", "weights") and series.known(source) and source.values.ndim == 4:
            tail = max(1, len(source.steps) // 10)
            last = np.moveaxis(source.values[-tail:, 0], 0, -1)  # [T, F, tail]
            found[f"{kind}, {network} network"] = statistics.mean(last, skip_missing=True)
    return {name: last for name, last in found.items() if np.isfinite(last).any()}


def last_embeddings(method: Method) -> dict[str, np.ndarray]:
    """The learnt task embeddings [T, Z] by network, of the first seed at the end of training.

    Their mean is subtracted: what all embeddings share does not distinguish tasks.
    """
    found = {}
    for name, source in method.run.train.items():
        kind, _, network = name.partition("/")
        if kind == "embedding" and series.known(source) and source.values.ndim == 4:
            last = source.values[-1, 0]
            found[f"{network} network"] = last - last.mean(axis=0)
    return {network: vectors for network, vectors in found.items() if np.isfinite(vectors).all()}


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosines [T, T] between vectors [T, Z]; 0 where a vector is zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit @ unit.T


def plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Project vectors [T, Z] of mean 0 on their first two principal axes [T, 2]; also the variance share of these."""
    u, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    points[:, : min(2, len(sizes))] = (u * sizes)[:, :2]
    total = float(np.sum(sizes**2))
    return points, float(np.sum(sizes[:2] ** 2)) / total if total > 0 else 1.0


def numeric_options(suite: Suite, least: int = 3) -> list[str]:
    """Options that take at least ``least`` values among the methods, all numbers, and so can be an x axis."""
    from mtjax import options

    found = []
    for name in suite.differing:
        values = {options.flatten(method.config).get(name) for method in suite.methods}
        if len(values) >= least and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            found.append(name)
    return found


def best_first(table: Mapping[str, Mapping], measure: str = "mean") -> Sequence[str]:
    """Labels, the best mean first; non-finite values last."""
    value = {label: row[measure]["value"] for label, row in table.items()}
    return sorted(value, key=lambda label: -np.inf if value[label] is None else value[label], reverse=True)
