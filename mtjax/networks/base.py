"""The definition of a multi-task network: two trees of parameters and pure functions of them."""

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
        diagnose: as ``apply``, but -> the network's task-dependent internals, by name: "routing" [..., K, N],
            probabilities over the last axis; "weights" [..., N], arbitrary numbers; "embedding" [..., Z], the learnt
            vector that represents the task. An empty mapping if the network has none of them.
        last_shared: path prefix of its last shared layer, for methods that use only this layer's gradients; "" if
            nothing is shared.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task, Array], Array]
    diagnose: Callable[[Any, Any, Task, Array], Weights]
    last_shared: str


class Shape(NamedTuple):
    """Sizes of a network.

    Attributes:
        inputs, outputs: sizes of an observation and of the output.
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
    """The part of a network between the encoder and the head.

    Attributes:
        init: key -> Parameters.
        apply: (shared, private of ONE task, the task, task vector [Z], x [..., in]) ->
            (features [..., width], weights as in ``Network.diagnose``).
        width: size of the features.
        last_shared: as in Network; "" also if the body has no layers.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task, Array, Array], tuple[Array, Weights]]
    width: int
    last_shared: str
