"""What SAC learns where the soft values are known in closed form. A failure names the part that is broken."""

import jax
import numpy as np
import pytest
from learner_loop import learn, optimal_of

from mtjax import grads
from mtjax.envs import probe
from mtjax.learners import sac
from mtjax.learners.base import TaskSpec
from mtjax.learners.config import SACConfig
from mtjax.networks.config import NetworkConfig

GAMMA, ALPHA, ENVS = 0.9, 0.2, 8
LOG2 = np.log(2.0)
REWARDS, TARGETS = [1.0, -2.0, 0.5], [0.5, -0.5, 0.5]
CONFIG = SACConfig(
    learning_rate=1e-2,
    discount=GAMMA,
    polyak=0.1,
    rollout_length=5,
    update_to_data=0.2,
    batch_size=32,
    replay_capacity=2000,
    warm_start=40,
    initial_temperature=ALPHA,
    learn_temperature=False,
)


def _learn(env, tasks, *, updates=200, method=None, arrangement="one_hot", **options):
    """Train in one program. Returns the agent's functions and its state."""
    config = SACConfig(**{**CONFIG.__dict__, **options})
    envs = env.vector_env(tasks, ENVS)
    network = NetworkConfig(arrangement=arrangement, hidden_sizes=(16, 16), scale="state", activation="relu")
    spec = TaskSpec(envs.num_tasks, envs.observation_size, envs.action)
    agent = sac.SAC(config, network, method or grads.mean(), spec, num_envs=ENVS)

    return agent, *learn(agent, envs, length=config.rollout_length, updates=updates, metric="entropy")


def _values(agent, state, observations):
    """Q [T, N, C] at observations [T, N, obs]: the ensemble's mean, of all choices; and π [T, N, C] there."""
    no_action, axes = agent.spec.action.kind == "discrete", (sac.OF_TASK, sac.OF_TASK, 0, 0)

    def of_task(critic, policy, known, observation):
        candidates = agent._candidates(policy, known, observation, known.key[0])
        outputs = agent.critic.apply(*critic, known.task, observation, None if no_action else candidates.action)
        return agent.head.value(outputs).mean(axis=0), candidates.probability

    @jax.jit
    def values(state, observations):
        known = agent._known(state, jax.random.key(0))
        observations = agent._normalize(state.observations, observations)
        params = state.params
        return jax.vmap(of_task, in_axes=axes)(params["critic"], params["policy"], known, observations)

    return jax.device_get(values(state, observations))


def test_soft_values_and_policy_of_one_step():
    """Q is the reward, without the entropy of a state that is over; π is the Boltzmann policy. With PCGrad for both."""
    env, tasks = probe.ActionReward(), probe.tasks(REWARDS, TARGETS)
    agent, state, _ = _learn(env, tasks, method=grads.pcgrad())
    q, p = _values(agent, state, np.ones((3, 1, 1), np.float32))
    expected = np.asarray([[r - (a - g) ** 2 for a in (-0.5, 0.5)] for r, g in zip(REWARDS, TARGETS, strict=True)])
    np.testing.assert_allclose(q[:, 0], expected, atol=0.1)
    boltzmann = np.exp(expected / ALPHA)
    np.testing.assert_allclose(p[:, 0], boltzmann / boltzmann.sum(axis=1, keepdims=True), atol=0.05)


def _endless(reward, terminates):
    """Q at the five observations of probe.Endless: two choices, equally good, so that each state adds α log 2."""
    if not terminates:  # Q(1) = r + γ (Q(1) + α log 2); the other three are never seen
        q1 = (reward + GAMMA * ALPHA * LOG2) / (1 - GAMMA)
        return [GAMMA * (q1 + ALPHA * LOG2), q1, np.nan, np.nan, np.nan]
    q = [reward]
    for _ in range(3):
        q.append(reward + GAMMA * (q[-1] + ALPHA * LOG2))
    return [GAMMA * (q[-1] + ALPHA * LOG2), *reversed(q)]


@pytest.mark.parametrize("head", ["scalar", "categorical"])
def test_soft_values_over_time(head):
    """Discount, entropy bonus, bootstrapping at truncation and not at termination; as a mean and as a distribution."""
    rewards, terminates = [1.0, -0.5, 0.5], [False, True, True]
    env, tasks = probe.Endless(), probe.tasks(rewards, terminates=terminates)
    options = {} if head == "scalar" else {"critic_head": head, "num_atoms": 51, "value_range": 15.0}
    agent, state, _ = _learn(env, tasks, critic_reduction="mean", updates=400, polyak=0.2, **options)
    q, p = _values(agent, state, np.broadcast_to(np.eye(5, dtype=np.float32), (3, 5, 5)))
    expected = np.asarray([_endless(*pair) for pair in zip(rewards, terminates, strict=True)])
    known = ~np.isnan(expected)
    size = np.maximum(1.0, np.abs(expected))
    for choice in range(2):
        np.testing.assert_allclose((q[..., choice] / size)[known], (expected / size)[known], atol=0.08)
    np.testing.assert_allclose(p[known], 0.5, atol=0.15)


def test_continuous_actions_and_learned_temperatures():
    """Each task finds its own target in both observations, and its entropy goes where it should."""
    env, tasks = probe.ObservationAction(kind="continuous"), probe.tasks(REWARDS, [0.6, -0.4, 0.0])
    agent, state, entropy = _learn(
        env, tasks, updates=400, learn_temperature=True, initial_temperature=0.5, target_entropy_scale=1.0
    )
    optimal, act = optimal_of(env, tasks, GAMMA), jax.jit(agent.evaluation_policy)
    actions = np.asarray(act(state, optimal.observations, jax.random.key(0), np.bool_(True)))
    np.testing.assert_allclose(actions[..., 0], optimal.actions, atol=0.12)
    np.testing.assert_allclose(entropy[-100:].mean(axis=0), -1.0, atol=0.35)
    assert (np.exp(state.log_temperature) < 0.2).all()
