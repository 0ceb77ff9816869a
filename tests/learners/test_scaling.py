"""What scales a task's rewards: a wrong scale lets one task drown the others."""

import jax
import numpy as np
import pytest

from mtjax.learners.scaling import make_reward_scaling

H, T, E = 7, 2, 3
GAMMA = 0.9


def _seen(kind, reward, ended, truncated, pieces=1):
    scaling = make_reward_scaling(kind, value_range=10.0)
    scaling = scaling._replace(update=jax.jit(scaling.update), apply=jax.jit(scaling.apply))
    state = scaling.init(*reward.shape[1:])
    for part in zip(*(np.split(x, pieces) for x in (reward, ended, truncated)), strict=True):
        state = scaling.update(state, *part, GAMMA)
    return scaling, jax.device_get(state)


def _random(seed=0, length=H):
    draw = np.random.default_rng(seed)
    reward = draw.normal(size=(length, T, E)).astype(np.float32) * np.asarray([1.0, 100.0], np.float32)[:, None]
    ended = draw.random((length, T, E)) < 0.3
    return reward, ended, ended & (draw.random((length, T, E)) < 0.5)


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_largest_return_by_hand(pieces):
    """Step by step in NumPy, whatever the rollouts are cut into; a cut episode counts as going on with its mean."""
    reward, ended, truncated = _random(length=9)
    _, state = _seen("range", reward, ended, truncated, pieces)
    largest, samples = np.zeros(T), [[] for _ in range(T)]
    for t in range(T):
        for e in range(E):
            episode = []
            for h in range(9):
                episode.append(float(reward[h, t, e]))
                total = sum(r * GAMMA**k for k, r in enumerate(reversed(episode)))
                samples[t].append(total)
                if truncated[h, t, e]:
                    total += GAMMA ** len(episode) * np.mean(episode) / (1 - GAMMA)
                largest[t] = max(largest[t], abs(total))
                if ended[h, t, e]:
                    episode = []
    np.testing.assert_allclose(state.largest, largest, rtol=1e-4)
    np.testing.assert_allclose(state.returns.variance, [np.var(x) for x in samples], rtol=1e-4)


def test_lost_episodes_are_not_glued_to_the_next():
    """Five steps of 3 that were lost with their simulator, then an episode of five: no return is larger than its."""
    lost = np.zeros((5, 1, 1), bool)
    ended = lost.copy()
    ended[-1] = True
    scaling, state = _seen("range", np.full((5, 1, 1), 3.0, np.float32), lost, lost)
    rewards = np.full((5, 1, 1), 3.0, np.float32)
    after = jax.device_get(scaling.update(scaling.cut(state), rewards, ended, lost, GAMMA))
    np.testing.assert_allclose(after.largest, 3.0 * (1 - GAMMA**5) / (1 - GAMMA), rtol=1e-5)
    assert (after.lengths == 0).all() and (after.returns.count == 2 * state.returns.count).all()


def test_a_constant_reward_fills_the_range():
    """The value of an endless stream of r is r / (1 − γ): scaled, it is the largest value that a critic can say."""
    shape = (5, 1, 1)
    reward, cut = np.full(shape, 3.0, np.float32), np.zeros(shape, bool)
    cut[-1] = True
    scaling, state = _seen("range", reward, cut, cut)
    three, bonus = np.full((1, 1), 3.0, np.float32), np.full(1, 6.0, np.float32)
    scaled = scaling.apply(state, three, np.zeros_like(bonus), GAMMA)
    np.testing.assert_allclose(np.asarray(scaled) / (1 - GAMMA), 10.0, rtol=1e-5)
    less = scaling.apply(state, three, bonus, GAMMA)  # 6 of bonus: half, over 1 − γ
    np.testing.assert_allclose(np.asarray(less) / (1 - GAMMA), 10.0 * 30 / (30 + 30), rtol=1e-5)


def test_running_and_none():
    reward, ended, truncated = _random()
    rows, nothing = np.float32([[1.0, 2.0], [100.0, 1e6]]), np.zeros(T, np.float32)
    scaling, state = _seen("running", reward, ended, truncated)
    scaled = np.asarray(scaling.apply(state, rows, nothing, GAMMA))
    deviation = np.sqrt(state.returns.variance)
    np.testing.assert_allclose(scaled[0], rows[0] / deviation[0], rtol=1e-4)
    assert scaled[1, 1] == 10.0 and 50 < deviation[1] / deviation[0] < 200
    scaling, state = _seen("none", reward, ended, truncated)
    np.testing.assert_array_equal(scaling.apply(state, rows, nothing, GAMMA), rows)


def test_nothing_earned_yet_is_no_division_by_zero():
    zero = np.zeros((H, T, E), np.float32)
    for kind in ("running", "range"):
        scaling, state = _seen(kind, zero, zero > 0, zero > 0)
        assert np.isfinite(scaling.apply(state, np.zeros((T, 4)), np.zeros(T), GAMMA)).all()
