"""What a network is told of the task it acts for."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Task(NamedTuple):
    """Which task it is, by number and by description. Of ONE task inside a network, [N, ...] outside.

    Attributes:
        code: [T] float32, the one-hot index of a training task; uniform for a task that was not trained on.
        context: [D] float32, the embedding of the task's description; D = 0 where nobody asked for it.
    """

    code: Array
    context: Array


def training_tasks(num_tasks: int, contexts: Array | None = None) -> Task:
    """The T training tasks, leaves [T, ...].

    Args:
        num_tasks: T.
        contexts: [T, D], embeddings of their descriptions; None: D = 0.
    """
    if contexts is None:
        contexts = np.zeros((num_tasks, 0), np.float32)
    return Task(jnp.asarray(np.eye(num_tasks, dtype=np.float32)), jnp.asarray(contexts, jnp.float32))


def unseen_tasks(num_tasks: int, contexts: Array) -> Task:
    """N tasks that were not trained on, leaves [N, ...]: known by their descriptions alone.

    Args:
        num_tasks: T, the number of training tasks.
        contexts: [N, D], embeddings of their descriptions; D as in training, perhaps 0.
    """
    contexts = jnp.asarray(contexts, jnp.float32)
    code = jnp.asarray(np.full((contexts.shape[0], num_tasks), 1.0 / num_tasks, np.float32))
    return Task(code, contexts)
