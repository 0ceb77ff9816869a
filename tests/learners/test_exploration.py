"""Exploration bonuses: large for what is new to THIS task, small for what is known, and part of what learners learn."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrangement_cases import quick_initialisation

from mtjax import grads, options
from mtjax.envs.base import continuous, discrete
from mtjax.learners import exploration, hipbmdp, ppo, sac
from mtjax.learners.base import TaskSpec, Transitions, Unseen
from mtjax.learners.config import DistralConfig, HiPBMDPConfig, PPOConfig, SACConfig
from mtjax.networks.config import NetworkConfig

__all__ = ["quick_initialisation"]  # of every test here
H, T, E, OBS = 5, 2, 3, 4
DRAW = np.random.default_rng(0)


def _begin(bonus):
    return jax.device_get(jax.jit(bonus.init)(jax.random.key(0)))


def _step(bonus, state, observation):
    return jax.device_get(jax.jit(bonus.step)(state, np.asarray(observation, np.float32)))


# ---------------------------------------------------------------------------------------------- counts


def test_counts_against_a_dictionary():
    """1 / √n with n the visits of this task, over several rollouts; other tasks' visits do not count."""
    bonus = exploration.counts(num_tasks=T, observation_size=OBS, bins=16384, resolution=0.01)
    state = _begin(bonus)
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
    state = _begin(bonus)
    state, found = _step(bonus, state._replace(visits=state.visits + 2**30 - 1), np.ones((3, 1, 1, 1)))
    np.testing.assert_allclose(found, 2.0**-15, rtol=1e-6)
    assert sorted(state.visits[0].tolist()) == [2**30 - 1] * 3 + [2**30]


def test_counts_round():
    """Noise below the resolution is no news; a difference above it is."""
    bonus = exploration.counts(num_tasks=1, observation_size=1, bins=16384, resolution=0.1)
    observation = np.asarray([0.501, 0.499, 0.52, 0.7, -0.7])[:, None, None, None]
    _, found = _step(bonus, _begin(bonus), observation)
    np.testing.assert_allclose(found[:, 0, 0], [3**-0.5] * 3 + [1.0, 1.0], rtol=1e-6)


def test_counts_spread_over_the_bins():
    """A poor hash would make new places look known: 1,000 cells of a grid in 16,384 bins hardly collide."""
    for resolution in (0.01, 1.0):
        bonus = exploration.counts(num_tasks=1, observation_size=2, bins=16384, resolution=resolution)
        cells = np.stack(np.meshgrid(np.arange(25), np.arange(40)), axis=-1).reshape(1000, 1, 1, 2)
        _, found = _step(bonus, _begin(bonus), cells)
        assert 0.9 < float((found == 1.0).mean()) < 1.0  # by chance alone, about 0.94


# ------------------------------------------------------------------------------------------------- rnd


def test_rnd_tells_known_from_new_and_task_from_task(monkeypatch):
    """Each task is shown its own region again and again: that one becomes dull, the other task's stays new."""
    monkeypatch.undo()  # networks that are to learn start as they do outside of tests
    bonus = exploration.rnd(num_tasks=T, observation_size=OBS, layers=(32, 16), learning_rate=3e-3)
    state = _begin(bonus)
    centres = np.asarray([1.0, -1.0])[:, None, None]

    def region(swap=False):
        at = centres[::-1] if swap else centres
        return at + 0.3 * DRAW.normal(size=(H, T, 16, OBS))

    # Statistics of observations must cover both regions, or the new one would be clipped into view.
    state, first = _step(bonus, state, np.concatenate([region(), region(swap=True)]))
    assert first.shape == (2 * H, T, 16) and (first >= 0).all()
    np.testing.assert_allclose(np.mean(np.square(first)), 1.0, rtol=0.5)  # of the usual size from the start
    for _ in range(60):
        state, _ = _step(bonus, state, region())
    _, known = _step(bonus, state, region())
    _, new = _step(bonus, state, region(swap=True))
    assert (new.mean(axis=(0, 2)) > 3 * known.mean(axis=(0, 2))).all()


def test_rnd_of_one_task_leaves_the_others_alone():
    bonus = exploration.rnd(num_tasks=T, observation_size=OBS, layers=(8,), learning_rate=1e-2)
    state = _begin(bonus)
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
    observation, final = (draw.integers(0, 2, size=(H, T, E, OBS)).astype(np.float32) for _ in range(2))
    over = jnp.asarray(np.zeros((H, T, E), bool))
    reward = draw.normal(size=(H, T, E)).astype(np.float32)
    extras = {"raw_action": np.zeros((H, T, E, 2), np.float32), "log_prob": np.zeros((H, T, E), np.float32)}
    return Transitions(observation, reward, over, over, final, extras)


def test_ppo_learns_from_reward_and_bonus():
    """The bonus of the state that was reached is added to the scaled reward, with its weight; then all is as ever."""
    spec, network = TaskSpec(T, OBS, continuous(2)), NetworkConfig(hidden_sizes=(4,))
    bare = dataclasses.replace(CONFIG, exploration="none")
    agent, plain = (
        ppo.PPO(config, network, grads.mean(), spec, num_envs=E, num_updates=1) for config in (CONFIG, bare)
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

    after, metrics, kept, bonus, batch, by_hand, expected = jax.device_get(run(jax.random.key(0)))
    np.testing.assert_allclose(batch.target, by_hand.target, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["exploration/bonus"], bonus.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_array_equal(after.exploration.visits, kept.visits)
    assert int(kept.visits.sum()) == H * T * E


# ------------------------------------------------------------------------------------------------- SAC


def test_what_was_stored_is_as_new_as_it_is_by_now():
    """Counts as of now, and errors of the predictor as it is; asking changes nothing."""
    draw = np.random.default_rng(1)
    observation = draw.integers(-1, 2, size=(H, T, E, OBS)) * 0.5
    stored = np.moveaxis(observation, 1, 0).reshape(T, H * E, OBS).astype(np.float32)
    for bonus in (
        exploration.counts(num_tasks=T, observation_size=OBS, bins=16384, resolution=0.01),
        exploration.rnd(num_tasks=T, observation_size=OBS, layers=(8,), learning_rate=1e-2),
    ):
        state, first = _step(bonus, _begin(bonus), observation)
        first = np.moveaxis(first, 1, 0).reshape(T, H * E)
        again = np.asarray(jax.jit(bonus.bonus)(state, stored))
        if isinstance(state, exploration.CountState):
            np.testing.assert_allclose(again, first, rtol=1e-6)
        for _ in range(3):
            state, _ = _step(bonus, state, observation)
        later = np.asarray(jax.jit(bonus.bonus)(state, stored))
        assert later.shape == (T, H * E) and (later > 0).all()
        if isinstance(state, exploration.CountState):
            np.testing.assert_allclose(later, again / 2, rtol=1e-6)  # seen four times as often
        else:
            assert later.mean() < again.mean() < first.mean()


OFF_POLICY = {
    "rollout_length": H,
    "update_to_data": 0.07,  # one gradient step a rollout
    "batch_size": 4,
    "replay_capacity": 60,
    "warm_start": 0,
    "learn_temperature": False,
}


def _off_policy(make, config, action=None, **more):
    options.validate(config)
    network = NetworkConfig(hidden_sizes=(4,), scale="state", **more)
    return make(config, network, grads.mean(), TaskSpec(T, OBS, action or continuous(2)), num_envs=E)


def _stored(draw, action=None):
    rollout = _rollout(draw)
    if action and action.kind == "discrete":
        return rollout._replace(extras={"action": draw.integers(0, 2, size=(H, T, E)).astype(np.int32)})
    taken = draw.uniform(-1, 1, size=(H, T, E, 2)).astype(np.float32)
    return rollout._replace(extras={"action": taken})


@pytest.mark.parametrize("kind, action", [("counts", discrete(2)), ("counts", None), ("rnd", None)])
def test_sac_values_reward_and_bonus(kind, action):
    """Targets hold the bonus of the transitions drawn, as large as it is after this rollout; nothing else changes."""
    config = SACConfig(**OFF_POLICY, exploration=kind, exploration_bonus=0.5)
    agent = _off_policy(sac.SAC, config, action)
    plain = _off_policy(sac.SAC, dataclasses.replace(config, exploration="none", exploration_bonus=0.1), action)
    rollout, key = _stored(np.random.default_rng(0), action), jax.random.key(1)

    @jax.jit
    def run():
        start = agent.init(jax.random.key(0))
        seen, bonus = agent._explore(agent._take_in(start, rollout), rollout)
        drawn = agent.buffer.sample(seen.replay, key, 4)
        batch, known = agent._prepare(seen, drawn), agent._known(seen, key)
        drawn_bonus = agent.exploration.bonus(seen.exploration, drawn.final_observation)
        policy = seen.params["policy"]
        with_bonus, by_hand = (
            jax.vmap(agent.task_target, in_axes=(sac.OF_TASK, sac.OF_TASK, 0, 0))(policy, seen.targets, known, b)
            for b in (batch._replace(bonus=0.5 * drawn_bonus), batch._replace(reward=batch.reward + 0.5 * drawn_bonus))
        )
        after, metrics = agent.update(start, rollout, key)
        bare, bare_metrics = plain.update(plain.init(jax.random.key(0)), rollout, key)
        # The update's one gradient step by hand: what it draws, worth what this rollout has left of its novelty.
        sample_key, step_key = jax.random.split(jax.random.split(key, 1)[0])
        drawn = agent.buffer.sample(seen.replay, sample_key, 4)
        extra = 0.5 * agent.exploration.bonus(seen.exploration, drawn.final_observation)
        batch = agent._prepare(seen, drawn)
        stepped, _ = agent._step(
            seen._replace(replay=None, exploration=None), batch._replace(reward=batch.reward + extra), step_key
        )
        return with_bonus, by_hand, bonus, after, metrics, bare, bare_metrics, seen, stepped

    with_bonus, by_hand, bonus, after, metrics, bare, bare_metrics, seen, stepped = jax.device_get(run())
    np.testing.assert_allclose(with_bonus, by_hand, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(stepped.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["exploration/bonus"], bonus.mean(axis=(0, 2)), rtol=1e-5)
    assert "exploration/bonus" not in bare_metrics and bare.exploration is None
    np.testing.assert_array_equal(after.replay.rows, bare.replay.rows)  # stored without it
    for a, b in zip(jax.tree.leaves(after.exploration), jax.tree.leaves(seen.exploration), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert (metrics["loss/value"] > bare_metrics["loss/value"]).all()  # values start near 0, and the bonus is positive


def test_models_of_rewards_do_not_learn_the_bonus():
    """The world's rewards are the suite's: only the critics' loss of HiP-BMDP sees the bonus."""
    config = HiPBMDPConfig(
        **OFF_POLICY,
        exploration="counts",
        exploration_bonus=0.5,
        state_encoder_sizes=(4,),
        latent_size=3,
        theta_size=2,
        theta_hidden_sizes=(),
        model_sizes=(4,),
    )
    agent = _off_policy(hipbmdp.HiPBMDP, config, arrangement="none")
    rollout, key = _stored(np.random.default_rng(0)), jax.random.key(1)

    @jax.jit
    def run():
        state, _ = agent._explore(agent._take_in(agent.init(jax.random.key(0)), rollout), rollout)
        batch = agent._prepare(state, agent.buffer.sample(state.replay, key, 4))

        def losses(batch):
            return agent._step(state._replace(replay=None, exploration=None), batch, key)[1]

        return losses(batch), losses(batch._replace(bonus=jnp.full((T, 4), 0.5)))

    bare, explored = jax.device_get(run())
    assert set(bare) == set(explored)
    for name in ("loss/reward", "loss/transition", "loss/theta"):
        np.testing.assert_allclose(bare[name], explored[name], rtol=1e-5)
    assert (np.abs(bare["loss/value"] - explored["loss/value"]) > 1e-3).all()


def test_range_leaves_room_for_the_bonus():
    """Returns scaled to a range and a bonus of 1 at every step fit it together; a bonus that fills it is refused."""
    config = SACConfig(exploration="counts", exploration_bonus=0.05, return_scaling="range", critic_head="categorical")
    options.validate(config)
    agent = _off_policy(sac.SAC, config)
    largest = np.float32([1.0, 20.0])
    endless = largest[:, None] * (1 - config.discount)  # rewards whose return is the largest

    @jax.jit
    def scale():
        state = agent.rewards.init(T, E)._replace(largest=largest)
        return agent.rewards.apply(state, endless, jnp.zeros(T), jnp.asarray(config.discount))

    scaled = np.asarray(scale()) / (1 - config.discount)
    np.testing.assert_allclose(scaled[:, 0] + 0.05 / (1 - config.discount), config.value_range, rtol=1e-4)
    with pytest.raises(ValueError, match="exploration_bonus: 0.1 at every step is worth 10 at discount 0.99, which"):
        options.validate(dataclasses.replace(config, exploration_bonus=0.1))
    options.validate(SACConfig(exploration="counts", exploration_bonus=5.0))  # nothing there is bounded


def test_learning_on_in_an_unseen_task_is_without_a_bonus():
    agent = _off_policy(sac.SAC, SACConfig(**OFF_POLICY, exploration="counts"), arrangement="none")
    tuning = agent.learner().fine_tuning(60)
    unseen = Unseen(np.zeros((1, 0), np.float32), np.ones((1, 2), np.float32))
    state = jax.jit(lambda key: tuning.start(agent.init(key), unseen, key))(jax.random.key(0))
    assert state.exploration is None
    stored, length = jax.device_get(_stored(np.random.default_rng(0))), tuning.rollout_length
    rollout = jax.tree.map(lambda x: np.resize(x[:, :1, :1], (length, 1, 1, *x.shape[3:])), stored)
    _, metrics = jax.jit(tuning.update)(state, unseen, rollout, jax.random.key(1))
    assert "exploration/bonus" not in metrics and np.isfinite(metrics["loss/value"]).all()


@pytest.mark.parametrize(
    "config, message",
    [
        (PPOConfig(count_bins=8), "count_bins: 8 has no effect; it needs exploration=counts"),
        (
            PPOConfig(exploration="counts", rnd_sizes=(8,)),
            "rnd_sizes: (8,) has no effect; it needs exploration=rnd",
        ),
        (
            PPOConfig(exploration_bonus=0.5),
            "exploration_bonus: 0.5 has no effect; it needs exploration=counts or rnd",
        ),
        (SACConfig(count_bins=8), "count_bins: 8 has no effect; it needs exploration=counts"),
        (DistralConfig(detour_steps=8), "detour_steps: 8 has no effect; it needs detour_share above 0"),
        (
            DistralConfig(detour_schedule="linear"),
            "detour_schedule: 'linear' has no effect; it needs detour_share above 0",
        ),
        (PPOConfig(popart_step=0.5), "popart_step: 0.5 has no effect; it needs return_scaling=popart"),
        (
            PPOConfig(observation_clip=5.0, normalize_observations=False),
            "observation_clip: 5.0 has no effect; it needs normalize_observations",
        ),
        (SACConfig(observation_clip=5.0), "observation_clip: 5.0 has no effect; it needs normalize_observations"),
        (
            HiPBMDPConfig(num_atoms=51, return_scaling="range"),
            "num_atoms: 51 has no effect; it needs critic_head=categorical",
        ),
        (
            SACConfig(value_range=5.0),
            "value_range: 5.0 has no effect; it needs critic_head=categorical or return_scaling=range",
        ),
        (
            SACConfig(temperature_learning_rate=1e-3, learn_temperature=False),
            "temperature_learning_rate: 0.001 has no effect; it needs learn_temperature",
        ),
        (
            SACConfig(critic_reduction="mean", num_critics=1),
            "critic_reduction: 'mean' has no effect; it needs num_critics above 1",
        ),
        (
            HiPBMDPConfig(transition_model="ensemble", transition_cost=0.0, theta_size=0),
            "transition_model: 'ensemble' has no effect; it needs transition_cost above 0",
        ),
        (
            HiPBMDPConfig(transition_members=3, transition_cost=0.0, theta_size=0),
            "transition_members: 3 has no effect; it needs transition_cost above 0",
        ),
    ],
)
def test_options_without_effect_are_refused(config, message):
    with pytest.raises(ValueError) as caught:
        options.validate(config)
    assert str(caught.value) == message
