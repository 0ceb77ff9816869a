"""Arrangements: which parameters the tasks share and which belong to one task alone.

A network's parameters are two trees. ``shared`` is used by every task: its per-task gradients are what
gradient surgery works on. ``private`` leads with the task axis, [T, ...]; task t sees only its slice, so its
gradient has no conflict. "One agent per task" is the arrangement in which everything is private.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.networks.components import Head, Trunk
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array


class Parameters(NamedTuple):
    """Parameters of a network of T tasks.

    Attributes:
        shared: pytree, used by all tasks; empty for one agent per task.
        private: pytree of [T, ...]; task t uses slice t. Empty if everything is shared.
    """

    shared: Any
    private: Any


class Network(NamedTuple):
    """A multi-task network as a pair of pure functions.

    Attributes:
        init: key -> Parameters.
        apply: (shared, private of ONE task, the task, inputs [..., in]) -> outputs [..., out].
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task, Array], Array]


def make_network(
    config: NetworkConfig, *, inputs: int, outputs: int, num_tasks: int, sizes: tuple[int, ...], gain: float
) -> Network:
    """Build the network that ``config.arrangement`` names.

    Args:
        config: arrangement and component options.
        inputs: size of an observation.
        outputs: size of the output.
        num_tasks: T.
        sizes: widths of the hidden layers.
        gain: gain of the output layer's initialisation.

    Returns:
        The network's ``init`` and ``apply``.
    """
    trunk, head = Trunk(sizes, config.activation, config.layer_norm), Head(outputs, gain)
    with_code = config.arrangement in ("one_hot", "multi_head")
    with_embedding = config.arrangement == "embedding"
    width = inputs + (num_tasks if with_code else config.embedding_size if with_embedding else 0)

    def embedding(private: Any) -> Array:
        vector = private["embedding"]
        if config.unit_norm_embedding:
            vector = vector / jnp.maximum(jnp.linalg.norm(vector), 1e-6)
        return vector

    def describe(private: Any, task: Task, x: Array) -> Array:
        """Append what the network may know of the task."""
        if not (with_code or with_embedding):
            return x
        extra = task.code if with_code else embedding(private)
        return jnp.concatenate([x, jnp.broadcast_to(extra, x.shape[:-1] + extra.shape)], axis=-1)

    def init(key: Array) -> Parameters:
        trunk_key, head_key, embedding_key = jax.random.split(key, 3)

        def init_trunk(key: Array) -> Any:
            return trunk.init(key, jnp.zeros((width,), jnp.float32))

        def init_head(key: Array) -> Any:
            return head.init(key, jnp.zeros((sizes[-1] if sizes else width,), jnp.float32))

        def each_task(init: Callable, key: Array) -> Any:
            return jax.vmap(init)(jax.random.split(key, num_tasks))

        if config.arrangement == "independent":
            return Parameters(
                {}, {"trunk": each_task(init_trunk, trunk_key), "head": each_task(init_head, head_key)}
            )
        if config.arrangement == "multi_head":
            return Parameters({"trunk": init_trunk(trunk_key)}, {"head": each_task(init_head, head_key)})
        private = {}
        if with_embedding:
            private["embedding"] = jax.random.normal(
                embedding_key, (num_tasks, config.embedding_size), jnp.float32
            )
        return Parameters({"trunk": init_trunk(trunk_key), "head": init_head(head_key)}, private)

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        parts = {**shared, **private}
        return head.apply(parts["head"], trunk.apply(parts["trunk"], describe(private, task, x)))

    return Network(init, apply)


def of_unseen_task(parameters: Parameters) -> Any:
    """Private parameters for a task that was not trained on: the mean over the training tasks."""
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), parameters.private)
