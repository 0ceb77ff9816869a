"""What PaCo (arXiv 2205.15876) needs from a learner: common weights, and the handling of a task whose loss explodes.

*Common weights*: policy and critics compose their parameters from parameter sets of their own, but with the same
weights for a task, which the losses of all of them train.

*An exploding loss* (section 4): the parameter sets are shared between tasks, so that one such loss would ruin all
tasks. The task is left out of the gradient step, and its weights become a random convex combination of those of the
healthy tasks, in policy, critics and target critics alike. As in the authors' code, optimiser states are not reset:
their momentum keeps acting, and still contains the explosion.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtjax.networks.base import Parameters

Array = jax.Array
WEIGHTS = "mix"  # key of PaCo's weights among a task's private parameters


class CommonWeights:
    """The pure functions of weights [T, K] that policy and critics have in common. Holds no state.

    The policy holds the weights; the N critics hold copies of them, [T, N, K].

    Args:
        optimizer: an optax transform without its learning rate; it is applied to each task's weights separately.
    """

    def __init__(self, optimizer: optax.GradientTransformation):
        self.optimizer = optimizer

    def init(self, policy: Parameters) -> Any:
        """The initial state of the tasks' optimisers."""
        return jax.vmap(self.optimizer.init)(policy.private[WEIGHTS])

    def step(
        self, policy: Parameters, state: Any, policy_grads: Parameters, critic_grads: Parameters, rate: Array
    ) -> tuple[Parameters, Any]:
        """Update the policy's weights with the sum of all losses' gradients. Returns (policy, state)."""
        gradient = policy_grads.private[WEIGHTS] + critic_grads.private[WEIGHTS].sum(axis=1)
        weights = policy.private[WEIGHTS]
        step, state = jax.vmap(self.optimizer.update)(gradient, state, weights)
        return put(policy, weights - rate * step), state


def put(parameters: Parameters, weights: Array) -> Parameters:
    """The parameters of a network with its weights replaced."""
    return parameters._replace(private={**parameters.private, WEIGHTS: weights})


def tied(critic: Parameters, policy: Parameters) -> Parameters:
    """The critics' parameters with copies of the policy's weights."""
    copies = jnp.broadcast_to(policy.private[WEIGHTS][:, None], critic.private[WEIGHTS].shape)
    return put(critic, copies)


def apart(parameters: Parameters) -> Parameters:
    """The parameters of a network, or their gradients, without the weights."""
    return parameters._replace(private={name: leaf for name, leaf in parameters.private.items() if name != WEIGHTS})


def combinations(key: Array, exploded: Array) -> Array:
    """[T, T] a row for each exploded [T] task: uniform on the simplex of the healthy tasks, 0 for exploded ones.

    The row of a healthy task, or every row if all tasks have exploded, is that of the identity.
    """
    number = exploded.shape[0]
    draws = jax.random.exponential(key, (number, number), jnp.float32) * ~exploded
    draws = draws / jnp.maximum(draws.sum(axis=1, keepdims=True), 1e-30)
    keep = ~exploded | exploded.all()
    return jnp.where(keep[:, None], jnp.eye(number, dtype=jnp.float32), draws)


def redrawn(parameters: Parameters, rows: Array) -> Parameters:
    """Combine the tasks' weights [T, ...] by ``rows`` [T, T]; parameters without weights are returned unchanged."""
    if WEIGHTS not in parameters.private:
        return parameters
    drawn, taken = rows.diagonal() != 1, (rows != 0).any(axis=0)  # a NaN in a task that no row takes must not spread
    weights = parameters.private[WEIGHTS]
    mixed = jnp.tensordot(rows, jnp.where(_wide(taken, weights), weights, 0), axes=1, precision="highest")
    mixed = jnp.where(_wide(drawn, weights), mixed, weights)
    return put(parameters, mixed)


def without(task_grads: Parameters, exploded: Array | None) -> Parameters:
    """The gradients, every leaf [T, ...], with those of exploded tasks set to 0; None if none can explode."""
    if exploded is None:
        return task_grads
    return jax.tree.map(lambda g: jnp.where(_wide(exploded, g), 0.0, g), task_grads)


def _wide(flags: Array, x: Array) -> Array:
    """Reshape flags [T] so that they broadcast against x [T, ...]."""
    return flags.reshape(-1, *(1,) * (x.ndim - 1))
