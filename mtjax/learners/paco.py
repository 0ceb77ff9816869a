"""What PaCo (arXiv 2205.15876) asks of a learner: weights in common, and what becomes of a task whose loss explodes.

*Weights in common*: policy and critics compose their parameters, each of its own sets, by the same weights of a task,
which the losses of all of them move.

*An exploding loss* (section 4): parameter sets are what a task shares with the others, so that one such loss would
ruin all tasks. It is left out, and the task's weights become a random convex combination of those of the tasks that are
well, in policy, critics and target critics alike. As in its authors' code, optimisers are left as they are: their
momentum moves on, and remembers the explosion.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtjax.networks.base import Parameters

Array = jax.Array
WEIGHTS = "mix"  # the name of PaCo's weights among a task's private parameters


class CommonWeights:
    """The pure functions of weights [T, K] that policy and critics have in common. Holds no state.

    The policy's are the weights; the critics, [T, N, K], have a copy each.

    Args:
        optimizer: an optax transform without its learning rate; each task's weights have their own.
    """

    def __init__(self, optimizer: optax.GradientTransformation):
        self.optimizer = optimizer

    def init(self, policy: Parameters) -> Any:
        """The optimisers' state."""
        return jax.vmap(self.optimizer.init)(policy.private[WEIGHTS])

    def step(
        self, policy: Parameters, state: Any, policy_grads: Parameters, critic_grads: Parameters, rate: Array
    ) -> tuple[Parameters, Any]:
        """Move the policy's by the sum of all losses' gradients: (policy, state)."""
        gradient = policy_grads.private[WEIGHTS] + critic_grads.private[WEIGHTS].sum(axis=1)
        weights = policy.private[WEIGHTS]
        step, state = jax.vmap(self.optimizer.update)(gradient, state, weights)
        return put(policy, weights - rate * step), state


def put(parameters: Parameters, weights: Array) -> Parameters:
    """A network with these weights."""
    return parameters._replace(private={**parameters.private, WEIGHTS: weights})


def tied(critic: Parameters, policy: Parameters) -> Parameters:
    """Critics with the policy's weights."""
    copies = jnp.broadcast_to(policy.private[WEIGHTS][:, None], critic.private[WEIGHTS].shape)
    return put(critic, copies)


def apart(parameters: Parameters) -> Parameters:
    """A network, or its gradients, without the weights."""
    return parameters._replace(private={name: leaf for name, leaf in parameters.private.items() if name != WEIGHTS})


def combinations(key: Array, exploded: Array) -> Array:
    """[T, T] a row for each task: uniform on the simplex of the tasks that have not exploded [T], 0 for the others.

    The row of a task that is well, and every row if none is, is that of the identity.
    """
    number = exploded.shape[0]
    draws = jax.random.exponential(key, (number, number), jnp.float32) * ~exploded
    draws = draws / jnp.maximum(draws.sum(axis=1, keepdims=True), 1e-30)
    keep = ~exploded | exploded.all()
    return jnp.where(keep[:, None], jnp.eye(number, dtype=jnp.float32), draws)


def redrawn(parameters: Parameters, rows: Array) -> Parameters:
    """A network whose tasks' weights [T, ...] are combined by ``rows`` [T, T]; as it is, if tasks own none."""
    if WEIGHTS not in parameters.private:
        return parameters
    drawn, taken = rows.diagonal() != 1, (rows != 0).any(axis=0)  # a NaN elsewhere is nobody's
    weights = parameters.private[WEIGHTS]
    mixed = jnp.tensordot(rows, jnp.where(_wide(taken, weights), weights, 0), axes=1, precision="highest")
    mixed = jnp.where(_wide(drawn, weights), mixed, weights)
    return put(parameters, mixed)


def without(task_grads: Parameters, exploded: Array) -> Parameters:
    """Gradients, every leaf [T, ...], of which those of exploded tasks are 0."""
    return jax.tree.map(lambda g: jnp.where(_wide(exploded, g), 0.0, g), task_grads)


def _wide(flags: Array, x: Array) -> Array:
    """Flags [T] for x [T, ...]."""
    return flags.reshape(-1, *(1,) * (x.ndim - 1))
