"""CARE (arXiv 2102.06177): attention by the task's description decides which encoders to listen to.

k encoders map the observation to z_1 … z_k, and the description is mapped to the context z_c. Then

    α = softmax_j ⟨z_j, sg(z_c)⟩        z = [z_c, Σ_j α_j z_j]

and a trunk sees z. The stop-gradient sg is the paper's: through attention, only the encoders are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.networks.base import Body, Parameters, Shape, Weights
from mtjax.networks.components import Trunk, init_stack, join, last_layer, make_trunk
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array


class Attention(NamedTuple):
    """The encoders, and the attention that mixes their outputs.

    Attributes:
        init: key -> parameters of k encoders, leaves [k, ...].
        apply: (parameters, context [C], x [..., in]) -> (z [..., e + C], weights as in ``Network.diagnose``).
        width: e + C.
        last: path prefix of the encoders' last layer.
    """

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array, Array], tuple[Array, Weights]]
    width: int
    last: str


def make_attention(config: NetworkConfig, *, inputs: int, told: int) -> Attention:
    """Attention over ``config.num_experts`` encoders with ``inputs`` inputs, by a context of size ``told``."""
    sizes = config.own_encoder_sizes
    encoder = Trunk(sizes, config.activation, config.layer_norm, linear_end=True)

    def init(key: Array) -> Any:
        return init_stack(lambda k: encoder.init(k, jnp.zeros((inputs,), jnp.float32)), key, config.num_experts)

    def apply(encoders: Any, context: Array, x: Array) -> tuple[Array, Weights]:
        encodings = jax.vmap(encoder.apply, in_axes=(0, None), out_axes=-2)(encoders, x)  # [..., k, e]
        attention = jax.nn.softmax(encodings @ jax.lax.stop_gradient(context), axis=-1)
        mixed = jnp.einsum("...k,...ke->...e", attention, encodings)
        return join(mixed, context), {"routing": attention[..., None, :]}

    return Attention(init, apply, sizes[-1] + told, f"params/Dense_{len(sizes) - 1}/")


def make_care(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """:func:`make_attention` followed by a trunk. All parameters are shared."""
    attention, trunk = make_attention(config, inputs=inputs, told=told), make_trunk(config, shape.sizes)

    def init(key: Array) -> Parameters:
        encoder_key, trunk_key = jax.random.split(key)
        blank = jnp.zeros((attention.width,), jnp.float32)
        return Parameters({"encoders": attention.init(encoder_key), "trunk": trunk.init(trunk_key, blank)}, {})

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        heard, weights = attention.apply(shared["encoders"], z, x)
        return trunk.apply(shared["trunk"], heard), weights

    width = shape.sizes[-1] if shape.sizes else attention.width
    last = f"trunk/params/{last_layer(config, shape.sizes)}" if shape.sizes else f"encoders/{attention.last}"
    return Body(init, apply, width, last)
