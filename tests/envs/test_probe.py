"""Were a probe's stated values wrong, every learner test built on it would be wrong too."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs import Env, probe

pytestmark = pytest.mark.smoke
DISCOUNT = 0.9
TASKS = probe.tasks(rewards=[1.0, 2.0, -1.0, 0.5], terminates=[True, True, True, True])


def _best_action(env, optimal, observation):
    """The best action at an observation, in the environment's own form; any where all are as good."""
    row = int(jnp.argmin(jnp.abs(optimal.observations - observation).sum(-1)))
    number = float(jnp.nan_to_num(optimal.actions[row], nan=0.3))
    return jnp.asarray(number > 0, jnp.int32) if env.kind == "discrete" else jnp.asarray([number], jnp.float32)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("make", probe.PROBES)
def test_stated_values_are_the_returns_of_the_best_actions(make, kind):
    env = make(kind)
    assert isinstance(env, Env)
    for index in range(4):
        task = jax.tree.map(lambda x, i=index: x[i], TASKS)
        optimal = env.optimal(task, DISCOUNT)
        state, observation = env.reset(task, jax.random.key(index))
        visited, rewards, terminated = [], [], False
        while not terminated:
            visited.append(observation)
            state, step = env.step(task, state, _best_action(env, optimal, observation), jax.random.key(0))
            rewards.append(float(step.reward))
            observation, terminated = step.observation, bool(step.terminated)
            assert len(rewards) < 10
        for time, seen in enumerate(visited):
            (row,) = np.flatnonzero((np.asarray(optimal.observations) == np.asarray(seen)).all(-1))
            value = sum(DISCOUNT**k * reward for k, reward in enumerate(rewards[time:]))
            np.testing.assert_allclose(optimal.values[row], value, rtol=1e-5)


@pytest.mark.parametrize("make", [probe.ActionReward, probe.ObservationAction, probe.Credit])
def test_every_other_action_earns_less(make):
    for kind, others in (("discrete", [0, 1]), ("continuous", [[-1.0], [-0.2], [0.0], [0.4], [1.0]])):
        env = make(kind)
        task = jax.tree.map(lambda x: x[0], TASKS)
        optimal = env.optimal(task, DISCOUNT)
        state, observation = env.reset(task, jax.random.key(0))
        best = _best_action(env, optimal, observation)
        for other in others:
            other = jnp.asarray(other, best.dtype)
            now, step = env.step(task, state, other, jax.random.key(0))
            if not step.terminated:
                _, step = env.step(task, now, other, jax.random.key(0))
            if not (other == best).all():
                assert float(step.reward) < float(task.reward) - 1e-3


@pytest.mark.parametrize("truncates_itself", [False, True])
def test_endless_is_cut_after_five_steps_and_shows_the_observation_before_the_reset(truncates_itself):
    env = probe.Endless(truncates_itself=truncates_itself)
    envs = env.vector_env(probe.tasks([1.0, 2.0], terminates=[False, True]), num_envs=3)
    state, _ = envs.reset(jax.random.key(0))
    step = jax.jit(envs.step)
    for time in range(1, 11):
        state, out = step(state, jnp.zeros((2, 3), jnp.int32), jax.random.key(time))
        cut = time % 5 == 0
        np.testing.assert_array_equal(out.truncated, [[cut] * 3, [False] * 3])
        np.testing.assert_array_equal(out.terminated, [[False] * 3, [cut] * 3])
        if cut:
            np.testing.assert_array_equal(out.observation[..., 0], 1.0)
            np.testing.assert_array_equal(out.final_observation[0, :, 1], 1.0)


def test_endless_values_satisfy_bellman():
    task = jax.tree.map(lambda x: x[0], probe.tasks([2.0]))
    values = probe.Endless().optimal(task, DISCOUNT).values
    np.testing.assert_allclose(values[1], 2.0 + DISCOUNT * values[1], rtol=1e-5)
    np.testing.assert_allclose(values[0], DISCOUNT * values[1], rtol=1e-5)


@pytest.mark.parametrize("make", probe.PROBES)
def test_optimal_vmaps_over_tasks(make):
    env = make()
    optimal = jax.vmap(env.optimal, in_axes=(0, None))(TASKS, DISCOUNT)
    chex.assert_axis_dimension(optimal.observations, 2, env.observation_size)
    assert optimal.values.shape == optimal.observations.shape[:2] == optimal.actions.shape
