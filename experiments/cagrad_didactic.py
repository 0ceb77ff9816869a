"""The two-task example of the CAGrad paper (arXiv 2110.14048, figure 1 and appendix A).

Two losses on the plane, with valleys, flat parts and conflict; five starts; Adam with rate 1e-3. The
paper's picture: the mean stops in a valley from two starts; MGDA and PCGrad stop where they first meet
the Pareto set; CAGrad reaches the minimum of the mean loss from all of them.

Reproduced (70,000 updates): CAGrad with c = 0.5 ends at a mean loss of −15.09 from every start. The other
methods' ends are in the result; where they stop on the Pareto set depends on the start, as in the paper.

    python experiments/cagrad_didactic.py
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

_STEPS = flags.DEFINE_integer("steps", 70_000, "Updates.")
_METHODS = flags.DEFINE_list(
    "methods", ["mean", "pcgrad", "mgda", "cagrad(c=0.5)", "nash_mtl(max_norm=1.0)", "upgrad"], "Methods."
)
_OUT = flags.DEFINE_string("out", "runs/cagrad_didactic", "Folder for the picture and the numbers.")

STARTS = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))


def losses(p):
    """L₁ and L₂ [2] at p [2]."""
    x, y = p
    upper = jnp.clip(jnp.tanh(0.5 * y), 0)
    lower = jnp.clip(jnp.tanh(-0.5 * y), 0)
    first = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x - 7) - jnp.tanh(-y)), 5e-6)) + 6
    second = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x + 3) + jnp.tanh(-y) + 2), 5e-6)) + 6
    bowl_1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    bowl_2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    return jnp.stack([first * upper + bowl_1 * lower, second * upper + bowl_2 * lower])


def descend(method, start):
    """Every hundredth point of the path [steps/100, 2]."""
    tx = optax.chain(grads.aggregate(method, num_tasks=2), optax.adam(1e-3))

    def step(_, carry):
        p, state = carry
        updates, state = tx.update(jax.jacrev(losses)(p), state, p, losses=losses(p))
        return optax.apply_updates(p, updates), state

    def record(carry, _):
        carry = jax.lax.fori_loop(0, 100, step, carry)
        return carry, carry[0]

    return jax.lax.scan(record, (start, tx.init(start)), None, length=_STEPS.value // 100)[1]


def draw(paths, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axis = jnp.linspace(-12, 12, 150)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1)
    height = jax.vmap(jax.vmap(losses))(grid).mean(-1)
    figure, panels = plt.subplots(1, len(paths), figsize=(2.6 * len(paths), 2.9), squeeze=False)
    for axes, (name, tracks) in zip(panels[0], paths.items(), strict=True):
        axes.contour(axis, axis, height, 25, linewidths=0.4)
        for start, track in zip(STARTS, tracks, strict=True):
            axes.plot(*np.vstack([start, track]).T, linewidth=1)
            axes.plot(*track[-1], "k*", markersize=5)
        axes.set(title=name, xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path)


def main(argv):
    del argv
    starts = jnp.array(STARTS)
    axis = jnp.linspace(-12, 12, 481)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1)
    best = float(jax.vmap(jax.vmap(losses))(grid).mean(-1).min())
    paths, result = {}, {"least mean loss on a grid": best}
    for spec in _METHODS.value:
        run = jax.jit(jax.vmap(partial(descend, grads.get(spec))))
        paths[spec] = np.asarray(run(starts))
        ends = np.asarray(jax.vmap(losses)(paths[spec][:, -1])).mean(-1)
        result[spec] = {"mean loss at the end, by start": [round(float(v), 3) for v in ends]}
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    draw(paths, out / "cagrad_didactic.svg")
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
