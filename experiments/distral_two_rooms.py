"""Distral (arXiv 1707.04175) and its baselines, in two rooms joined by a corridor or on another suite.

Two rooms (the paper's section 4.1): there are eight hidden goals, and the start is in the other room. The study checks
two findings of the paper:

* the distilled policy, which remembers its last action, keeps its direction in the corridor (figure 3). It is solved
  exactly on the transition tables, and compared with the same policy without memory;
* with networks, Distral learns faster than one agent per task and than one policy for all (figure 2).

``--suite`` compares the same variants elsewhere, e.g. in mazes whose goals are visible, or on a continuous suite.
Takes about ten minutes on two cores. A stopped study resumes when started again.

    python experiments/distral_two_rooms.py --output=runs/distral
    python experiments/distral_two_rooms.py --suite=gridworld-mazes --num_envs=16 --output=runs/mazes
    python experiments/distral_two_rooms.py --suite=control-pendulum --output=runs/pendulum
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
from mtjax.training.config import RunConfig

TWO_ROOMS = "gridworld-two-rooms"
_OUTPUT = flags.DEFINE_string("output", "runs/distral", "Folder for the runs, the picture and the table.")
_SUITE = flags.DEFINE_string("suite", TWO_ROOMS, "A suite of tasks with the same spaces.")
_STEPS = flags.DEFINE_integer("total_steps", 1_000_000, "Environment steps of every variant and seed.")
_ENVS = flags.DEFINE_integer("num_envs", 0, "Environments of each task; fewer learn from smaller batches. 0: preset's.")
_SEEDS = flags.DEFINE_integer("num_seeds", 5, "Agents of every variant.")
EXACT = {"kl_cost": 0.05, "entropy_cost": 0.01, "discount": 0.95, "iterations": 20}


def variants() -> dict[str, RunConfig]:
    """The paper's six (two baselines; KL or KL and entropy, with one or two columns), and one PPO agent per task.

    The costs are those of the suite's preset; a variant with only one cost uses their sum.
    """
    suite = _SUITE.value
    same = {
        "total_steps": _STEPS.value,
        "num_seeds": _SEEDS.value,
        "evaluate_every": _STEPS.value // 20,
        "grads": "sum",
        **({"num_envs": _ENVS.value} if _ENVS.value else {}),
    }
    usual = presets.configure(suite, learner="distral").hyper
    kl, entropy = usual.distral_kl_cost, usual.distral_entropy_cost

    def tied(kl: float, entropy: float, columns: int) -> RunConfig:
        costs = {"distral_kl_cost": kl, "distral_entropy_cost": entropy, "columns": columns}
        return presets.configure(suite, learner="distral", **costs, **same)

    def untied(arrangement: str) -> RunConfig:
        return presets.configure(suite, arrangement=arrangement, return_scaling=usual.return_scaling, **same)

    return {
        "one agent per task, with entropy in its return": tied(0.0, kl + entropy, 1),
        "one PPO agent per task": untied("independent"),
        "one policy for all": untied("none"),
        "KL, 1 column": tied(kl + entropy, 0.0, 1),
        "KL and entropy, 1 column": tied(kl, entropy, 1),
        "KL, 2 columns": tied(kl + entropy, 0.0, 2),
        "KL and entropy, 2 columns": tied(kl, entropy, 2),
    }


def corridor() -> dict[str, np.ndarray]:
    """Probabilities that the exact distilled policies walk on along the corridor, [3 cells, left or right] each."""
    suite = suites.make(TWO_ROOMS)
    height, width = suite.splits["train"].tasks.walls.shape[1:]
    cells = jnp.asarray([3 * width + column for column in range(7, 10)], jnp.int32)
    ways = jnp.asarray([gridworld.ACTIONS.index("left"), gridworld.ACTIONS.index("right")])
    solve = jax.jit(lambda tables: distral.solve(tables, **EXACT).log_prior)
    blind = jnp.exp(solve(distral.tables(suite)))[cells[:, None], ways]
    remembering = distral.keeps_direction(solve(distral.tables(suite, memory=True)), cells, height * width)
    return {"knows where it is": np.asarray(blind), "and its last action": np.asarray(remembering[:, ways])}


def draw_corridor(axes, walks_on: dict[str, np.ndarray]) -> None:
    """Draw the result of :func:`corridor` as bars."""
    for index, (name, probability) in enumerate(walks_on.items()):
        places = np.arange(6) + 0.4 * index
        axes.bar(places, probability.T.ravel(), width=0.38, color=study.COLOURS[index], label=name)
    axes.axhline(0.5, color="#8a929c", linewidth=0.8, linestyle="--")
    axes.set_xticks(np.arange(6) + 0.2, [f"cell {cell}\n{way}" for way in ("left", "right") for cell in (1, 2, 3)])
    axes.set(title="exact distilled policy: walks on in the corridor", ylabel="probability", ylim=(0, 1.12))
    axes.legend(ncols=2)


def main(argv):
    del argv
    folder, configs = pathlib.Path(_OUTPUT.value), variants()
    walks_on = corridor() if _SUITE.value == TWO_ROOMS else {}
    results = study.compare(configs, folder, "return")
    figure, panels = study.figure(3 if walks_on else 2)
    study.draw_curves(panels[0], results, "return, mean over tasks")
    study.draw_tasks(panels[1], results, "return")
    two_decimals = _SUITE.value.startswith("gridworld-")  # its returns are about as large as a success of 1
    text = study.table(results, "success" if two_decimals else "return")
    text += "\n\n" + study.setting(next(iter(configs.values())))
    if walks_on:
        draw_corridor(panels[2], walks_on)
        text += "\n\nExact, in the corridor: "
        text += "; ".join(f"{name}: walks on with {p.min():.2f} to {p.max():.2f}" for name, p in walks_on.items())
    name = "distral_" + _SUITE.value.removeprefix("gridworld-").replace("-", "_")
    figure.savefig(folder / f"{name}.png")
    (folder / f"{name}.md").write_text(text + "\n")
    print(text, f"\n{folder / f'{name}.png'}")


if __name__ == "__main__":
    app.run(main)
