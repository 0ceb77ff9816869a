"""From a rollout [H, T, E, ...] to minibatches [T, B, ...], each of which holds all tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax import sharding
from mtjax.learners.config import PPOConfig

Array = jax.Array


class Minibatch(NamedTuple):
    """Input of the loss; leaves are [T, B, ...] outside the loss, and [B, ...] of one task inside it."""

    observation: Array  # normalised
    raw_action: Array
    log_prob: Array
    distribution: Any
    advantage: Array
    target: Array
    value: Array
    weight: Array | None = None  # 0 for transitions not to learn from; None: all count


def check_minibatches(config: PPOConfig, num_envs: int) -> None:
    """Raise ValueError if a rollout cannot be divided into the requested minibatches."""
    if config.rollout_length * num_envs % config.num_minibatches:
        raise ValueError(
            f"num_minibatches: {config.num_minibatches} does not divide rollout_length × num_envs = "
            f"{config.rollout_length} × {num_envs} = {config.rollout_length * num_envs}"
        )


def shuffled(key: Array, total: int, epochs: int, minibatches: int) -> Array:
    """Indices of the transitions in each minibatch, [epochs · minibatches, total / minibatches] int32.

    Every epoch visits each of the ``total`` transitions once, in a random order of its own.
    """

    def epoch(key: Array) -> Array:
        return jnp.argsort(jax.random.bits(key, (total,))).reshape(minibatches, -1)

    return jax.vmap(epoch)(jax.random.split(key, epochs)).reshape(epochs * minibatches, -1)


def pack(batch: Minibatch) -> tuple[Array, Callable[[Array], Minibatch]]:
    """Pack a batch into rows [T, B, F], so that a minibatch is one gather; also return the inverse function.

    Integers (choices) become float32, which is exact for any number of choices below 2²⁴.
    """
    leaves, tree = jax.tree.flatten(batch)
    columns = [leaf.astype(jnp.float32).reshape(*leaf.shape[:2], -1) for leaf in leaves]
    ends = list(itertools.accumulate(column.shape[2] for column in columns))[:-1]

    def unpack(rows: Array) -> Minibatch:
        parts = jnp.split(rows, ends, axis=2)
        shaped = [
            part.reshape(*rows.shape[:2], *leaf.shape[2:]).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, shaped)

    return jnp.concatenate(columns, axis=2), unpack


def task_major(x: Array) -> Array:
    """[H, T, E, ...] → [T, H·E, ...]."""
    x = jnp.moveaxis(x, 1, 0)
    return sharding.sharded(x.reshape(x.shape[0], -1, *x.shape[3:]), axis=1)


def time_major(x: Array, shape: tuple[int, ...]) -> Array:
    """[T, H·E] → [H, T, E]."""
    length, tasks, envs = shape
    return sharding.sharded(jnp.moveaxis(x.reshape(tasks, length, envs), 0, 1), axis=2)
