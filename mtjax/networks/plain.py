"""A trunk and a head as one network with one parameter tree, for arrangements that compose whole networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.networks.base import Shape
from mtjax.networks.components import Head, make_trunk
from mtjax.networks.config import NetworkConfig

Array = jax.Array


class Plain(NamedTuple):
    """A single-task network.

    Attributes:
        init: key -> parameters.
        apply: (parameters, x [..., in]) -> [..., out].
        last: path prefix of its output layer.
    """

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array], Array]
    last: str


def make_plain(config: NetworkConfig, shape: Shape) -> Plain:
    """Trunk and head of ``config``, without a task input.

    Layer normalisations have no learnt scale: scales all start at 1, and a sum of them with weights of either sign
    could be 0.
    """
    trunk, head = make_trunk(config, shape.sizes, norm_scale=False), Head(shape.outputs, shape.gain)
    width = shape.sizes[-1] if shape.sizes else shape.inputs

    def init(key: Array) -> Any:
        trunk_key, head_key = jax.random.split(key)
        return {
            "trunk": trunk.init(trunk_key, jnp.zeros((shape.inputs,), jnp.float32)),
            "head": head.init(head_key, jnp.zeros((width,), jnp.float32)),
        }

    def apply(parameters: Any, x: Array) -> Array:
        return head.apply(parameters["head"], trunk.apply(parameters["trunk"], x))

    return Plain(init, apply, "head/")
