"""Brax environments as an :class:`~mtjax.envs.base.Env`: the system parameters that differ between tasks are data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec, Array, Step, continuous


def in_system(env: Any, task: Any) -> Any:
    """A copy of the environment with other values in its system.

    Args:
        env: a Brax environment.
        task: path in ``env.sys`` -> value, e.g. ``{"opt.gravity": [3], "geom_friction": [geoms, 3]}``. Quantities that
            Brax or MuJoCo derived when compiling the model are not updated: changing a mass leaves inertias unchanged.
    """
    changed = copy.copy(env)
    changed.sys = env.sys.tree_replace(dict(task))
    return changed


class BraxEnv:
    """A Brax environment without Brax's wrappers: mtjax resets it and truncates its episodes.

    ``BraxEnv(brax.envs.get_environment("ant"))`` is what :func:`mtjax.suites.from_env` takes.

    Args:
        env: a ``brax.envs.Env``, or anything with its ``reset(key)``, ``step(state, action)`` and ``action_size``.
        change: (env, task) -> that task's environment. The function is traced, so it must not modify ``env``.

    Raises:
        ValueError: the observation is not a single vector.
    """

    def __init__(self, env: Any, change: Callable[[Any, Any], Any] = in_system):
        # Brax's own `observation_size` resets the environment outside jit, which takes seconds.
        observation = jax.eval_shape(env.reset, jax.random.key(0)).obs
        if getattr(observation, "ndim", None) != 1:
            shapes = jax.tree.map(jnp.shape, observation)
            raise ValueError(f"{type(env).__name__} has observations {shapes}; BraxEnv needs a single vector")
        self.env, self.change = env, change
        self.observation_size: int = observation.shape[0]
        self.action: ActionSpec = continuous(env.action_size)

    def reset(self, task: Any, key: Array) -> tuple[Any, Array]:
        """Start an episode. Returns (Brax's state, observation [obs])."""
        state = self.change(self.env, task).reset(key)
        return state, state.obs

    def step(self, task: Any, state: Any, action: Array, key: Array) -> tuple[Any, Step]:
        """Advance by one step. Brax's ``done`` means termination; a "success" metric becomes info."""
        del key  # Brax's steps are deterministic or carry their own keys in the state
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
