"""What a multi-task network is: two trees of parameters and a pair of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mtjax.networks.task import Task

Array = jax.Array
Weights = Mapping[str, Array]


class Parameters(NamedTuple):
    """Parameters of a network of T tasks.

    Attributes:
        shared: pytree, used by all tasks; empty for one agent per task.
        private: pytree of [T, ...]; task t uses slice t. Empty if everything is shared.
    """

    shared: Any
    private: Any


class Network(NamedTuple):
    """A multi-task network as pure functions.

    Attributes:
        init: key -> Parameters.
        apply: (shared, private of ONE task, the task, inputs [..., in]) -> outputs [..., out].
        diagnose: as ``apply``, but -> what the network decides on for this task beside its outputs, by name:
            "routing" [..., K, N] are probabilities over the last axis, "weights" [..., N] are any numbers,
            "embedding" [..., Z] is the learnt vector that stands for the task. An empty mapping where there is nothing
            to tell.
        last_shared: how the paths of its last shared layer begin, for methods that look at that alone; "" if nothing
            is shared.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task, Array], Array]
    diagnose: Callable[[Any, Any, Task, Array], Weights]
    last_shared: str


class Shape(NamedTuple):
    """Sizes of a network.

    Attributes:
        inputs, outputs: size of an observation, and of the output.
        num_tasks: T.
        sizes: widths of the hidden layers.
        gain: gain of the output layer's initialisation.
        contexts: D, size of the embedding of a task's description; 0 if there is none.
    """

    inputs: int
    outputs: int
    num_tasks: int
    sizes: tuple[int, ...]
    gain: float
    contexts: int = 0


class Body(NamedTuple):
    """What stands between the encoder and the head.

    Attributes:
        init: key -> Parameters.
        apply: (shared, private of ONE task, the task, task vector [Z], x [..., in]) ->
            (features [..., width], weights as in ``Network.diagnose``).
        width: of the features.
        last_shared: as in Network; "" also if there is no layer in it.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task, Array, Array], tuple[Array, Weights]]
    width: int
    last_shared: str


def of_unseen_task(parameters: Parameters) -> Any:
    """Private parameters for a task that was not trained on: the mean over the training tasks."""
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), parameters.private)
