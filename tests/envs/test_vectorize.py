"""Every learner trusts vectorize for episode ends: a fault here is a silent fault in every result."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs import Env, Step, VectorEnv, continuous, discrete, vectorize


class CounterState(NamedTuple):
    count: jax.Array
    start: jax.Array
    key: jax.Array  # a typed key inside the state


class Counter:
    """Counts up from 0; terminates at ``task["limit"]``, cuts itself at ``task["cut"]`` steps.

    Observation: (count, random number of the episode, task number).
    """

    observation_size = 3
    action = discrete(2)

    def reset(self, task, key):
        state = CounterState(jnp.zeros((), jnp.int32), jax.random.uniform(key), jax.random.fold_in(key, 1))
        return state, self.observe(task, state)

    def step(self, task, state, action, key):
        state = state._replace(count=state.count + 1, key=jax.random.split(state.key)[0])
        observation = self.observe(task, state)
        terminated, truncated = state.count >= task["limit"], state.count >= task["cut"]
        info = {"double": 2.0 * state.count}
        return state, Step(observation, task["number"] * action, terminated, truncated, observation, info)

    def observe(self, task, state):
        return jnp.stack([state.count.astype(jnp.float32), state.start, task["number"]])


NEVER = 10**6
pytestmark = pytest.mark.smoke


def counters(limits, cuts=None, *, num_envs=3, horizon=NEVER):
    tasks = {
        "limit": np.asarray(limits, np.int32),
        "cut": np.asarray(cuts or [NEVER] * len(limits), np.int32),
        "number": np.arange(1, len(limits) + 1, dtype=np.float32),
    }
    return vectorize(Counter(), tasks, num_envs, horizon=horizon)


def roll(envs, steps):
    """Step outputs stacked over time: [time, T, E, ...]."""
    return jax.device_get(jax.jit(lambda: rolled(envs, steps, 0))())


def rolled(envs, steps, key):
    actions = jnp.ones((envs.num_tasks, envs.num_envs, *envs.action.shape), jnp.int32)

    def body(state, step_key):
        return envs.step(state, actions, step_key)

    state, first = envs.reset(jax.random.key(key))
    _, steps = jax.lax.scan(body, state, jax.random.split(jax.random.key(key + 1), steps))
    return first, steps


def test_contracts_hold():
    envs = counters([4, 4])
    assert isinstance(Counter(), Env) and isinstance(envs, VectorEnv)
    assert (envs.num_tasks, envs.num_envs, envs.observation_size) == (2, 3, 3)
    assert envs.on_device and envs.action == discrete(2)


def test_shapes_and_dtypes_of_a_step():
    first, steps = roll(counters([4, 7]), 5)
    chex.assert_shape(first, (2, 3, 3))
    chex.assert_tree_shape_prefix(steps, (5, 2, 3))
    chex.assert_type([steps.observation, steps.reward, steps.terminated, steps.truncated], [float, float, bool, bool])
    np.testing.assert_array_equal(steps.reward[0], [[1.0] * 3, [2.0] * 3])


def test_termination_resets_and_keeps_the_final_observation():
    _, steps = roll(counters([3]), 7)
    np.testing.assert_array_equal(steps.terminated[:, 0, 0], [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(steps.observation[:, 0, 0, 0], [1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(steps.final_observation[:, 0, 0, 0], [1, 2, 3, 1, 2, 3, 1])
    assert not steps.truncated.any()
    np.testing.assert_array_equal(steps.info["double"][:, 0, 0], [2, 4, 6, 2, 4, 6, 2])


def test_final_observation_equals_observation_within_an_episode():
    _, steps = roll(counters([3, 5], horizon=4), 40)
    over = steps.terminated | steps.truncated
    same = (steps.observation == steps.final_observation).all(-1)
    np.testing.assert_array_equal(same, ~over)


def test_horizon_truncates_exactly_there():
    _, steps = roll(counters([NEVER], horizon=4), 9)
    np.testing.assert_array_equal(steps.truncated[:, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1, 0])
    assert not steps.terminated.any()


def test_terminating_at_the_horizon_is_termination():
    _, steps = roll(counters([4], horizon=4), 8)
    np.testing.assert_array_equal(steps.terminated[:, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1])
    assert not steps.truncated.any()


def test_an_environment_may_truncate_itself():
    """As would an environment with a time limit per task; termination at the same step wins."""
    _, steps = roll(counters([NEVER, 2, 3], cuts=[2, 2, 2], horizon=100), 5)
    np.testing.assert_array_equal(steps.truncated[:, 0, 0], [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(steps.terminated[:, 1, 0], [0, 1, 0, 1, 0])
    assert not steps.truncated[:, 1].any()
    np.testing.assert_array_equal(steps.truncated[:, 2, 0], [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(steps.final_observation[1, 0, :, 0], 2.0)


def test_step_count_restarts_after_every_kind_of_end():
    _, steps = roll(counters([NEVER, 3], horizon=5), 30)
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated[:, 0, 0]), [4, 9, 14, 19, 24, 29])
    assert not steps.truncated[:, 1].any()


def test_every_episode_starts_afresh_everywhere():
    """No cached start: the episode's random number differs over environments, tasks and episodes."""
    first, steps = roll(counters([2, 2], num_envs=4), 10)
    starts = np.concatenate([first[None], steps.observation[1::2]])[..., 1]
    assert len(np.unique(starts)) == starts.size
    within = steps.final_observation[..., 1]
    np.testing.assert_array_equal(within[0::2], within[1::2])


def test_typed_keys_in_the_state_differ_and_are_replaced_at_a_reset():
    envs = counters([2, NEVER])
    (state, _), step = jax.jit(envs.reset)(jax.random.key(0)), jax.jit(envs.step)
    assert jnp.issubdtype(state.env.key.dtype, jax.dtypes.prng_key)
    seen = []
    for time in range(4):
        seen.append(np.asarray(jax.random.key_data(state.env.key)))
        state, _ = step(state, np.zeros((2, 3), np.int32), jax.random.key(time))
    seen = np.stack(seen).reshape(-1, 2)
    assert len(np.unique(seen, axis=0)) == len(seen)


def test_same_key_same_trajectory_and_another_key_another():
    envs = counters([3, 4])
    run = jax.jit(lambda key: rolled(envs, 9, key))
    chex.assert_trees_all_equal(*jax.device_get((run(0), run(0))))
    assert (np.asarray(run(0)[0]) != np.asarray(run(5)[0])).any()


def test_vmaps_over_seeds_as_if_run_alone():
    envs = counters([3, 4], horizon=3)
    state, _ = jax.jit(jax.vmap(envs.reset))(jax.random.split(jax.random.key(0), 2))
    keys = jax.random.split(jax.random.key(1), 2)
    actions = np.ones((2, 2, 3), np.int32)
    one = jax.jit(lambda all_seeds, seed: envs.step(*jax.tree.map(lambda x: x[seed], all_seeds))[1])
    step_all = jax.jit(jax.vmap(envs.step))
    for _ in range(5):
        expected = [one((state, jnp.asarray(actions), keys), seed) for seed in range(2)]
        state, step = step_all(state, actions, keys)
        for seed in range(2):
            found = jax.tree.map(lambda x, s=seed: x[s], jax.device_get(step))
            chex.assert_trees_all_close(found, jax.device_get(expected[seed]), rtol=1e-6)


def test_one_trace_serves_every_step():
    """Compiling twice (weak types, changing dtypes) doubles the wait before training starts."""

    class Weak(Counter):
        def reset(self, task, key):
            return jnp.where(jax.random.bernoulli(key), 1.0, 0.0), jnp.zeros(3)

        def step(self, task, state, action, key):
            return jnp.cos(state) + task["x"], Step(jnp.zeros(3), 1, False, False, jnp.zeros(3), {"weak": 1.0})

    for envs in (counters([3, 4]), vectorize(Weak(), {"x": jnp.zeros(2)}, 3, horizon=2)):
        chex.clear_trace_counter()
        step = jax.jit(chex.assert_max_traces(envs.step, n=1))
        state, _ = jax.jit(envs.reset)(jax.random.key(0))
        for time in range(5):
            state, out = step(state, np.zeros((2, 3), np.int32), jax.random.key(time))
        leaves = [x for x in jax.tree.leaves((state, out)) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        assert not any(leaf.weak_type for leaf in leaves)
    chex.clear_trace_counter()


def test_num_tasks_changes_nothing_but_the_leading_axis():
    (_, alone), (_, both) = roll(counters([3], num_envs=1), 7), roll(counters([3, 4], num_envs=1), 7)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, :1]), alone, both)
    assert alone.terminated.any()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"a": jnp.zeros(2), "b": jnp.zeros(3)}, r"same task axis; found \[\(2,\), \(3,\)\]"),
        ({"a": jnp.zeros(())}, "same task axis"),
        ({}, "same task axis"),
        ({"a": jnp.zeros((0, 2))}, "same task axis"),
    ],
)
def test_tasks_without_one_leading_axis_are_named(tasks, message):
    with pytest.raises(ValueError, match=message):
        vectorize(Counter(), tasks, 2, horizon=3)


@pytest.mark.parametrize(("num_envs", "horizon"), [(0, 5), (5, 0), (-1, 5)])
def test_sizes_must_be_positive(num_envs, horizon):
    with pytest.raises(ValueError, match="must be positive"):
        vectorize(Counter(), {"a": jnp.zeros(2)}, num_envs, horizon=horizon)


class Broken:
    """An environment with one chosen fault."""

    observation_size = 2
    action = continuous(1)

    def __init__(self, **fault):
        self.fault = fault

    def reset(self, task, key):
        return self.fault.get("state", jnp.zeros(())), self.fault.get("first", jnp.zeros(2))

    def step(self, task, state, action, key):
        fault = self.fault
        observation = fault.get("observation", jnp.zeros(2))
        reward, terminated = fault.get("reward", jnp.zeros(())), fault.get("terminated", jnp.zeros((), bool))
        step = Step(observation, reward, terminated, jnp.zeros((), bool), observation, fault.get("info", {}))
        return jnp.zeros(()), step


class Gymnasium(Counter):
    """Returns what an environment of gymnasium does."""

    def step(self, task, state, action, key):
        _, step = super().step(task, state, action, key)
        return step.observation, step.reward, step.terminated, step.truncated, {}


class Bare(Counter):
    def reset(self, task, key):
        return super().reset(task, key)[1]


class Unpacked(Counter):
    def step(self, task, state, action, key):
        state, step = super().step(task, state, action, key)
        return state, tuple(step)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Gymnasium, r"Gymnasium.step must return \(state, Step\), not 5 values"),
        (Bare, r"Bare.reset must return \(state, observation\), not a"),
        (Unpacked, r"Unpacked.step must return \(state, Step\), not a tuple"),
    ],
)
def test_what_does_not_return_a_step_is_told_what_to_return(env, message):
    envs = vectorize(env(), counters([3, 4]).tasks, 3, horizon=3)
    with pytest.raises(ValueError, match=message):
        state, _ = envs.reset(jax.random.key(0))
        envs.step(state, jnp.zeros((2, 3), jnp.int32), jax.random.key(0))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"first": jnp.zeros(3)}, r"Broken: reset's observation has shape \(3,\), it should be \(2,\)"),
        ({"observation": jnp.zeros((1, 2))}, r"step's observation has shape \(1, 2\), it should be \(2,\)"),
        ({"reward": jnp.zeros(1)}, r"step's reward has shape \(1,\), it should be \(\)"),
        ({"terminated": jnp.zeros(2)}, "step's terminated"),
        ({"info": {"success": jnp.zeros(1)}}, r"step's info\['success'\] has shape \(1,\), it should be \(\)"),
        ({"state": jnp.zeros((), jnp.int32)}, r"states of the same structure, not .*int32.* and .*float32"),
        ({"state": (jnp.zeros(()), None)}, "states of the same structure"),
    ],
)
def test_a_wrong_environment_is_named_before_anything_compiles(fault, message):
    envs = vectorize(Broken(**fault), {"a": jnp.zeros(2)}, 3, horizon=3)
    with pytest.raises(ValueError, match=message):
        state, _ = envs.reset(jax.random.key(0))
        envs.step(state, jnp.zeros((2, 3, 1)), jax.random.key(0))
