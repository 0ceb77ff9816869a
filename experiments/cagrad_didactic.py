"""The two-task example of the CAGrad paper (arXiv 2110.14048, figure 1), as in the authors' `toy.py`.

Two losses on the plane, with valleys, flat parts and conflict; three starts; Adam with rate 1e-3, 100,000 updates.
The paper's picture: the mean stops in a valley from two starts; MGDA and PCGrad stop where they first meet
the Pareto set; CAGrad (c = 0.5) reaches the minimum of the mean loss from all three.

Reproduced (settings as above, float32): the mean ends at a mean loss of 2.85 and 3.08 in the two valleys, and at
the minimum, −15.09, from (−8.5, −5); PCGrad ends at −14.60, −11.21 and −13.83, MGDA at −13.99, −10.61 and −13.99,
all on the Pareto set; CAGrad ends at −15.09 from every start. Not in the paper: Nash-MTL stops on the Pareto set
like MGDA; UPGrad drifts along it, where its exact direction is 0 and only rounding errors are left.

    python experiments/cagrad_didactic.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import two_tasks
from absl import app, flags

_STEPS = flags.DEFINE_integer("steps", 100_000, "Updates.")
_METHODS = flags.DEFINE_list(
    "methods", ["mean", "pcgrad", "mgda", "cagrad(c=0.5)", "nash_mtl(max_norm=1.0)", "upgrad"], "Methods."
)
_OUTPUT = flags.DEFINE_string("output", "runs/cagrad_didactic", "Folder for the picture and the numbers.")

flags.register_validator("methods", two_tasks.are_methods)

STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))


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


def main(argv):
    del argv
    out = two_tasks.folder(_OUTPUT.value)
    axis, height = two_tasks.surface(losses, 11.0, 221, jnp.mean)
    paths, result = {}, {"least mean loss on a grid": round(float(height.min()), 3)}
    for spec in _METHODS.value:
        paths[spec], _ = two_tasks.descend(losses, spec, STARTS, rate=1e-3, steps=_STEPS.value, every=100)
        ends = np.asarray(jax.vmap(losses)(paths[spec][:, -1])).mean(-1)
        result[spec] = {
            "mean loss at the end, by start": [round(float(v), 3) for v in ends],
            "where": [[round(float(x), 2) for x in point] for point in paths[spec][:, -1]],
        }
    two_tasks.draw(paths, STARTS, axis, height, out / "cagrad_didactic.png")
    two_tasks.save(result, out / "result.json")


if __name__ == "__main__":
    app.run(main)
