"""Exploration in two Meta-World tasks at which PPO got stuck: reaching behind a handle, and lifting an object.

    python experiments/exploration.py --task=drawer-open --output=runs/exploration   # needs the extra `metaworld`
    python experiments/exploration.py --task=pick-place --output=runs/exploration

The drawer is opened from behind its handle. The straight path ends in front of the handle, where half of the reward is
reached and pushing on gains nothing. An unsquashed Gaussian policy finds this place and stays there: the next action
undoes what its noise does (`detour_share` adds random actions that are held), and its mean may grow beyond the actions'
bounds, where noise changes nothing (`bound_cost` keeps it within them).

An object yields almost no reward until it is lifted, for which the gripper has to close and stay closed for several
steps by chance. It helps to have more tries in the same number of steps (`training_horizon` cuts futile episodes short)
and updates in which a lucky try stands out: large batches. Detours end every grasp.

Each task is trained alone, by agents of its own. A stopped study resumes when started again.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import study
from absl import app, flags

from mtjax.launch import presets
from mtjax.training.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", "runs/exploration", "Folder for the runs, the picture and the table.")
_TASK = flags.DEFINE_enum("task", "drawer-open", ["drawer-open", "pick-place"], "Which of the two.")
_STEPS = flags.DEFINE_integer("total_steps", 0, "Environment steps of every variant and seed; 0: the study's own.")
_SEEDS = flags.DEFINE_integer("num_seeds", 0, "Agents of every variant; 0: the study's own.")


class Study(NamedTuple):
    """One task's study: steps, seeds, what all variants have in common, and the variants by name."""

    steps: int
    seeds: int
    same: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]


# Whole episodes and batches of 16 × 64 steps: Meta-World's preset before the study of pick-place.
BEFORE = {"training_horizon": 0, "rollout_length": 64, "num_minibatches": 4}
NO_DETOURS = {"detour_share": 0.0}
THROUGHOUT = {"detour_share": 0.2, "detour_part": 1.0}

STUDIES = {
    "drawer-open": Study(
        200_000,
        4,
        BEFORE,
        {
            "noise alone": {"bound_cost": 0.0, **NO_DETOURS},
            "means within bounds": NO_DETOURS,
            "detours": {"bound_cost": 0.0, **THROUGHOUT},
            "both": THROUGHOUT,
        },
    ),
    "pick-place": Study(
        600_000,
        3,
        NO_DETOURS,
        {
            "whole episodes, small batches": BEFORE,
            "cut at 200 steps, large batches": {},
            "the same, with detours": THROUGHOUT,
        },
    ),
}


def variants(task: str) -> dict[str, RunConfig]:
    """The configurations by name; the others are compared with the first."""
    study_of_task = STUDIES[task]
    steps = _STEPS.value or study_of_task.steps
    same = {
        "grads": "mean",
        "total_steps": steps,
        "num_seeds": _SEEDS.value or study_of_task.seeds,
        "learning_rate_schedule": "constant",
        "evaluate_every": max(steps // 10, 1),
        "evaluation_episodes": 5,
        "final_evaluation_episodes": 20,
        **study_of_task.same,
    }
    return {
        name: presets.configure(f"metaworld-mt1-{task}", **{**same, **options})
        for name, options in study_of_task.variants.items()
    }


def main(argv):
    del argv
    task, folder = _TASK.value, pathlib.Path(_OUTPUT.value) / _TASK.value
    configs = variants(task)
    results = study.compare(configs, folder, "success_any")
    figure, (curves, agents) = study.figure(2, height=4.2)
    study.draw_curves(curves, results, f"success at {task}")
    for row, (result, colour) in enumerate(zip(results.values(), study.COLOURS, strict=False)):
        success = result.final.mean(axis=1)
        agents.plot(success, [row] * len(success), "o", color=colour, alpha=0.6, markersize=9)
    agents.set_yticks(range(len(results)), list(results))
    agents.set(title="every agent, in the end", xlabel="success", xlim=(-0.05, 1.05), ylim=(len(results) - 0.5, -0.5))
    picture = folder / f"exploration-{task}.png"
    figure.savefig(picture)
    text = study.table(results, "success") + "\n\n" + study.setting(next(iter(configs.values())))
    (folder / "exploration.md").write_text(text + "\n")
    print(text, f"\n{picture}")


if __name__ == "__main__":
    app.run(main)
