"""Tasks of a goal suite share the body, differ in the reward, and must not show the goal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs.mjx import MjxState

NAMES = [
    "goals-ant-direction",
    "goals-ant-velocity",
    "goals-cheetah-direction",
    "goals-cheetah-velocity",
    "goals-reacher",
]


def environment(name, split="train"):
    vector_env = suites.make(name).vector_env(1, split=split)
    return vector_env.env, [
        jax.tree.map(lambda leaf, i=i: leaf[i], vector_env.tasks) for i in range(vector_env.num_tasks)
    ]


def state_of(env, qpos, target=()):
    qpos = jnp.zeros(env.model.nq).at[jnp.arange(len(qpos))].set(jnp.asarray(qpos, jnp.float32))
    zeros = jnp.zeros(env.model.nv)
    return MjxState(qpos, zeros, zeros, jnp.asarray(target, jnp.float32))


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_goal_and_the_body_is_one(name):
    suite = suites.make(name)
    goals = [
        tuple(np.ravel(goal))
        for split in suite.splits.values()
        for goal in zip(*(np.asarray(leaf) for leaf in split.tasks.goal.values()), strict=True)
    ]
    assert len(set(goals)) == len(goals) and suite.splits["train"].tasks.model == {}
    assert "not observed" in suite.version.goals
    for split in suite.splits.values():
        assert all(info.description.endswith(".") for info in split.infos)


@pytest.mark.parametrize("name", NAMES)
def test_the_goal_is_not_observed(name):
    env, tasks = environment(name)
    first, *others = [env.reset(task, jax.random.key(0))[1] for task in tasks]
    assert first.shape == (env.observation_size,)
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("name", ["goals-ant-velocity", "goals-cheetah-velocity"])
def test_velocities_lie_where_their_splits_say(name):
    velocities = {k: split.tasks.goal["velocity"] for k, split in suites.make(name).splits.items()}
    low, high = velocities["train"].min(), velocities["train"].max()
    assert np.all((velocities["interpolation"] > low) & (velocities["interpolation"] < high))
    assert np.all((velocities["extrapolation"] < low) | (velocities["extrapolation"] > high))


def test_ant_direction_by_hand():
    env, tasks = environment("goals-ant-direction", "extrapolation")
    before, after = state_of(env, [0, 0, 0.5]), state_of(env, [0.03, 0.04, 0.5])
    angle = float(tasks[2].goal["angle"])
    assert angle == pytest.approx(np.deg2rad(120))
    reward, terminated, _ = env.outcome(tasks[2], before, after, jnp.full(8, 0.5))
    expected = 1 + (0.03 * np.cos(angle) + 0.04 * np.sin(angle)) / env.dt - 0.5 * 8 * 0.25
    assert float(reward) == pytest.approx(expected, abs=1e-4) and not terminated
    assert env.outcome(tasks[2], before, state_of(env, [0, 0, 0.1]), jnp.zeros(8))[1]


def test_cheetah_goals_by_hand():
    env, (forward, backward) = environment("goals-cheetah-direction")
    before, after = state_of(env, [0.0]), state_of(env, [2.0 * env.dt])
    assert float(env.outcome(forward, before, after, jnp.zeros(6))[0]) == pytest.approx(2.0, abs=1e-4)
    assert float(env.outcome(backward, before, after, jnp.zeros(6))[0]) == pytest.approx(-2.0, abs=1e-4)
    for split, size in (("interpolation", 0.5), ("extrapolation", 2.0)):
        env, tasks = environment("goals-cheetah-direction", split)
        rewards = [float(env.outcome(task, before, after, jnp.ones(6))[0]) for task in tasks]
        assert rewards == pytest.approx([2.0 * size - 0.6, -2.0 * size - 0.6], abs=1e-4)
    env, tasks = environment("goals-cheetah-velocity")
    for task in tasks:
        reward, terminated, _ = env.outcome(task, before, after, jnp.ones(6))
        assert float(reward) == pytest.approx(-abs(2.0 - float(task.goal["velocity"])) - 0.6, abs=1e-4)
        assert not terminated


def test_reacher_success_by_hand():
    env, tasks = environment("goals-reacher")
    state, _ = env.reset(tasks[1], jax.random.key(0))
    np.testing.assert_allclose(state.target, tasks[1].goal["target"])
    here = state_of(env, [0.0, 0.0], target=[0.22, 0.0])
    reward, _, info = env.outcome(tasks[1], here, here, jnp.zeros(2))
    assert float(reward) == pytest.approx(-0.02, abs=1e-5) and info["success"] == 1
