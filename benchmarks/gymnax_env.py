"""An environment with gymnax's interface, so that a peer steps the same one. Runs in the peer's Python environment."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from mtjax import suites


def as_gymnax(name: str) -> Any:
    """The first task of a suite, with the time limit and the automatic reset of ``vectorize``."""
    suite = suites.make(name)
    env = suite.vector_env(1).env
    task = jax.tree.map(lambda leaf: leaf[0], suite.splits["train"].tasks)

    class Adapter:
        default_params = None

        def reset(self, key, params):
            state, observation = env.reset(task, key)
            return observation, (state, jnp.zeros((), jnp.int32))

        def step(self, key, state, action, params):
            step_key, reset_key = jax.random.split(key)
            inner, result = env.step(task, state[0], jnp.reshape(action, suite.action.shape), step_key)
            steps = state[1] + 1
            done = result.terminated | result.truncated | (steps >= suite.horizon)
            fresh, first = env.reset(task, reset_key)
            inner = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, inner)
            state = (inner, jnp.where(done, 0, steps))
            return jnp.where(done, first, result.observation), state, result.reward, done, {}

        def action_space(self, params):
            if suite.action.kind == "discrete":
                return spaces.Discrete(suite.action.size)
            return spaces.Box(-1.0, 1.0, suite.action.shape)

        def observation_space(self, params):
            return spaces.Box(-jnp.inf, jnp.inf, (suite.observation_size,))

    return Adapter()
