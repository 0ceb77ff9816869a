"""The two-task example of the PCGrad paper (arXiv 2001.06782, figure 1 and appendix D).

L₁ = 20 log max(|½θ₁ + tanh θ₂|, 5e-6) and L₂ = 25 log max(|½θ₁ − tanh θ₂ + 2|, 5e-6): a deep valley in which
the gradients conflict, differ in length and curve strongly. The paper's picture: Adam on the sum stalls in one
task's valley; with PCGrad it reaches the minimum of both.

Reproduced (300,000 updates, rate 1e-3, float32): PCGrad ends at a sum of about −275 from all three starts; Adam
on the sum does so from one of them and stalls near −73 from (0.5, −3) and near −88 from another. Not
reproduced at 20,000 updates, where PCGrad is no better than the sum. Functions and starts are from memory of
the paper, not checked against it.

    python experiments/pcgrad_didactic.py
"""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from mtjax import grads

_STEPS = flags.DEFINE_integer("steps", 300_000, "Updates.")
_RATE = flags.DEFINE_float("rate", 1e-3, "Adam's rate.")
_METHODS = flags.DEFINE_list("methods", ["sum", "pcgrad"], "Methods.")
_OUT = flags.DEFINE_string("out", "runs/pcgrad_didactic", "Folder for the picture and the numbers.")

STARTS = ((0.5, -3.0), (-3.0, -3.0), (3.0, 3.0))


def losses(p):
    """L₁ and L₂ [2] at p [2]."""
    x, y = p
    first = 20 * jnp.log(jnp.maximum(jnp.abs(0.5 * x + jnp.tanh(y)), 5e-6))
    second = 25 * jnp.log(jnp.maximum(jnp.abs(0.5 * x - jnp.tanh(y) + 2), 5e-6))
    return jnp.stack([first, second])


def descend(method, start):
    """The path [steps, 2] and the cosine of the gradients along it [steps]."""
    tx = optax.chain(grads.aggregate(method, num_tasks=2, track_gram=True), optax.adam(_RATE.value))

    def step(carry, _):
        p, state = carry
        updates, state = tx.update(jax.jacrev(losses)(p), state, p, losses=losses(p))
        p = optax.apply_updates(p, updates)
        return (p, state), (p, grads.conflict(grads.find_state(state).gram)["min_cosine"])

    return jax.lax.scan(step, (start, tx.init(start)), None, length=_STEPS.value)[1]


def draw(paths, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axis = jnp.linspace(-5, 5, 150)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1)
    height = jax.vmap(jax.vmap(losses))(grid).sum(-1)
    figure, panels = plt.subplots(1, len(paths), figsize=(3.4 * len(paths), 3.2), squeeze=False)
    for axes, (name, tracks) in zip(panels[0], paths.items(), strict=True):
        axes.contour(axis, axis, height, 25, linewidths=0.4)
        for start, track in zip(STARTS, tracks, strict=True):
            axes.plot(*np.vstack([start, track]).T, linewidth=1)
            axes.plot(*track[-1], "k*", markersize=5)
        axes.set(title=name, xlim=(-5, 5), ylim=(-5, 5))
    figure.tight_layout()
    figure.savefig(path)


def main(argv):
    del argv
    paths, result = {}, {}
    for spec in _METHODS.value:
        run = jax.jit(jax.vmap(partial(descend, grads.get(spec))))
        tracks, cosines = run(jnp.array(STARTS))
        paths[spec] = np.asarray(tracks)
        values = np.asarray(jax.vmap(jax.vmap(losses))(tracks)).sum(-1)  # [starts, steps]
        result[spec] = {
            "sum of losses over the last tenth, by start": [
                round(float(v), 2) for v in values[:, -_STEPS.value // 10 :].mean(1)
            ],
            "share of steps in conflict": round(float(np.mean(np.asarray(cosines) < 0)), 3),
        }
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    draw(paths, out / "pcgrad_didactic.svg")
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
