"""FiLM (arXiv 1709.07871): the task scales and shifts every feature of every hidden layer.

h ← σ(γ_l(z) ⊙ (W_l h + b_l) + β_l(z)): one γ and one β for each FEATURE, before the non-linearity. Both are linear
in the task vector z, and γ starts near 1, β near 0, so that the network starts near a plain perceptron.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtjax.networks.base import Body, Parameters, Shape, Weights
from mtjax.networks.components import ACTIVATIONS, dense, init_dense
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array
START = 0.1  # initial gain of the layers for γ − 1 and β


def make_film(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """A perceptron whose features are modulated by the task vector. All parameters are shared."""
    sizes, activation = shape.sizes, ACTIVATIONS[config.activation]
    norm = nn.LayerNorm(use_scale=False, use_bias=False)  # γ and β are its scale and bias

    def init_layer(key: Array, inputs: int, size: int) -> dict[str, Any]:
        layer_key, film_key = jax.random.split(key)
        return {"layer": init_dense(layer_key, inputs, size), "film": init_dense(film_key, told, 2 * size, START)}

    def init(key: Array) -> Parameters:
        keys = jax.random.split(key, len(sizes))
        widths = zip((inputs, *sizes[:-1]), sizes, strict=True)
        return Parameters(
            {f"film_{i}": init_layer(k, *width) for i, (k, width) in enumerate(zip(keys, widths, strict=True))}, {}
        )

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        for index in range(len(sizes)):
            p = shared[f"film_{index}"]
            change, shift = jnp.split(dense(p["film"], z), 2, axis=-1)
            x = dense(p["layer"], x)
            if config.layer_norm:
                x = norm.apply({}, x)
            x = activation((1.0 + change) * x + shift)
        return x, {}

    return Body(init, apply, sizes[-1], f"film_{len(sizes) - 1}/layer/")
