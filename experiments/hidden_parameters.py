"""Hidden parameters of the dynamics: HiP-BMDP (arXiv 2007.07206) and its baselines, in training and unseen tasks.

The tasks are pendulums that differ in gravity, mass, length or motor, one of them in each task; one of the nine motors
is reversed. The study measures the return

* on the training tasks: of HiP-BMDP, DeepMDP, SAC that is told the task's index, SAC that is not, one agent per task;
* on tasks between and beyond these (in one of them, the motor is stronger and reversed): after 0, 1, 5 and 20 episodes,
  by inferring the task's embedding with all else frozen, and by fine-tuning everything. The folder of every run that is
  adapted then holds ``plots/adaptation.png``, with a panel for each of these tasks.

Takes about 25 minutes on two cores. A stopped study resumes when started again.

    python experiments/hidden_parameters.py --output=runs/hidden_parameters
"""

from __future__ import annotations

import json
import pathlib

import study
from absl import app, flags

from mtjax.launch import presets
from mtjax.training import adaptation
from mtjax.training.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", "runs/hidden_parameters", "Folder for the runs, the picture and the table.")
_SUITE = flags.DEFINE_string("suite", "control-pendulum", "A suite on the device with held-out splits.")
_STEPS = flags.DEFINE_integer("total_steps", 270_000, "Environment steps of every variant and seed.")
_SEEDS = flags.DEFINE_integer("num_seeds", 5, "Agents of every variant.")
_EPISODES = flags.DEFINE_list("episodes", ["0", "1", "5", "20"], "Episodes seen in an unseen task, ascending from 0.")
SPLITS = ("interpolation", "extrapolation")
LINES = {"inferred": "-", "fine-tuned": "--", "zero-shot": ":"}


def variants() -> dict[str, RunConfig]:
    """SAC with three arrangements, HiP-BMDP, and DeepMDP, which has the same models without an embedding."""
    same = {
        "total_steps": _STEPS.value,
        "num_seeds": _SEEDS.value,
        "evaluate_every": _STEPS.value // 10,
        "grads": "mean",
        "evaluation_episodes": 5,
        "final_evaluation_episodes": 20,
    }
    return {
        "SAC, one-hot": presets.configure(_SUITE.value, learner="sac", arrangement="one_hot", **same),
        "SAC, not told": presets.configure(_SUITE.value, learner="sac", arrangement="none", **same),
        "one agent per task": presets.configure(_SUITE.value, learner="sac", arrangement="independent", **same),
        "HiP-BMDP": presets.configure(_SUITE.value, learner="hipbmdp", **same),
        "DeepMDP": presets.configure(_SUITE.value, learner="hipbmdp", preset="deepmdp", **same),
    }


def adapt(configs: dict[str, RunConfig], folder: pathlib.Path) -> dict[str, dict]:
    """The contents of ``adaptation.json``, measured if missing, of every variant that can act in unseen tasks."""
    settings = adaptation.Settings(episodes=tuple(int(number) for number in _EPISODES.value))
    found = {}
    for name, config in configs.items():
        if not config.network.generalises:
            continue
        run_dir = study.train(name, config, folder)  # already finished: only returns the folder
        file = run_dir / "adaptation.json"
        if not file.exists():
            print(f"{name}: unseen tasks …", flush=True)
            adaptation.measure_run(run_dir, splits=SPLITS, settings=settings)
        found[name] = json.loads(file.read_text())
    return found


def draw_adaptation(axes, found: dict[str, dict], names: list[str], split: str) -> None:
    """Draw the mean over tasks against the number of episodes seen, with its interval over seeds."""
    for name, splits in found.items():
        colour = study.COLOURS[names.index(name)]
        for method, measures in splits[split]["values"].items():
            points = [point["mean"] for point in measures["return"]]
            values, x = [p["value"] for p in points], splits[split]["episodes"]
            axes.plot(x, values, LINES[method], color=colour, label=f"{name}, {method}", marker="o", markersize=3)
            if points[0]["low"] is not None:
                ends = [[p[end] for p in points] for end in ("low", "high")]
                axes.fill_between(x, *ends, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(x, [str(number) for number in x])
    axes.set(title=f"{split}: unseen tasks", xlabel="episodes seen", ylabel="return, mean over tasks")
    axes.legend(fontsize=6)


def table(found: dict[str, dict], split: str) -> str:
    """A Markdown table of one split: mean returns by number of episodes seen."""
    rows = [
        [name, method, *(_interval(point["mean"]) for point in measures["return"])]
        for name, splits in found.items()
        for method, measures in splits[split]["values"].items()
    ]
    return _markdown(["variant", "method"], next(iter(found.values()))[split]["episodes"], rows)


def task_table(splits: dict[str, dict], split: str) -> str:
    """The same table for every task of one variant."""
    rows = [
        [task, method, *(_interval(point["tasks"][task]) for point in measures["return"])]
        for task in splits[split]["tasks"]
        for method, measures in splits[split]["values"].items()
    ]
    return _markdown(["task", "method"], splits[split]["episodes"], rows)


def _markdown(first: list[str], episodes: list[int], rows: list[list[str]]) -> str:
    head = [*first, *(f"{number} episodes" for number in episodes)]
    rows = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _interval(mean: dict[str, float | None]) -> str:
    if mean["low"] is None:
        return f"{mean['value']:,.0f}"
    return f"{mean['value']:,.0f} [{mean['low']:,.0f}, {mean['high']:,.0f}]"


def main(argv):
    del argv
    folder, configs = pathlib.Path(_OUTPUT.value), variants()
    results = study.compare(configs, folder, "return")
    found = adapt(configs, folder)
    figure, panels = study.figure(2, rows=2)
    study.draw_curves(panels[0], results, "return, mean over tasks")
    study.draw_tasks(panels[1], results, "return")
    for axes, split in zip(panels[2:], SPLITS, strict=True):
        draw_adaptation(axes, found, list(configs), split)
    figure.savefig(folder / "hidden_parameters.png")
    parts = [study.table(results, "return"), study.setting(next(iter(configs.values())))]
    for split in SPLITS:
        parts += [f"{split}:", table(found, split), "HiP-BMDP, task by task:", task_table(found["HiP-BMDP"], split)]
    text = "\n\n".join(parts)
    (folder / "hidden_parameters.md").write_text(text + "\n")
    print(text, f"\n{folder / 'hidden_parameters.png'}")


if __name__ == "__main__":
    app.run(main)
