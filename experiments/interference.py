"""Do conflicting gradients cost performance, and does gradient surgery recover it? A study of opposed tasks.

    python experiments/interference.py --output=runs/interference

A cheetah has to run at eight speeds (or, with --suite, an ant in eight directions), so that one shared network receives
gradients that oppose each other about half of the time. PCGrad, CAGrad and GradNorm are meant to improve on plain
averaging. One agent per task has no conflict, but an eighth of the experience: whether it is better or worse than
averaging is a result, not a premise (at 1.5 million steps it is worse). If the interval of a comparison in the table
contains 0.5, there is no evidence of a difference.

The methods are compared at the same scale. PCGrad, as printed in its paper, sums the projected gradients: T times the
average where nothing conflicts. Adam cancels a constant factor, but clipping to `max_grad_norm` before Adam does not,
so that a sum would be clipped where an average is not. PCGrad therefore averages here; CAGrad's direction is a mean
anyway. Only GradNorm's weights add up to T, as in its paper. The plain sum is its baseline: what the two have in common
is no merit of GradNorm. GradNorm gets the losses through a softplus, because a policy's losses are near or below 0,
where the ratios L/L(0) have no meaning.

A stopped study resumes when started again.
"""

from __future__ import annotations

import pathlib

import numpy as np
import study
from absl import app, flags
from matplotlib.ticker import EngFormatter

from mtjax.launch import presets
from mtjax.training import record
from mtjax.training.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", "runs/interference", "Folder for the runs, the picture and the table.")
_SUITE = flags.DEFINE_string("suite", "goals-cheetah-velocity", "The suite.")
_STEPS = flags.DEFINE_integer("total_steps", 2_000_000, "Environment steps of every variant and seed.")
_SEEDS = flags.DEFINE_integer("num_seeds", 3, "Agents of every variant.")

VARIANTS: dict[str, dict] = {
    "shared, averaged": {"arrangement": "one_hot", "grads": "mean"},
    "shared, summed": {"arrangement": "one_hot", "grads": "sum"},
    "one agent per task": {"arrangement": "independent", "grads": "mean"},
    "shared, PCGrad": {"arrangement": "one_hot", "grads": 'pcgrad(reduction="mean")'},
    "shared, CAGrad": {"arrangement": "one_hot", "grads": "cagrad(c=0.5)"},
    "shared, GradNorm": {"arrangement": "one_hot", "grads": 'gradnorm(alpha=1.5, surrogate="softplus")'},
}


def variants() -> dict[str, RunConfig]:
    """The configurations by name; the others are compared with the first."""
    same = {
        "total_steps": _STEPS.value,
        "num_seeds": _SEEDS.value,
        "evaluate_every": max(_STEPS.value // 10, 1),
        "evaluation_episodes": 5,
        "final_evaluation_episodes": 20,
    }
    return {name: presets.configure(_SUITE.value, **options, **same) for name, options in VARIANTS.items()}


def conflict(run_dir: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps [N], share of conflicting pairs [N, S], cosines of the tasks' policy gradients, mean over the run [T, T]).

    The arrays are empty if nothing is shared, so that nothing can conflict.
    """
    lines = [line for line in record.read(run_dir) if line["kind"] == "train" and "grads/conflict" in line["values"]]
    if not lines:
        return np.zeros((0,)), np.zeros((0, 0)), np.zeros((0, 0))
    share = np.stack([np.asarray(line["values"]["grads/conflict"]).reshape(-1) for line in lines])
    cosine = np.mean([np.asarray(line["values"]["grads/cosine"]).mean(axis=0) for line in lines], axis=0)
    return np.asarray([line["step"] for line in lines]), share, cosine


def main(argv):
    del argv
    folder = pathlib.Path(_OUTPUT.value)
    configs = variants()
    results = study.compare(configs, folder, "return")
    figure, (curves, tasks, conflicts, matrix) = study.figure(2, height=4.2, rows=2)
    study.draw_curves(curves, results, "return, mean over tasks")
    study.draw_tasks(tasks, results, "return")
    for name, colour in zip(results, study.COLOURS, strict=False):
        steps, share, cosine = conflict(study.run_folder(name, folder))
        if not len(steps):
            continue
        conflicts.plot(steps, share.mean(axis=1), color=colour, label=name)
        if configs[name].grads == "mean":
            pairs = np.where(np.eye(len(cosine), dtype=bool), np.nan, cosine)  # the diagonal is always 1
            largest = np.nanmax(np.abs(pairs))
            image = matrix.imshow(pairs, cmap="RdBu", vmin=-largest, vmax=largest)
            names = results[name].tasks
            matrix.set_xticks(range(len(names)), names, rotation=45, ha="right")
            matrix.set_yticks(range(len(names)), names)
            figure.colorbar(image, ax=matrix)
    conflicts.xaxis.set_major_formatter(EngFormatter(sep=""))
    conflicts.set(title="pairs of tasks in conflict", xlabel="environment steps", ylabel="share", ylim=(0, 1))
    conflicts.legend()
    matrix.set(title="cosine of the policy gradients, mean")
    matrix.grid(False)
    figure.savefig(folder / "interference.png")
    text = study.table(results, "return") + "\n\n" + study.setting(next(iter(configs.values())))
    (folder / "interference.md").write_text(text + "\n")
    print(text, f"\n{folder / 'interference.png'}")


if __name__ == "__main__":
    app.run(main)
