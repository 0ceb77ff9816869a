"""The environment contracts: what a user writes (:class:`Env`) and what a learner sees (:class:`VectorEnv`).

The task is DATA, a pytree of arrays, never code: one program steps every task of a suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array
Task = Any  # a pytree of arrays: the parameters of one task, or of T tasks with leaves [T, ...]
State = Any  # a pytree of arrays: whatever an environment remembers between steps


class ActionSpec(NamedTuple):
    """The space of one action.

    Attributes:
        kind: "continuous" (a float32 vector [size]; environments expect every entry in [-1, 1] and clip)
            or "discrete" (an int32 scalar in 0..size-1).
        size: number of entries of a continuous action, number of choices of a discrete one.
    """

    kind: Literal["continuous", "discrete"]
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action: ``(size,)`` if continuous, ``()`` if discrete."""
        return (self.size,) if self.kind == "continuous" else ()


def continuous(size: int) -> ActionSpec:
    """A vector of ``size`` numbers in [-1, 1]."""
    return ActionSpec("continuous", size)


def discrete(size: int) -> ActionSpec:
    """One of ``size`` choices, as an int32 scalar."""
    return ActionSpec("discrete", size)


class Step(NamedTuple):
    """The result of one environment step. Shapes are those of one environment; a VectorEnv prepends [T, E].

    Attributes:
        observation: [obs] the observation to act on next. In an auto-resetting VectorEnv, it is the first
            observation of the new episode if the old one has just ended.
        reward: [] float32.
        terminated: [] bool, the episode ended in a terminal state: do not bootstrap.
        truncated: [] bool, the episode was cut off (time limit): bootstrap from ``final_observation``.
        final_observation: [obs] the observation BEFORE any reset; equals ``observation`` within an episode.
        info: arrays by name, the same names at every step; "success" ([] float32, 0 or 1) where the suite
            defines success; "whole" ([] bool) where first episodes may be shortened to stagger their ends: False
            within a shortened episode, whose return and success must not be counted.
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    info: Mapping[str, Array]


@runtime_checkable
class Env(Protocol):
    """An unbatched, pure environment: what a user writes to add a simulator.

    ``task`` is the pytree of one task's parameters. ``step`` never resets, so its ``observation`` equals
    ``final_observation``; :func:`mtjax.envs.vectorize` adds the resets.
    """

    observation_size: int
    action: ActionSpec

    def reset(self, task: Task, key: Array) -> tuple[State, Array]:
        """Start an episode. Returns (state, observation [obs])."""
        ...

    def step(self, task: Task, state: State, action: Array, key: Array) -> tuple[State, Step]:
        """Advance by one step."""
        ...


@runtime_checkable
class VectorEnv(Protocol):
    """T tasks × E environments, auto-resetting, callable inside ``jax.jit``: what a learner sees.

    Attributes:
        num_tasks: T.
        num_envs: E, environments per task.
        observation_size: numbers in one observation.
        action: the space of one action.
        on_device: True if pure JAX (may be vmapped over seeds); False if a host simulator is called through
            a callback. A host environment handles leading seed axes itself: [S, T, E, ...].
    """

    num_tasks: int
    num_envs: int
    observation_size: int
    action: ActionSpec
    on_device: bool

    def reset(self, key: Array) -> tuple[State, Array]:
        """Start every environment. Returns (state, observation [T, E, obs])."""
        ...

    def step(self, state: State, actions: Array, key: Array) -> tuple[State, Step]:
        """Advance every environment. ``actions`` are [T, E, ...]; all of Step is [T, E, ...]."""
        ...
