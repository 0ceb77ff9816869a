"""Auxiliary losses and their gate (arXiv 1812.02224): which losses may train the encoder, and do they help?

The pendulum's state is observed through a random projection together with eight distractors, so that the encoder has
something to learn and reconstruction can mislead it. The auxiliary losses (transitions, rewards, reconstruction) are
left out, all admitted, or gated by the cosine of their gradient with that of the critics: in full, or weighted by it.

Six variants of two to three minutes each on two cores. A stopped study resumes when started again.

    python experiments/auxiliary_gating.py --output=runs/auxiliary_gating
"""

from __future__ import annotations

import pathlib

import numpy as np
import study
from absl import app, flags
from matplotlib.ticker import EngFormatter

from mtjax import suites
from mtjax.launch import presets
from mtjax.training import record
from mtjax.training.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", "runs/auxiliary_gating", "Folder for the runs, the picture and the table.")
_SUITE = flags.DEFINE_string("suite", "control-pendulum-rich", "A suite whose observations need an encoder.")
_STEPS = flags.DEFINE_integer("total_steps", 135_000, "Environment steps of every variant and seed.")
_SEEDS = flags.DEFINE_integer("num_seeds", 5, "Agents of every variant.")
LOSSES = {"transition": 1.0, "reward": 1.0, "reconstruction": 1.0}


def variants() -> dict[str, RunConfig]:
    """No auxiliary loss; all losses, ungated and under both gates; misleading reconstruction, ungated and gated."""

    def variant(gate: str, *losses: str) -> RunConfig:
        costs = {f"{name}_cost": cost if name in losses else 0.0 for name, cost in LOSSES.items()}
        return presets.configure(
            _SUITE.value,
            learner="hipbmdp",
            theta_size=0,
            arrangement="one_hot",
            grads="mean",
            auxiliary_gate=gate,
            total_steps=_STEPS.value,
            num_seeds=_SEEDS.value,
            evaluate_every=_STEPS.value // 10,
            evaluation_episodes=5,
            final_evaluation_episodes=20,
            **costs,
        )

    return {
        "no auxiliary loss": variant("none"),
        "all losses": variant("none", *LOSSES),
        "all, gated": variant("unweighted", *LOSSES),
        "all, gated by weight": variant("weighted", *LOSSES),
        "reconstruction": variant("none", "reconstruction"),
        "reconstruction, gated by weight": variant("weighted", "reconstruction"),
    }


def draw_gates(axes, run_dir: pathlib.Path, title: str, start: int) -> dict[str, float]:
    """Draw each loss's weight after step ``start``, averaged over seeds and tasks. Returns the means over time."""
    lines = [line for line in record.read(run_dir) if line["kind"] == "train" and line["step"] > start]
    means = {}
    for name, colour in zip(LOSSES, study.COLOURS, strict=False):
        points = [
            (line["step"], np.mean(line["values"][f"gate/{name}"]))
            for line in lines
            if f"gate/{name}" in line["values"]
        ]
        steps, weights = np.transpose(points)
        axes.plot(steps, weights, color=colour, label=name, linewidth=1.2)
        means[name] = float(weights.mean())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(title=title, xlabel="environment steps", ylabel="weight on the encoder", ylim=(0, 1))
    axes.legend()
    return means


def warm_start(config: RunConfig) -> int:
    """Environment steps of all tasks before learning starts; until then, there are no gradients to compare."""
    return config.hyper.warm_start * len(suites.make(config.suite).tasks)


def main(argv):
    del argv
    folder, configs = pathlib.Path(_OUTPUT.value), variants()
    results = study.compare(configs, folder, "return")
    figure, panels = study.figure(2, rows=2)
    study.draw_curves(panels[0], results, "return, mean over tasks")
    study.draw_tasks(panels[1], results, "return")
    admitted = {}
    for axes, name in zip(panels[2:], ("all, gated", "all, gated by weight"), strict=True):
        run_dir = study.train(name, configs[name], folder)  # already finished: only returns the folder
        admitted[name] = draw_gates(axes, run_dir, name, warm_start(configs[name]))
    figure.savefig(folder / "auxiliary_gating.png")
    text = study.table(results, "return") + "\n\n" + study.setting(next(iter(configs.values())))
    for name, means in admitted.items():
        text += f"\n\nMean weight, {name}: " + ", ".join(f"{loss} {value:.2f}" for loss, value in means.items())
    (folder / "auxiliary_gating.md").write_text(text + "\n")
    print(text, f"\n{folder / 'auxiliary_gating.png'}")


if __name__ == "__main__":
    app.run(main)
