"""PaCo (arXiv 2205.15876): the parameters of a task's network are composed of K sets, θ_τ = Σ_k w_τk Φ_k.

The sets Φ are shared; the weights w_τ are the task's own. Common weights for policy and critics, and the paper's
treatment of a task whose loss explodes, are implemented in the learner: :mod:`mtjax.learners.paco`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Network, Parameters, Shape, Weights
from mtjax.networks.components import dense, init_dense, init_stack, join
from mtjax.networks.config import NetworkConfig
from mtjax.networks.plain import make_plain
from mtjax.networks.task import Task
from mtjax.networks.task_encoder import TaskEncoder

Array = jax.Array


def make_paco(config: NetworkConfig, shape: Shape, tell: TaskEncoder) -> Network:
    """A plain network composed of ``config.num_experts`` parameter sets.

    The weights are the task's own and start with length 1, so that a composed layer has the scale of one set.
    With ``task_input``, they are linear in the task vector instead, so that unseen tasks have weights, too.
    """
    plain, number = make_plain(config, shape), config.num_experts

    def init(key: Array) -> Parameters:
        set_key, weight_key, tell_key = jax.random.split(key, 3)
        told = tell.init(tell_key)
        shared = {"sets": init_stack(plain.init, set_key, number), **told.shared}
        if tell.size:
            return Parameters({**shared, "mix": init_dense(weight_key, tell.size, number, 1.0)}, told.private)
        weights = jax.random.normal(weight_key, (shape.num_tasks, number), jnp.float32)
        return Parameters(shared, {"mix": weights / jnp.linalg.norm(weights, axis=1, keepdims=True)})

    def weigh(shared: Any, private: Any, task: Task) -> Array:
        return dense(shared["mix"], tell.apply(shared, private, task)) if tell.size else private["mix"]

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        return plain.apply(compose(shared["sets"], weigh(shared, private, task)), x)

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        return {"weights": join(x[..., :0], weigh(shared, private, task)), **tell.show(shared, private, task, x)}

    return Network(init, apply, diagnose, f"sets/{plain.last}")


def compose(sets: Any, weights: Array) -> Any:
    """Σ_k w_k Φ_k: sets of leaves [K, ...] and weights [K] to leaves [...]."""
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), sets)
