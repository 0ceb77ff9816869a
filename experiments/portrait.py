"""A run in one picture: a frame of every task's video above the curves of its evaluations.

    mtjax-train --run_dir=runs/hoppers
    python experiments/portrait.py --run_dir=runs/hoppers --output=portrait.png

The README's picture shows the default run. Needs the run's videos.
"""

from __future__ import annotations

import pathlib

import imageio.v3 as iio
import matplotlib.pyplot as plt
import numpy as np
import study
from absl import app, flags
from matplotlib.ticker import EngFormatter

from mtjax.training import plots

_RUN = flags.DEFINE_string("run_dir", None, "A finished run's folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", "portrait.png", "The picture.")
_MOMENT = flags.DEFINE_float("moment", 2.0, "Seconds into the videos.", lower_bound=0)
_MEASURE = flags.DEFINE_enum("measure", "return", ["return", "success_any"], "What is evaluated.")
SHARE = 0.62  # central part of a frame's width that is shown


def frame(path: pathlib.Path, moment: float) -> np.ndarray:
    """The video's frame at ``moment`` seconds, or its last frame, cropped at the sides: [height, width, 3]."""
    fps = iio.immeta(path, plugin="FFMPEG")["fps"]
    frames = iio.imread(path, plugin="FFMPEG")
    chosen = frames[min(round(moment * fps), len(frames) - 1)]
    side = round(chosen.shape[1] * (1 - SHARE) / 2)
    return chosen[:, side : chosen.shape[1] - side]


def draw(run_dir: pathlib.Path, measure: str, moment: float) -> plt.Figure:
    """Draw the picture. Raises FileNotFoundError if a task has no video."""
    result = study.read(run_dir, measure)
    plt.rcParams.update(plots.STYLE)
    figure = plt.figure(figsize=(10.4, 5.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.0, 1.75))
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.9, len(result.tasks)))
    curves, final = result.curve.mean(axis=1), result.final.mean(axis=0)  # [N, T], [T]: means over seeds
    for axes, name, value, colour in zip(
        above.subplots(1, len(result.tasks)), result.tasks, final, colours, strict=True
    ):
        axes.imshow(frame(run_dir / "videos" / f"{name}.mp4", moment))
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=8, color="black")
        axes.set_xlabel(
            f"{value:,.0f}" if measure == "return" else f"{value:.0%}", fontsize=9, color=colour, weight="bold"
        )
        for spine in axes.spines.values():
            spine.set(visible=True, color=colour, linewidth=2)
    axes = below.subplots()
    for values, colour in zip(curves.T, colours, strict=True):
        axes.plot(result.steps, values, color=colour, linewidth=1.0, alpha=0.8)
    axes.plot(
        result.steps,
        curves.mean(axis=1),
        color="black",
        linewidth=2.4,
        marker="o",
        markersize=4,
        label="mean of the tasks",
    )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    label = "return" if measure == "return" else "success"
    axes.set(title=f"{label} of the deterministic policy, every task", xlabel="environment steps", ylabel=label)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    return figure


def main(argv):
    del argv
    draw(pathlib.Path(_RUN.value), _MEASURE.value, _MOMENT.value).savefig(_OUTPUT.value)
    print(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
