"""Returns: if one of these fails, every value and advantage that a user trains on is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.learners.returns import discounted_sums, generalized_advantages, next_values

GAMMA, LAMBDA = 0.9, 0.8
ADVANTAGES, SUMS = jax.jit(generalized_advantages), jax.jit(discounted_sums)


def _reference(reward, value, next_value, terminated, truncated):
    """Equation 16 of arXiv 1506.02438, one column at a time, in float64."""
    advantage = np.zeros(reward.shape)
    for column in np.ndindex(reward.shape[1:]):
        running = 0.0
        for t in reversed(range(reward.shape[0])):
            at = (t, *column)
            if terminated[at] or truncated[at]:
                running = 0.0
            bootstrap = 0.0 if terminated[at] else next_value[at]
            running = reward[at] + GAMMA * bootstrap - value[at] + GAMMA * LAMBDA * running
            advantage[at] = running
    return advantage


def _random(seed, shape=(12, 3, 4)):
    draw = np.random.default_rng(seed)
    reward, value, next_value = (draw.normal(size=shape).astype(np.float32) for _ in range(3))
    terminated, truncated = (draw.random(shape) < 0.2 for _ in range(2))  # both at once happens, too
    return reward, value, next_value, terminated, truncated


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_plain_reference(seed):
    arguments = _random(seed)
    advantage, target = ADVANTAGES(*arguments, discount=GAMMA, gae_lambda=LAMBDA)
    expected = _reference(*arguments)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(target, expected + arguments[1], rtol=1e-5, atol=1e-5)


def _three_steps(terminated, truncated):
    """Rewards 1, 2, 4; values 10, 20, 30; V of the states reached: 20, 100 (before the reset) and 40."""
    column = [np.float32(x)[:, None] for x in ([1.0, 2.0, 4.0], [10.0, 20.0, 30.0], [20.0, 100.0, 40.0])]
    ends = [np.asarray(x)[:, None] for x in (terminated, truncated)]
    advantage, _ = ADVANTAGES(*column, *ends, discount=0.5, gae_lambda=0.5)
    return np.asarray(advantage)[:, 0]


NONE, SECOND = [False] * 3, [False, True, False]
LAST = 4 + 0.5 * 40 - 30  # the advantage of the third step, whatever happened before


def test_truncation_by_hand():
    """A time limit is no end of the world: the cut step earns γ V(final_observation), and the trace stops.

    With timeouts as terminal it would be 2 - 20, with V(s_t) as bootstrap 2 + 10 - 20, with that after the reset
    2 + 15 - 20, and masked out 0.
    """
    cut = 2 + 0.5 * 100 - 20
    np.testing.assert_allclose(_three_steps(NONE, SECOND), [1 + 0.5 * 20 - 10 + 0.25 * cut, cut, LAST])


def test_termination_by_hand():
    """A terminal state has no future: neither its value nor the next episode's rewards may leak in."""
    end = 2 - 20
    np.testing.assert_allclose(_three_steps(SECOND, NONE), [1 + 0.5 * 20 - 10 + 0.25 * end, end, LAST])


def test_an_end_that_is_both_is_terminal():
    """Termination at the time limit is termination."""
    np.testing.assert_array_equal(_three_steps(SECOND, SECOND), _three_steps(SECOND, NONE))


def test_lambda_one_is_the_discounted_return_and_lambda_zero_the_td_error():
    """The two ends of λ are what textbooks say."""
    reward, value, next_value, _, _ = _random(7)
    next_value[:-1] = value[1:]
    never = np.zeros(reward.shape, bool)
    _, target = ADVANTAGES(reward, value, next_value, never, never, discount=GAMMA, gae_lambda=1.0)
    powers = GAMMA ** np.arange(12)
    returns = (powers[:, None, None] * reward).sum(0) + GAMMA**12 * next_value[-1]
    np.testing.assert_allclose(target[0], returns, rtol=1e-4, atol=1e-5)
    advantage, _ = ADVANTAGES(reward, value, next_value, never, never, discount=GAMMA, gae_lambda=0.0)
    np.testing.assert_allclose(advantage, reward + GAMMA * next_value - value, rtol=1e-5, atol=1e-5)


def test_discounted_sums_restart_after_every_episode_and_carry_over_rollouts():
    """The scale of rewards would drift with the length of a rollout otherwise."""
    draw = np.random.default_rng(0)
    reward, done = draw.normal(size=(9, 2)).astype(np.float32), draw.random((9, 2)) < 0.3
    expected, total = np.zeros((9, 2)), np.array([0.5, -1.0])
    for t in range(9):
        total = GAMMA * total + reward[t]
        expected[t] = total
        total = np.where(done[t], 0.0, total)
    carried, sums = SUMS(np.float32([0.5, -1.0]), reward, done, discount=GAMMA)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(carried, total, rtol=1e-5, atol=1e-6)
    start, first = SUMS(np.float32([0.5, -1.0]), reward[:4], done[:4], discount=GAMMA)
    again, second = SUMS(start, reward[4:], done[4:], discount=GAMMA)
    np.testing.assert_allclose(np.concatenate([first, second]), sums, rtol=1e-6)
    np.testing.assert_allclose(again, carried, rtol=1e-6)


@jax.jit
@jax.vmap
def _look(seen, done, reached):
    """Next values of one seed, where V(o) = 3 o + task; compiled once for all of one shape."""
    tasks = seen.shape[1]
    task, by_task = jnp.arange(tasks, dtype=jnp.float32)[:, None], jnp.moveaxis(reached, 1, 0).reshape(tasks, -1)

    def evaluate(steps):
        return 3 * jnp.take_along_axis(by_task, steps, axis=1, mode="clip") + task

    return next_values(3 * seen + task, done, evaluate)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.4, 1.0])
@pytest.mark.parametrize("shape", [(12, 3, 4), (5, 2, 1), (1, 1, 3)])
def test_values_of_the_states_reached(share, shape):
    """V(o) = 3 o + task, known at every step; where an episode ended, what was reached is not what is seen next.

    Two seeds at once, of which one has far more episodes that end.
    """
    draw = np.random.default_rng(0)
    seen = draw.normal(size=(2, *shape)).astype(np.float32)
    done = np.stack([draw.random(shape) < share, np.zeros(shape, bool)])
    reached = draw.normal(size=(2, *shape)).astype(np.float32)
    reached[:, :-1] = np.where(done[:, :-1], reached[:, :-1], seen[:, 1:])
    expected = 3 * reached + np.arange(shape[1], dtype=np.float32)[:, None]
    np.testing.assert_allclose(_look(seen, done, reached), expected, rtol=1e-6)


def test_looks_no_more_often_than_it_must():
    """Without an end in the rollout, one look at an eighth of it is enough."""
    looks = []

    def evaluate(steps):
        jax.debug.callback(lambda steps: looks.append(steps.shape), steps)
        return jnp.zeros(steps.shape)

    shape = (64, 2, 4)
    look = jax.jit(lambda value, done: next_values(value, done, evaluate))
    jax.block_until_ready(look(np.zeros(shape, np.float32), np.zeros(shape, bool)))
    jax.effects_barrier()
    assert looks == [(2, 32)]
