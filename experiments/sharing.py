"""Where does sharing help, and where does it hurt? The arrangements side by side, at equal steps.

    python experiments/sharing.py --suites=hidden-hopper --output=runs/sharing
    python experiments/sharing.py --suites=metaworld-mt10 --total_steps=600000 --num_seeds=2

Every variant is the same learner with the same settings; only what its tasks share differs. The baseline is one
agent per task, which has as much experience of each task, shares nothing and has T times as many parameters. The last
two variants share as "one-hot task" and "a head a task" do, but have a residual critic of 256 features, with values in
each task's own unit (PopArt): published comparisons say that this matters more than routing. A stopped study resumes
when started again.
"""

from __future__ import annotations

import pathlib

import numpy as np
import study
from absl import app, flags

from mtjax.launch import presets
from mtjax.training.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", "runs/sharing", "Folder for the runs, the pictures and the tables.")
_SUITES = flags.DEFINE_list("suites", ["hidden-hopper", "metaworld-mt10"], "The suites, one picture each.")
_STEPS = flags.DEFINE_integer("total_steps", 1_500_000, "Environment steps of every variant and seed.")
_SEEDS = flags.DEFINE_integer("num_seeds", 3, "Agents of every variant.")
_LEARNER = flags.DEFINE_enum("learner", "ppo", ["ppo", "sac"], "The learner of every variant.")
_VARIANTS = flags.DEFINE_list("variants", [], "Only these; empty means all.")

VARIANTS: dict[str, dict] = {
    "one agent per task": {"arrangement": "independent"},
    "told nothing": {"arrangement": "none"},
    "one-hot task": {"arrangement": "one_hot"},
    "learned embedding": {"arrangement": "embedding"},
    "a head a task": {"arrangement": "multi_head"},
    "an encoder a task": {"arrangement": "task_encoders"},
    "an encoder and a head a task": {"arrangement": "encoders_and_heads"},
    "FiLM": {"arrangement": "film"},
    "hypernetwork": {"arrangement": "hypernetwork"},
    "mixture of experts": {"arrangement": "experts"},
    "MOORE": {"arrangement": "moore"},
    "PaCo": {"arrangement": "paco"},
    "Soft Modularization": {"arrangement": "soft_modular"},
    "description": {"arrangement": "context"},
    "CARE": {"arrangement": "care"},
    "residual critic, PopArt: one-hot task": {"arrangement": "one_hot", "preset": "popart"},
    "residual critic, PopArt: a head a task": {"arrangement": "multi_head", "preset": "popart"},
}
# Meta-World's preset is for runs of hours: its batches are four times as large, and its detours end. In short runs
# (60,000 steps per task), more frequent updates are better; the guide's table was made with these settings.
EARLY = {
    "num_envs": 16,
    "rollout_length": 64,
    "num_minibatches": 4,
    "training_horizon": 0,
    "detour_share": 0.2,
    "detour_part": 1.0,
}


def variants(suite: str) -> dict[str, RunConfig]:
    """The configurations for one suite by name. Raises UsageError for an unknown variant."""
    usual = [name for name, changes in VARIANTS.items() if _LEARNER.value == "ppo" or "preset" not in changes]
    names = _VARIANTS.value or usual  # the presets are for PPO only
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise app.UsageError(f"variants: no {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    same = {
        "learner": _LEARNER.value,
        "grads": "mean",
        "total_steps": _STEPS.value,
        "num_seeds": _SEEDS.value,
        "evaluate_every": max(_STEPS.value // 10, 1),
        "evaluation_episodes": 5,
        "final_evaluation_episodes": 20,
    }
    if suite.startswith("metaworld") and _LEARNER.value == "ppo":
        same |= EARLY
    return {name: presets.configure(suite, **{**VARIANTS[name], **same}) for name in names}


def draw_gain(axes, results: dict[str, study.Result], label: str) -> None:
    """Draw what every task gains or loses in each variant, compared with the first variant."""
    baseline = next(iter(results.values()))
    names = list(results)[1:]
    gain = np.stack([results[name].final.mean(axis=0) - baseline.final.mean(axis=0) for name in names])
    bound = max(np.abs(gain).max(), 1e-8)
    image = axes.imshow(gain, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(baseline.tasks)), baseline.tasks, rotation=45, ha="right")
    axes.figure.colorbar(image, ax=axes, label=f"{label}, gained")
    axes.set(title=f"against {next(iter(results))}")
    axes.grid(False)


def main(argv):
    del argv
    for suite in _SUITES.value:
        folder = pathlib.Path(_OUTPUT.value) / suite
        measure, label = ("success_any", "success") if suite.startswith("metaworld") else ("return", "return")
        configs = variants(suite)
        results = study.compare(configs, folder, measure)
        figure, (curves, tasks, gain) = study.figure(3, height=3.0 + 0.2 * len(results))
        study.draw_curves(curves, results, f"{label}, mean over tasks")
        study.draw_tasks(tasks, results, label)
        if len(results) > 1:
            draw_gain(gain, results, label)
        figure.savefig(folder / "sharing.png")
        text = study.table(results, "success" if measure != "return" else measure)
        text += "\n\n" + study.setting(next(iter(configs.values())))
        (folder / "sharing.md").write_text(text + "\n")
        print(text, f"\n{folder / 'sharing.png'}")


if __name__ == "__main__":
    app.run(main)
