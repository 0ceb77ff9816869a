"""What a run leaves beside its record: what it was, what came out, and how it looks."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtjax.suites.base import Suite
from mtjax.training import files, policy, statistics, versions, video
from mtjax.training.config import CONFIG, SUITE, RunConfig
from mtjax.training.trainer import Trainer, TrainState

VIDEO_STEPS = 250  # of an episode are drawn: drawing without a GPU is slow


def summarize_evaluation(values: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Aggregates and per-task means of an evaluation.

    Args:
        values: [S, N] by measure.
        names: of the N tasks.

    Returns:
        {measure: {"mean" | "median" | "worst" | "iqm": {"value", "low", "high"}, "tasks": {name: mean over seeds}}};
        None for what is not finite.
    """

    def of_tasks(value: np.ndarray) -> dict[str, float | None]:
        means = zip(names, value.mean(axis=0), strict=True)
        return {name: float(mean) if np.isfinite(mean) else None for name, mean in means}

    return {measure: {**statistics.summarize(value), "tasks": of_tasks(value)} for measure, value in values.items()}


def write_description(config: RunConfig, suite: Suite, run_dir: pathlib.Path) -> None:
    """Write what the run is: configuration, versions, and the suite with its tasks."""
    run_dir.mkdir(parents=True, exist_ok=True)
    files.write_json(run_dir / CONFIG, dataclasses.asdict(config))
    versions.write(run_dir)
    tasks = {split: [dataclasses.asdict(info) for info in part.infos] for split, part in suite.splits.items()}
    description = {"name": suite.name, "version": dataclasses.asdict(suite.version), "tasks": tasks}
    files.write_json(run_dir / SUITE, description)


def draw_videos(
    trainer: Trainer, suite: Suite, state: TrainState, run_dir: pathlib.Path, split: str, results: Mapping
) -> None:
    """Draw an episode of every task of a split by the first seed's deterministic policy."""
    act = policy.of_state(trainer, suite, state, split=split)

    def of_task(index: int):
        return lambda observation, key: act(observation, index)

    measured = next(iter(results.values()))["return"]["tasks"]
    steps = min(suite.horizon, VIDEO_STEPS)
    video.render_tasks(suite, of_task, run_dir, split=split, returns=list(measured.values()), steps=steps)
