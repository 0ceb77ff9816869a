"""``vectorize``: T tasks × E environments of a pure :class:`~mtjax.envs.base.Env`, with auto-reset."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec, Array, Env, Step, Task


class VectorState(NamedTuple):
    """State of a vectorised environment.

    Attributes:
        env: pytree of [T, E, ...], the environments' own states.
        steps: [T, E] int32, steps taken in the running episode.
    """

    env: Any
    steps: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Vectorized:
    """A :class:`~mtjax.envs.base.VectorEnv` made by vmap over tasks and environments. See `vectorize`."""

    env: Env
    tasks: Task
    num_tasks: int
    num_envs: int
    horizon: int
    on_device: bool = True

    @property
    def observation_size(self) -> int:
        return self.env.observation_size

    @property
    def action(self) -> ActionSpec:
        return self.env.action

    def reset(self, key: Array) -> tuple[VectorState, Array]:
        """Start every environment from its own key. Returns (state, observation [T, E, obs])."""
        env_state, observation = self._reset(key)
        return VectorState(env_state, jnp.zeros((self.num_tasks, self.num_envs), jnp.int32)), observation

    def step(self, state: VectorState, actions: Array, key: Array) -> tuple[VectorState, Step]:
        """Advance every environment; where an episode ends, start the next with a fresh draw."""
        step_key, reset_key = jax.random.split(key)
        over_envs = jax.vmap(self.env.step, in_axes=(None, 0, 0, 0))
        env_state, step = jax.vmap(over_envs)(self.tasks, state.env, actions, self._keys(step_key))
        steps = state.steps + 1
        truncated = (step.truncated | (steps >= self.horizon)) & ~step.terminated
        done = step.terminated | truncated
        fresh_state, fresh_observation = self._reset(reset_key)
        env_state = jax.tree.map(lambda new, old: _where(done, new, old), fresh_state, env_state)
        step = step._replace(
            observation=_where(done, fresh_observation, step.observation),
            truncated=truncated,
            final_observation=step.observation,
        )
        return VectorState(env_state, jnp.where(done, 0, steps)), step

    def _reset(self, key):
        over_envs = jax.vmap(self.env.reset, in_axes=(None, 0))
        return jax.vmap(over_envs)(self.tasks, self._keys(key))

    def _keys(self, key: Array) -> Array:
        return jax.random.split(key, (self.num_tasks, self.num_envs))


def vectorize(env: Env, tasks: Task, num_envs: int, *, horizon: int) -> Vectorized:
    """Step T tasks × ``num_envs`` environments of ``env`` at once, restarting each when it ends.

    Args:
        env: a pure, unbatched environment.
        tasks: pytree of task parameters, every leaf [T, ...].
        num_envs: E, environments of one task.
        horizon: steps after which an episode is truncated.

    Returns:
        A VectorEnv with observations [T, E, obs].

    Raises:
        ValueError: the leaves of ``tasks`` do not share a leading axis, or a number is not positive.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"every leaf of tasks must lead with the same task axis; found {sorted(lengths)}")
    if num_envs < 1 or horizon < 1:
        raise ValueError(f"num_envs and horizon must be positive; got {num_envs} and {horizon}")
    tasks = jax.tree.map(jnp.asarray, tasks)
    return Vectorized(env, tasks, lengths.pop()[0], num_envs, horizon)


def _where(done: Array, new: Array, old: Array) -> Array:
    """Select per environment; ``done`` is [T, E], the others [T, E, ...] (typed keys included)."""
    return jnp.where(done.reshape(done.shape + (1,) * (jnp.ndim(old) - 2)), new, old)
