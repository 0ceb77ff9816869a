"""Suites of other people's environments: what they answer must reach the learner unchanged."""

from __future__ import annotations

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs.envpool import EnvPool
from mtjax.envs.gymnasium import GymnasiumPool
from mtjax.suites.bodies import combine
from mtjax.suites.host import from_envpool, from_gymnasium
from mtjax.training import video

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install gymnasium")
SKIP = "EnvPool is not installed: pip install 'mtjax[metaworld]'"


class Walk(gymnasium.Env):
    """One axis with a goal; `Dict` observations, an action in [0, 4], `is_success` in info."""

    observation_space = gymnasium.spaces.Dict(
        {"side": gymnasium.spaces.Discrete(2), "x": gymnasium.spaces.Box(-9.0, 9.0, (1,))}
    )
    action_space = gymnasium.spaces.Box(0.0, 4.0, (1,))

    def __init__(self, goal=5.0):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0.0
        return self._observe(), {}

    def step(self, action):
        self.x += float(action[0])
        return (
            self._observe(),
            float(action[0]),
            self.x > self.goal,
            False,
            {"is_success": self.x > self.goal},
        )

    def _observe(self):
        return {"side": int(self.x > 1), "x": np.array([self.x], np.float32)}


def play(suite, actions, num_envs, seed=0):
    """Step actions [H, T, E, ...]; returns (first observation, Steps [H, ...]) as NumPy."""
    env = suite.vector_env(num_envs, seed=seed)

    @jax.jit
    def scan(state, actions):
        return jax.lax.scan(lambda s, a: env.step(s, a, jax.random.key(0)), state, actions)[1]

    state, first = jax.jit(env.reset)(jax.random.key(0))
    return np.asarray(first), jax.tree.map(np.asarray, scan(state, actions))


def test_gymnasium_tasks_answer_as_they_do_alone():
    suite = from_gymnasium("poles", {"one": "CartPole-v1", "other": lambda: gymnasium.make("CartPole-v1")})
    assert suite.horizon == 500 and suite.action == ("discrete", 2) and not suite.has_success
    actions = jnp.asarray(np.random.default_rng(0).integers(0, 2, (60, 2, 2)))
    first, steps = play(suite, actions, 2, seed=7)
    for task in range(2):
        seeds = np.random.SeedSequence((7, task)).generate_state(2)
        for index in range(2):
            env = gymnasium.make("CartPole-v1")
            np.testing.assert_array_equal(first[task, index], env.reset(seed=int(seeds[index]))[0])
            for time in range(60):
                observation, reward, terminated, *_ = env.step(int(actions[time, task, index]))
                np.testing.assert_array_equal(steps.final_observation[time, task, index], observation)
                assert steps.reward[time, task, index] == reward
                assert steps.terminated[time, task, index] == terminated
                if terminated:
                    observation, _ = env.reset()
                np.testing.assert_array_equal(steps.observation[time, task, index], observation)


def test_box_actions_are_rescaled_spaces_flattened_and_success_found():
    suite = from_gymnasium("walk", {"near": Walk, "far": lambda: Walk(9.0)}, horizon=50)
    assert (suite.observation_size, suite.has_success) == (3, True)
    assert suite.tasks[0].description.startswith("One axis with a goal")
    actions = jnp.full((3, 2, 1, 1), 0.0).at[1].set(99.0)  # the middle of [0, 4], more than the most, the middle
    _, steps = play(suite, actions, 1)
    np.testing.assert_allclose(steps.reward[:, :, 0], [[2, 2], [4, 4], [2, 2]])
    np.testing.assert_allclose(steps.final_observation[1, 1, 0], [0, 1, 6])
    np.testing.assert_allclose(steps.info["success"][:, :, 0], [[0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(steps.terminated[:, :, 0], [[0, 0], [1, 0], [0, 0]])


class Lamp(Walk):
    """A walk that can be seen: the picture is as bright as the axis is long, without a display."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, goal=5.0, render_mode=None):
        super().__init__(goal)
        self.render_mode = render_mode

    def render(self):
        assert self.render_mode == "rgb_array"
        return np.full((4, 6, 3), int(10 * self.x), np.uint8)


def test_an_episode_of_a_gymnasium_task_can_be_drawn():
    """By the policy that is shown: what it sees and does is what it sees and does in training, to the episode's end."""
    suite = from_gymnasium("lamps", {"near": Lamp, "far": lambda **options: Lamp(9.0, **options)}, horizon=4)
    seen = []

    def policy(observation, key):
        seen.append(np.asarray(observation))
        return jnp.zeros(1)  # the middle of [0, 4]: two ahead

    frames, per_second = suite.render(suite.splits["train"], 0, policy, seed=0, steps=10)
    assert frames.shape == (4, 4, 6, 3) and frames.dtype == np.uint8 and per_second == 20.0
    assert frames[:, 0, 0, 0].tolist() == [0, 20, 40, 60]  # beyond 5 the near one has ended
    np.testing.assert_allclose(seen, [[1, 0, 0], [0, 1, 2], [0, 1, 4]])
    frames, _ = suite.render(suite.splits["train"], 1, policy, seed=0, steps=10)
    assert frames[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80]  # the far one at the horizon
    assert len(suite.render(suite.splits["train"], 1, policy, seed=0, steps=2)[0]) == 3


@pytest.mark.parametrize("make", [Walk, lambda: Lamp(5.0)], ids=["no picture", "takes no render_mode"])
def test_a_task_without_a_picture_leaves_the_suite_without_one(make, tmp_path):
    suite = from_gymnasium("dark", {"seen": Lamp, "unseen": make}, horizon=4)
    assert suite.render is None
    with pytest.warns(UserWarning, match="suite dark cannot be rendered: no videos"):
        assert video.render_tasks(suite, lambda task: None, tmp_path) == []


def test_a_simulator_that_draws_nothing_costs_the_videos_alone(tmp_path):
    class Blind(Lamp):
        def render(self):
            return None

    suite = from_gymnasium("blind", {"a": Blind}, horizon=4)
    with pytest.warns(UserWarning, match="no video of task a.*must return a picture .* not NoneType"):
        assert video.render_tasks(suite, lambda task: lambda observation, key: jnp.zeros(1), tmp_path) == []


def test_the_first_tasks_of_suites_are_put_together():
    """Tasks on the host are names and functions, not arrays to be cut."""
    walks = from_gymnasium("walks", {"near": Walk, "far": lambda: Walk(9.0)}, horizon=5)
    swings = from_gymnasium("swings", {"one": "Pendulum-v1", "other": "Pendulum-v1"})
    suite = combine("both", [walks, swings], tasks_per_suite=1)
    assert [info.name for info in suite.tasks] == ["walks/near", "swings/one"]
    assert suite.vector_env(2).num_tasks == 2


def test_every_environment_of_a_pool_is_closed():
    closed = []

    class Closing(Walk):
        def close(self):
            closed.append(self)
            raise OSError("no display")

    pool = GymnasiumPool(Closing, 3, seed=0)
    with pytest.raises(OSError, match="no display"):
        pool.close()
    assert set(closed) == set(pool.envs)


def test_held_out_tasks_become_splits():
    suite = from_gymnasium("walk", {"a": Walk}, extrapolation={"b": lambda: Walk(7.0)}, horizon=5)
    assert suite.vector_env(1, split="extrapolation").num_tasks == 1
    assert list(suite.splits) == ["train", "extrapolation"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"a": "Pendulum-v1", "b": "CartPole-v1"}, "same observation size: 'a' has 3, 'b' has 4"),
        ({"a": "Pendulm-v1"}, "gymnasium cannot make 'Pendulm-v1'"),
        ({"a": Walk}, "no time limit of their own; give horizon="),
        ({}, "at least one task"),
    ],
)
def test_gymnasium_tasks_that_cannot_be_a_suite_are_named(tasks, message):
    with pytest.raises(ValueError, match=message):
        from_gymnasium("bad", tasks)


def test_a_name_stands_for_one_task_in_all_splits():
    with pytest.raises(ValueError, match="suite 'x' has two tasks named 'a'"):
        from_gymnasium("x", {"a": "CartPole-v1"}, interpolation={"a": "Acrobot-v1"})


def test_tasks_made_by_partial_are_described_by_what_they_are_given():
    """Not by the doc of functools.partial, which is the same for all."""
    make = functools.partial(gymnasium.make, "CartPole-v1")
    other = functools.partial(gymnasium.make, "CartPole-v1", sutton_barto_reward=True)
    first, second = from_gymnasium("x", {"a": make, "b": other}).tasks
    assert first.description.endswith(": CartPole-v1")
    assert second.description.endswith(": CartPole-v1, sutton_barto_reward=True")


def test_an_action_space_without_a_form_is_named():
    class Pair(Walk):
        action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    with pytest.raises(ValueError, match="MultiDiscrete.*supported are Discrete and Box"):
        from_gymnasium("bad", {"a": Pair}, horizon=5)


def test_a_missing_gymnasium_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match="pip install"):
        from_gymnasium("poles", {"one": "CartPole-v1"})


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")  # of the pool made by hand
def test_envpool_tasks_answer_as_they_do_alone():
    envpool = pytest.importorskip("envpool", reason=SKIP)
    suite = from_envpool("poles", {"one": "CartPole-v1"})
    assert suite.horizon == 500 and suite.action == ("discrete", 2)
    actions = jnp.asarray(np.random.default_rng(0).integers(0, 2, (60, 1, 2)))
    first, steps = play(suite, actions, 2, seed=7)
    seeds = np.random.SeedSequence((7, 0)).generate_state(2) & 0x7FFFFFFF
    pool = envpool.make_gymnasium("CartPole-v1", num_envs=2, env_seed=seeds.tolist())
    np.testing.assert_array_equal(first[0], pool.reset()[0])
    for time in range(60):
        observation, reward, terminated, *_ = pool.step(np.asarray(actions[time, 0]))
        np.testing.assert_array_equal(steps.final_observation[time, 0], observation)
        np.testing.assert_array_equal(steps.terminated[time, 0], terminated)
        np.testing.assert_array_equal(steps.reward[time, 0], reward)
        if terminated.any():
            observation = observation.copy()
            observation[terminated] = pool.reset(np.flatnonzero(terminated).astype(np.int32))[0]
        np.testing.assert_array_equal(steps.observation[time, 0], observation)


def test_envpools_own_name_of_success_is_looked_up(monkeypatch):
    """Whatever EnvPool calls it, a learner reads "success"."""

    class Made:
        action_space, observation_space = gymnasium.spaces.Discrete(2), None

        def recv(self):
            no = np.zeros(1, bool)
            return np.zeros((1, 2)), np.ones(1), no, no, {"is_success": np.ones(1), "elapsed_step": np.ones(1)}

    fake = types.SimpleNamespace(make_gymnasium=lambda task_id, **options: Made())
    monkeypatch.setattr("mtjax.envs.envpool.require_envpool", lambda: fake)
    pool = EnvPool("Any-v1", 1, seed=0, num_threads=1, info_names={"success": "is_success"})
    assert {name: value.tolist() for name, value in pool.receive().info.items()} == {"success": [1.0]}


def test_envpool_physics_with_dict_observations_and_a_shorter_horizon():
    pytest.importorskip("envpool", reason=SKIP)
    suite = from_envpool("run", {"run": "CheetahRun-v1"}, horizon=3)
    assert (suite.observation_size, suite.action.size) == (17, 6)
    _, steps = play(suite, jnp.ones((4, 1, 2, 6)), 2)
    np.testing.assert_array_equal(steps.truncated[:, 0, 0], [False, False, True, False])
    assert not steps.terminated.any() and np.isfinite(steps.observation).all()


def test_an_episode_of_an_envpool_task_can_be_drawn():
    pytest.importorskip("envpool", reason=SKIP)
    suite = from_envpool("poles", {"one": "CartPole-v1"})
    try:
        frames, _ = suite.render(suite.splits["train"], 0, lambda observation, key: jnp.ones((), int), seed=0, steps=6)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert frames.shape == (3, 240, 320, 3) and frames.dtype == np.uint8
    assert frames[0].std() > 1 and not np.array_equal(frames[0], frames[-1])


def test_envpool_mistakes_are_named():
    pytest.importorskip("envpool", reason=SKIP)
    with pytest.raises(ValueError, match="no environment 'HalfCheeta-v5'; did you mean HalfCheetah-v5"):
        from_envpool("bad", {"a": "HalfCheeta-v5"})
    with pytest.raises(ValueError, match=r"mtjax sets \['seed'\] itself"):
        from_envpool("bad", {"a": "CartPole-v1"}, options={"seed": 3})
