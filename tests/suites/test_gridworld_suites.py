"""The gridworld suites: what a user picks by name is solvable, labelled and the same on every machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs import gridworld
from mtjax.suites.gridworld import generate_maze

NAMES = ("gridworld-two-rooms", "gridworld-four-rooms", "gridworld-mazes")


@pytest.mark.parametrize("name", NAMES)
def test_suite_is_complete(name):
    suite = suites.make(name)
    assert suite.name == name and suite.has_success and suite.on_device and suite.num_tasks >= 8
    assert set(suite.splits) == set(suites.SPLITS)
    assert suite.action.kind == "discrete" and suite.action.size == 4
    described = [info.description for split in suite.splits.values() for info in split.infos]
    assert len(set(described)) == len(described) and all(text.endswith(".") for text in described)
    assert len({info.name for split in suite.splits.values() for info in split.infos}) == len(described)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_tasks_are_not_trained_on(name):
    suite = suites.make(name)
    seen = {(task.walls.tobytes(), int(task.goal)) for task in _tasks(suite.splits["train"])}
    for split in ("interpolation", "extrapolation"):
        assert not any((t.walls.tobytes(), int(t.goal)) in seen for t in _tasks(suite.splits[split]))


def _tasks(split):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], split.tasks) for i in range(len(split))]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_can_be_solved_within_the_horizon(name):
    """The policy that follows the shortest way of the task's table succeeds in every episode."""
    suite = suites.make(name)
    tasks = [task for split in suite.splits.values() for task in _tasks(split)]
    infos = tuple(info for split in suite.splits.values() for info in split.infos)
    envs = suite.make_vector_env(suites.Split(infos, gridworld.stack_tasks(tasks)), 8, seed=0)
    next_cell = jnp.stack([gridworld.transition_table(task).next_state for task in tasks])
    goals = [divmod(int(task.goal), task.walls.shape[1]) for task in tasks]
    distance = [gridworld.distances(task.walls, goal) for task, goal in zip(tasks, goals, strict=True)]
    distance, row = jnp.asarray(distance).reshape(len(tasks), -1), jnp.arange(len(tasks))[:, None]

    def step(state, key):
        ahead = next_cell[row, state.env.cell]
        state, out = envs.step(state, distance[row[..., None], ahead].argmin(-1), key)
        return state, (out.terminated, out.truncated, out.info["success"])

    state, _ = envs.reset(jax.random.key(0))
    _, (terminated, truncated, success) = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 120))
    assert not truncated.any() and terminated.any(0).all()
    np.testing.assert_array_equal(success, terminated)


def test_two_rooms_starts_in_the_other_room():
    suite = suites.make("gridworld-two-rooms")
    _, observation = suite.vector_env(64).reset(jax.random.key(0))
    columns = observation[..., :119].argmax(-1) % 17
    for info, column in zip(suite.tasks, columns, strict=True):
        assert (column >= 11).all() if info.parameters["goal_column"] <= 5 else (column <= 5).all()


def test_mazes_are_the_same_everywhere_and_fully_connected():
    rows = ["".join(".#"[int(wall)] for wall in row) for row in generate_maze(3, 7)]
    assert rows == ["#######", "#.#...#", "#.#.#.#", "#...#.#", "#####.#", "#.....#", "#######"]
    for seed in range(5):
        perfect, looped = generate_maze(seed), generate_maze(seed, loops=0.5)
        assert (gridworld.distances(perfect, (1, 1)) >= 0).sum() == (~perfect).sum() == 2 * 25 - 1
        assert (~looped).sum() > (~perfect).sum()
    assert (generate_maze(0) != generate_maze(1)).any()


@pytest.mark.parametrize("arguments", [{"size": 8}, {"size": 3}, {"loops": 2.0}])
def test_impossible_mazes_are_refused(arguments):
    with pytest.raises(ValueError, match="size must be odd"):
        generate_maze(0, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_one_frame_a_state(name):
    suite = suites.make(name)
    height, width = suite.splits["train"].tasks.walls.shape[1:]
    for policy in (lambda o, k: jnp.int32(0), lambda o, k: jax.random.randint(k, (), 0, 4)):
        frames, rate = suite.render(suite.splits["train"], 1, policy, seed=0, steps=6)
        assert frames.shape == (7, height * 32, width * 32, 3) and frames.dtype == np.uint8 and rate > 0
