"""Distral in two rooms joined by a corridor (arXiv 1707.04175, section 4.1), exactly and with networks.

Eight goals, hidden; the start is in the other room. The paper's findings that are looked for:

* the distilled policy, which remembers its last action, keeps its direction in the corridor (figure 3). Solved
  exactly on the transition tables, beside the same without memory;
* with networks, Distral learns faster than one agent per task and than one policy for all (figure 2).

About ten minutes on two cores. A study that was stopped goes on.

    python experiments/distral_two_rooms.py --output=runs/distral
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import study
from absl import app, flags

from mtjax import suites
from mtjax.envs import gridworld
from mtjax.launch import presets
from mtjax.learners import distral_tabular as distral

_OUTPUT = flags.DEFINE_string("output", "runs/distral", "Folder for the runs, the picture and the table.")
_STEPS = flags.DEFINE_integer("total_steps", 1_000_000, "Environment steps of every variant and seed.")
_SEEDS = flags.DEFINE_integer("num_seeds", 5, "Agents of every variant.")
SUITE = "gridworld-two-rooms"
KL, ENTROPY = 0.02, 0.005
EXACT = {"kl_cost": 0.05, "entropy_cost": 0.01, "discount": 0.95, "iterations": 20}


def variants() -> dict:
    """The paper's six: two baselines, and KL or KL and entropy with one or two columns."""
    same = {"total_steps": _STEPS.value, "num_seeds": _SEEDS.value, "evaluate_every": _STEPS.value // 20}

    def tied(kl: float, entropy: float, columns: int):
        costs = {"distral_kl_cost": kl, "distral_entropy_cost": entropy, "columns": columns}
        return presets.configure(SUITE, learner="distral", grads="sum", **costs, **same)

    return {
        "one agent per task": tied(0.0, KL + ENTROPY, 1),
        "one policy for all": presets.configure(
            SUITE, arrangement="none", grads="sum", return_scaling="none", **same
        ),
        "KL, 1 column": tied(KL + ENTROPY, 0.0, 1),
        "KL and entropy, 1 column": tied(KL, ENTROPY, 1),
        "KL, 2 columns": tied(KL + ENTROPY, 0.0, 2),
        "KL and entropy, 2 columns": tied(KL, ENTROPY, 2),
    }


def corridor() -> dict[str, np.ndarray]:
    """How likely the exact distilled policy walks on in the corridor: [3 cells, going left or right]."""
    suite = suites.make(SUITE)
    height, width = suite.splits["train"].tasks.walls.shape[1:]
    cells = jnp.asarray([3 * width + column for column in range(7, 10)], jnp.int32)
    ways = jnp.asarray([gridworld.ACTIONS.index("left"), gridworld.ACTIONS.index("right")])
    solve = jax.jit(lambda tables: distral.solve(tables, **EXACT).log_prior)
    blind = jnp.exp(solve(distral.tables(suite)))[cells[:, None], ways]
    remembering = distral.keeps_direction(solve(distral.tables(suite, memory=True)), cells, height * width)
    return {"knows where it is": np.asarray(blind), "and its last action": np.asarray(remembering[:, ways])}


def main(argv):
    del argv
    folder = pathlib.Path(_OUTPUT.value)
    walks_on = corridor()
    results = study.compare(variants(), folder, "return")
    figure, (curves, tasks, panel) = study.figure(3)
    study.draw_curves(curves, results, "return, mean over tasks")
    study.draw_tasks(tasks, results, "return")
    for index, (name, probability) in enumerate(walks_on.items()):
        places = np.arange(6) + 0.4 * index
        panel.bar(places, probability.T.ravel(), width=0.38, color=study.COLOURS[index], label=name)
    panel.axhline(0.5, color="#8a929c", linewidth=0.8, linestyle="--")
    panel.set_xticks(np.arange(6) + 0.2, [f"cell {cell}\n{way}" for way in ("left", "right") for cell in (1, 2, 3)])
    panel.set(title="exact distilled policy: walks on in the corridor", ylabel="probability", ylim=(0, 1.12))
    panel.legend(ncols=2)
    figure.savefig(folder / "distral_two_rooms.png")
    text = study.table(results, "success")
    text += "\n\n" + study.setting(next(iter(variants().values()))) + "\n\nExact, in the corridor: "
    text += "; ".join(f"{name}: walks on with {p.min():.2f} to {p.max():.2f}" for name, p in walks_on.items())
    (folder / "distral_two_rooms.md").write_text(text + "\n")
    print(text, f"\n{folder / 'distral_two_rooms.png'}")


if __name__ == "__main__":
    app.run(main)
