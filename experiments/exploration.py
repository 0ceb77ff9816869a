"""What finds the drawer's handle and the lift of a grasped object: shorter episodes, many of them, and detours.

    python experiments/exploration.py --output=runs/exploration      # needs the extra `metaworld`

Two tasks of Meta-World at which PPO gets stuck, each alone. The drawer is opened from behind its handle; the straight
way leads before it, where half of the reward is had. An object is worth next to nothing until it is lifted, which a
gripper must hold on to for several steps by chance. Episodes of training that are cut short (`training_horizon`) are
more tries for the same steps, long rollouts (`rollout_length`) make sure that a lucky one is in every batch, and
detours (`detour_share`: random actions that are held) lead behind the handle, but end every grasp, so that they had
better come to an end (`detour_part`). A study that was stopped goes on.
"""

from __future__ import annotations

import pathlib

import study
from absl import app, flags

from mtjax.launch import presets
from mtjax.training.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", "runs/exploration", "Folder for the runs, the picture and the table.")
_TASKS = flags.DEFINE_list("tasks", ["drawer-open", "pick-place"], "Tasks of Meta-World, each an experiment.")
_STEPS = flags.DEFINE_integer("total_steps", 500_000, "Environment steps of every variant and seed.")
_SEEDS = flags.DEFINE_integer("num_seeds", 3, "Agents of every variant.")

NO_DETOURS = {"detour_share": 0.0}
SMALL_BATCHES = {"rollout_length": 64, "num_minibatches": 4}  # of the same size
VARIANTS: dict[str, dict] = {
    "whole episodes, small batches": {"training_horizon": 0, **SMALL_BATCHES, **NO_DETOURS},
    "whole episodes": {"training_horizon": 0, **NO_DETOURS},
    "cut at 200 steps": NO_DETOURS,
    "and detours throughout": {"detour_part": 1.0},
    "and detours in a fifth of the run": {},  # as the preset has them
}


def variants(task: str) -> dict[str, RunConfig]:
    """The configurations by name; the first is what the others are compared with."""
    same = {
        "grads": "mean",
        "arrangement": "independent",
        "total_steps": _STEPS.value,
        "num_seeds": _SEEDS.value,
        "evaluate_every": max(_STEPS.value // 10, 1),
        "evaluation_episodes": 5,
        "final_evaluation_episodes": 20,
    }
    return {name: presets.configure(f"metaworld-mt1-{task}", **options, **same) for name, options in VARIANTS.items()}


def main(argv):
    del argv
    folder = pathlib.Path(_OUTPUT.value)
    figure, panels = study.figure(2, height=4.2, rows=len(_TASKS.value))
    texts = []
    for task, (curves, agents) in zip(_TASKS.value, zip(panels[::2], panels[1::2], strict=True), strict=True):
        configs = variants(task)
        results = study.compare(configs, folder / task, "success_any")
        study.draw_curves(curves, results, f"success at {task}")
        for row, (result, colour) in enumerate(zip(results.values(), study.COLOURS, strict=False)):
            success = result.final.mean(axis=1)
            agents.plot(success, [row] * len(success), "o", color=colour, alpha=0.6, markersize=9)
        agents.set_yticks(range(len(results)), list(results))
        limits = {"xlim": (-0.05, 1.05), "ylim": (len(results) - 0.5, -0.5)}
        agents.set(title="every agent, in the end", xlabel=f"success at {task}", **limits)
        texts.append(study.table(results, "success") + "\n\n" + study.setting(next(iter(configs.values()))))
    figure.savefig(folder / "exploration.png")
    (folder / "exploration.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts), f"\n{folder / 'exploration.png'}")


if __name__ == "__main__":
    app.run(main)
