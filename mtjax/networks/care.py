"""CARE (arXiv 2102.06177): the task's description decides, by attention, which encoders to listen to.

k encoders give z_1 … z_k of the observation; the description gives the context z_c. Then

    α = softmax_j ⟨z_j, sg(z_c)⟩        z = [z_c, Σ_j α_j z_j]

and a trunk sees z. The stop-gradient sg is the paper's: attention moves the encoders, not the context.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Body, Parameters, Shape, Weights
from mtjax.networks.components import Trunk, init_stack, join, last_layer, make_trunk
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array


def make_care(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """Attention over ``config.num_experts`` encoders, then a trunk. All of it is shared."""
    encoder = Trunk(config.own_encoder_sizes, config.activation, config.layer_norm, linear_end=True)
    trunk = make_trunk(config, shape.sizes)
    encoding = config.own_encoder_sizes[-1]

    def init(key: Array) -> Parameters:
        encoder_key, trunk_key = jax.random.split(key)
        blank = jnp.zeros((inputs,), jnp.float32)
        return Parameters(
            {
                "encoders": init_stack(lambda k: encoder.init(k, blank), encoder_key, config.num_experts),
                "trunk": trunk.init(trunk_key, jnp.zeros((encoding + told,), jnp.float32)),
            },
            {},
        )

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        encodings = jax.vmap(encoder.apply, in_axes=(0, None), out_axes=-2)(shared["encoders"], x)  # [..., k, e]
        attention = jax.nn.softmax(encodings @ jax.lax.stop_gradient(z), axis=-1)
        mixed = jnp.einsum("...k,...ke->...e", attention, encodings)
        return trunk.apply(shared["trunk"], join(mixed, z)), {"routing": attention[..., None, :]}

    width = shape.sizes[-1] if shape.sizes else encoding + told
    last = f"encoders/params/Dense_{len(config.own_encoder_sizes) - 1}/"
    if shape.sizes:
        last = f"trunk/params/{last_layer(config, shape.sizes)}"
    return Body(init, apply, width, last)
