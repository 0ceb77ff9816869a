"""What gets a hand behind a handle: noise, means that stay where noise matters, detours.

    python experiments/exploration.py --output=runs/exploration      # needs the extra `metaworld`

Meta-World's drawer is opened from behind its handle; the straight way leads before it, where half of the reward is had
and every further push is worth nothing. An unsquashed Gaussian finds this place and stays: what its noise does, the
next action takes back (`detour_share`: random actions that are held), and its mean may grow beyond the actions'
bounds, where noise changes nothing (`bound_cost` keeps it within). A study that was stopped goes on.
"""

from __future__ import annotations

import pathlib

import study
from absl import app, flags

from mtjax.launch import presets
from mtjax.training.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", "runs/exploration", "Folder for the runs, the picture and the table.")
_SUITE = flags.DEFINE_string("suite", "metaworld-mt1-drawer-open", "The suite.")
_STEPS = flags.DEFINE_integer("total_steps", 200_000, "Environment steps of every variant and seed.")
_SEEDS = flags.DEFINE_integer("num_seeds", 4, "Agents of every variant.")

VARIANTS: dict[str, dict] = {
    "noise alone": {"bound_cost": 0.0, "detour_share": 0.0},
    "means within bounds": {"detour_share": 0.0},
    "detours": {"bound_cost": 0.0},
    "both": {},  # as the preset has them
}


def variants() -> dict[str, RunConfig]:
    """The configurations by name; the first is what the others are compared with."""
    same = {
        "grads": "mean",
        "total_steps": _STEPS.value,
        "num_seeds": _SEEDS.value,
        "evaluate_every": max(_STEPS.value // 10, 1),
        "evaluation_episodes": 5,
        "final_evaluation_episodes": 20,
    }
    return {name: presets.configure(_SUITE.value, **options, **same) for name, options in VARIANTS.items()}


def main(argv):
    del argv
    folder = pathlib.Path(_OUTPUT.value)
    configs = variants()
    results = study.compare(configs, folder, "success_any")
    figure, (curves, agents) = study.figure(2, height=4.2)
    study.draw_curves(curves, results, "success")
    for row, (result, colour) in enumerate(zip(results.values(), study.COLOURS, strict=False)):
        success = result.final.mean(axis=1)
        agents.plot(success, [row] * len(success), "o", color=colour, alpha=0.6, markersize=9)
    agents.set_yticks(range(len(results)), list(results))
    agents.set(title="every agent, in the end", xlabel="success", xlim=(-0.05, 1.05), ylim=(len(results) - 0.5, -0.5))
    figure.savefig(folder / "exploration.png")
    text = study.table(results, "success") + "\n\n" + study.setting(next(iter(configs.values())))
    (folder / "exploration.md").write_text(text + "\n")
    print(text, f"\n{folder / 'exploration.png'}")


if __name__ == "__main__":
    app.run(main)
