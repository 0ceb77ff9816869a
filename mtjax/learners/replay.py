"""Replay: the newest transitions of every task, on the device, in one array.

Observations and rewards are stored as the environment returned them; they are normalised when sampled, with the
statistics of that moment. Truncation is not termination: a transition stores only ``terminated``, and the observation
reached before any reset, from which the target of a truncated step bootstraps.

A row of the array is a whole transition, so that a batch is one gather; all tasks add equally many transitions, so that
one position serves all; and the capacity is a multiple of a rollout's transitions, so that no insertion wraps round.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax import sharding
from mtjax.learners.base import TaskSpec, Transitions

Array = jax.Array
GIGABYTE = 1e9


class Replay(NamedTuple):
    """The stored transitions of every task.

    Attributes:
        rows: [T, capacity, F] float32, one transition per row; rows from ``size`` on are still empty.
        position: [] int32, row at which the next rollout is stored.
        size: [] int32, stored transitions of each task.
    """

    rows: Array
    position: Array
    size: Array


class Sample(NamedTuple):
    """Transitions as they were stored; leaves lead with [T, B].

    Attributes:
        observation: [T, B, obs] raw.
        action: [T, B, A] float32, or [T, B] int32 choices.
        reward: [T, B] raw.
        terminated: [T, B] bool; False where an episode was only truncated.
        final_observation: [T, B, obs] raw, the observation reached, before any reset.
    """

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    final_observation: Array


class Buffer:
    """The pure functions of a replay of fixed shape. Holds no state.

    Args:
        spec: tasks and spaces.
        capacity: transitions of each task; rounded up to whole rollouts.
        arriving: H·E, transitions of each task in one rollout.
        limit: bytes that the replays of all seeds may take; 0 means the free memory of the device.
        saved: False if checkpoints omit the replay.

    Attributes:
        capacity: transitions of each task, after rounding.
        bytes: memory of the replay of one seed.
    """

    def __init__(self, spec: TaskSpec, *, capacity: int, arriving: int, limit: float = 0.0, saved: bool = True):
        self.spec, self.arriving, self.limit, self.saved = spec, arriving, limit, saved
        self.capacity = -(-capacity // arriving) * arriving
        self.shapes = Sample((spec.observation_size,), spec.action.shape, (), (), (spec.observation_size,))
        widths = [1 if not shape else shape[0] for shape in self.shapes]
        self.width = sum(widths)
        self.ends = list(itertools.accumulate(widths))[:-1]
        self.bytes = 4 * spec.num_tasks * self.capacity * self.width

    def init(self) -> Replay:
        """An empty replay."""
        zero = jnp.zeros((), jnp.int32)
        return Replay(jnp.zeros((self.spec.num_tasks, self.capacity, self.width), jnp.float32), zero, zero + 0)

    def insert(self, replay: Replay, rollout: Transitions, action: Array) -> Replay:
        """Store a rollout [H, T, E, ...] over the oldest transitions. In place if ``replay`` is donated."""
        sample = Sample(rollout.observation, action, rollout.reward, rollout.terminated, rollout.final_observation)
        columns = [leaf.astype(jnp.float32).reshape(*leaf.shape[:3], -1) for leaf in sample]
        rows = jnp.moveaxis(jnp.concatenate(columns, axis=-1), 1, 0)  # [T, H, E, F]
        rows = sharding.replicated(rows.reshape(rows.shape[0], self.arriving, self.width))
        zero = jnp.zeros((), jnp.int32)
        return Replay(
            jax.lax.dynamic_update_slice(replay.rows, rows, (zero, replay.position, zero)),
            (replay.position + self.arriving) % self.capacity,
            jnp.minimum(replay.size + self.arriving, self.capacity),
        )

    def sample(self, replay: Replay, key: Array, batch_size: int) -> Sample:
        """Draw ``batch_size`` transitions of every task, uniformly and with replacement.

        Each task is sampled independently. Do not sample from an empty replay: it would return zeros.
        """
        shape = (self.spec.num_tasks, batch_size)
        index = jax.random.randint(key, shape, 0, jnp.maximum(replay.size, 1))
        rows = jax.vmap(lambda rows, index: jnp.take(rows, index, axis=0, mode="clip"))(replay.rows, index)
        return self.unpack(sharding.sharded(rows, axis=1))

    def unpack(self, rows: Array) -> Sample:
        """Split rows [..., F] into the parts of a Sample."""
        parts = Sample(*jnp.split(rows, self.ends, axis=-1))
        shaped = Sample(*(part.reshape(*rows.shape[:-1], *s) for part, s in zip(parts, self.shapes, strict=True)))
        choices = self.spec.action.kind == "discrete"  # exact in float32 for any number of choices below 2²⁴
        return shaped._replace(
            action=shaped.action.astype(jnp.int32) if choices else shaped.action,
            terminated=shaped.terminated > 0.5,
        )

    # ------------------------------------------------------------------------------------------ memory

    def describe(self, num_seeds: int) -> str:
        """One line on what the replays of all seeds hold, and how much memory they take."""
        seeds = f" and {num_seeds} seeds" if num_seeds > 1 else ""
        return (
            f"replay: {self.capacity:,} transitions of each of {self.spec.num_tasks} tasks{seeds}, "
            f"{size_text(num_seeds * self.bytes)} on the device"
        )

    def require_memory(self, num_seeds: int) -> None:
        """Check that the replays of all seeds fit into memory.

        Raises:
            ValueError: they are larger than the limit, or than the free memory of the device.
        """
        if allowed := self.lacking(num_seeds):
            raise ValueError(f"{self.describe(num_seeds)}, but {allowed}; lower replay_capacity or num_seeds")

    def lacking(self, number: int) -> str | None:
        """What memory there is, in words, if ``number`` of these replays do not fit into it; None if they fit."""
        need, free = number * self.bytes, free_memory()
        if self.limit and need > self.limit:
            return f"replay_limit allows {size_text(self.limit)}"
        if not self.limit and free is not None and need > free:
            return f"{size_text(free)} are free"
        return None


def size_text(number: float) -> str:
    """A number of bytes as text, in a suitable unit."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"


def free_memory() -> int | None:
    """Free bytes of the device, or of the host if the device is the CPU (Linux only); None if unknown."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None


# ------------------------------------------------------------------------------ replays inside a larger state


def is_replay(value: Any) -> bool:
    """For ``is_leaf``: treat a replay as a single leaf."""
    return isinstance(value, Replay)


def emptied(tree: Any) -> Any:
    """The tree with every replay in it replaced by an empty one that takes no memory."""

    def empty(value: Any) -> Any:
        if not is_replay(value):
            return value
        return Replay(value.rows[..., :0, :], jnp.zeros_like(value.position), jnp.zeros_like(value.size))

    return jax.tree.map(empty, tree, is_leaf=is_replay)


def refilled(tree: Any, like: Any) -> Any:
    """The inverse of ``emptied`` for memory: every replay gets the size it has in ``like``, but stays empty."""

    def refill(value: Any, wanted: Any) -> Any:
        if not is_replay(value):
            return value
        rows = jnp.zeros(wanted.rows.shape, wanted.rows.dtype, device=getattr(wanted.rows, "sharding", None))
        return value._replace(rows=rows)

    return jax.tree.map(refill, tree, like, is_leaf=is_replay)


def without(tree: Any) -> list[Array]:
    """The leaves of a tree that are not part of a replay."""
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_replay) if not is_replay(leaf)]
