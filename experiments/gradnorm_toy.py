"""GradNorm's toy regression (arXiv 1711.02257, section 4): losses on ten scales, one network.

Task i is y_i = σ_i tanh((B + ε_i) x), with B and ε_i normal (standard deviations √10 and √3.5) and σ_i
its scale; here (B + ε_i) x is divided by √250, or nearly every tanh would be ±1. A network of four ReLU
layers, then a linear head for each task, is trained on the squared errors. GradNorm (α = 0.12) should
reach a lower sum of L_i(t)/L_i(0) than equal weights, and give its weights in the order of 1/σ_i.

Reproduced in the small (10 tasks, 3,000 updates, the mean of 3 seeds, Adam 1e-3): the mean of L(t)/L(0) is 0.587
with GradNorm and 0.648 with equal weights, and log weight falls with log σ (correlation −0.97). Not
reproduced: the paper's own data, learning rates and its comparison with uncertainty weighting. Its N(0, 10)
and N(0, 3.5) are read as variances; a reimplementation reads them as standard deviations.

    python experiments/gradnorm_toy.py --tasks 10
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from mtjax import grads

_TASKS = flags.DEFINE_enum("tasks", "10", ["2", "10"], "T: 2 (scales 1 and 100) or 10, as in the paper.")
_STEPS = flags.DEFINE_integer("steps", 3000, "Updates.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds, batched by vmap.")
_WIDTH = flags.DEFINE_integer("width", 100, "Width of the four hidden layers.")
_OUTPUT = flags.DEFINE_string("output", "runs/gradnorm_toy", "Folder for the picture and the numbers.")

INPUT, OUTPUT, BATCH = 250, 100, 100
SCALES = {2: (1.0, 100.0), 10: (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0)}


def make_tasks(key, scales):
    """Bases B + ε_i [T, INPUT, OUTPUT]."""
    shared, own = jax.random.split(key)
    base = jnp.sqrt(10.0) * jax.random.normal(shared, (INPUT, OUTPUT))
    return base + jnp.sqrt(3.5) * jax.random.normal(own, (len(scales), INPUT, OUTPUT))


def init(key, num_tasks):
    keys = jax.random.split(key, 5)
    sizes = (INPUT, *[_WIDTH.value] * 4)
    trunk = {
        f"layer_{n}": jax.random.normal(keys[n], (a, b)) * np.sqrt(2 / a)
        for n, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    }
    heads = jax.random.normal(keys[4], (num_tasks, _WIDTH.value, OUTPUT)) * np.sqrt(1 / _WIDTH.value)
    return {"trunk": trunk, "heads": heads}


def train(method, key, scales):
    """Losses [steps, T] and weights [steps, T]."""
    num_tasks = len(scales)
    data, start, batches = jax.random.split(key, 3)
    bases, sigma = make_tasks(data, scales), jnp.array(scales)
    shared = lambda path: path.startswith("trunk")  # noqa: E731
    aggregate = grads.aggregate(method, num_tasks=num_tasks, shared=shared)
    tx = optax.chain(aggregate, optax.adam(1e-3))

    def loss(params, x, task):
        target = sigma[task] * jnp.tanh(x @ bases[task] / np.sqrt(INPUT))
        for layer in sorted(params["trunk"]):
            x = jax.nn.relu(x @ params["trunk"][layer])
        return jnp.mean((x @ params["heads"][task] - target) ** 2)

    def step(carry, key):
        params, state = carry
        x = jax.random.normal(key, (BATCH, INPUT))
        losses, g = jax.vmap(jax.value_and_grad(loss), (None, None, 0))(params, x, jnp.arange(num_tasks))
        updates, state = tx.update(g, state, params, losses=losses)
        weights = grads.find_state(state).weights
        return (optax.apply_updates(params, updates), state), (losses, weights)

    params = init(start, num_tasks)
    keys = jax.random.split(batches, _STEPS.value)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[1]


def draw(curves, weights, scales, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    for name, curve in curves.items():
        left.plot(curve.mean(0), label=name)
    left.set(xlabel="update", ylabel="mean of L(t)/L(0)", yscale="log")
    left.legend()
    for scale, row in zip(scales, weights.mean(0).T, strict=True):
        right.plot(row, label=f"{scale:g}")
    right.set(xlabel="update", ylabel="GradNorm's weight", yscale="log")
    right.legend(title="σ", fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path)


def main(argv):
    del argv
    scales = SCALES[int(_TASKS.value)]
    methods = {
        "equal weights": grads.sum(),
        "GradNorm": grads.gradnorm(0.12, optax.adam(0.025), leaves=lambda path: path.endswith("layer_3")),
    }
    keys = jax.random.split(jax.random.key(0), _SEEDS.value)
    curves, weights = {}, None
    for name, method in methods.items():
        losses, w = jax.jit(jax.vmap(lambda k, m=method: train(m, k, scales)))(keys)
        relative = np.asarray(losses / losses[:, :1]).mean(-1)  # [S, steps]
        width = max(_STEPS.value // 50, 1)
        kernel = np.ones(width) / width
        curves[name] = np.stack([np.convolve(row, kernel, "valid") for row in relative])
        weights = np.asarray(w)
    out = pathlib.Path(_OUTPUT.value)
    out.mkdir(parents=True, exist_ok=True)
    draw(curves, weights, scales, out / "gradnorm_toy.png")
    final = {name: float(curve[:, -1].mean()) for name, curve in curves.items()}
    order = np.corrcoef(np.log(scales), np.log(weights[:, -1].mean(0)))[0, 1]
    result = {"mean L(t)/L(0)": final, "correlation of log weight and log scale": float(order)}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
