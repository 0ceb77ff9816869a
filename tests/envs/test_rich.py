"""Rich observations: what was hidden can be told, what distracts says nothing, and the dynamics are those inside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs import control, gridworld
from mtjax.envs.rich import Pictured, Projected
from mtjax.launch import presets
from mtjax.suites import rich
from mtjax.training.trainer import Trainer


def _play(env, task, steps, key):
    """Observations [steps, ...] and states under fixed pushes."""
    keys = jax.random.split(key, steps)

    @jax.jit
    def run(key):
        state, observation = env.reset(task, key)

        def advance(state, key):
            state, step = env.step(task, state, jnp.asarray([0.3]), key)
            return state, (state, step)

        return (state, observation), jax.lax.scan(advance, state, keys)[1]

    return run(jax.random.key(0))


def test_the_projection_can_be_undone():
    """One state an observation: inverting the two layers gives the observation inside and the distractors back."""
    env = Projected(control.Pendulum(), size=16, distractors=3)
    _, (states, steps) = _play(env, control.PendulumTask(), 50, jax.random.key(1))
    first, second = (np.asarray(layer, np.float64) for layer in env._layers)
    hidden = np.arctanh(np.asarray(steps.observation, np.float64)) @ second.T / 2.0
    found = np.arctanh(hidden) @ first.T / env.gain
    inside = np.stack([env.env._observe(state) for state in states.env])
    np.testing.assert_allclose(found[:, :3], inside, atol=0.02)
    np.testing.assert_allclose(found[:, 3:], states.distractors, atol=0.02)
    np.testing.assert_array_equal(steps.observation, steps.final_observation)
    again = Projected(control.Pendulum(), size=16, distractors=3)
    np.testing.assert_array_equal(again._layers[0], env._layers[0])
    other = dataclasses.replace(env, seed=1)
    assert (np.asarray(other._layers[0]) != np.asarray(env._layers[0])).all()


def test_distractors_are_stationary_and_know_nothing():
    """Mean 0, variance 1, correlated in time as they say; rewards are those without them."""
    env, task = Projected(control.Pendulum(), distractors=8, memory=0.8), control.PendulumTask()
    _, (states, steps) = _play(env, task, 4000, jax.random.key(1))
    d = np.asarray(states.distractors)
    assert abs(d.mean()) < 0.1 and abs(d.std() - 1.0) < 0.1
    assert abs((d[1:] * d[:-1]).mean() - 0.8) < 0.1
    reward = jax.vmap(lambda state: env.env.step(task, state, jnp.asarray([0.3]), None)[1].reward)(states.env[:-1])
    np.testing.assert_allclose(steps.reward[1:], reward, rtol=1e-5)


def test_a_projection_into_too_few_numbers_is_refused():
    with pytest.raises(ValueError, match="size 10 is too small: observation and distractors have 11 numbers"):
        Projected(control.Pendulum(), size=10, distractors=8)


ROWS = ["#####", "#...#", "#####"]


def test_a_picture_shows_where_everything_is():
    """By hand, pixel by pixel; the goal only where it is to be seen."""
    task = jax.tree.map(jnp.asarray, gridworld.make_task(ROWS, goal=(1, 3), starts=[(1, 1)]))
    inside = gridworld.Gridworld(3, 5)
    env = Pictured(inside, scale=2, tint=0.0, show_goal=True)
    state, observation = env.reset(task, jax.random.key(0))
    assert observation.shape == (env.observation_size,) == (6 * 10 * 3,) and env.image_shape == (6, 10, 3)
    picture = np.asarray(observation).reshape(6, 10, 3)
    agent, goal, floor, wall = picture[2, 2], picture[3, 7], picture[2, 4], picture[0, 0]
    assert len(np.unique([agent, goal, floor, wall], axis=0)) == 4
    expected = np.asarray([[wall] * 5, [wall, agent, floor, goal, wall], [wall] * 5])
    np.testing.assert_array_equal(picture, np.kron(expected, np.ones((2, 2, 1))))
    _, step = env.step(task, state, jnp.asarray(1), jax.random.key(1))
    moved = np.asarray(step.observation).reshape(6, 10, 3)
    np.testing.assert_array_equal(moved[2, 4], agent)
    hidden = Pictured(inside, tint=0.0).reset(task, jax.random.key(0))[1].reshape(3, 5, 3)
    np.testing.assert_array_equal(hidden[1, 3], floor)


def test_colours_change_with_the_episode_and_not_within():
    task = jax.tree.map(jnp.asarray, gridworld.make_task(ROWS, goal=(1, 3), starts=[(1, 1)]))
    env = Pictured(gridworld.Gridworld(3, 5))
    state, observation = env.reset(task, jax.random.key(0))
    _, step = env.step(task, state, jnp.asarray(0), jax.random.key(1))  # into the wall: nothing moves
    np.testing.assert_array_equal(step.observation, observation)
    _, other = env.reset(task, jax.random.key(2))
    difference = np.abs(np.asarray(other - observation)).reshape(3, 5, 3)
    assert (difference[0, 0] > 0).all() and difference.max() <= 0.2 and (difference[1, 1] == 0).all()


@pytest.mark.parametrize("name", ["control-pendulum-rich", "gridworld-two-rooms-pixels"])
def test_the_suites(name):
    """Tasks, splits and descriptions are those inside; episodes run, and can be drawn."""
    suite = suites.make(name)
    inside = suites.make(name.replace("-rich", "").replace("-pixels", ""))
    assert {label: split.infos for label, split in suite.splits.items()} == {
        label: split.infos for label, split in inside.splits.items()
    }
    assert suite.version != inside.version and suite.observation_size > inside.observation_size
    envs = suite.vector_env(2)
    state, observation = envs.reset(jax.random.key(0))
    action = jnp.zeros((suite.num_tasks, 2, *suite.action.shape), jnp.float32 if suite.action.shape else jnp.int32)
    _, step = jax.jit(envs.step)(state, action, jax.random.key(1))
    assert observation.shape == step.observation.shape == (suite.num_tasks, 2, suite.observation_size)
    frames, _ = suite.render(
        suite.splits["train"], 0, lambda observation, key: np.asarray(action[0, 0]), seed=0, steps=2
    )
    assert len(frames) == 3 and frames.dtype == np.uint8


@pytest.mark.parametrize("learner", ["sac", "hipbmdp"])
def test_the_preset_of_pictures_has_convolutions(learner):
    """By the suite's name alone, without a flag."""
    config = presets.configure("gridworld-two-rooms-pixels", learner=learner, replay_capacity=100)
    trainer = Trainer(config, suites.make(config.suite))
    params = jax.eval_shape(trainer.init).learner.params
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert any("Conv_1" in path for path in paths)


def test_a_suite_of_several_bodies_cannot_be_wrapped():
    with pytest.raises(ValueError, match="'bodies-control' is not made of one pure environment"):
        rich.behind("mine", suites.make("bodies-control"), Projected, about="projected")
