"""PaCo's rule for a task whose loss explodes (arXiv 2205.15876, section 4): leave it out, and draw its weights anew.

Its parameter sets are what it shares with the others, so that one exploding loss would ruin all tasks. Its own weights
become a random convex combination of those of the tasks that are well, in policy, critics and target critics alike.
As in its authors' code, optimisers are left as they are: their momentum moves on, and remembers the explosion.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtjax.networks.base import Parameters

Array = jax.Array
WEIGHTS = "mix"  # the name of PaCo's weights among a task's private parameters


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
    return parameters._replace(private={**parameters.private, WEIGHTS: mixed})


def without(task_grads: Parameters, exploded: Array) -> Parameters:
    """Gradients, every leaf [T, ...], of which those of exploded tasks are 0."""
    return jax.tree.map(lambda g: jnp.where(_wide(exploded, g), 0.0, g), task_grads)


def _wide(flags: Array, x: Array) -> Array:
    """Flags [T] for x [T, ...]."""
    return flags.reshape(-1, *(1,) * (x.ndim - 1))
