"""Grid worlds: the map is data, the table is the environment, and bad maps are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs import Env, gridworld, vectorize
from mtjax.envs.gridworld import Gridworld

pytestmark = pytest.mark.smoke
UP, RIGHT, DOWN, LEFT = range(4)
MAP = (
    "######",
    "#...##",
    "#.#..#",
    "#....#",
    "######",
)


def task(goal=(3, 4), starts=((1, 1),), **kwargs):
    return jax.tree.map(jnp.asarray, gridworld.make_task(MAP, goal, list(starts), **kwargs))


def walk(env, task, actions, key=0):
    state, observation = env.reset(task, jax.random.key(key))
    steps = []
    for action in actions:
        state, step = env.step(task, state, jnp.asarray(action, jnp.int32), jax.random.key(0))
        steps.append(step)
    return observation, steps


def test_a_walk_by_hand():
    env = Gridworld(5, 6, ("position", "previous"))
    assert isinstance(env, Env) and env.observation_size == 35
    first, steps = walk(env, task(), [UP, RIGHT, DOWN, DOWN, LEFT, DOWN, DOWN, RIGHT, RIGHT, RIGHT])
    assert first.argmax() == 7 and first[30:].tolist() == [0.0] * 5
    cells = [7, 8, 8, 8, 7, 13, 19, 20, 21, 22]
    assert [int(step.observation[:30].argmax()) for step in steps] == cells
    assert [int(step.observation[30:34].argmax()) for step in steps] == [0, 1, 2, 2, 3, 2, 2, 1, 1, 1]
    rewards = [-0.05, -0.01, -0.05, -0.05, -0.01, -0.01, -0.01, -0.01, -0.01, 1.0]
    np.testing.assert_allclose([step.reward for step in steps], rewards, rtol=1e-6)
    np.testing.assert_allclose([step.observation[34] for step in steps], rewards, rtol=1e-6)
    assert [bool(step.terminated) for step in steps] == [False] * 9 + [True]
    assert [float(step.info["success"]) for step in steps] == [0.0] * 9 + [1.0]


@pytest.mark.parametrize("feature", gridworld.FEATURES)
def test_each_feature_has_its_size_and_only_goal_shows_the_goal(feature):
    env = Gridworld(5, 6, (feature,))
    _, near = env.reset(task((3, 4)), jax.random.key(0))
    _, far = env.reset(task((1, 3)), jax.random.key(0))
    assert near.shape == (env.observation_size,) and near.dtype == jnp.float32
    assert bool((near != far).any()) == (feature == "goal")


def test_the_window_of_walls_is_the_map_around_the_agent():
    env = Gridworld(5, 6, ("walls",))
    walls = np.pad(gridworld.parse_map(MAP), 2, constant_values=True)
    for row, column in gridworld.floor_cells(gridworld.parse_map(MAP)):
        if (row, column) == (3, 4):
            continue
        _, seen = env.reset(task(starts=[(row, column)]), jax.random.key(0))
        np.testing.assert_array_equal(seen, np.delete(walls[row : row + 5, column : column + 5].ravel(), 12))


def test_starts_are_uniform_over_the_given_cells_only():
    env = Gridworld(5, 6)
    places = [(1, 1), (1, 3), (3, 1)]
    keys = jax.random.split(jax.random.key(0), 3000)
    _, seen = jax.vmap(env.reset, in_axes=(None, 0))(task(starts=places), keys)
    counts = np.asarray(seen.sum(0))
    assert counts[[7, 9, 19]].sum() == 3000 and counts[[7, 9, 19]].min() > 900


def test_the_table_is_the_environment():
    """Tabular Distral is checked against it, so every entry must be what stepping does."""
    env, made = Gridworld(5, 6), task()
    table = gridworld.transition_table(made)
    assert table.next_state.shape == table.reward.shape == (30, 4)
    assert table.probability.shape == (30, 4, 30)
    np.testing.assert_array_equal(table.probability.sum(-1), 1.0)
    np.testing.assert_allclose(table.start.sum(), 1.0)
    for cell in range(30):
        state = gridworld.GridState(jnp.int32(cell), jnp.int32(4), jnp.zeros(()))
        for action in range(4):
            if table.terminal[cell]:
                assert table.next_state[cell, action] == cell and table.reward[cell, action] == 0
                continue
            after, step = env.step(made, state, jnp.int32(action), jax.random.key(0))
            assert int(after.cell) == table.next_state[cell, action]
            assert float(step.reward) == table.reward[cell, action]
            assert bool(step.terminated) == bool(table.terminal[after.cell])


def test_value_iteration_on_the_table_finds_the_shortest_way():
    made = task(starts=[(1, 3)], rewards=(1.0, 0.0, 0.0))
    table = gridworld.transition_table(made)
    values = jnp.zeros(30)
    for _ in range(20):
        values = jnp.where(table.terminal, 0.0, (table.reward + 0.9 * values[table.next_state]).max(-1))
    distance = gridworld.distances(gridworld.parse_map(MAP), (3, 4)).ravel()
    expected = np.where(distance > 0, 0.9 ** (distance - 1.0), 0.0)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_tables_of_a_batch_of_tasks_come_by_vmap():
    tasks = gridworld.stack_tasks([gridworld.make_task(MAP, goal) for goal in [(3, 4), (1, 1)]])
    tables = jax.vmap(gridworld.transition_table)(jax.tree.map(jnp.asarray, tasks))
    assert tables.next_state.shape == (2, 30, 4)
    assert tables.terminal[0, 22] and not tables.terminal[1, 22]


def test_tasks_with_other_maps_and_goals_run_in_one_program():
    turned = [row[::-1] for row in MAP]
    tasks = gridworld.stack_tasks(
        [gridworld.make_task(MAP, (3, 4), [(3, 3)]), gridworld.make_task(turned, (3, 1), [(3, 3)])]
    )
    envs = vectorize(Gridworld(5, 6), tasks, 2, horizon=10)
    state, _ = envs.reset(jax.random.key(0))
    _, step = envs.step(state, jnp.full((2, 2), RIGHT), jax.random.key(1))
    np.testing.assert_array_equal(step.terminated, [[True, True], [False, False]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"goal": (2, 2)}, r"goal \(2, 2\) is not a floor cell"),
        ({"goal": (9, 9)}, "not a floor cell"),
        ({"goal": (3, 4), "starts": [(3, 4)]}, "cannot be reached from the start"),
        ({"goal": (3, 4), "starts": [(0, 0)]}, "cannot be reached from the start"),
        ({"goal": (3, 4), "starts": []}, "at least one start"),
        ({"walls": ["###", "#.#"], "goal": (1, 1)}, "border"),
        ({"walls": ["###", "#.#", "##"], "goal": (1, 1)}, "rows of a map must have the same length"),
        ({"walls": ["#####", "#.#.#", "#####"], "goal": (1, 1)}, "cannot be reached|at least one"),
    ],
)
def test_impossible_maps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gridworld.make_task(**{"walls": MAP, **arguments})


def test_an_unknown_feature_is_named():
    with pytest.raises(ValueError, match="features must be some of"):
        Gridworld(5, 6, ("positions",))
