"""Arrangements: which parameters the tasks share and which belong to one task alone.

A network's parameters are two trees. ``shared`` is used by every task: gradient surgery works on its per-task
gradients. The leaves of ``private`` lead with the task axis, [T, ...]; task t uses only its slice, so that its
gradients do not conflict. "One agent per task" is the arrangement in which everything is private.

Most arrangements chain four parts: a task encoder, an observation encoder, a body and a head
(``config.ARRANGEMENTS`` lists them); two compose whole networks instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mtjax.networks.base import Body, Network, Parameters, Shape, Weights
from mtjax.networks.care import make_care
from mtjax.networks.components import Head, Trunk, init_stack, join, last_layer, make_trunk
from mtjax.networks.config import COMPOSED, NetworkConfig
from mtjax.networks.experts import make_experts
from mtjax.networks.film import make_film
from mtjax.networks.hypernetwork import make_hypernetwork
from mtjax.networks.images import ConvTrunk, check_image
from mtjax.networks.moore import make_moore
from mtjax.networks.paco import make_paco
from mtjax.networks.soft_modular import make_soft_modular
from mtjax.networks.task import Task
from mtjax.networks.task_encoder import TaskEncoder, make_task_encoder

__all__ = ["Network", "Parameters", "make_network"]

Array = jax.Array


def make_network(
    config: NetworkConfig,
    *,
    inputs: int,
    outputs: int,
    num_tasks: int,
    sizes: tuple[int, ...],
    gain: float,
    contexts: int = 0,
) -> Network:
    """Build the network that ``config.arrangement`` names.

    Args:
        config: arrangement and component options; ``config.of_value()`` for a value network.
        inputs: size of an observation.
        outputs: size of the output.
        num_tasks: T.
        sizes: widths of the hidden layers.
        gain: gain of the output layer's initialisation.
        contexts: D, size of the embeddings of the tasks' descriptions; 0 if there are none.

    Returns:
        The network's pure functions.

    Raises:
        ValueError: options do not fit together, or do not fit the number of tasks; or embeddings are missing.
    """
    shape = Shape(inputs, outputs, num_tasks, sizes, gain, contexts)
    tell = make_task_encoder(config, shape)
    if config.arrangement in COMPOSED:
        return {"paco": make_paco, "hypernetwork": make_hypernetwork}[config.arrangement](config, shape, tell)
    return _in_a_row(config, shape, tell)


# ------------------------------------------------------------------------------------ four parts in a row


class Part(NamedTuple):
    """An encoder or a head: one for all tasks, one per task, or none."""

    init: Callable[[Array], Any]  # parameters of a single one
    apply: Callable[[Any, Array], Array]
    kind: str  # "none", "shared" or "private"
    width: int
    last: str = ""  # path prefix of its last layer; "" if it has no layers

    def parameters(self, name: str, key: Array, num_tasks: int) -> Parameters:
        """Its parameters under ``name``, in the shared or the private tree."""
        if self.kind == "shared":
            return Parameters({name: self.init(key)}, {})
        return Parameters({}, {name: init_stack(self.init, key, num_tasks)} if self.kind == "private" else {})

    def of(self, name: str, shared: Any, private: Any, x: Array) -> Array:
        """Apply the part to x, with its parameters under ``name``."""
        return x if self.kind == "none" else self.apply((shared if self.kind == "shared" else private)[name], x)


def _in_a_row(config: NetworkConfig, shape: Shape, tell: TaskEncoder) -> Network:
    encoder = make_encoder(config, shape)
    body = _body(config, shape, inputs=encoder.width, told=tell.size)
    head = _head(config, shape, body.width)

    def init(key: Array) -> Parameters:
        body_key, head_key, tell_key, encoder_key = jax.random.split(key, 4)
        trees = [tell.init(tell_key), body.init(body_key)]
        trees += [encoder.parameters("encoder", encoder_key, shape.num_tasks)]
        trees += [head.parameters("head", head_key, shape.num_tasks)]
        return merge(*trees)

    def features(shared: Any, private: Any, task: Task, x: Array) -> tuple[Array, Weights]:
        x = encoder.of("encoder", shared, private, x)
        return body.apply(shared, private, task, tell.apply(shared, private, task), x)

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        x, _ = features(shared, private, task, x)
        return head.of("head", shared, private, x)

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        return {**features(shared, private, task, x)[1], **tell.show(shared, private, task, x)}

    return Network(init, apply, diagnose, _last_shared(head, body, encoder, tell))


def _last_shared(head: Part, body: Body, encoder: Part, tell: TaskEncoder) -> str:
    """Path prefix of the last layer that the tasks share, searched for from the outputs backwards."""
    of_head, of_encoder = (part.last if part.kind == "shared" else "" for part in (head, encoder))
    return of_head or body.last_shared or of_encoder or tell.last_shared


def merge(*trees: Parameters) -> Parameters:
    """Merge parameters whose names differ."""
    return Parameters(
        *({name: value for tree in side for name, value in tree.items()} for side in zip(*trees, strict=True))
    )


def make_encoder(config: NetworkConfig, shape: Shape) -> Part:
    """The observation encoder that ``config`` names."""
    kind = config.parts.encoder
    if kind == "none":
        return Part(lambda key: {}, lambda p, x: x, kind, shape.inputs)
    sizes = config.encoder_sizes or shape.sizes[:1]
    module = Trunk(sizes, config.activation, config.layer_norm)
    if config.image_shape:
        check_image(config.image_shape, shape.inputs)
        sizes = sizes or (64,)
        module = ConvTrunk(config.image_shape, config.conv_channels, sizes, config.activation, config.layer_norm)
    blank = np.zeros((shape.inputs,), np.float32)
    last = f"encoder/params/{'Trunk_0/' if config.image_shape else ''}Dense_{len(sizes) - 1}/" if sizes else ""
    width = sizes[-1] if sizes else shape.inputs
    return Part(lambda key: module.init(key, blank), module.apply, kind, width, last)


def _head(config: NetworkConfig, shape: Shape, width: int) -> Part:
    module = Head(shape.outputs, shape.gain, config.head_sizes, config.activation, config.layer_norm)
    blank = np.zeros((width,), np.float32)
    last = f"head/params/Dense_{len(config.head_sizes)}/"
    return Part(lambda key: module.init(key, blank), module.apply, config.parts.head, shape.outputs, last)


def _body(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    return BODIES[config.parts.body](config, shape, inputs=inputs, told=told)


def _trunk(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """A shared trunk that sees the observation and the task vector."""
    module, sizes = make_trunk(config, shape.sizes), shape.sizes
    blank = np.zeros((inputs + told,), np.float32)

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        return module.apply(shared["trunk"], join(x, z)), {}

    last = f"trunk/params/{last_layer(config, sizes)}" if sizes else ""
    width = sizes[-1] if sizes else inputs + told
    return Body(lambda key: Parameters({"trunk": module.init(key, blank)}, {}), apply, width, last)


def _private_trunk(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """One trunk per task, which sees the observation only."""
    module, sizes = make_trunk(config, shape.sizes), shape.sizes
    blank = np.zeros((inputs,), np.float32)

    def init(key: Array) -> Parameters:
        return Parameters({}, {"trunk": init_stack(lambda k: module.init(k, blank), key, shape.num_tasks)})

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        return module.apply(private["trunk"], x), {}

    return Body(init, apply, sizes[-1] if sizes else inputs, last_shared="")


# Factories of bodies: (config, shape, inputs=, told=) -> Body.
BODIES: dict[str, Callable[..., Body]] = {
    "trunk": _trunk,
    "private": _private_trunk,
    "film": make_film,
    "experts": make_experts,
    "soft_modular": make_soft_modular,
    "care": make_care,
    "moore": make_moore,
}
