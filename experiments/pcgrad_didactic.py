"""The two-task example of the PCGrad paper (arXiv 2001.06782, figure 1 and appendix D).

L₁ = 20 log max(|½θ₁ + tanh θ₂|, 5e-6) and L₂ = 25 log max(|½θ₁ − tanh θ₂ + 2|, 5e-6), from θ = (0.5, −3), Adam with
rate 1e-3, 500,000 updates: all as in appendix D. There are two deep, curved valleys in which the gradients conflict
and differ in norm. The paper's picture: Adam on the sum stalls in one task's valley; with PCGrad it reaches the
minimum of both, where the valleys meet. The other two starts are ours.

Reproduced, with float32: the sum of the losses, over the last tenth of the updates, is −71 with Adam and −273 with
PCGrad from the paper's start; from (−3, −3) it is −90 and −268. From (3, 3) both reach the minimum (−278, −269).
Not reproduced: at 20,000 updates PCGrad is no better than the sum. The paper prints a picture and no numbers.

    python experiments/pcgrad_didactic.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import two_tasks
from absl import app, flags

_STEPS = flags.DEFINE_integer("steps", 500_000, "Updates.")
_RATE = flags.DEFINE_float("rate", 1e-3, "Adam's rate.")
_METHODS = flags.DEFINE_list("methods", ["sum", "pcgrad"], "Methods.")
_OUTPUT = flags.DEFINE_string("output", "runs/pcgrad_didactic", "Folder for the picture and the numbers.")

flags.register_validator("methods", two_tasks.are_methods)

STARTS = ((0.5, -3.0), (-3.0, -3.0), (3.0, 3.0))


def losses(p):
    """L₁ and L₂ [2] at p [2]."""
    x, y = p
    first = 20 * jnp.log(jnp.maximum(jnp.abs(0.5 * x + jnp.tanh(y)), 5e-6))
    second = 25 * jnp.log(jnp.maximum(jnp.abs(0.5 * x - jnp.tanh(y) + 2), 5e-6))
    return jnp.stack([first, second])


def main(argv):
    del argv
    out = two_tasks.folder(_OUTPUT.value)
    axis, height = two_tasks.surface(losses, 10.0, 201, jnp.sum)
    paths, result = {}, {}
    for spec in _METHODS.value:
        paths[spec], cosines = two_tasks.descend(losses, spec, STARTS, rate=_RATE.value, steps=_STEPS.value, every=10)
        values = np.asarray(jax.vmap(jax.vmap(losses))(paths[spec])).sum(-1)  # [starts, points]
        result[spec] = {
            "sum of losses over the last tenth, by start": [
                round(float(v), 2) for v in values[:, -max(values.shape[1] // 10, 1) :].mean(1)
            ],
            "share of points in conflict": round(float(np.mean(cosines < 0)), 3),
        }
    two_tasks.draw(paths, STARTS, axis, height, out / "pcgrad_didactic.png")
    two_tasks.save(result, out / "result.json")


if __name__ == "__main__":
    app.run(main)
