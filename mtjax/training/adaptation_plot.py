"""The plot of ``adaptation.json``: performance against episodes seen in unseen tasks, on average and per task."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtjax.training.plots import NAMED_TASKS, PERCENT, STYLE

COLOURS = {"inferred": "#1b4f8a", "fine-tuned": "#e08a1e", "zero-shot": "#59616b"}
COLUMNS = 5


def draw(found: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draw rows of panels for every split: the mean over its tasks, then each task (at most the first ten).

    Lines are means over seeds, bands their 95% intervals, of success if the suite has it, otherwise of the return.

    Args:
        found: by split, the output of :func:`mtjax.training.adaptation.as_dict`.
        path: path of the PNG file.
    """
    rows = {split: math.ceil((1 + min(len(part["tasks"]), NAMED_TASKS)) / COLUMNS) for split, part in found.items()}
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(2.6 * COLUMNS, 2.3 * sum(rows.values()) + 0.5), layout="constrained")
        FigureCanvasAgg(made)
        parts = made.subfigures(len(found), 1, height_ratios=list(rows.values()), squeeze=False)[:, 0]
        lines: dict[str, Any] = {}
        for part, (split, curves) in zip(parts, found.items(), strict=True):
            grid = part.subplots(rows[split], COLUMNS, squeeze=False).ravel()
            panels = ["", *curves["tasks"][:NAMED_TASKS]]
            for axes, task in zip(grid, panels, strict=False):
                lines |= _draw(axes, curves, task)
                axes.set_title(task or f"{split}, mean")
            for axes in grid[len(panels) :]:
                axes.set_axis_off()
        made.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
        made.savefig(path)


def _draw(axes: Axes, curves: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Draw the curves of one task, or of the mean if ``task`` is "". Returns the lines by method."""
    x, lines = range(len(curves["episodes"])), {}
    for method, measures in curves["values"].items():
        measure = "success_any" if "success_any" in measures else "return"
        points = [point["tasks"][task] if task else point["mean"] for point in measures[measure]]
        style = {"color": COLOURS[method], "marker": "o", "markersize": 3.5, "linewidth": 1.8}
        (lines[method],) = axes.plot(x, [point["value"] for point in points], **style)
        if points[0]["low"] is not None:
            ends = np.array([[point[end] for point in points] for end in ("low", "high")], float)  # NaN for None
            axes.fill_between(x, *ends, color=COLOURS[method], alpha=0.16, linewidth=0)
        if measure == "success_any":
            axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xticks(list(x), [str(number) for number in curves["episodes"]])
    axes.set_xlabel("episodes seen in the task")
    return lines
