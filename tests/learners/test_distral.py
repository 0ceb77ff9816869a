"""Distral with networks: its answers against the exact ones, its two columns, and where its gradients go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_loop import learn

from mtjax import grads
from mtjax.envs import Step, discrete, probe, vectorize
from mtjax.envs.gridworld import TransitionTable
from mtjax.learners import distral, distral_tabular, minibatches
from mtjax.learners.base import TaskSpec, Transitions, Unseen
from mtjax.learners.config import DistralConfig
from mtjax.networks.config import NetworkConfig
from mtjax.networks.distributions import Normal, gaussian
from mtjax.options import validate

REWARDS = np.asarray([[1.0, 0.6, 0.0], [0.0, 0.7, 1.0]], np.float32)  # [T, A]: the middle arm is good for both
ENVS, UPDATES = 64, 300
CONFIG = DistralConfig(
    learning_rate=1e-2,
    learning_rate_schedule="linear",
    rollout_length=8,
    num_epochs=2,
    num_minibatches=2,
    return_scaling="none",
    normalize_observations=False,
    normalize_advantages=False,
    distral_kl_cost=0.3,
    distral_entropy_cost=0.1,
)
NETWORK = NetworkConfig(arrangement="independent", hidden_sizes=(8,))
SOLVE = jax.jit(functools.partial(distral_tabular.solve, discount=0.9, iterations=200))


class Arms:
    """One choice among three, then the end. The task is the arms' rewards."""

    observation_size = 1
    action = discrete(3)

    def reset(self, task, key):
        return jnp.zeros((), jnp.int32), jnp.ones(1)

    def step(self, task, state, action, key):
        yes = jnp.ones((), bool)
        return state, Step(jnp.ones(1), task[action], yes, ~yes, jnp.ones(1), {})


def make_agent(config=CONFIG, network=NETWORK, updates=UPDATES):
    spec = TaskSpec(2, 1, Arms.action)
    return distral.Distral(config, network, grads.sum(), spec, num_envs=ENVS, num_updates=updates)


@functools.cache
def begun(columns=2):
    """(agent, a fresh state in NumPy)."""
    agent = make_agent(dataclasses.replace(CONFIG, columns=columns))
    return agent, jax.device_get(jax.jit(agent.init)(jax.random.key(1)))


@functools.partial(jax.jit, static_argnums=0)
def policies(agent, state):
    """(π_i [T, A], π₀ [A]) at the only observation."""
    p = state.params["policy"]
    own = jax.vmap(agent.policy.apply, in_axes=(None, 0, 0, None))(p.shared, p.private, agent.tasks, jnp.ones(1))
    return jax.nn.softmax(own), jax.nn.softmax(agent.prior(p.shared, jnp.ones(1)))


@functools.cache
def exact(kl_cost, entropy_cost):
    """The same two tasks as tables of two states, solved."""
    table = TransitionTable(
        next_state=np.ones((2, 2, 3), np.int32),
        reward=np.stack([REWARDS, np.zeros((2, 3), np.float32)], axis=1),
        terminal=np.asarray([[False, True]] * 2),
        start=np.asarray([[1.0, 0.0]] * 2, np.float32),
    )
    solution = jax.device_get(SOLVE(table, kl_cost=kl_cost, entropy_cost=entropy_cost))
    return np.exp(solution.tasks.log_policy[:, 0]), np.exp(solution.log_prior[0])


@pytest.mark.parametrize("columns", [1, 2])
def test_the_answers_are_the_exact_ones(columns):
    config = DistralConfig(**{**CONFIG.__dict__, "columns": columns})
    agent = make_agent(config)
    envs = vectorize(Arms(), jnp.asarray(REWARDS), ENVS, horizon=10)
    state, divergence = learn(agent, envs, length=config.rollout_length, updates=UPDATES, metric="kl/prior")
    own, prior = policies(agent, state)
    exact_own, exact_prior = exact(config.distral_kl_cost, config.distral_entropy_cost)
    np.testing.assert_allclose(own, exact_own, atol=0.04)
    np.testing.assert_allclose(prior, exact_prior, atol=0.04)
    expected = (exact_own * np.log(exact_own / exact_prior)).sum(axis=1)
    np.testing.assert_allclose(divergence[-20:].mean(axis=0), expected, atol=0.03)
    # They tell a wrong learner from a right one: without the pull to the prior the tasks hardly share an arm.
    alone = exact(0.0, 0.1)[0]
    assert np.abs(alone - exact_own).max() > 4 * 0.04


def exact_gaussians(targets, kl, entropy, iterations=2000):
    """Means and scales of the π_i and of π₀ for rewards −(a − g_i)², by the paper's half-steps in turn.

    π_i ∝ π₀^α exp(β R) is a Gaussian of precision α / s₀² + 2 β; π₀ has the moments of the mixture of the π_i.
    """
    alpha, beta = kl / (kl + entropy), 1.0 / (kl + entropy)
    center, square = 0.0, 1.0
    for _ in range(iterations):
        precision = alpha / square + 2.0 * beta
        means = (alpha * center / square + 2.0 * beta * np.asarray(targets)) / precision
        center = means.mean()
        square = 1.0 / precision + np.square(means).mean() - center**2
    return means, precision**-0.5, center, square**0.5


@pytest.mark.parametrize("columns", [1, 2])
def test_the_answers_of_gaussians_are_the_exact_ones(columns):
    """Continuous actions, and rewards that are best at −0.4 and 0.4: tied, the tasks meet half way."""
    config = dataclasses.replace(CONFIG, columns=columns, distral_kl_cost=0.2, distral_entropy_cost=0.02)
    env, targets = probe.ActionReward(kind="continuous"), [-0.4, 0.4]
    spec = TaskSpec(2, 1, env.action)
    agent = distral.Distral(config, NETWORK, grads.sum(), spec, num_envs=ENVS, num_updates=UPDATES)
    envs = env.vector_env(probe.tasks([0.0, 0.0], targets), ENVS)
    state, divergence = learn(agent, envs, length=config.rollout_length, updates=UPDATES, metric="kl/prior")

    @jax.jit
    def answers(p):
        own = jax.vmap(agent.policy.apply, in_axes=(None, 0, 0, None))(p.shared, p.private, agent.tasks, jnp.ones(1))
        return own, agent.prior(p.shared, jnp.ones(1))

    own, prior = jax.device_get(answers(state.params["policy"]))
    means, scale, center, width = exact_gaussians(targets, 0.2, 0.02)
    np.testing.assert_allclose(own.mean[:, 0], means, atol=0.04)
    np.testing.assert_allclose(own.log_scale, np.log(scale), atol=0.1)
    np.testing.assert_allclose(prior.mean, center, atol=0.04)
    np.testing.assert_allclose(prior.log_scale, np.log(width), atol=0.1)
    expected = 0.5 * ((scale**2 + np.square(means - center)) / width**2 - 1.0) + np.log(width / scale)
    np.testing.assert_allclose(divergence[-20:].mean(axis=0), expected, atol=0.05)
    # They tell a wrong learner from a right one: untied, each task would be best served by its own target.
    assert np.abs(means - targets).min() > 4 * 0.04


def test_the_reward_is_regularised_as_printed():
    agent, state = begun()
    reward = np.random.default_rng(3).normal(size=(1, 2, ENVS)).astype(np.float32)

    @jax.jit
    def shape(state, key):
        _, extras = agent.act(state, jnp.ones((2, ENVS, 1)), key)
        extras = jax.tree.map(lambda leaf: leaf[None], extras)  # [H = 1, T, E]
        rollout = Transitions(None, reward, None, None, None, extras)
        return agent._shape_reward(state, rollout, jnp.ones((2, ENVS, 1)), reward), extras["raw_action"][0]

    shaped, chosen = jax.device_get(shape(state, jax.random.key(2)))
    own, prior = (np.asarray(p, np.float64) for p in policies(agent, state))
    log_own = np.log(np.take_along_axis(own, chosen, axis=1))
    expected = reward[0] + 0.3 * np.log(prior)[chosen] - 0.4 * log_own
    np.testing.assert_allclose(shaped[0], expected, atol=1e-5)


def test_distilling_moves_the_prior_alone():
    """With one column, the divergence has a gradient for π₀ and none for the tasks' policies."""
    agent, state = begun(columns=1)
    p = state.params["policy"]

    def divergence(shared, private):
        def of_task(private, task, mask):
            own = agent.policy.apply(shared, private, task, jnp.ones((4, 1)))
            batch = minibatches.Minibatch(jnp.ones((4, 1)), *[None] * 6)
            return agent._further_loss({"policy": shared}, own, mask, batch, None)[0]

        return jax.vmap(of_task)(private, agent.tasks, agent.masks).sum()

    shared, private = jax.device_get(jax.jit(jax.grad(divergence, argnums=(0, 1)))(p.shared, p.private))
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(shared["prior"])) > 1e-4
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(private))


def test_two_columns_of_gaussians_are_a_product_of_densities():
    prior = Normal(np.float32([[0.3, -1.0]]), np.float32([[-0.2, 0.4]]))
    own = Normal(np.float32([[-0.5, 0.7]]), np.float32([[0.1, -0.6]]))
    points = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)

    @jax.jit
    def densities(prior, own):
        found, family, mask = distral.product(prior, own, 0.7, 3.0), gaussian(False), jnp.ones(2)
        log_product = 0.7 * family.log_prob(prior, mask, points) + family.log_prob(own, mask, points)
        return family.log_prob(found, mask, points) - log_product, distral.product(prior, own, 0.0, 3.0)

    difference, alone = jax.device_get(densities(prior, own))
    np.testing.assert_allclose(difference, difference[0], atol=1e-5)  # the constant that normalises
    np.testing.assert_allclose(alone.mean, own.mean, rtol=1e-6)
    np.testing.assert_allclose(alone.log_scale, own.log_scale, atol=1e-6)


def test_two_columns_of_choices_add_their_logits():
    """Equation 8: α h + β f, with α = 0.3 / 0.4 and β = 1 / 0.4."""
    (agent, state), (alone, _) = begun(), begun(columns=1)
    p = jax.tree.map(lambda leaf: leaf + 0.3, state.params["policy"])

    @jax.jit
    def logits(p):
        task, private = jax.tree.map(lambda leaf: leaf[0], (agent.tasks, p.private))
        each = [one.policy.apply(p.shared, private, task, jnp.ones(1)) for one in (agent, alone)]
        return *each, agent.prior(p.shared, jnp.ones(1))

    whole, own, prior = jax.device_get(logits(p))
    expected = 0.75 * prior + 2.5 * own
    np.testing.assert_allclose(whole, expected, rtol=1e-5)


def test_an_unseen_task_is_acted_for_by_the_prior():
    agent, state = begun()
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy of the containers
    head = state.params["policy"].shared["prior"]["network"]["head"]["params"]["Dense_0"]
    head["bias"] = np.float32([0.0, 0.0, 50.0])
    observation, others = np.ones((3, 4, 1), np.float32), Unseen(np.zeros((3, 0)), np.ones((3, 3), np.float32))
    act = jax.jit(agent.evaluation_policy)
    unseen = np.asarray(act(state, observation, jax.random.key(0), np.bool_(False), others))
    assert unseen.shape == (3, 4) and (unseen == 2).all()


@pytest.mark.parametrize("cost", [0.0, 0.1])
def test_a_prior_that_nothing_teaches_is_nobodys_policy(cost):
    config, spec = dataclasses.replace(CONFIG, distral_kl_cost=cost), TaskSpec(2, 1, Arms.action)
    learner = distral.make_distral(config, NETWORK, grads.sum(), spec, num_envs=ENVS, num_updates=1)
    assert learner.generalises == (cost > 0)


def test_costs_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="distral_kl_cost: 0.0 needs distral_entropy_cost above 0"):
        validate(DistralConfig(distral_kl_cost=0.0, distral_entropy_cost=0.0))
