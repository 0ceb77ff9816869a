"""Brax's environments: their own numbers, step by step, and tasks that really differ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs

from mtjax import suites
from mtjax.envs import Env
from mtjax.envs.brax import BraxEnv

GEARS = (50.0, 100.0, 100.0)  # the cart's motor; Brax's own is 100


@functools.cache
def _pendulum():
    return envs.get_environment("inverted_pendulum", backend="generalized")


@functools.cache
def _suite():
    infos = tuple(
        suites.TaskInfo(f"gear_{i}", f"Balance with a motor of gear {gear:g}.") for i, gear in enumerate(GEARS)
    )
    own = _pendulum().sys.actuator.gear
    tasks = {"actuator.gear": jnp.stack([own * gear / 100 for gear in GEARS])}
    version = suites.Version("1", "brax generalized", "1", 50)
    return suites.from_env("brax", BraxEnv(_pendulum()), {"train": suites.Split(infos, tasks)}, version=version)


@functools.cache
def _rollout():
    env = _suite().vector_env(2)

    @jax.jit
    def run(key):
        def advance(carry, key):
            state, observation = carry
            actions = jnp.full((3, 2, 1), 0.1)
            state, step = env.step(state, actions, key)
            return (state, step.observation), (step, state.env.obs)

        state, first = env.reset(key)
        return first, jax.lax.scan(advance, (state, first), jax.random.split(key, 40))[1][0]

    return jax.tree.map(np.asarray, run(jax.random.key(0)))


def test_contract():
    env = BraxEnv(_pendulum())
    assert isinstance(env, Env) and (env.observation_size, env.action.size) == (4, 1)


def test_steps_are_those_of_brax():
    """Until the pole falls: Brax's own environment, from the observation at which the episode began."""
    first, steps = _rollout()
    env = _pendulum()

    @jax.jit
    def alone(observation):
        def advance(state, _):
            state = env.step(state, jnp.full((1,), 0.1))
            return state, (state.obs, state.done)

        state = env.reset(jax.random.key(1))
        state = state.replace(pipeline_state=env.pipeline_init(*jnp.split(observation, 2)), obs=observation)
        return jax.lax.scan(advance, state, None, length=40)[1]

    for t, (observation, done) in enumerate(zip(*jax.device_get(alone(first[1, 0])), strict=True)):
        np.testing.assert_allclose(steps.final_observation[t, 1, 0], observation, rtol=1e-3, atol=1e-4)
        assert bool(steps.terminated[t, 1, 0]) == bool(done)
        if done:
            break
    assert 3 < t < 39  # it did fall
    assert np.abs(steps.observation[t, 1, 0]).max() < 0.02 < np.abs(steps.final_observation[t, 1, 0]).max()


def test_the_task_is_data():
    """A motor half as strong pushes half as hard; what is equal stays equal but for its start."""
    _, steps = _rollout()
    speed = steps.final_observation[0, :, :, 2].mean(axis=1)
    assert speed[0] == pytest.approx(speed[1] / 2, rel=0.2) and speed[1] == pytest.approx(speed[2], rel=0.2)


def test_observations_of_several_parts_are_refused():
    env = envs.get_environment("fast", obs_mode="dict_state")
    with pytest.raises(ValueError, match="Fast has observations .* BraxEnv needs a single vector"):
        BraxEnv(env)
