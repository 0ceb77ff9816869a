"""What a network is told about the task for which it acts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Task(NamedTuple):
    """A task's identity, by index and by description. Inside a network for ONE task, outside with leaves [N, ...].

    Attributes:
        code: [T] float32, the one-hot index of a training task. For a task that was not trained on, the weights of the
            training tasks that it is related to; uniform without any such knowledge.
        context: [D] float32, the embedding of the task's description; D = 0 if it is not used.
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


def unseen_tasks(num_tasks: int, contexts: Array, relatives: Array | None = None) -> Task:
    """N tasks that were not trained on, known only by their descriptions and relatives; leaves [N, ...].

    Args:
        num_tasks: T, the number of training tasks.
        contexts: [N, D], embeddings of their descriptions; D as in training, possibly 0.
        relatives: [N, T] weights of the training tasks, which become the codes. None: all equally.
    """
    contexts = jnp.asarray(contexts, jnp.float32)
    if relatives is not None:
        return Task(jnp.asarray(relatives, jnp.float32), contexts)
    code = jnp.asarray(np.full((contexts.shape[0], num_tasks), 1.0 / num_tasks, np.float32))
    return Task(code, contexts)
