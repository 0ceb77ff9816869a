"""Host simulators: if these fail, experience from EnvPool or gymnasium is wrong, late, or out of order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs.base import VectorEnv, continuous, discrete
from mtjax.envs.host import HostVectorEnv, PoolStep

HORIZON = 4


class Counting:
    """Observes [episode, step of the episode, environment, its last action]; dies on action 9."""

    def __init__(self, num_envs, log=None):
        self.log = [] if log is None else log
        self.episode, self.count, self.last = (np.zeros(num_envs) for _ in range(3))

    def send(self, actions):
        self.log.append(("send", actions.copy()))
        self.last = actions.astype(np.float64)

    def receive(self):
        self.log.append(("receive", None))
        self.count += 1
        never = np.zeros(len(self.count), bool)
        return PoolStep(self._observe(), self.count * 10, self.last == 9, never, {"success": self.last > 5})

    def send_reset(self, indices):
        self.indices = indices
        self.episode[indices] += 1
        self.count[indices] = self.last[indices] = 0

    def receive_reset(self):
        return self._observe()[self.indices]

    def _observe(self):
        return np.stack([self.episode, self.count, np.arange(len(self.count)), self.last], axis=-1)


def counting_env(num_tasks=2, num_envs=3, pool=Counting, **options):
    return HostVectorEnv((pool,) * num_tasks, num_envs, 4, discrete(10), HORIZON, ("success",), **options)


def play(env, actions, lead=()):
    """Scan over actions [H, ..., T, E]; returns (first observation, Steps [H, ...], state)."""

    @jax.jit
    def scan(state, actions):
        return jax.lax.scan(lambda s, a: env.step(s, a, jax.random.key(0)), state, actions)

    key = jax.random.key(0)
    state, first = jax.jit(env.reset)(jax.random.split(key, lead) if lead else key)
    state, steps = scan(state, actions)
    return np.asarray(first), jax.tree.map(np.asarray, steps), state


def test_it_satisfies_the_contract():
    env = counting_env()
    assert isinstance(env, VectorEnv)
    assert (env.num_tasks, env.num_envs, env.on_device) == (2, 3, False)


def test_every_output_has_the_contracts_shape_and_dtype():
    first, steps, _ = play(counting_env(), jnp.ones((5, 2, 3), jnp.int32))
    assert first.shape == (2, 3, 4) and first.dtype == np.float32
    fields = {name: leaf for name, leaf in steps._asdict().items() if name != "info"}
    assert {name: (leaf.shape[3:], leaf.dtype.name) for name, leaf in fields.items()} == {
        "observation": ((4,), "float32"),
        "reward": ((), "float32"),
        "terminated": ((), "bool"),
        "truncated": ((), "bool"),
        "final_observation": ((4,), "float32"),
    }
    assert steps.info["success"].dtype == np.float32


def test_the_step_that_ends_an_episode_shows_its_last_and_the_next_first_observation():
    _, steps, _ = play(counting_env(), jnp.ones((6, 2, 3), jnp.int32))
    np.testing.assert_array_equal(steps.truncated[:, 0, 0], [0, 0, 0, 1, 0, 0])
    assert not steps.terminated.any()
    np.testing.assert_array_equal(
        steps.final_observation[:, 0, 0, :2], [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2]]
    )
    np.testing.assert_array_equal(steps.observation[:, 0, 0, :2], [[1, 1], [1, 2], [1, 3], [2, 0], [2, 1], [2, 2]])
    np.testing.assert_array_equal(steps.reward[:, 0, 0], [10, 20, 30, 40, 10, 20])


def test_only_the_environment_that_terminates_is_restarted():
    actions = jnp.ones((3, 2, 3), jnp.int32).at[1, 1, 2].set(9)
    _, steps, _ = play(counting_env(), actions)
    assert steps.terminated.sum() == 1 and steps.terminated[1, 1, 2] and not steps.truncated.any()
    np.testing.assert_array_equal(steps.observation[1, 1, :, :3], [[1, 2, 0], [1, 2, 1], [2, 0, 2]])
    np.testing.assert_array_equal(steps.final_observation[1, 1, 2], [1, 2, 2, 9])
    np.testing.assert_array_equal(steps.info["success"][1], [[0, 0, 0], [0, 0, 1]])


def test_terminal_beats_truncated_at_the_horizon():
    """A terminal state at the time limit has nothing to bootstrap from."""
    actions = jnp.ones((HORIZON, 2, 3), jnp.int32).at[-1, 0, 0].set(9)
    _, steps, _ = play(counting_env(), actions)
    assert steps.terminated[-1, 0, 0] and not steps.truncated[-1, 0, 0]
    assert steps.truncated[-1].sum() == 5


def test_actions_arrive_in_order_across_scans_even_if_no_result_is_used():
    env = counting_env(1, 1)

    @jax.jit
    def blind(state, actions):
        return jax.lax.scan(lambda s, a: (env.step(s, a, jax.random.key(0))[0], None), state, actions)[0]

    state, _ = env.reset(jax.random.key(0))
    for start in range(0, 60, 20):
        state = blind(state, (start + jnp.arange(20).reshape(20, 1, 1)) % 7)
    jax.block_until_ready(state)
    sent = [int(actions[0]) for kind, actions in env._hosts[()].pools[0].log if kind == "send"]
    assert sent == [number % 7 for number in range(60)]
    assert int(state.clock) == 61


def test_all_tasks_are_sent_to_before_any_is_waited_for():
    log = []
    env = counting_env(3, 2, pool=lambda n: Counting(n, log))
    play(env, jnp.ones((1, 3, 2), jnp.int32))
    assert [kind for kind, _ in log] == ["send"] * 3 + ["receive"] * 3


def test_leading_seed_axes_reach_the_right_environment():
    actions = jnp.asarray(np.random.default_rng(0).integers(0, 9, (3, 5, 2, 3)), jnp.int32)
    first, steps, state = play(counting_env(), actions, lead=(5,))
    assert first.shape == (5, 2, 3, 4) and state.clock.shape == (5,)
    np.testing.assert_array_equal(steps.final_observation[..., 3], actions)
    np.testing.assert_array_equal(first[..., 2], np.tile(np.arange(15).reshape(5, 1, 3), (1, 2, 1)))


def test_an_old_state_is_refused():
    """A checkpoint's state cannot bring the simulators back; stepping it must not go unnoticed."""
    env = counting_env()
    state, _ = env.reset(jax.random.key(0))
    env.step(state, jnp.zeros((2, 3), jnp.int32), jax.random.key(0))
    with pytest.raises(Exception, match="cannot go back in time"):
        jax.block_until_ready(env.step(state, jnp.zeros((2, 3), jnp.int32), jax.random.key(0)))


def test_wrong_shapes_and_numbers_are_named():
    env = counting_env()
    state, _ = env.reset(jax.random.key(0))
    with pytest.raises(ValueError, match=r"actions are \(3, 2\); expected \(2, 3\)"):
        env.step(state, jnp.zeros((3, 2), jnp.int32), jax.random.key(0))
    with pytest.raises(ValueError, match="must be positive; got 0"):
        counting_env(num_envs=0)


def test_closing_reaches_every_pool_even_after_one_that_fails():
    """Simulators may hold processes, sockets or windows, which dropping them does not end."""
    closed = []

    class Closing(Counting):
        def close(self):
            closed.append(self)
            if len(closed) == 1:
                raise OSError("its process\nhas gone")

    env = counting_env(3, 1, pool=Closing, task_names=("a", "b", "c"))
    jax.block_until_ready(env.reset(jax.random.key(0)))
    pools = env._hosts[()].pools
    with pytest.warns(UserWarning, match="while closing: the simulator of task 'a' failed: OSError: its process; has"):
        env.close()
    assert closed == pools and not env._hosts
    plain = counting_env()
    jax.block_until_ready(plain.reset(jax.random.key(0)))
    plain.close()  # has nothing to close


def test_stagger_spreads_the_ends_of_episodes():
    env = counting_env(1, 4, stagger=True)
    _, steps, _ = play(env, jnp.ones((8, 1, 4), jnp.int32))
    np.testing.assert_array_equal(steps.truncated[:, 0].sum(-1), np.ones(8))
    assert steps.info["whole"].dtype == bool and "whole" not in play(counting_env(), jnp.ones((1, 2, 3), int))[1].info
    short = steps.truncated.cumsum(axis=0) - steps.truncated == 0  # still the first episode
    short[..., 0] = False  # that of the first environment is whole
    np.testing.assert_array_equal(steps.info["whole"], ~short)
    _, again = jax.jit(env.reset)(jax.random.key(0))  # as after a resume
    assert env._hosts[()].whole.tolist() == [[[True, False, False, False]]]


def test_observations_stay_float32_under_x64():
    """Simulators answer in float64; what JAX allocates for them must not depend on a global flag."""
    context = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with context(True):
        first, steps, _ = play(counting_env(), jnp.ones((5, 2, 3), jnp.int32))
    assert first.dtype == steps.reward.dtype == np.float32
    np.testing.assert_array_equal(steps.reward[:, 0, 0], [10, 20, 30, 40, 10])


def test_a_policy_of_the_loop_sees_the_newest_observation():
    """Observation -> action -> observation inside one scan: an action off by one step would show."""

    class Integrator(Counting):
        """Observation is the sum of actions so far."""

        total = 0.0

        def receive(self):
            self.total = self.total + self.last[:, 0]
            never = np.zeros(len(self.count), bool)
            return PoolStep(self.total[:, None], self.total, never, never, {})

        def receive_reset(self):
            self.total = np.ones(len(self.count))
            return self.total[:, None]

    env = HostVectorEnv((Integrator,), 2, 1, continuous(1), 100)

    @jax.jit
    def rollout(key):
        def advance(carry, _):
            state, observation = carry
            state, step = env.step(state, observation, key)  # doubles it
            return (state, step.observation), step.observation

        return jax.lax.scan(advance, env.reset(key), None, length=10)[1]

    np.testing.assert_array_equal(rollout(jax.random.key(0))[:, 0, 0, 0], 2.0 ** np.arange(1, 11))
