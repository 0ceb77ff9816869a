"""The task encoder: turns what is known about a task into one vector, on which networks are conditioned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.networks.base import Parameters, Shape, Weights
from mtjax.networks.components import Trunk, join
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

Array = jax.Array


class TaskEncoder(NamedTuple):
    """Turns a task into a vector.

    Attributes:
        init: key -> Parameters.
        apply: (shared, private of one task, the task) -> [size].
        size: Z; 0 for a network that is blind to the task.
        learnt: False if the vector is only the task's one-hot index, or empty.
        last_shared: as in Body.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task], Array]
    size: int
    learnt: bool = False
    last_shared: str = ""

    def show(self, shared: Any, private: Any, task: Task, x: Array) -> Weights:
        """Its share of ``Network.diagnose`` at inputs ``x`` [..., in]: "embedding" [..., Z] if it is learnt."""
        return {"embedding": join(x[..., :0], self.apply(shared, private, task))} if self.learnt else {}


def make_task_encoder(config: NetworkConfig, shape: Shape) -> TaskEncoder:
    """The task encoder that ``config.told`` names.

    "one_hot" is the code itself. "embedding" is a learnt vector of the task's own. "context" is the
    embedding of the task's description, passed through a shared perceptron. That embedding was made by
    another model and stays fixed: it enters the first linear layer without a non-linearity before it.
    """
    kind = config.told
    if kind == "none":
        return TaskEncoder(lambda key: Parameters({}, {}), lambda s, p, task: task.code[:0], 0)
    if kind == "one_hot":
        return TaskEncoder(lambda key: Parameters({}, {}), lambda s, p, task: task.code, shape.num_tasks)
    return _learned(config, shape) if kind == "embedding" else _context(config, shape)


def _learned(config: NetworkConfig, shape: Shape) -> TaskEncoder:
    size = config.embedding_size

    def init(key: Array) -> Parameters:
        return Parameters({}, {"embedding": jax.random.normal(key, (shape.num_tasks, size), jnp.float32)})

    def apply(shared: Any, private: Any, task: Task) -> Array:
        vector = private["embedding"]
        if config.unit_norm_embedding:
            vector = vector / jnp.maximum(jnp.linalg.norm(vector), 1e-6)
        return vector

    return TaskEncoder(init, apply, size, learnt=True)


def _context(config: NetworkConfig, shape: Shape) -> TaskEncoder:
    if not shape.contexts:
        raise ValueError(
            f"arrangement {config.arrangement!r} with task_input 'context' needs embeddings of the tasks' "
            "descriptions, but got none"
        )
    network = Trunk(config.context_sizes, config.activation, linear_end=True)

    def init(key: Array) -> Parameters:
        return Parameters({"context": network.init(key, jnp.zeros((shape.contexts,), jnp.float32))}, {})

    def apply(shared: Any, private: Any, task: Task) -> Array:
        return network.apply(shared["context"], task.context)

    last = f"context/params/Dense_{len(config.context_sizes) - 1}/"
    return TaskEncoder(init, apply, config.context_sizes[-1], learnt=True, last_shared=last)
