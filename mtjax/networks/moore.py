"""MOORE (arXiv 2311.11385): a mixture of experts whose features are made orthonormal for every observation.

The experts output u_1 … u_k, which Gram-Schmidt turns into orthonormal v_1 … v_k. Each task has its own weights w
and its own head, which reads tanh(Σ_j w_j v_j).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Body, Parameters, Shape, Weights
from mtjax.networks.components import Trunk, dense, init_dense, init_stack, join
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array
DEGENERATE = 1e-6  # relative to an expert's length: a shorter remainder after projection is rounding error


def make_moore(config: NetworkConfig, shape: Shape, *, inputs: int, told: int) -> Body:
    """Shared orthogonal experts, mixed with the task's own weights or, given a task vector z, weights linear in z.

    The experts' last layer is linear, so that features may point in any direction.

    Raises:
        ValueError: there are more experts than features, so that they cannot be orthogonal.
    """
    number, width = config.num_experts, shape.sizes[-1]
    if number > width:
        raise ValueError(f"num_experts: {number} experts of {width} features cannot be orthogonal")
    expert = Trunk(shape.sizes, config.activation, config.layer_norm, linear_end=True)

    def init(key: Array) -> Parameters:
        expert_key, weight_key = jax.random.split(key)
        blank = jnp.zeros((inputs,), jnp.float32)
        shared = {"experts": init_stack(lambda k: expert.init(k, blank), expert_key, number)}
        if told:
            return Parameters({**shared, "mix": init_dense(weight_key, told, number, 1.0)}, {})
        # Not named "mix" as PaCo's weights are: the learner redraws those after an exploding loss.
        return Parameters(shared, {"weights": jax.random.normal(weight_key, (shape.num_tasks, number), jnp.float32)})

    def apply(shared: Any, private: Any, task: Task, z: Array, x: Array) -> tuple[Array, Weights]:
        features = jax.vmap(expert.apply, in_axes=(0, None), out_axes=-2)(shared["experts"], x)  # [..., k, width]
        weights = dense(shared["mix"], z) if told else private["weights"]
        return jnp.tanh(weights @ orthonormal(features)), {"weights": join(x[..., :0], weights)}

    return Body(init, apply, width, f"experts/params/Dense_{len(shape.sizes) - 1}/")


def orthonormal(rows: Array) -> Array:
    """Gram-Schmidt over k vectors [..., k, n], in order; a vector in the span of the earlier ones becomes zero.

    Each vector is orthogonalised twice, so that the result in float32 is orthogonal to about 1e-6.
    """
    basis: list[Array] = []
    for index in range(rows.shape[-2]):
        v = rows[..., index, :]
        length = jnp.sum(v * v, axis=-1, keepdims=True)
        for _ in range(2):
            for b in basis:
                v = v - jnp.sum(v * b, axis=-1, keepdims=True) * b
        left = jnp.sum(v * v, axis=-1, keepdims=True)
        sound = left > jnp.maximum(DEGENERATE**2 * length, 1e-30)
        basis.append(jnp.where(sound, v * jax.lax.rsqrt(jnp.where(sound, left, 1.0)), 0.0))
    return jnp.stack(basis, axis=-2)
