"""Shared by the studies: variants of a run at equal steps, several seeds each, in one picture and one table.

A stopped study resumes when started again: finished variants are read, not trained.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from mtjax import options
from mtjax.launch import environment
from mtjax.training import plots, record, run, statistics
from mtjax.training.config import RunConfig, load_config, refuse_changes
from mtjax.training.versions import versions

COLOURS = (
    "#1b4f8a", "#e08a1e", "#2a9d74", "#b3262e", "#7a5ea8", "#4c8fc7", "#8c6d3f", "#59616b", "#c66a9b", "#a0a832",
    "#14213d", "#f4a7a0",
)  # fmt: skip


class Result(NamedTuple):
    """One variant's evaluations on the training tasks by the deterministic policy.

    Attributes:
        steps: [N] environment steps of one seed.
        curve: [N, S, T].
        final: [S, T], over the final evaluation's episodes.
        tasks: [T] names.
        seconds: training time.
    """

    steps: np.ndarray
    curve: np.ndarray
    final: np.ndarray
    tasks: tuple[str, ...]
    seconds: float


def compare(variants: Mapping[str, RunConfig], folder: pathlib.Path, measure: str) -> dict[str, Result]:
    """Train every variant that is not finished yet, one after another, and read the results.

    Args:
        variants: configuration by name.
        folder: folder that will contain one run folder per variant.
        measure: "return" or "success_any".

    Raises:
        ValueError: two variants are the same, or the folder holds a run of that name with another configuration.
        SystemExit: a signal arrived, a run diverged, or a simulator failed; what was trained is kept.
    """
    for (one, mine), (other, its) in itertools.combinations(variants.items(), 2):
        if mine == its:
            raise ValueError(f"variants {one!r} and {other!r} have the same configuration: nothing to compare")
    environment.prepare()
    environment.keep_compiled_programs("auto")
    return {name: read(train(name, config, folder), measure) for name, config in variants.items()}


def run_folder(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Path of a variant's run folder."""
    return folder / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def train(name: str, config: RunConfig, folder: pathlib.Path) -> pathlib.Path:
    """Train one variant, unless it is finished. Returns its run folder."""
    run_dir = run_folder(name, folder)
    begun = (run_dir / "config.json").exists()
    if begun:
        other = f"{run_dir} was run with other options; name another --output"
        refuse_changes(load_config(run_dir), options.flatten(config), other, free=())
    if not (run_dir / run.SUMMARY).exists():
        print(f"{name}:", flush=True)
        try:
            run.train(config, run_dir, resume=begun, video=False)
        except run.Interrupted:
            raise SystemExit(f"{name}: stopped and saved; the same command goes on from there") from None
        except (run.Diverged, run.SimulatorFailed) as error:
            raise SystemExit(f"{name}: {error}") from None
    return run_dir


def read(run_dir: pathlib.Path, measure: str) -> Result:
    """Read the evaluations of a finished run."""
    lines = record.read(run_dir)
    mine = [
        line
        for line in lines
        if line["kind"] == "evaluation" and line["split"] == "train" and line["mode"] == "deterministic"
    ]
    final = next(line for line in mine if line["final"])
    before = [line for line in mine if line["step"] < final["step"]]
    curve = [*sorted(before, key=lambda line: line["step"]), final]  # an old checkpoint may have been evaluated since
    return Result(
        np.asarray([line["step"] for line in curve]),
        np.stack([line["values"][measure] for line in curve]),
        final["values"][measure],
        record.task_names(lines),
        json.loads((run_dir / run.SUMMARY).read_text())["seconds_of_training"],
    )


def table(results: Mapping[str, Result], measure: str) -> str:
    """A Markdown table of the final evaluation; every variant is compared with the first."""
    columns = ("variant", "mean", "median", "worst task", "beats the first", "training, s")
    rows = [columns, ["---"] * len(columns)]
    baseline = next(iter(results.values()))
    for name, result in results.items():
        summary = statistics.summarize(result.final)
        cells = [_interval(summary[key], measure) for key in ("mean", "median", "worst")]
        better = "" if result is baseline else _interval(
            statistics.probability_of_improvement(result.final, baseline.final), "success"
        )  # fmt: skip
        rows.append((name, *cells, better, f"{result.seconds:.0f}"))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _interval(summary: Mapping[str, float | None], measure: str) -> str:
    def text(value: float | None) -> str:
        if value is None:
            return "none"
        return f"{value:.2f}" if measure.startswith("success") else f"{value:,.0f}"

    value = text(summary["value"])
    return value if summary["low"] is None else f"{value} [{text(summary['low'])}, {text(summary['high'])}]"


def setting(config: RunConfig) -> str:
    """Steps, seeds, machine and versions, for the line below a table."""
    have = versions()
    return (
        f"{config.suite}, {config.total_steps:,} steps, {config.num_seeds} seeds, "
        f"{config.final_evaluation_episodes} episodes a task; intervals: 95% bootstrap over seeds. "
        f"{have['processor']}, {have['processor_count']} cores, {have['device']['kind']}; "
        f"Python {have['python']}, jax {have['packages']['jax']}"
    )


def draw_curves(axes: plt.Axes, results: Mapping[str, Result], label: str) -> None:
    """Draw the mean over tasks of every variant, with its 95% interval over seeds."""
    looks = itertools.cycle(itertools.product(("-", "--"), COLOURS))  # dashed when the colours run out
    for (name, result), (line, colour) in zip(results.items(), looks, strict=False):
        agents = result.curve.mean(axis=2)  # [N, S]
        axes.plot(result.steps, agents.mean(axis=1), line, color=colour, label=name, linewidth=1.8)
        if agents.shape[1] > 1:
            ends = [statistics.bootstrap(values, statistics.STATISTICS["mean"]) for values in result.curve]
            axes.fill_between(
                result.steps, *np.transpose(ends), color=colour, alpha=0.15 if len(results) <= 8 else 0.06, linewidth=0
            )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(title="learning curves", xlabel="environment steps", ylabel=label)
    if len(results) > 8:  # inside the axes, so many names would hide the curves
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.legend(frameon=True, framealpha=0.8, edgecolor="none")  # readable even on top of a curve


def draw_tasks(axes: plt.Axes, results: Mapping[str, Result], label: str) -> None:
    """Draw every variant's final values: a dot per task, the mean over seeds, and a line over the tasks' range."""
    for index, ((name, result), colour) in enumerate(zip(results.items(), itertools.cycle(COLOURS), strict=False)):
        tasks = result.final.mean(axis=0)
        axes.plot([tasks.min(), tasks.max()], [index, index], color=colour, alpha=0.4, linewidth=2)
        axes.plot(tasks, np.full(len(tasks), index), "o", color=colour, markersize=4, alpha=0.8, label=name)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set(title="every task, in the end", xlabel=label)


def figure(columns: int, height: float = 3.6, rows: int = 1) -> tuple[plt.Figure, list[plt.Axes]]:
    """A figure of panels, listed row by row, in the style of a run's plots; ``height`` is the height of a row."""
    plt.rcParams.update(plots.STYLE)
    size = (5.2 * columns, height * rows)
    made, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    return made, list(axes.ravel())
