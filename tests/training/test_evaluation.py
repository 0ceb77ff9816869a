"""Evaluation: the numbers that go into a paper's table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import grads, suites
from mtjax.envs import Step, discrete
from mtjax.learners.base import Learner, TaskSpec
from mtjax.learners.config import PPOConfig
from mtjax.learners.ppo import make_ppo
from mtjax.networks.config import NetworkConfig
from mtjax.suites import bodies
from mtjax.training.evaluation import Evaluator, unseen_of_split

HORIZON, S, E = 6, 2, 32


class Task(NamedTuple):
    length: jax.Array  # the episode terminates after so many steps
    success: jax.Array  # the step at which it succeeds, for that step alone


class Countdown:
    """Earns the action at every step; observes a draw of the episode and the time."""

    observation_size = 2
    action = discrete(10)

    def reset(self, task, key):
        draw = jax.random.uniform(key)
        return (draw, jnp.zeros(())), jnp.stack([draw, jnp.zeros(())])

    def step(self, task, state, action, key):
        draw, time = state
        time = time + 1
        observation = jnp.stack([draw, time])
        return (draw, time), Step(
            observation=observation,
            reward=action.astype(jnp.float32),
            terminated=time >= task.length,
            truncated=jnp.zeros((), bool),
            final_observation=observation,
            info={"success": (time == task.success).astype(jnp.float32)},
        )


def _policy(state, observation, key, deterministic, unseen):
    """Deterministic: the state's number (plus 5 if unseen). Stochastic: 0 or 9."""
    if unseen is not None:
        assert unseen.contexts.shape == (observation.shape[0], 0)
        assert unseen.masks.shape == (observation.shape[0], 10)
    shape = observation.shape[:2]
    drawn = 9 * jax.random.bernoulli(key, 0.5, shape).astype(jnp.int32)
    return jnp.where(deterministic, jnp.full(shape, state + 5 * (unseen is not None), jnp.int32), drawn)


def _evaluator(has_success=True, num_seeds=S, env=None, episodes=E, **more):
    def split(*tasks):
        infos = tuple(suites.TaskInfo(f"{task}", "A task.") for task in tasks)
        return suites.Split(infos, Task(*(jnp.asarray(x, jnp.float32) for x in zip(*tasks, strict=True))))

    suite = suites.from_env(
        "countdown",
        env or Countdown(),
        {"train": split((2, 1), (5, 5), (100, 3)), "extrapolation": split((4, 9)), **more},
        version=suites.Version("1", "none", "v1", HORIZON),
        has_success=has_success,
    )
    learner = Learner(None, None, None, _policy)
    return Evaluator(learner, suite, episodes=episodes, num_seeds=num_seeds, seed=0)


def test_whole_episodes_of_every_task_and_seed():
    """One episode an environment, to its end and no further; seeds and tasks are not mixed up."""
    values = _evaluator()(jnp.asarray([1, 2]), key=jax.random.key(0))
    lengths = np.asarray([2.0, 5.0, HORIZON])
    np.testing.assert_array_equal(values["length"], [lengths, lengths])
    np.testing.assert_array_equal(values["return"], [lengths, 2 * lengths])
    np.testing.assert_array_equal(values["success_any"], [[1, 1, 1]] * S)
    np.testing.assert_array_equal(values["success_last"], [[0, 1, 0]] * S)


def test_what_comes_after_an_episode_spoils_nothing():
    """A simulator whose next episode, which nobody asked for, gives NaN: the one that was asked for is whole."""

    class Fragile(Countdown):
        def step(self, task, state, action, key):
            state, step = super().step(task, state, action, key)
            whole = state[0] > 0.5  # an episode is, by its draw
            return state, step._replace(
                reward=jnp.where(whole, 1.0, jnp.nan), info={"success": jnp.where(whole, 1.0, jnp.nan)}
            )

    values = _evaluator(env=Fragile(), num_seeds=20, episodes=1)(jnp.arange(20), key=jax.random.key(0))
    whole = np.isfinite(values["success_last"])  # of the one episode
    assert 4 < whole[:, 0].sum() < 16
    lengths = np.broadcast_to([2.0, 5.0, HORIZON], whole.shape)
    np.testing.assert_array_equal(values["return"], np.where(whole, lengths, np.nan))
    np.testing.assert_array_equal(values["success_any"], np.where(whole, 1.0, np.nan))


def test_held_out_splits_are_acted_for_zero_shot():
    values = _evaluator()(jnp.asarray([1, 2]), split="extrapolation", key=jax.random.key(0))
    np.testing.assert_array_equal(values["return"], [[6 * 4], [7 * 4]])
    np.testing.assert_array_equal(values["success_any"], [[0], [0]])


def test_splits_of_one_size_share_a_program():
    """Another split's tasks are numbers that it is given, not code."""
    info = suites.TaskInfo("another", "A task.")
    task = Task(*(jnp.ones(1, jnp.float32) * x for x in (3, 2)))
    evaluator, states = _evaluator(interpolation=suites.Split((info,), task)), jnp.asarray([1, 2])
    found = {
        name: evaluator(states, split=name, key=jax.random.key(0))
        for name in ("train", "extrapolation", "interpolation")
    }
    assert len(evaluator._programs) == 2
    np.testing.assert_array_equal(found["extrapolation"]["return"], [[6 * 4], [7 * 4]])
    np.testing.assert_array_equal(found["interpolation"]["return"], [[6 * 3], [7 * 3]])
    np.testing.assert_array_equal(found["interpolation"]["success_any"], [[1], [1]])


def test_stochastic_evaluation_and_its_keys():
    """Equal keys give equal numbers, other keys and other rounds other ones; seeds draw for themselves."""
    evaluator, states = _evaluator(), jnp.asarray([1, 2])

    def stochastic(seed, rounds=1):
        return evaluator(states, deterministic=False, key=jax.random.key(seed), rounds=rounds)["return"]

    first = stochastic(0)
    np.testing.assert_array_equal(first, stochastic(0))
    assert (first != stochastic(1)).any() and (first != stochastic(0, rounds=2)).any()
    assert (first[0] != first[1]).any()
    np.testing.assert_allclose(first / np.asarray([2.0, 5.0, HORIZON]), 4.5, atol=1.5)
    assert len(evaluator._programs) == 1  # modes and rounds share one program


def test_without_success_nothing_is_said_of_it():
    values = _evaluator(has_success=False, num_seeds=1)(jnp.asarray([1]), key=jax.random.key(0))
    assert set(values) == {"return", "length"}


def test_a_split_that_does_not_exist():
    with pytest.raises(ValueError, match="no split 'interpolation'"):
        _evaluator()(jnp.asarray([1, 2]), split="interpolation", key=jax.random.key(0))


def test_a_held_out_body_is_related_to_the_training_tasks_of_that_body():
    """Which body acts is known: a trained head of another body would make no sense in it."""
    suite = suites.make("bodies-control")
    assert unseen_of_split(suite, "train", {}) is None
    for split in ("interpolation", "extrapolation"):
        np.testing.assert_array_equal(unseen_of_split(suite, split, {}).relatives, np.eye(3))
    members = [suites.make(name) for name in ("control-cartpole-continuous", "control-pendulum")]
    pair = bodies.combine("pair", members)
    first, second = (len(member.splits["train"]) for member in members)
    relatives = np.asarray(unseen_of_split(pair, "extrapolation", {}).relatives)
    assert relatives.shape == (len(pair.splits["extrapolation"]), first + second)
    np.testing.assert_allclose(relatives[0], [1 / first] * first + [0] * second)
    np.testing.assert_allclose(relatives[-1], [0] * first + [1 / second] * second)
    assert unseen_of_split(members[0], "extrapolation", {}).relatives is None
    twice = bodies.combine("nested", [pair, suites.make("control-acrobot-continuous")])
    nested = np.asarray(unseen_of_split(twice, "extrapolation", {}).relatives)
    np.testing.assert_array_equal(nested[0, : first + second], relatives[0])


def test_held_out_tasks_keep_their_own_action_sizes():
    """A padded choice is none, on tasks that were not trained on too."""
    infos = (suites.TaskInfo("few", "Three choices."), suites.TaskInfo("all", "Ten choices."))
    tasks = Task(jnp.full(2, 3.0), jnp.ones(2))
    suite = suites.from_env(
        "padded",
        Countdown(),
        {"train": suites.Split(infos, tasks), "extrapolation": suites.Split(infos, tasks, (3, 10))},
        version=suites.Version("1", "none", "v1", HORIZON),
        has_success=True,
    )
    assert unseen_of_split(suite, "train", {}) is None
    unseen = unseen_of_split(suite, "extrapolation", {"extrapolation": jnp.ones((2, 4))})
    np.testing.assert_array_equal(unseen.masks, [[1] * 3 + [0] * 7, [1] * 10])
    np.testing.assert_array_equal(unseen.contexts, np.ones((2, 4)))
    spec = TaskSpec(2, suite.observation_size, suite.action)
    agent = make_ppo(PPOConfig(), NetworkConfig(hidden_sizes=(4,)), grads.mean(), spec, num_envs=8, num_updates=1)
    observation = jnp.ones((2, 200, suite.observation_size))
    state = agent.init(jax.random.key(0))
    unseen = unseen._replace(contexts=jnp.zeros((2, 0)))
    drawn = agent.policy(state, observation, jax.random.key(1), jnp.asarray(False), unseen)
    assert drawn[0].max() == 2 and drawn[1].max() > 5
