"""Probe environments: tiny problems with exactly known optimal values, for testing learners.

Failing a probe points to one specific fault: values (:class:`ConstantReward`), the policy gradient
(:class:`ActionReward`), the use of observations (:class:`ObservationAction`), discounting
(:class:`TwoStep`), credit over time (:class:`Credit`), bootstrapping (:class:`Endless`).

Every probe takes ``kind="discrete"`` (2 choices) or ``"continuous"`` (1 number) and is parametrised by its
task, so T tasks have T different solutions. ``probe.tasks(rewards, targets)`` makes a batch of tasks, and
a probe's ``optimal(task, discount)`` returns the exact solution:

>>> import jax
>>> from mtjax.envs import probe
>>> env = probe.TwoStep()
>>> tasks = probe.tasks(rewards=[1.0, 2.0])
>>> optimal = jax.vmap(env.optimal, in_axes=(0, None))(tasks, 0.9)
>>> [round(float(value), 3) for value in optimal.values[0]]     # V(start) = γ r, V(second) = r
[0.9, 1.0]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec, Array, Step, Task, continuous, discrete
from mtjax.envs.vectorize import Vectorized, vectorize


class ProbeTask(NamedTuple):
    """One task of a probe. Each field is a float32 scalar, or [T] for a batch of tasks.

    Attributes:
        reward: r, the reward of the best action.
        target: g, the best action: -0.5 (choice 0) or 0.5 (choice 1); any number in [-1, 1] if continuous.
        terminates: 1 if :class:`Endless` ends in a terminal state, 0 if it is only ever truncated.
    """

    reward: Array
    target: Array
    terminates: Array


class Optimal(NamedTuple):
    """The exact solution of one task: N observations, their values and the best actions.

    Attributes:
        observations: [N, obs].
        values: [N] value of the optimal policy (of every policy where the action has no effect).
        actions: [N] the best action as a number; NaN where all actions are equally good. The best choice of a
            discrete probe is ``actions > 0``.
    """

    observations: Array
    values: Array
    actions: Array


def tasks(
    rewards: Sequence[float], targets: Sequence[float] | None = None, terminates: Sequence[bool] | None = None
) -> ProbeTask:
    """T probe tasks: leaves [T]. ``targets`` defaults to 0.5, -0.5, 0.5 … and ``terminates`` to False."""
    number = len(rewards)
    targets = [0.5 if i % 2 == 0 else -0.5 for i in range(number)] if targets is None else targets
    terminates = [False] * number if terminates is None else terminates
    return ProbeTask(*(jnp.asarray(column, jnp.float32) for column in (rewards, targets, terminates)))


@dataclasses.dataclass(frozen=True)
class _Probe:
    """Base of the probes: spaces, the action as a number, and ``vector_env``."""

    kind: Literal["discrete", "continuous"] = "discrete"

    observation_size: ClassVar[int] = 1
    horizon: ClassVar[int] = 100  # longer than any episode that terminates by itself

    @property
    def action(self) -> ActionSpec:
        return discrete(2) if self.kind == "discrete" else continuous(1)

    def vector_env(self, tasks: Task, num_envs: int) -> Vectorized:
        """T × ``num_envs`` environments with this probe's own horizon."""
        return vectorize(self, tasks, num_envs, horizon=self.horizon)

    def _number(self, action: Array) -> Array:
        """Choices 0 and 1 as -0.5 and 0.5; a continuous action [1] clipped to [-1, 1]."""
        if self.kind == "discrete":
            return action.astype(jnp.float32) - 0.5
        return jnp.clip(action[0], -1.0, 1.0)


class ConstantReward(_Probe):
    """One step, reward r for any action. V = r. Fails if the value loss or its target is wrong."""

    def reset(self, task, key):
        return jnp.zeros((), jnp.int32), jnp.ones(1)

    def step(self, task, state, action, key):
        return state, _step(jnp.ones(1), task.reward, True)

    def optimal(self, task: ProbeTask, discount: float) -> Optimal:
        """V = r at the only observation."""
        return _optimal(([1.0], task.reward, jnp.nan))


class ActionReward(_Probe):
    """One step, reward r - (a - g)². The best action is g, V = r. Fails if the policy gradient is wrong."""

    def reset(self, task, key):
        return jnp.zeros((), jnp.int32), jnp.ones(1)

    def step(self, task, state, action, key):
        return state, _step(jnp.ones(1), task.reward - (self._number(action) - task.target) ** 2, True)

    def optimal(self, task: ProbeTask, discount: float) -> Optimal:
        """V = r, a = g at the only observation."""
        return _optimal(([1.0], task.reward, task.target))


class ObservationAction(_Probe):
    """One step, observation s = ±1 at random, reward r - (a - s·g)². The best action is s·g, V = r.

    Fails if the policy ignores its observation, or rows of the batch are mixed up.
    """

    def reset(self, task, key):
        sign = jax.random.rademacher(key, (), jnp.float32)
        return sign, sign[None]

    def step(self, task, state, action, key):
        reward = task.reward - (self._number(action) - state * task.target) ** 2
        return state, _step(state[None], reward, True)

    def optimal(self, task: ProbeTask, discount: float) -> Optimal:
        """V = r at both observations, a = s·g."""
        return _optimal(([-1.0], task.reward, -task.target), ([1.0], task.reward, task.target))


class TwoStep(_Probe):
    """Two steps, observations 0 then 1, rewards 0 then r. V(0) = γ r, V(1) = r. Fails if discounting is wrong."""

    def reset(self, task, key):
        return jnp.zeros((), jnp.int32), jnp.zeros(1)

    def step(self, task, state, action, key):
        last = state == 1
        return state + 1, _step(jnp.ones(1), jnp.where(last, task.reward, 0.0), last)

    def optimal(self, task: ProbeTask, discount: float) -> Optimal:
        """V(0) = γ r, V(1) = r."""
        return _optimal(([0.0], discount * task.reward, jnp.nan), ([1.0], task.reward, jnp.nan))


class Credit(_Probe):
    """Two steps; the first action a determines the second reward r - (a - g)², the second action has no effect.

    Observations [0, 0], then [1, a]. The best first action is g; V(start) = γ r, V([1, a]) = r - (a - g)².
    Fails if advantages do not propagate back in time.
    """

    observation_size: ClassVar[int] = 2

    def reset(self, task, key):
        return (jnp.zeros((), jnp.int32), jnp.zeros(())), jnp.zeros(2)

    def step(self, task, state, action, key):
        time, first = state
        last = time == 1
        first = jnp.where(last, first, self._number(action))
        reward = jnp.where(last, task.reward - (first - task.target) ** 2, 0.0)
        return (time + 1, first), _step(jnp.stack([jnp.ones(()), first]), reward, last)

    def optimal(self, task: ProbeTask, discount: float) -> Optimal:
        """V(start) = γ r with a = g; V([1, g]) = r."""
        return _optimal(([0.0, 0.0], discount * task.reward, task.target), ([1.0, task.target], task.reward, jnp.nan))


@dataclasses.dataclass(frozen=True)
class Endless(_Probe):
    """Truncation versus termination: 5 steps per episode, reward 0 for the first and r for each of the others.

    The observation is a one-hot vector [5]. If ``task.terminates`` is 0, the process moves to its second state and
    stays there for ever, but is truncated after 5 steps: V(0) = γ r / (1-γ) and V(1) = r / (1-γ). If it is 1, the
    states are 0, 1, 2, 3, 4 and the last step terminates: V(t) = r (1-γ^(5-t)) / (1-γ) for t > 0, V(0) = γ V(1).

    Fails if truncation is treated as termination (V(1) is too low), or if the learner bootstraps from the observation
    after the reset instead of ``final_observation`` (only the latter gives V(1) = r / (1-γ)).

    Attributes:
        truncates_itself: the environment itself sets ``truncated``, rather than the horizon of ``vectorize``.
    """

    truncates_itself: bool = False

    observation_size: ClassVar[int] = 5

    @property
    def horizon(self) -> int:
        return 100 if self.truncates_itself else 5

    def reset(self, task, key):
        return jnp.zeros((), jnp.int32), self._observe(task, jnp.zeros((), jnp.int32))

    def step(self, task, state, action, key):
        terminates = task.terminates > 0.5
        over = state == 4
        step = _step(self._observe(task, state + 1), jnp.where(state > 0, task.reward, 0.0), over & terminates)
        if self.truncates_itself:
            step = step._replace(truncated=over & ~terminates)
        return state + 1, step

    def optimal(self, task: ProbeTask, discount: float) -> Optimal:
        """All 5 values if the task terminates; else 2 values, and NaN for the 3 states that are never visited."""
        time = jnp.arange(5)
        ends = (1 - discount ** (5.0 - time)) / (1 - discount)
        endless = jnp.where(time <= 1, 1 / (1 - discount), jnp.nan)
        values = task.reward * jnp.where(task.terminates > 0.5, ends, endless)
        values = values.at[0].set(discount * values[1])
        return Optimal(jnp.eye(5), values, jnp.full(5, jnp.nan))

    def _observe(self, task, time):
        visible = jnp.where(task.terminates > 0.5, jnp.minimum(time, 4), jnp.minimum(time, 1))
        return jax.nn.one_hot(visible, 5)


PROBES: tuple[type, ...] = (ConstantReward, ActionReward, ObservationAction, TwoStep, Credit, Endless)


def _step(observation: Array, reward: Array, terminated: Array | bool) -> Step:
    return Step(
        observation=observation,
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.zeros((), bool),
        final_observation=observation,
        info={},
    )


def _optimal(*rows: tuple) -> Optimal:
    """Stack rows of (observation, value, action) into one Optimal."""
    observations, values, actions = zip(*rows, strict=True)
    return Optimal(*(jnp.asarray(column, jnp.float32) for column in (observations, values, actions)))
