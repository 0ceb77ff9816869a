"""Plots of a run, drawn from its folder alone: learning curves, gradient conflict, time, losses.

Thin lines are single tasks (mean over seeds); thick ones are the mean, median and worst over the tasks of each
seed, averaged over seeds; bands span all seeds, from minimum to maximum.
"""

from __future__ import annotations

import math
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, MaxNLocator

from mtjax.training import statistics
from mtjax.training.progress import steps_text
from mtjax.training.series import Run, Series, load, snapshots, thin
from mtjax.training.series import known as _known

AGGREGATES = {"mean": "#1b4f8a", "median": "#e08a1e", "worst": "#b3262e"}
SPLITS = {"train": "#1b4f8a", "interpolation": "#2a9d74", "extrapolation": "#b3262e"}
ROLLOUT, UPDATE, OTHER, INK, GREY = "#4c8fc7", "#e7a545", "#d5d9de", "#22262b", "#8a929c"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b6bcc4",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "xtick.color": "#59616b",
    "ytick.color": "#59616b",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}
NAMED_TASKS = 10  # up to this many tasks are named in a legend or on an axis
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f}%")


def plot_run(run_dir: str | os.PathLike) -> list[pathlib.Path]:
    """Draw every plot for which a run's record has data, into ``plots/``.

    Args:
        run_dir: the run's folder; it may still be training.

    Returns:
        The PNG files written.

    Raises:
        FileNotFoundError, ValueError: the folder has no record, or a broken one.
    """
    run = load(run_dir)
    folder = pathlib.Path(run_dir) / "plots"
    folder.mkdir(exist_ok=True)
    pictures = {
        "learning_curves": learning_curves,
        "tasks": task_curves,
        "generalisation": generalisation,
        "gradients": gradients,
        "routing": routing,
        "time": time_spent,
        "learning": quantities,
    }
    written = []
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's nan-functions warn if all values are NaN
        for name, draw in pictures.items():
            figure = draw(run)
            if figure is not None:
                FigureCanvasAgg(figure)
                path = folder / f"{name}.png"
                figure.savefig(path)
                written.append(path)
    return written


# --------------------------------------------------------------------------------------------- the plots


def learning_curves(run: Run) -> Figure | None:
    """Curves of return, and success if there is any (rows), in training and deterministic evaluation (columns)."""
    evaluation = run.evaluations.get("train", {})
    rows = [
        ("return", (run.train.get("return"), evaluation.get("return"))),
        ("success", (run.train.get("success"), evaluation.get("success_any"))),
    ]
    rows = [(name, both) for name, both in rows if any(map(_known, both))]
    columns = [i for i in (0, 1) if any(_known(both[i]) for _, both in rows)]
    if not rows:
        return None
    figure = Figure(figsize=(1.2 + 4.4 * len(columns), 0.9 + 2.9 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    for (name, both), axes_of_row in zip(rows, grid, strict=True):
        for i, axes in zip(columns, axes_of_row, strict=True):
            _curves(axes, both[i], run.tasks, marker="o" if i else None)
            where = "deterministic evaluation" if i else "during training"
            _finish(axes, f"{name.capitalize()}, {where}", percent=name == "success")
    _label_steps(grid)
    _legend(figure, grid[0, 0], len(run.tasks), columns=4 if len(columns) > 1 else 3)
    return figure


def _curves(axes: Axes, series: Series | None, tasks: Sequence[str], marker: str | None) -> None:
    """Draw thin lines for tasks, thick ones with a band over seeds for aggregates. ``series`` is [N, S, T]."""
    if not _known(series):
        axes.text(0.5, 0.5, "no data yet", ha="center", color=GREY, transform=axes.transAxes)
        return
    series = thin(series)
    for index, colour in enumerate(_task_colours(series.values.shape[-1])):
        line = series.map(lambda values, index=index: np.nanmean(values[..., index], axis=-1))
        label = tasks[index] if index < len(tasks) else f"task {index}"
        _line(axes, line, color=colour, linewidth=0.9, alpha=0.75, label=label, zorder=2)
    for rank, (name, colour) in enumerate(AGGREGATES.items()):
        aggregate = getattr(statistics, name)
        per_seed = series.map(lambda values, f=aggregate: f(values, skip_missing=True))
        style: dict[str, Any] = {"color": colour, "linewidth": 2.3, "label": name, "zorder": 5 - 0.1 * rank}
        if name == "median":  # dashed and on top: with two tasks it equals the mean
            style |= {"linestyle": (0, (3, 1)), "zorder": 6}
        if marker and len(series.steps) <= 40:
            style |= {"marker": marker, "markersize": 3.5}
        _band(axes, per_seed, **style)


def task_curves(run: Run) -> Figure | None:
    """One small plot per task: training (line, band over seeds) and deterministic evaluation (dots)."""
    name = "success" if _known(run.train.get("success")) else "return"
    train = run.train.get(name)
    dots = run.evaluations.get("train", {}).get("success_any" if name == "success" else name)
    if not _known(train) and not _known(dots):
        return None
    total = next(series.values.shape[-1] for series in (train, dots) if _known(series))
    columns = min(total, 10 if total > 24 else 6 if total > 8 else 4)
    rows = math.ceil(total / columns)
    size = (0.9 + columns * (1.55 if total > 24 else 2.3), 0.9 + rows * (1.35 if total > 24 else 1.75))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= total:
            axes.set_visible(False)
            above: Any = grid[index // columns - 1, index % columns]
            above.xaxis.set_tick_params(labelbottom=True)
            continue
        if _known(train):
            line = thin(train.map(lambda values, index=index: values[..., index]))
            _band(axes, line, color=AGGREGATES["mean"], linewidth=1.5, label="during training")
        if _known(dots):
            points = dots.map(lambda values, index=index: np.nanmean(values[..., index], axis=-1))
            style = {"linestyle": "none", "marker": "o", "markersize": 3, "color": AGGREGATES["median"]}
            _line(axes, points, label="deterministic evaluation", zorder=6, **style)
        _finish(axes, "", percent=name == "success", locator=3)
        axes.set_title(_short(run.tasks, index, 20), fontsize=8, fontweight="normal")
    figure.suptitle(f"{name.capitalize()} per task", x=0.01, ha="left", fontweight="bold", fontsize=11)
    figure.supxlabel("environment steps", fontsize=9)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def generalisation(run: Run) -> Figure | None:
    """Mean and worst of training and held-out tasks in deterministic evaluation; None without held-out tasks."""
    splits = [split for split in run.evaluations if _known(run.evaluations[split].get("return"))]
    if len(splits) < 2:
        return None
    names = ["return"] + ["success_any"] * _known(run.evaluations[splits[0]].get("success_any"))
    figure = Figure(figsize=(1.2 + 4.4 * len(names), 3.6), layout="constrained")
    grid = figure.subplots(1, len(names), squeeze=False, sharex=True)
    for name, axes in zip(names, grid[0], strict=True):
        for split in splits:
            series, colour = run.evaluations[split].get(name), SPLITS.get(split, OTHER)
            if _known(series):
                mean = {"color": colour, "marker": "o", "markersize": 4.5, "linewidth": 2.3}
                worst = {"color": colour, "marker": "v", "markersize": 5.5, "linewidth": 1.2, "linestyle": "--"}
                worst |= {"markerfacecolor": "white", "markeredgecolor": colour}
                _band(axes, series.map(statistics.mean), label=f"{split}, mean", **mean)
                low = series.map(lambda values: statistics.worst(values).mean(axis=-1))
                _line(axes, low, label=f"{split}, worst", **worst)
        label = "Success" if name == "success_any" else "Return"
        _finish(axes, f"{label} on unseen tasks (zero-shot)", percent=name == "success_any")
    _label_steps(grid)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(splits))
    return figure


def gradients(run: Run) -> Figure | None:
    """Cosines between the tasks' gradients at five points in time, their mean, and the share of conflicting pairs."""
    cosine = run.train.get("grads/cosine")
    if not _known(cosine) or cosine.values.shape[-1] < 2:
        return None
    maps = snapshots(cosine, 5)
    tasks = cosine.values.shape[-1]
    pairs = ~np.eye(tasks, dtype=bool)
    over_seeds = np.nanmean(maps.values, axis=1)  # [N, T, T]
    limit = min(1.0, max(0.1, math.ceil(10 * np.nanquantile(np.abs(over_seeds[:, pairs]), 0.98)) / 10))
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.05))
    top, bottom = halves
    row = top.subplots(1, len(over_seeds), squeeze=False)[0]
    for index, (axes, step, matrix) in enumerate(zip(row, maps.steps, over_seeds, strict=True)):
        image = axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(f"{steps_text(step)} steps", fontsize=9, fontweight="normal")
        _task_ticks(axes, run.tasks, tasks, names=index == 0)
    top.colorbar(image, ax=row, shrink=0.85, label="cosine", extend="max" if limit < 1 else "neither")
    top.suptitle("Cosine between the tasks' gradients", x=0.01, ha="left", fontweight="bold", fontsize=11)
    left, right = bottom.subplots(1, 2, sharex=True)
    _band(left, thin(cosine.map(lambda values: values[..., pairs].mean(axis=-1))), color=AGGREGATES["mean"])
    left.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    _finish(left, "Mean over pairs of tasks")
    conflict = run.train.get("grads/conflict")
    if not _known(conflict):
        conflict = cosine.map(lambda values: (values[..., pairs] < 0).mean(axis=-1))
    _band(right, thin(conflict), color=AGGREGATES["worst"])
    _finish(right, "Fraction of conflicting pairs (cosine < 0)", percent=True)
    _label_steps(np.array([[left, right]]))
    return figure


def routing(run: Run) -> Figure | None:
    """How each network routes or mixes for each task of the first seed, at three times; None if none does.

    Seeds are not averaged, because one seed's first module may play the role of another's third.
    """
    names = [name for name in run.train if name.startswith(("routing/", "weights/")) and _known(run.train[name])]
    if not names:
        return None
    figure = Figure(figsize=(11, 0.9 + 2.6 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 3, squeeze=False)
    for name, row in zip(names, grid, strict=True):
        maps = snapshots(run.train[name].map(lambda values: values[:, 0]), 3)  # [3, T, F]
        kind, network = name.split("/")
        limit = 1.0 if kind == "routing" else float(np.nanmax(np.abs(maps.values))) or 1.0
        style = {"cmap": "Blues", "vmin": 0} if kind == "routing" else {"cmap": "RdBu", "vmin": -limit}
        for index, axes in enumerate(row):
            if index >= len(maps.steps):
                axes.set_visible(False)
                continue
            image = axes.imshow(maps.values[index], aspect="auto", interpolation="nearest", vmax=limit, **style)
            _task_ticks(axes, run.tasks, maps.values.shape[1], names=index == 0)
            axes.set(xticks=[], xlim=(-0.5, maps.values.shape[2] - 0.5))
            axes.set_title(
                f"{kind} of the {network}, {steps_text(maps.steps[index])} steps", fontsize=9, fontweight="normal"
            )
        figure.colorbar(image, ax=row, shrink=0.85)
    figure.supxlabel("source modules, experts or parameter sets", fontsize=9)
    return figure


def time_spent(run: Run) -> Figure | None:
    """Seconds per rollout and per update, shares of the total time, and environment steps per second."""
    rollout, update = run.train.get("seconds/rollout"), run.train.get("seconds/update")
    if not _known(rollout) or not _known(update):
        return None
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    areas, bar, speed = figure.subplots(1, 3, width_ratios=(1.25, 0.8, 1))
    seconds = [thin(series.map(_mean_of_rest), 100) for series in (rollout, update)]
    parts = [part.values for part in seconds]
    areas.stackplot(seconds[0].steps, *parts, colors=(ROLLOUT, UPDATE), labels=("rollout", "update"))
    top = np.nanquantile(np.sum(parts, axis=0), 0.97) * 1.3
    areas.set_ylim(0, top if top > 0 else 1)  # a few slow updates would flatten the rest
    areas.legend(loc="upper right", ncols=2)
    _finish(areas, "Seconds per update")
    repeats = np.diff(run.updates, prepend=0)[-len(rollout.steps) :]
    totals = [float(np.nansum(_mean_of_rest(s.values) * repeats)) for s in (rollout, update)]
    totals.append(max(0.0, float(run.times[-1]) - sum(totals)))
    labels = ("rollout", "update", "compile,\nevaluate, save")
    bar.barh(labels, totals, color=(ROLLOUT, UPDATE, OTHER), height=0.55)
    for position, total in enumerate(totals):
        share = total / max(sum(totals), 1e-9)
        bar.text(total, position, f"  {total:,.0f} s ({share:.0%})", va="center", fontsize=8)
    bar.set_xlim(0, max(totals) * 1.55 + 1e-9)
    bar.invert_yaxis()
    bar.grid(axis="y", visible=False)
    bar.set_title("Where the time went")
    bar.set_xlabel("seconds")
    if _known(run.train.get("steps_per_second")):
        _line(speed, thin(run.train["steps_per_second"].map(_mean_of_rest)), color=INK, linewidth=1.5)
    _finish(speed, "Environment steps per second")
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    speed.set_ylim(bottom=0)
    _label_steps(np.array([[areas]]))
    _label_steps(np.array([[speed]]))
    return figure


TITLES = {
    "loss/policy": "Policy loss",
    "loss/value": "Value loss",
    "entropy": "Policy entropy",
    "kl": "KL divergence per update",
    "clip_fraction": "Fraction of clipped ratios",
    "explained_variance": "Explained variance of values",
    "grads/norm": "Gradient norm per task",
    "grads/weight": "Gradient weight per task",
    "grads/norm/value": "Gradient norm per task, values",
    "grads/weight/value": "Gradient weight per task, values",
    "grads/conflict/value": "Conflicting pairs, values",
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "length": "Episode length",
}
DRAWN_ELSEWHERE = ("return", "success", "episodes", "steps_per_second", "grads/cosine", "grads/conflict")


def quantities(run: Run) -> Figure | None:
    """Losses, entropy, KL and whatever else the updates measured: one small plot each."""
    found = [n for n in run.train if n not in DRAWN_ELSEWHERE and not n.startswith("seconds/")]
    found = [name for name in found if _known(run.train[name]) and run.train[name].values.ndim <= 3]
    if not found:
        return None
    order = {name: rank for rank, name in enumerate(TITLES)}
    found.sort(key=lambda name: (order.get(name, len(order)), name))
    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(0.6 + 3.1 * columns, 0.7 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for name, axes in zip(found, grid.flat, strict=False):
        series = thin(run.train[name])
        if series.values.ndim == 3:
            for index, colour in enumerate(_task_colours(series.values.shape[-1])):
                line = series.map(lambda values, index=index: np.nanmean(values[..., index], axis=-1))
                label = run.tasks[index] if index < len(run.tasks) else f"task {index}"
                _line(axes, line, color=colour, linewidth=0.9, alpha=0.75, label=label)
            series = series.map(lambda values: np.nanmean(values, axis=-1))
        _band(axes, series, color=AGGREGATES["mean"], linewidth=2, label="mean over tasks")
        _finish(axes, TITLES.get(name, name), locator=4)
        axes.ticklabel_format(axis="y", useOffset=False)
        _widen_constant(axes, run.train[name].values)
        if _spans_decades(series.values):
            axes.set_yscale("log")
    for axes in list(grid.flat)[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel("environment steps", fontsize=9)
    with_tasks = [axes for axes in grid.flat if len(axes.get_legend_handles_labels()[0]) > 1]
    if with_tasks:
        _legend(figure, with_tasks[0], len(run.tasks), columns=min(6, 2 * columns), place="upper left")
    return figure


# ------------------------------------------------------------------------------------------- lines, axes


def _line(axes: Axes, series: Series, **style: Any) -> None:
    """Draw a line through the finite values; gaps where no episode ended are bridged."""
    known = np.isfinite(series.values)
    if known.sum() == 1:  # a line of one point cannot be seen
        style = {"marker": "o", "markersize": 3.5} | style
    axes.plot(series.steps[known], series.values[known], solid_capstyle="round", **style)


def _band(axes: Axes, series: Series, **style: Any) -> None:
    """Draw the mean over seeds of [N, S] with a band from minimum to maximum; [N] gets no band."""
    if series.values.ndim == 1:
        return _line(axes, series, **style)
    low, high = np.nanmin(series.values, axis=1), np.nanmax(series.values, axis=1)
    known = np.isfinite(low)
    if series.values.shape[1] > 1:
        band = {"color": style["color"], "alpha": 0.16, "linewidth": 0, "zorder": 1.5}
        axes.fill_between(series.steps[known], low[known], high[known], **band)
    _line(axes, series.map(lambda values: np.nanmean(values, axis=1)), **style)


def _finish(axes: Axes, title: str, *, percent: bool = False, locator: int = 5) -> None:
    axes.set_title(title)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(locator))
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    if percent:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1] if locator < 4 else [0, 0.25, 0.5, 0.75, 1]))
        axes.yaxis.set_major_formatter(PERCENT)


def _widen_constant(axes: Axes, values: np.ndarray) -> None:
    """Give a constant an axis from 0 to twice its value; matplotlib's spans a few percent of it."""
    known = values[np.isfinite(values)]
    constant = float(known[0]) if known.size else 0.0
    if constant and np.ptp(known) <= 1e-6 * abs(constant):
        axes.set_ylim(sorted((0.0, 2 * constant)))


def _label_steps(grid: np.ndarray) -> None:
    for axes in grid[-1]:
        axes.set_xlabel("environment steps")


def _legend(figure: Figure, axes: Axes, tasks: int, columns: int, place: str = "lower center") -> None:
    """Draw a legend of the aggregates, then the tasks: by name if they are few, as one entry if they are many."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    thick = {name: handle for name, handle in entries.items() if handle.get_linewidth() >= 2}
    thin_ones = {name: handle for name, handle in entries.items() if name not in thick}
    if tasks > NAMED_TASKS:
        thin_ones = {f"each of {tasks} tasks": h for h in list(thin_ones.values())[tasks // 2 :][:1]}
    entries = thick | thin_ones
    columns = len(entries) if len(entries) <= 5 else columns
    location: Any = f"outside {place}"
    figure.legend(entries.values(), entries.keys(), loc=location, ncols=columns)


def _task_ticks(axes: Axes, tasks: Sequence[str], total: int, *, names: bool) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if total > NAMED_TASKS:
        axes.set(xticks=[], yticks=[])
        if names:
            axes.set_ylabel(f"{total} tasks")
        return
    labels = [_short(tasks, index, 14) for index in range(total)]
    axes.set_xticks(range(total), labels, rotation=90)
    axes.set_yticks(range(total), labels if names else [])
    axes.tick_params(length=0, labelsize=7)


def _task_colours(total: int) -> list[str]:
    """Pale colours along a colour map, so that neighbouring tasks of a family look alike."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0.12, 0.92, total))[:, :3]
    return [to_hex(0.45 + 0.55 * colour) for colour in colours]


def _short(tasks: Sequence[str], index: int, length: int) -> str:
    name = tasks[index] if index < len(tasks) else f"task {index}"
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _mean_of_rest(values: np.ndarray) -> np.ndarray:
    """Mean over all axes but the first, without NaN: [N, ...] -> [N]."""
    return np.nanmean(values.reshape(len(values), -1), axis=1)


def _spans_decades(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return bool(known.size and known.min() > 0 and np.quantile(known, 0.98) > 100 * np.quantile(known, 0.02))
