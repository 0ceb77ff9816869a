"""What a run writes besides its record: its description, its summary and its videos."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtjax.suites.base import Suite
from mtjax.training import files, policy, statistics, versions, video
from mtjax.training.config import SUITE, SUMMARY, RunConfig, save_config
from mtjax.training.trainer import Trainer, TrainState

VIDEO_STEPS = 250  # maximum number of steps drawn per episode: drawing without a GPU is slow


def summarize_evaluation(values: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Aggregates and per-task means of an evaluation.

    Args:
        values: [S, N] by measure.
        names: names of the N tasks.

    Returns:
        {measure: {"mean" | "median" | "worst" | "iqm": {"value", "low", "high"}, "tasks": {name: mean over seeds}}};
        non-finite values are None.
    """

    def of_tasks(value: np.ndarray) -> dict[str, float | None]:
        means = zip(names, value.mean(axis=0), strict=True)
        return {name: float(mean) if np.isfinite(mean) else None for name, mean in means}

    return {measure: {**statistics.summarize(value), "tasks": of_tasks(value)} for measure, value in values.items()}


def final_rounds(config: RunConfig) -> int:
    """Number of rounds of ``evaluation_episodes`` needed to reach ``final_evaluation_episodes``."""
    return -(-config.final_evaluation_episodes // config.evaluation_episodes)


def write_summary(
    run_dir: pathlib.Path,
    config: RunConfig,
    suite: Suite,
    measured: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    *,
    step: int,
    seconds: float,
) -> dict[str, Any]:
    """Write ``summary.json`` of a finished run, and return its contents.

    Args:
        run_dir: the run's folder.
        config: configuration of the run, or of a trial.
        suite: the run's suite.
        measured: results of the final evaluation, {split: {mode: {measure: [S, N]}}}.
        step: environment steps of each seed.
        seconds: duration of the training.
    """
    results = {
        split: {
            mode: summarize_evaluation(values, [info.name for info in suite.splits[split].infos])
            for mode, values in modes.items()
        }
        for split, modes in measured.items()
    }
    summary = {
        "suite": suite.name,
        "version": dataclasses.asdict(suite.version),
        "step": step,
        "seeds": config.num_seeds,
        "episodes": final_rounds(config) * config.evaluation_episodes,
        "seconds_of_training": round(seconds, 1),
        "steps_per_second": round(step * config.num_seeds / seconds, 1),
        "results": results,
    }
    files.write_json(run_dir / SUMMARY, summary)
    return summary


def write_description(config: RunConfig, suite: Suite, run_dir: pathlib.Path) -> None:
    """Write the run's description: its configuration, versions, and the suite with its tasks."""
    save_config(config, run_dir)
    versions.write(run_dir)
    tasks = {split: [dataclasses.asdict(info) for info in part.infos] for split, part in suite.splits.items()}
    description = {"name": suite.name, "version": dataclasses.asdict(suite.version), "tasks": tasks}
    files.write_json(run_dir / SUITE, description)


def draw_videos(
    trainer: Trainer, suite: Suite, state: TrainState, run_dir: pathlib.Path, split: str, results: Mapping
) -> None:
    """Draw a video of one episode of every task of a split, played by the first seed's deterministic policy."""
    act = policy.of_state(trainer, suite, state, split=split)

    def of_task(index: int):
        return lambda observation, key: act(observation, index)

    measured = next(iter(results.values()))["return"]["tasks"]
    steps = min(suite.horizon, VIDEO_STEPS)
    video.render_tasks(suite, of_task, run_dir, split=split, returns=list(measured.values()), steps=steps)
