"""PPO on Meta-World MT10: one agent, ten tasks, the simulator inside the compiled loop.

    python experiments/metaworld_mt10.py --output=runs/mt10          # an hour
    python experiments/metaworld_mt10.py --output=runs/mt10-quick --preset=metaworld-quick --minutes=5

Training ends after an hour (or `--minutes`), however far it has come, and the agent is evaluated. The table has the
deterministic policy's success on every task over 50 fresh goals; the picture shows the training policy's success
against wall-clock time. Both are made from the run's folder: a stopped run resumes; a run whose time is up or that is
finished (by this script or by `mtjax-train`) is only evaluated and shown. Needs the extra `metaworld`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import study
from absl import app, flags

from mtjax.launch import environment, presets
from mtjax.training import record, run
from mtjax.training.config import load_config

_OUTPUT = flags.DEFINE_string("output", "runs/metaworld-mt10", "The run's folder.")
_PRESET = flags.DEFINE_string("preset", "auto", "The preset: auto is for an hour, metaworld-quick for minutes.")
_STEPS = flags.DEFINE_integer("total_steps", None, "Environment steps; by default the preset's.")
_MINUTES = flags.DEFINE_float("minutes", 60, "Training ends after so long, if it is not over by then; 0: never.")
_ARRANGEMENT = flags.DEFINE_string("arrangement", "independent", "What the tasks share, e.g. multi_head.")
_SEED = flags.DEFINE_integer("seed", 0, "The run's seed.")
MINUTES = (5, 10, 20, 40)  # times at which the training policy's success is reported
SMOOTH = 5  # records of the training curve to average over: a single record has few episodes


def training_curve(run_dir: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(seconds [N], environment steps [N], success of the training policy [N, T], a running mean)."""
    lines = [line for line in record.read(run_dir) if line["kind"] == "train" and "success" in line["values"]]
    success = np.stack([np.asarray(line["values"]["success"]).mean(axis=0) for line in lines])
    smooth = np.stack([np.nanmean(success[max(0, i - SMOOTH + 1) : i + 1], axis=0) for i in range(len(success))])
    return np.asarray([line["time"] for line in lines]), np.asarray([line["step"] for line in lines]), smooth


def evaluated(run_dir: pathlib.Path) -> Mapping[str, Any] | None:
    """The last checkpoint's deterministic evaluation over at least as many goals as a finished run's, or None."""
    least = load_config(run_dir).final_evaluation_episodes
    lines = [line for line in record.read(run_dir) if line["kind"] == "evaluation" and line["mode"] == "deterministic"]
    enough = [line for line in lines if line["split"] == "train" and line["episodes"] >= least]
    return max(reversed(enough), key=lambda line: line["step"], default=None)


def interim(run_dir: pathlib.Path) -> str:
    """Mean success of the deterministic policy in each evaluation during training, as text.

    Evaluations made after training was stopped are left out; they differ in their number of episodes.
    """
    episodes = load_config(run_dir).evaluation_episodes
    lines = [
        line
        for line in record.read(run_dir)
        if line["kind"] == "evaluation"
        and not line["final"]
        and line["episodes"] == episodes
        and (line["split"], line["mode"]) == ("train", "deterministic")
    ]
    if not lines:
        return "none"
    reached = [
        f"{np.mean(line['values']['success_any']):.2f} after {line['time'] / 60:.1f} min ({line['step']:,} steps)"
        for line in lines
    ]
    return f"{', '.join(reached)}; {episodes} goals a task"


def train(run_dir: pathlib.Path) -> None:
    """Train until the run is finished or its time is up."""
    steps = {} if _STEPS.value is None else {"total_steps": _STEPS.value}
    config = presets.configure(
        "metaworld-mt10",
        preset=_PRESET.value,
        grads="mean",
        arrangement=_ARRANGEMENT.value,
        seed=_SEED.value,
        **steps,
    )
    environment.prepare()
    environment.keep_compiled_programs("auto")
    begun = (run_dir / "config.json").exists()
    spent = max((line["time"] for line in record.read(run_dir) if "time" in line), default=0.0) if begun else 0.0
    left = 60 * _MINUTES.value - spent
    if _MINUTES.value and left <= 0:
        return
    timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    if _MINUTES.value:
        timer.start()
    with contextlib.suppress(run.Interrupted):  # stopped by the timer: the run is saved and is evaluated as it is
        run.train(config, run_dir, resume=begun)
    timer.cancel()


def table(run_dir: pathlib.Path) -> str:
    """A Markdown table of every task's final success, followed by the mean success over time."""
    names, values = record.task_names(record.read(run_dir)), evaluated(run_dir)["values"]
    reached, last = (np.asarray(values[key]).mean(axis=0) for key in ("success_any", "success_last"))
    rows = ["| task | success at any step | at the last step |", "| --- | --- | --- |"]
    rows += [f"| {name} | {a:.2f} | {b:.2f} |" for name, a, b in zip(names, reached, last, strict=True)]
    rows.append(f"| **mean** | **{reached.mean():.2f}** | **{last.mean():.2f}** |")
    seconds, steps, success = training_curve(run_dir)
    mean = success.mean(axis=1)
    at = [f"{mean[seconds <= 60 * m][-1]:.2f} after {m} min" for m in MINUTES if m * 60 <= seconds[-1]]
    at.append(f"{mean[-1]:.2f} after {seconds[-1] / 60:.0f} min")
    rate = steps[-1] / seconds[-1]
    config = load_config(run_dir)
    return (
        "\n".join(rows)
        + f"\n\nDeterministic policy on the way: {interim(run_dir)}.\n"
        + f"Training policy, mean success: {', '.join(at)}; {steps[-1]:,} steps at {rate:,.0f} steps/s.\n"
        + study.setting(config)
    )


def draw(run_dir: pathlib.Path) -> None:
    """Draw every task's success over wall-clock time, and their mean."""
    seconds, _, success = training_curve(run_dir)
    figure, (axes,) = study.figure(1, height=4.2)
    names = record.task_names(record.read(run_dir))
    for values, name, colour in zip(success.T, names, study.COLOURS, strict=False):
        axes.plot(seconds / 60, values, color=colour, linewidth=1.0, alpha=0.8, label=name)
    axes.plot(seconds / 60, success.mean(axis=1), color="black", linewidth=2.4, label="mean")
    axes.set(title="success of the training policy", xlabel="minutes on two cores", ylabel="success", ylim=(0, 1.02))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(run_dir / "mt10.png")


def main(argv):
    del argv
    run_dir = pathlib.Path(_OUTPUT.value)
    if not (run_dir / run.SUMMARY).exists():
        train(run_dir)
    if not evaluated(run_dir):
        run.evaluate(run_dir, episodes=load_config(run_dir).final_evaluation_episodes)
    text = table(run_dir)
    (run_dir / "mt10.md").write_text(text + "\n")
    draw(run_dir)
    print(text, f"\n{run_dir / 'mt10.png'}")


if __name__ == "__main__":
    app.run(main)
