"""Mixture of experts: k trunks see the observation and the task, and the features are their weighted average.

``config.selection`` determines the weights:

    gate       softmax of a linear layer on observation and task vector
    attention  softmax over experts of ⟨features of the expert, query of the task⟩ / √width
    ensemble   1/k
    cluster    1 for the expert of the task's cluster, by a given assignment; 0 for the others
    identity   one expert per task: the experts are then private parameters, and this module is not used
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Body, Parameters, Shape, Weights
from mtjax.networks.components import dense, init_dense, init_stack, join, last_layer, make_trunk
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array


def make_experts(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """A mixture of ``config.num_experts`` trunks, all shared; clusters of an unseen task are the training tasks' mean.

    Raises:
        ValueError: not every task has a cluster, or attention has no task vector to compute the query from.
    """
    number, width = config.num_experts, shape.sizes[-1]
    trunk = make_trunk(config, shape.sizes)
    if config.selection == "cluster" and len(config.clusters) != shape.num_tasks:
        raise ValueError(f"clusters: {len(config.clusters)} are given for {shape.num_tasks} tasks; give one per task")
    if config.selection == "attention" and not told:
        raise ValueError("task_input: selection=attention needs a task input; it cannot be 'none'")

    def init(key: Array) -> Parameters:
        expert_key, select_key = jax.random.split(key)
        blank = jnp.zeros((inputs + told,), jnp.float32)
        shared = {"experts": init_stack(lambda k: trunk.init(k, blank), expert_key, number)}
        if config.selection == "gate":
            shared["gate"] = init_dense(select_key, inputs + told, number, 1.0)
        if config.selection == "attention":
            shared["query"] = init_dense(select_key, told, width, 1.0)
        return Parameters(shared, {})

    def select(shared: Any, task: Task, z: Array, x: Array, features: Array) -> Array:
        """Weights [..., k] of the experts, summing to 1."""
        if config.selection == "gate":
            return jax.nn.softmax(dense(shared["gate"], x), axis=-1)
        if config.selection == "attention":
            return jax.nn.softmax(features @ dense(shared["query"], z) / math.sqrt(width), axis=-1)
        if config.selection == "cluster":
            one_hot = jax.nn.one_hot(jnp.asarray(config.clusters), number, dtype=jnp.float32)  # [T, k]
            weights = task.code @ one_hot
        else:
            weights = jnp.full((number,), 1.0 / number, jnp.float32)
        return jnp.broadcast_to(weights, (*x.shape[:-1], number))

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        x = join(x, z)
        features = jax.vmap(trunk.apply, in_axes=(0, None), out_axes=-2)(shared["experts"], x)  # [..., k, width]
        weights = select(shared, task, z, x, features)
        return jnp.einsum("...k,...kw->...w", weights, features), {"routing": weights[..., None, :]}

    return Body(init, apply, width, f"experts/params/{last_layer(config, shape.sizes)}")
