"""A hypernetwork (after arXiv 1609.09106): a second network computes the parameters from the task vector z.

θ(z) = θ_0 + Σ_k u_k(z) Δ_k, where u is a linear layer on z, scaled to length 1. Unlike PaCo's private weights, u is a
function of z, so that tasks with similar z have similar networks, and an unseen task has a network, too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Network, Parameters, Shape, Weights
from mtjax.networks.components import dense, init_dense, init_stack, join
from mtjax.networks.config import NetworkConfig
from mtjax.networks.paco import compose
from mtjax.networks.plain import make_plain
from mtjax.networks.task import Task
from mtjax.networks.task_encoder import TaskEncoder

Array = jax.Array
START = 0.3  # initial scale of Δ relative to a plain network's parameters: how far apart tasks start


def make_hypernetwork(config: NetworkConfig, shape: Shape, tell: TaskEncoder) -> Network:
    """A plain network moved by the task along ``config.hyper_size`` directions; only a task embedding is private."""
    plain = make_plain(config, shape)

    def init(key: Array) -> Parameters:
        base_key, move_key, told_key, mix_key = jax.random.split(key, 4)
        told = tell.init(told_key)
        moves = jax.tree.map(lambda leaf: START * leaf, init_stack(plain.init, move_key, config.hyper_size))
        mix = init_dense(mix_key, tell.size, config.hyper_size)
        return Parameters({"base": plain.init(base_key), "moves": moves, "mix": mix, **told.shared}, told.private)

    def weigh(shared: Any, private: Any, task: Task) -> Array:
        u = dense(shared["mix"], tell.apply(shared, private, task))
        return u * jax.lax.rsqrt(jnp.sum(u * u) + 1e-12)

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        moved = compose(shared["moves"], weigh(shared, private, task))
        return plain.apply(jax.tree.map(jnp.add, shared["base"], moved), x)

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        return {"weights": join(x[..., :0], weigh(shared, private, task)), **tell.show(shared, private, task, x)}

    return Network(init, apply, diagnose, f"base/{plain.last}")
