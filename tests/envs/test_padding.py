"""Padding must change nothing: each group behaves as it would alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs import VectorEnv, probe, vectorize
from mtjax.envs.control import Acrobot, AcrobotTask, CartPole, CartPoleTask, Pendulum, PendulumTask
from mtjax.envs.padding import Grouped, fit_action, pad_observation


def group(env, task, number=1, *, num_envs=3, horizon=50):
    tasks = jax.tree.map(lambda x: jnp.full(number, x, jnp.float32), task)
    return vectorize(env, tasks, num_envs, horizon=horizon)


def bodies():
    return Grouped(
        (
            group(CartPole("continuous"), CartPoleTask(), 2, horizon=30),
            group(Acrobot("continuous"), AcrobotTask(), horizon=7),
            group(Pendulum(), PendulumTask(), horizon=5),
        )
    )


def test_sizes():
    envs = bodies()
    assert isinstance(envs, VectorEnv) and envs.on_device
    assert (envs.num_tasks, envs.num_envs, envs.observation_size) == (4, 3, 6)
    assert envs.action_sizes == (1, 1, 1, 1)


def test_each_group_is_what_it_is_alone():
    envs = bodies()
    key = jax.random.key(0)
    state, observation = envs.reset(key)
    alone = [member.reset(jax.random.fold_in(key, i)) for i, member in enumerate(envs.groups)]
    actions = jax.random.uniform(key, (4, 3, 1), minval=-1.0, maxval=1.0)
    parts = [actions[:2], actions[2:3], actions[3:]]
    step, steps_alone = jax.jit(envs.step), [jax.jit(member.step) for member in envs.groups]
    for time in range(12):
        key = jax.random.key(time + 1)
        state, out = step(state, actions, key)
        first = 0
        for i, member in enumerate(envs.groups):
            member_state, expected = steps_alone[i](alone[i][0], parts[i], jax.random.fold_in(key, i))
            alone[i] = (member_state, expected.observation)
            rows, size = slice(first, first + member.num_tasks), member.observation_size
            first += member.num_tasks
            close = {"rtol": 1e-4, "atol": 1e-5}
            np.testing.assert_allclose(out.observation[rows, :, :size], expected.observation, **close)
            np.testing.assert_allclose(out.reward[rows], expected.reward, **close)
            np.testing.assert_array_equal(out.truncated[rows], expected.truncated)
            np.testing.assert_array_equal(out.observation[rows, :, size:], 0.0)
            np.testing.assert_array_equal(out.final_observation[rows, :, size:], 0.0)


def test_every_group_keeps_its_own_horizon():
    envs = bodies()
    state, _ = envs.reset(jax.random.key(0))
    step, cut = jax.jit(envs.step), []
    for time in range(14):
        state, out = step(state, jnp.zeros((4, 3, 1)), jax.random.key(time))
        cut.append(np.asarray(out.truncated[:, 0]))
    cut = np.stack(cut)
    assert np.flatnonzero(cut[:, 2]).tolist() == [6, 13] and np.flatnonzero(cut[:, 3]).tolist() == [4, 9]


def test_discrete_choices_beyond_a_groups_own_are_its_last():
    cart, acrobot = group(CartPole(), CartPoleTask()), group(Acrobot(), AcrobotTask())
    envs = Grouped((cart, acrobot))
    assert envs.action.size == 3 and envs.action_sizes == (2, 3)
    state, _ = envs.reset(jax.random.key(0))
    step = jax.jit(envs.step)
    _, last = step(state, jnp.full((2, 3), 2), jax.random.key(1))
    _, own = step(state, jnp.asarray([[1] * 3, [2] * 3]), jax.random.key(1))
    chex.assert_trees_all_equal(last, own)


def test_only_the_info_of_all_groups_is_passed_on():
    envs = bodies()
    step = jax.eval_shape(lambda key: envs.step(envs.reset(key)[0], jnp.zeros((4, 3, 1)), key)[1], jax.random.key(0))
    assert step.info == {}
    both = Grouped((group(Acrobot(), AcrobotTask()), group(Acrobot(), AcrobotTask(torque=-1.0), 2)))
    step = jax.eval_shape(
        lambda key: both.step(both.reset(key)[0], jnp.zeros((3, 3), jnp.int32), key)[1], jax.random.key(0)
    )
    assert step.info["success"].shape == (3, 3)


def test_vmaps_over_seeds_and_traces_once():
    envs = bodies()
    chex.clear_trace_counter()
    reset = jax.jit(jax.vmap(envs.reset))
    step = jax.jit(jax.vmap(chex.assert_max_traces(envs.step, n=1)))
    state, observation = reset(jax.random.split(jax.random.key(0), 5))
    assert observation.shape == (5, 4, 3, 6)
    for time in range(3):
        keys = jax.random.split(jax.random.key(time), 5)
        state, out = step(state, jnp.zeros((5, 4, 3, 1)), keys)
    chex.assert_tree_shape_prefix(out, (5, 4, 3))


def test_goes_through_jit_as_an_argument():
    """Its arrays are then traced rather than baked into the program."""
    envs = bodies()
    step = jax.jit(lambda envs, state, key: envs.step(state, jnp.zeros((4, 3, 1)), key))
    state, _ = envs.reset(jax.random.key(0))
    _, one = step(envs, state, jax.random.key(1))
    _, two = jax.jit(envs.step)(state, jnp.zeros((4, 3, 1)), jax.random.key(1))
    chex.assert_trees_all_close(one, two, rtol=1e-5, atol=1e-6)


class HostLike:
    """A stand-in for a host simulator: no pytree, takes leading seed axes itself."""

    num_tasks, num_envs, on_device = 2, 3, False

    def __init__(self, observation_size, action):
        self.observation_size, self.action = observation_size, action

    def reset(self, key):
        return jnp.zeros(()), jnp.ones((*key.shape, 2, 3, self.observation_size))

    def step(self, state, actions, key):
        env = probe.ConstantReward("continuous").vector_env(probe.tasks([1.0, 2.0]), 3)
        assert actions.shape == (*key.shape, 2, 3, self.action.size)
        step = env.step(env.reset(jax.random.key(0))[0], jnp.zeros((2, 3, 1)), jax.random.key(0))[1]
        lead = key.shape
        step = jax.tree.map(lambda x: jnp.broadcast_to(x, lead + x.shape), step)
        seen = jnp.ones((*lead, 2, 3, self.observation_size))
        return state, step._replace(observation=seen, final_observation=seen)


@pytest.mark.parametrize("seeds", [(), (4,)])
def test_host_groups_take_seed_axes_themselves(seeds):
    from mtjax.envs import continuous

    envs = Grouped((HostLike(2, continuous(3)), HostLike(5, continuous(1))))
    keys = jax.random.split(jax.random.key(0), seeds) if seeds else jax.random.key(0)
    state, observation = envs.reset(keys)
    assert not envs.on_device and observation.shape == (*seeds, 4, 3, 5)
    state, step = jax.jit(lambda envs, *args: envs.step(*args))(envs, state, jnp.zeros((*seeds, 4, 3, 3)), keys)
    assert step.reward.shape == (*seeds, 4, 3)
    np.testing.assert_array_equal(step.observation[..., :2, :, 2:], 0.0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((), "at least one group"),
        (
            (group(Pendulum(), PendulumTask()), group(CartPole(), CartPoleTask())),
            r"share their kind of action; got \['continuous', 'discrete'\]",
        ),
        (
            (group(Pendulum(), PendulumTask()), group(Pendulum(), PendulumTask(), num_envs=2)),
            r"number of environments a task; got \[3, 2\]",
        ),
    ],
)
def test_groups_that_cannot_stand_together_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        Grouped(groups)


def test_the_helpers():
    np.testing.assert_array_equal(pad_observation(jnp.ones((2, 2)), 3), [[1, 1, 0]] * 2)
    assert fit_action(jnp.arange(4.0), bodies().action).shape == (1,)
    assert fit_action(jnp.int32(7), CartPole().action) == 1
