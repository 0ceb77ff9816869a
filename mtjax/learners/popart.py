"""PopArt (arXiv 1602.07714; multi-task: 1809.04474): each task's values are learnt in a unit of their own.

The unit is the running mean and deviation of the task's value targets, and the value loss is measured in it, so that
no task's rewards are too large or too small for the network that they share. When a unit changes, the values must not:
the scale and shift of the task's output absorb the difference exactly.

The paper rescales each task's head. Here each task has a scale and a shift after whatever head there is, so that PopArt
works with every arrangement.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.learners import normalization
from mtjax.networks.base import Network, Parameters, Weights
from mtjax.networks.task import Task

Array = jax.Array
UNIT = "unit"  # its key among a task's private parameters
SMALLEST, LARGEST = 1e-3, 1e6  # bounds of a unit's deviation


class Unit(NamedTuple):
    """The unit of one task [], or of all tasks [T]. The value is deviation · (scale · output + shift) + mean.

    Attributes:
        scale, shift: learnt, like an output layer.
        mean, deviation: running moments of the value targets; no gradient reaches them.
        count: number of updates of these moments.
    """

    scale: Array
    shift: Array
    mean: Array
    deviation: Array
    count: Array


def with_unit(network: Network, num_tasks: int) -> Network:
    """Wrap a value network with one output, so that its values are denormalised to the rewards' unit."""

    def init(key: Array) -> Parameters:
        parameters = network.init(key)
        zeros, ones = (lambda: jnp.zeros((num_tasks,), jnp.float32)), (lambda: jnp.ones((num_tasks,), jnp.float32))
        unit = Unit(ones(), zeros(), zeros(), ones(), zeros())
        return parameters._replace(private={**parameters.private, UNIT: unit})

    def inner(private: Any) -> Any:
        return {name: tree for name, tree in private.items() if name != UNIT}

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        unit: Unit = private[UNIT]
        mean, deviation = jax.lax.stop_gradient((unit.mean, unit.deviation))
        return deviation * (unit.scale * network.apply(shared, inner(private), task, x) + unit.shift) + mean

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        return network.diagnose(shared, inner(private), task, x)

    return network._replace(init=init, apply=apply, diagnose=diagnose)


def renewed(parameters: Parameters, target: Array, step: float, weight: Array | None = None) -> Parameters:
    """Update the units by new value targets [T, B], without changing the values.

    Args:
        parameters: parameters of a network from ``with_unit``.
        target: [T, B] in the rewards' unit.
        step: share of these targets in the new moments (the first few batches count equally).
        weight: [T, B], weight of each target; None weighs all alike. A task whose weights are all 0 keeps its unit.
    """
    old: Unit = parameters.private[UNIT]
    new_mean, new_variance, number = normalization.moments(target, (1,), weight)
    count = old.count + jnp.minimum(number, 1)
    share = jnp.where(number > 0, jnp.maximum(step, 1 / jnp.maximum(count, 1)), 0)
    delta = new_mean - old.mean
    variance = (1 - share) * (jnp.square(old.deviation) + share * jnp.square(delta)) + share * new_variance
    mean, deviation = old.mean + share * delta, jnp.clip(jnp.sqrt(variance), SMALLEST, LARGEST)
    unit = Unit(
        scale=old.scale * old.deviation / deviation,
        shift=(old.deviation * old.shift + old.mean - mean) / deviation,
        mean=mean,
        deviation=deviation,
        count=count,
    )
    return parameters._replace(private={**parameters.private, UNIT: unit})


def deviation(private: Any) -> Array | float:
    """The deviation by which a task's value errors are divided; 1 for a network without a unit."""
    return jax.lax.stop_gradient(private[UNIT].deviation) if UNIT in private else 1.0
