"""Exploration bonuses: large for what is new to THIS task, small for what is known, and part of what PPO learns."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import grads, options
from mtjax.envs.base import continuous
from mtjax.learners import exploration, ppo
from mtjax.learners.base import TaskSpec, Transitions
from mtjax.learners.config import DistralConfig, HiPBMDPConfig, PPOConfig, SACConfig
from mtjax.networks.config import NetworkConfig

H, T, E, OBS = 5, 2, 3, 4
DRAW = np.random.default_rng(0)


def _step(bonus, state, observation):
    return jax.jit(bonus.step)(state, jnp.asarray(observation, jnp.float32))


# ---------------------------------------------------------------------------------------------- counts


def test_counts_against_a_dictionary():
    """1 / √n with n the visits of this task, over several rollouts; other tasks' visits do not count."""
    bonus = exploration.counts(num_tasks=T, observation_size=OBS, bins=16384, resolution=0.01)
    state = bonus.init(jax.random.key(0))
    seen = collections.Counter()
    for _ in range(3):
        observation = DRAW.integers(-1, 2, size=(H, T, E, OBS)) * 0.5
        state, found = _step(bonus, state, observation)
        names = [[[(t, *observation[h, t, e]) for e in range(E)] for t in range(T)] for h in range(H)]
        seen.update(name for step in names for row in step for name in row)
        expected = [[[seen[name] ** -0.5 for name in row] for row in step] for step in names]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert int(state.visits.sum()) == 3 * H * T * E


def test_counts_end_before_they_overflow():
    bonus = exploration.counts(num_tasks=1, observation_size=1, bins=4, resolution=1.0)
    state = bonus.init(jax.random.key(0))
    state, found = _step(bonus, state._replace(visits=state.visits + 2**30 - 1), np.ones((3, 1, 1, 1)))
    np.testing.assert_allclose(found, 2.0**-15, rtol=1e-6)
    assert sorted(state.visits[0].tolist()) == [2**30 - 1] * 3 + [2**30]


def test_counts_round():
    """Noise below the resolution is no news; a difference above it is."""
    bonus = exploration.counts(num_tasks=1, observation_size=1, bins=16384, resolution=0.1)
    observation = np.asarray([0.501, 0.499, 0.52, 0.7, -0.7])[:, None, None, None]
    _, found = _step(bonus, bonus.init(jax.random.key(0)), observation)
    np.testing.assert_allclose(found[:, 0, 0], [3**-0.5] * 3 + [1.0, 1.0], rtol=1e-6)


def test_counts_spread_over_the_bins():
    """A poor hash would make new places look known: 1,000 cells of a grid in 16,384 bins hardly collide."""
    for resolution in (0.01, 1.0):
        bonus = exploration.counts(num_tasks=1, observation_size=2, bins=16384, resolution=resolution)
        cells = np.stack(np.meshgrid(np.arange(25), np.arange(40)), axis=-1).reshape(1000, 1, 1, 2)
        _, found = _step(bonus, bonus.init(jax.random.key(0)), cells)
        assert 0.9 < float((found == 1.0).mean()) < 1.0  # by chance alone, about 0.94


# ------------------------------------------------------------------------------------------------- rnd


def test_rnd_tells_known_from_new_and_task_from_task():
    """Each task is shown its own region again and again: that one becomes dull, the other task's stays new."""
    bonus = exploration.rnd(num_tasks=T, observation_size=OBS, layers=(32, 16), learning_rate=3e-3)
    state = bonus.init(jax.random.key(0))
    centres = np.asarray([1.0, -1.0])[:, None, None]

    def region(swap=False):
        at = centres[::-1] if swap else centres
        return jnp.asarray(at + 0.3 * DRAW.normal(size=(H, T, 16, OBS)), jnp.float32)

    # Statistics of observations must cover both regions, or the new one would be clipped into view.
    state, first = _step(bonus, state, np.concatenate([region(), region(swap=True)]))
    assert first.shape == (2 * H, T, 16) and (first >= 0).all()
    np.testing.assert_allclose(np.mean(np.square(first)), 1.0, rtol=0.5)  # of the usual size from the start
    step = jax.jit(bonus.step)
    for _ in range(60):
        state, _ = step(state, region())
    _, known = step(state, region())
    _, new = step(state, region(swap=True))
    assert (new.mean(axis=(0, 2)) > 3 * known.mean(axis=(0, 2))).all()


def test_rnd_of_one_task_leaves_the_others_alone():
    bonus = exploration.rnd(num_tasks=T, observation_size=OBS, layers=(8,), learning_rate=1e-2)
    state = bonus.init(jax.random.key(0))
    observation = DRAW.normal(size=(H, T, E, OBS))
    other = observation.copy()
    other[:, 0] = 7.0
    one, two = (_step(bonus, state, x)[0] for x in (observation, other))
    for a, b in zip(jax.tree.leaves(one.predictor), jax.tree.leaves(two.predictor), strict=True):
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=1e-6)
        assert np.abs(a[0] - b[0]).max() > 0
    for a, b in zip(jax.tree.leaves(state.target), jax.tree.leaves(one.target), strict=True):
        np.testing.assert_array_equal(a, b)  # the target stays what it was drawn as


# ------------------------------------------------------------------------------------------------- PPO

CONFIG = PPOConfig(
    rollout_length=H,
    num_epochs=1,
    num_minibatches=1,
    return_scaling="none",
    normalize_advantages=False,
    exploration="counts",
    exploration_bonus=0.5,
)


def _rollout(draw):
    observation, final = (jnp.asarray(draw.integers(0, 2, size=(H, T, E, OBS)), jnp.float32) for _ in range(2))
    over = jnp.zeros((H, T, E), bool)
    reward = jnp.asarray(draw.normal(size=(H, T, E)), jnp.float32)
    extras = {"raw_action": jnp.zeros((H, T, E, 2)), "log_prob": jnp.zeros((H, T, E))}
    return Transitions(observation, reward, over, over, final, extras)


def test_ppo_learns_from_reward_and_bonus():
    """The bonus of the state that was reached is added to the scaled reward, with its weight; then all is as ever."""
    spec, network = TaskSpec(T, OBS, continuous(2)), NetworkConfig(hidden_sizes=(4,))
    bare = dataclasses.replace(CONFIG, exploration="none")
    agent, plain = (
        ppo._PPO(config, network, grads.mean(), spec, num_envs=E, num_updates=1) for config in (CONFIG, bare)
    )
    rollout = _rollout(np.random.default_rng(0))

    @jax.jit
    def run(key):
        state = agent.init(key)
        after, metrics = agent.update(state, rollout, key)
        kept, bonus = agent._explore(state, rollout)
        batch = agent._targets(state, rollout, bonus)[0]
        shaped = rollout._replace(reward=rollout.reward + 0.5 * bonus)
        expected, _ = plain.update(plain.init(key), shaped, key)
        return after, metrics, kept, bonus, batch, plain._targets(plain.init(key), shaped)[0], expected

    after, metrics, kept, bonus, batch, by_hand, expected = run(jax.random.key(0))
    np.testing.assert_allclose(batch.target, by_hand.target, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["exploration/bonus"], bonus.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_array_equal(after.exploration.visits, kept.visits)
    assert int(kept.visits.sum()) == H * T * E


@pytest.mark.parametrize(
    "config, message",
    [
        (PPOConfig(count_bins=8), "count_bins: 8 has no effect; it belongs to exploration=counts"),
        (
            PPOConfig(exploration="counts", rnd_sizes=(8,)),
            "rnd_sizes: (8,) has no effect; it belongs to exploration=rnd",
        ),
        (
            PPOConfig(exploration_bonus=0.5),
            "exploration_bonus: 0.5 has no effect; it belongs to exploration=counts or rnd",
        ),
        (DistralConfig(detour_steps=8), "detour_steps: 8 has no effect; it belongs to detour_share above 0"),
        (
            DistralConfig(detour_schedule="linear"),
            "detour_schedule: 'linear' has no effect; it belongs to detour_share above 0",
        ),
        (PPOConfig(popart_step=0.5), "popart_step: 0.5 has no effect; it belongs to return_scaling=popart"),
        (
            PPOConfig(observation_clip=5.0, normalize_observations=False),
            "observation_clip: 5.0 has no effect; it belongs to normalize_observations",
        ),
        (SACConfig(observation_clip=5.0), "observation_clip: 5.0 has no effect; it belongs to normalize_observations"),
        (
            HiPBMDPConfig(num_atoms=51, return_scaling="range"),
            "num_atoms: 51 has no effect; it belongs to critic_head=categorical",
        ),
        (
            SACConfig(value_range=5.0),
            "value_range: 5.0 has no effect; it belongs to critic_head=categorical and return_scaling=range",
        ),
        (
            SACConfig(temperature_learning_rate=1e-3, learn_temperature=False),
            "temperature_learning_rate: 0.001 has no effect; it belongs to learn_temperature",
        ),
        (
            SACConfig(critic_reduction="mean", num_critics=1),
            "critic_reduction: 'mean' has no effect; it belongs to num_critics above 1",
        ),
        (
            HiPBMDPConfig(transition_model="ensemble", transition_cost=0.0, theta_size=0),
            "transition_model: 'ensemble' has no effect; it belongs to transition_cost above 0",
        ),
        (
            HiPBMDPConfig(transition_members=3, transition_cost=0.0, theta_size=0),
            "transition_members: 3 has no effect; it belongs to transition_cost above 0",
        ),
    ],
)
def test_options_without_effect_are_refused(config, message):
    with pytest.raises(ValueError) as caught:
        options.validate(config)
    assert str(caught.value) == message
