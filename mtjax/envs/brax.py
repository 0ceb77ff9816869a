"""Environments of Brax as an :class:`~mtjax.envs.base.Env`: what of their system differs from task to task is data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec, Array, Step, continuous


def in_system(env: Any, task: Any) -> Any:
    """The environment with other numbers in its system.

    Args:
        env: of Brax.
        task: path in ``env.sys`` -> value, e.g. ``{"opt.gravity": [3], "geom_friction": [geoms, 3]}``. What Brax or
            MuJoCo derived from a number when the model was compiled does not follow it: a mass changes no inertia.
    """
    changed = copy.copy(env)
    changed.sys = env.sys.tree_replace(dict(task))
    return changed


class BraxEnv:
    """A Brax environment, as it is without Brax's wrappers: mtjax restarts and cuts its episodes.

    ``BraxEnv(brax.envs.get_environment("ant"))`` is what :func:`mtjax.suites.from_env` takes.

    Args:
        env: a ``brax.envs.Env``, or anything with its ``reset(key)``, ``step(state, action)`` and ``action_size``.
        change: (env, task) -> the environment of this task. It is traced: it may not change ``env`` itself.

    Raises:
        ValueError: its observation is not one vector.
    """

    def __init__(self, env: Any, change: Callable[[Any, Any], Any] = in_system):
        # Brax's own `observation_size` resets the environment, operation by operation: seconds.
        observation = jax.eval_shape(env.reset, jax.random.key(0)).obs
        if getattr(observation, "ndim", None) != 1:
            shapes = jax.tree.map(jnp.shape, observation)
            raise ValueError(f"{type(env).__name__} has observations {shapes}; BraxEnv takes those of one vector")
        self.env, self.change = env, change
        self.observation_size: int = observation.shape[0]
        self.action: ActionSpec = continuous(env.action_size)

    def reset(self, task: Any, key: Array) -> tuple[Any, Array]:
        """Start an episode. Returns (Brax's state, observation [obs])."""
        state = self.change(self.env, task).reset(key)
        return state, state.obs

    def step(self, task: Any, state: Any, action: Array, key: Array) -> tuple[Any, Step]:
        """Advance by one step. ``done`` is a terminal state; a "success" among Brax's metrics is passed on."""
        del key  # Brax's steps draw nothing, or carry keys of their own
        state = self.change(self.env, task).step(state, jnp.clip(action, -1.0, 1.0))
        success = {name: value for name, value in state.metrics.items() if name == "success"}
        return state, Step(
            observation=state.obs,
            reward=state.reward,
            terminated=state.done > 0,
            truncated=jnp.zeros((), bool),
            final_observation=state.obs,
            info=jax.tree.map(lambda x: x.astype(jnp.float32), success),
        )
