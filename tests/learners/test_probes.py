"""What PPO learns on problems whose answers are known. A failure names the part of the learner that is broken."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_loop import learn, optimal_of

from mtjax import grads
from mtjax.envs import probe
from mtjax.learners import ppo
from mtjax.learners.base import TaskSpec
from mtjax.learners.config import PPOConfig
from mtjax.networks.config import NetworkConfig

DISCOUNT = 0.9
REWARDS, TARGETS = [1.0, -2.0, 0.5], [0.5, -0.5, 0.5]
CONFIG = PPOConfig(
    learning_rate=1e-2,
    learning_rate_schedule="linear",
    discount=DISCOUNT,
    rollout_length=10,
    num_epochs=4,
    num_minibatches=2,
    entropy_cost=0.0,
    max_grad_norm=1.0,
    return_scaling="none",
)
ENVS, UPDATES = 16, 120


def _learn(env, tasks, config=CONFIG, *, method=None, arrangement="one_hot", updates=UPDATES):
    """Train in one program. Returns the agent's functions and its state."""
    envs = env.vector_env(tasks, ENVS)
    network = NetworkConfig(arrangement=arrangement, hidden_sizes=(16, 16))
    spec = TaskSpec(envs.num_tasks, envs.observation_size, envs.action)
    agent = ppo.PPO(config, network, method or grads.mean(), spec, num_envs=ENVS, num_updates=updates)

    state, _ = learn(agent, envs, length=config.rollout_length, updates=updates, metric="kl")
    return agent, state


def _answers(agent, state, observations):
    """Values [T, N] and deterministic actions [T, N] at observations [T, N, obs]."""

    @jax.jit
    def answers(state, observations):
        normal = agent._normalize(state.observations, observations)
        values = agent._values(state.params["value"], normal)
        return values, agent.evaluation_policy(state, observations, jax.random.key(0), jnp.asarray(True))

    return jax.device_get(answers(state, observations))


def _check(env, tasks, agent, state):
    optimal = optimal_of(env, tasks, DISCOUNT)
    values, actions = _answers(agent, state, optimal.observations)
    known = ~np.isnan(optimal.values)
    size = np.maximum(1.0, np.abs(optimal.values))
    np.testing.assert_allclose((values / size)[known], (optimal.values / size)[known], atol=0.1)
    known = ~np.isnan(optimal.actions)
    if env.kind == "discrete":
        np.testing.assert_array_equal(actions[known], (optimal.actions > 0)[known])
    else:
        np.testing.assert_allclose(actions[..., 0][known], optimal.actions[known], atol=0.15)


@pytest.mark.parametrize("make", probe.PROBES)
def test_discrete_probes_with_pcgrad(make):
    """Three tasks with different answers, one network, gradient surgery: each task gets its own answer."""
    env, tasks = make(), probe.tasks(REWARDS, TARGETS, terminates=[False, True, False])
    _check(env, tasks, *_learn(env, tasks, method=grads.pcgrad()))


@pytest.mark.parametrize("make", [probe.ActionReward, probe.ObservationAction, probe.Credit])
def test_continuous_probes_with_the_mean(make):
    """Gaussian policies find targets that differ from task to task."""
    env, tasks = make(kind="continuous"), probe.tasks(REWARDS, [0.6, -0.4, 0.0])
    _check(env, tasks, *_learn(env, tasks, updates=2 * UPDATES))


def test_one_agent_per_task():
    env, tasks = probe.ObservationAction(), probe.tasks(REWARDS, TARGETS)
    _check(env, tasks, *_learn(env, tasks, arrangement="independent"))


@pytest.mark.parametrize("arrangement", ["none", "one_hot"])
def test_a_task_blind_network_answers_all_tasks_alike(arrangement):
    """The control: opposite tasks with the same observations can only be told apart by being told."""
    env, tasks = probe.ActionReward(), probe.tasks([1.0, 1.0], [0.5, -0.5])
    agent, state = _learn(env, tasks, arrangement=arrangement, updates=20)
    values, actions = _answers(agent, state, optimal_of(env, tasks, DISCOUNT).observations)
    alike = (values[0] == values[1]).all() and (actions[0] == actions[1]).all()
    assert alike == (arrangement == "none")


def test_running_return_scale():
    """Tasks whose rewards differ a thousandfold: values are right in each task's own unit."""
    env = probe.TwoStep()
    tasks = probe.tasks([0.05, 5.0, 50.0])
    agent, state = _learn(env, tasks, dataclasses.replace(CONFIG, return_scaling="running"))
    deviation = np.sqrt(state.returns.variance)
    np.testing.assert_allclose(deviation / np.asarray([0.05, 5.0, 50.0]), 0.5, rtol=0.05)
    optimal = optimal_of(env, tasks, DISCOUNT)
    values, _ = _answers(agent, state, optimal.observations)
    np.testing.assert_allclose(values * deviation[:, None] / optimal.values, 1.0, atol=0.1)
