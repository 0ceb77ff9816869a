"""Rollouts: a learner can only be as right as the experience that it is handed."""

import jax
import jax.numpy as jnp
import numpy as np

from mtjax.envs import probe
from mtjax.envs.base import Step
from mtjax.training import rollout

S, T, E, H = 2, 3, 4, 7


def _experience():
    """One rollout of TwoStep and Endless tasks, with seeds vmapped, and the one that follows it."""
    env = probe.Endless().vector_env(probe.tasks([1.0, 2.0, 3.0], terminates=[True, False, True]), E)
    reset, step = rollout.over_seeds(env)

    def act(observation, keys, index):
        draw = jax.vmap(lambda key: jax.random.normal(key, (T, E)))(keys)
        return jnp.zeros((S, T, E), jnp.int32), {"draw": draw}

    @jax.jit
    def run(key):
        keys = jax.random.split(key, (3, S))
        state, observation = reset(keys[0])
        carry = rollout.Carry(state, observation, rollout.init_running((S, T, E)), rollout.init_latest((S, T, E)))
        between, first = rollout.collect(act, step, carry, keys[1], length=H)
        after, second = rollout.collect(act, step, between, keys[2], length=H)
        return carry, between, after, first, second

    return run(jax.random.key(0))


def test_collect():
    """Shapes, the chain of observations across episodes and rollouts, and fresh randomness at every step."""
    start, between, after, first, second = _experience()
    for name in ("reward", "terminated", "truncated"):
        assert getattr(first, name).shape == (S, H, T, E)
    assert first.observation.shape == first.final_observation.shape == (S, H, T, E, 5)
    np.testing.assert_array_equal(first.observation[:, 0], start.observation)
    np.testing.assert_array_equal(second.observation[:, 0], between.observation)
    observation = np.concatenate([first.observation, second.observation, after.observation[:, None]], axis=1)
    final, done = (
        np.concatenate([getattr(first, name), getattr(second, name)], axis=1)
        for name in ("final_observation", "truncated")
    )
    done = done | np.concatenate([first.terminated, second.terminated], axis=1)
    assert done.any()
    np.testing.assert_array_equal(observation[:, 1:][~done], final[~done])
    np.testing.assert_array_equal(observation[:, 1:][done][:, 0], 1.0)  # a first observation
    assert (final[done][:, 0] == 0.0).all()  # and never in place of the last one
    draws = np.concatenate([first.extras["draw"], second.extras["draw"]], axis=1)
    assert len(np.unique(draws)) == draws.size


def test_episodes_by_hand():
    """Returns and lengths that a user reads off the screen: whole episodes only, across rollouts, per task."""
    _, between, after, first, second = _experience()
    for carry, parts in ((between, [first]), (after, [first, second])):
        reward = np.concatenate([p.reward for p in parts], axis=1)
        done = np.concatenate([p.terminated | p.truncated for p in parts], axis=1)
        episodes = np.zeros((S, T))
        returns, lengths = np.full((2, S, T, E), np.nan)  # of the latest
        for s, t, e in np.ndindex(S, T, E):
            total = length = 0
            for h in range(reward.shape[1]):
                total, length = total + reward[s, h, t, e], length + 1
                if done[s, h, t, e]:
                    episodes[s, t] += 1
                    returns[s, t, e], lengths[s, t, e] = total, length
                    total = length = 0
            assert carry.running.returns[s, t, e] == total and carry.running.length[s, t, e] == length
        np.testing.assert_allclose(carry.latest.episodes.sum(axis=-1), episodes)
        np.testing.assert_allclose(carry.latest.returns, returns)
        np.testing.assert_allclose(carry.latest.length, lengths)
        means = rollout.averages(carry.latest, has_success=False)
        np.testing.assert_allclose(means["return"], returns.mean(axis=-1))
        assert set(means) == {"return", "length", "episodes"}


def _step(reward, done, success, **info):
    shape = (1, 1, 2)
    zeros = jnp.zeros((*shape, 1))
    done = jnp.asarray(done).reshape(shape)
    info = {"success": jnp.asarray(success, jnp.float32).reshape(shape)} | {
        name: jnp.asarray(value).reshape(shape) for name, value in info.items()
    }
    reward = jnp.asarray(reward, jnp.float32).reshape(shape)
    return Step(zeros, reward, done, jnp.zeros(shape, bool), zeros, info)


def test_success_at_any_step_and_at_the_last():
    """An arm that touched the goal and left it has succeeded in one sense and not in the other."""
    running, latest = rollout.init_running((1, 1, 2)), rollout.init_latest((1, 1, 2))
    seen = []
    for step in (
        _step([1, 2], [False, False], [1, 0]),
        _step([1, 2], [True, False], [0, 0]),  # succeeded before, not now
        _step([5, 2], [False, True], [0, 1]),  # succeeds as it ends
        _step([5, 9], [True, False], [0, 0]),  # the next episode owes nothing to the last one
    ):
        running, latest = rollout.account(running, latest, step)
        seen.append(rollout.averages(latest, has_success=True))
    assert [known["episodes"].item() for known in seen] == [0, 1, 2, 3]
    # A mean of those that have ended by then would be 1: what ends first is not like the others.
    np.testing.assert_array_equal([known["success"].item() for known in seen], [np.nan, np.nan, 1.0, 0.5])
    np.testing.assert_array_equal([known["return"].item() for known in seen], [np.nan, np.nan, 4.0, 8.0])
    np.testing.assert_array_equal([known["length"].item() for known in seen], [np.nan, np.nan, 2.5, 2.5])
    np.testing.assert_array_equal(latest.success_last[0, 0], [0, 1])
    np.testing.assert_array_equal(running.returns[0, 0], [0, 9])


def test_an_episode_that_was_shortened_on_purpose_is_not_booked():
    """Half an episode has about half the return: learning curves would begin, and go on after a resume, with a dip."""
    running, latest = rollout.init_running((1, 1, 2)), rollout.init_latest((1, 1, 2))
    for step in (
        _step([1, 1], [False, True], [0, 1], whole=[True, False]),
        _step([1, 5], [True, False], [1, 0], whole=[True, True]),
        _step([7, 5], [False, True], [0, 0], whole=[True, True]),
    ):
        running, latest = rollout.account(running, latest, step)
    np.testing.assert_array_equal(latest.episodes[0, 0], [1, 1])
    np.testing.assert_array_equal(latest.returns[0, 0], [2, 10])
    np.testing.assert_array_equal(latest.success_any[0, 0], [1, 0])
    np.testing.assert_array_equal(running.returns[0, 0], [7, 0])
