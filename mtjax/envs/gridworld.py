"""Grid worlds in pure JAX: map, starts, goal and rewards are the task's data.

A map is written as text, ``#`` for a wall and ``.`` for a floor cell, with walls along the border. Cells are
numbered row by row. A task's transition table, for tabular methods, comes from the function that steps the task:

>>> from mtjax.envs import gridworld
>>> task = gridworld.make_task(["#####", "#...#", "#####"], goal=(1, 3))
>>> table = gridworld.transition_table(task)
>>> table.next_state[6].tolist()      # from row 1, column 1: up, right, down, left
[6, 7, 6, 6]
>>> table.terminal.nonzero()[0].tolist()[:7]      # walls, until the goal
[0, 1, 2, 3, 4, 5, 8]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtjax.envs.base import ActionSpec, Array, Step, discrete

ACTIONS = ("up", "right", "down", "left")
FEATURES = ("position", "coordinates", "goal", "walls", "previous")
_VIEW = 2  # the window of walls reaches this far from the agent


class GridTask(NamedTuple):
    """One grid world. In a batch of tasks, every leaf has a leading [T] axis.

    Attributes:
        walls: [H, W] bool; the border is always wall.
        goal: [] int32, the goal's cell.
        starts: [H * W] int32; the first ``num_starts`` entries are the cells in which an episode may start.
        num_starts: [] int32.
        rewards: [3] float32: for reaching the goal, for any other step, and what hitting a wall adds to the latter.
    """

    walls: Array
    goal: Array
    starts: Array
    num_starts: Array
    rewards: Array


class GridState(NamedTuple):
    """The agent's cell, its previous action (4: none yet) and its previous reward."""

    cell: Array
    previous_action: Array
    previous_reward: Array


class TransitionTable(NamedTuple):
    """A task as a table over S = H * W cells and A = 4 actions.

    Attributes:
        next_state: [S, A] int32; moves are deterministic.
        reward: [S, A] float32.
        terminal: [S] bool: the goal and the walls (which are never entered). In these states all rewards are 0
            and every action stays in place.
        start: [S] float32, the distribution of the start cell.
    """

    next_state: Array
    reward: Array
    terminal: Array
    start: Array

    @property
    def probability(self) -> Array:
        """P [S, A, S]: 1 where action a leads from s to s'."""
        return jax.nn.one_hot(self.next_state, self.next_state.shape[0])


@dataclasses.dataclass(frozen=True)
class Gridworld:
    """An :class:`~mtjax.envs.base.Env` of grid worlds of one size.

    Actions are up, right, down, left. Reaching the goal terminates the episode, with ``info["success"]`` 1. Moving
    into a wall leaves the agent in place. The goal is observed only if "goal" is among the features.

    Attributes:
        height, width: of the map, border included.
        features: the parts of the observation, in the given order: "position" (one-hot, [H * W]), "coordinates"
            (row and column in [-1, 1]), "goal" (its coordinates), "walls" (the 24 surrounding cells, 1 for a wall),
            "previous" (the previous action, one-hot or zeros at the start, and the previous reward: [5]).
    """

    height: int
    width: int
    features: tuple[str, ...] = ("position",)

    def __post_init__(self):
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown or not self.features:
            raise ValueError(f"features must be some of {FEATURES}; got {self.features}")

    @property
    def observation_size(self) -> int:
        sizes = {
            "position": self.height * self.width,
            "coordinates": 2,
            "goal": 2,
            "walls": 24,
            "previous": 5,
        }
        return sum(sizes[name] for name in self.features)

    @property
    def action(self) -> ActionSpec:
        return discrete(len(ACTIONS))

    def reset(self, task: GridTask, key: Array) -> tuple[GridState, Array]:
        """Start in one of the task's start cells, chosen uniformly."""
        number = task.num_starts
        index = jnp.floor(jax.random.uniform(key) * number.astype(jnp.float32)).astype(jnp.int32)
        cell = task.starts[jnp.minimum(index, number - 1)]
        state = GridState(cell, jnp.full((), len(ACTIONS), jnp.int32), jnp.zeros(()))
        return state, self._observe(task, state)

    def step(self, task: GridTask, state: GridState, action: Array, key: Array) -> tuple[GridState, Step]:
        """Move by one cell; ``key`` is not used."""
        cell, reward = move(task, state.cell, action)
        state = GridState(cell, action.astype(jnp.int32), reward)
        observation, reached = self._observe(task, state), cell == task.goal
        info = {"success": reached.astype(jnp.float32)}
        return state, Step(observation, reward, reached, jnp.zeros((), bool), observation, info)

    def _observe(self, task: GridTask, state: GridState) -> Array:
        parts = {
            "position": lambda: jax.nn.one_hot(state.cell, self.height * self.width),
            "coordinates": lambda: self._coordinates(state.cell),
            "goal": lambda: self._coordinates(task.goal),
            "walls": lambda: self._view(task, state.cell),
            "previous": lambda: jnp.append(jax.nn.one_hot(state.previous_action, len(ACTIONS)), state.previous_reward),
        }
        return jnp.concatenate([parts[name]() for name in self.features])

    def _coordinates(self, cell: Array) -> Array:
        place = jnp.stack([cell // self.width, cell % self.width]).astype(jnp.float32)
        return 2.0 * place / jnp.asarray([self.height - 1, self.width - 1], jnp.float32) - 1.0

    def _view(self, task: GridTask, cell: Array) -> Array:
        """Walls among the 5 × 5 cells around the agent, without its own: [24]. Cells off the map count as walls.

        One step past the left or right edge, the cell number wraps around to the border of an adjacent row,
        which is also wall; numbers past the top or bottom are clipped to a corner.
        """
        span = np.arange(-_VIEW, _VIEW + 1)
        offsets = np.delete((span[:, None] * self.width + span).ravel(), 12)
        return task.walls.reshape(-1).at[cell + jnp.asarray(offsets, jnp.int32)].get(mode="clip").astype(jnp.float32)


def move(task: GridTask, cell: Array, action: Array) -> tuple[Array, Array]:
    """Where ``action`` leads from ``cell``, and its reward. Returns (cell [] int32, reward [] float32)."""
    width = task.walls.shape[1]
    target = cell + jnp.asarray([-width, 1, width, -1], jnp.int32)[action]
    blocked = task.walls.reshape(-1)[target]
    cell = jnp.where(blocked, cell, target)
    goal, step, bump = task.rewards
    return cell, jnp.where(cell == task.goal, goal, step + jnp.where(blocked, bump, 0.0))


def transition_table(task: GridTask) -> TransitionTable:
    """The transition table of one task: S = H * W cells, numbered row by row, and 4 actions.

    Its discounted solution also solves the environment, whose state only adds the previous action and reward,
    which have no effect on the dynamics.
    """
    task = jax.tree.map(jnp.asarray, task)
    cells = jnp.arange(task.walls.size, dtype=jnp.int32)
    actions = jnp.arange(len(ACTIONS), dtype=jnp.int32)
    over_actions = jax.vmap(move, in_axes=(None, None, 0))
    next_state, reward = jax.vmap(over_actions, in_axes=(None, 0, None))(task, cells, actions)
    terminal = task.walls.reshape(-1) | (cells == task.goal)
    chosen = (jnp.arange(cells.size) < task.num_starts).astype(jnp.float32) / task.num_starts
    return TransitionTable(
        next_state=jnp.where(terminal[:, None], cells[:, None], next_state),
        reward=jnp.where(terminal[:, None], 0.0, reward),
        terminal=terminal,
        start=jnp.zeros(cells.size).at[task.starts].add(chosen),
    )


# ------------------------------------------------------------------------------- making tasks (on the host)


def parse_map(rows: Sequence[str]) -> np.ndarray:
    """Parse text into walls [H, W] bool: ``#`` is a wall, anything else floor.

    Raises:
        ValueError: the rows differ in length, or the border is not wall.
    """
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"all rows of a map must have the same length; got {[len(row) for row in rows]}")
    walls = np.asarray([[char == "#" for char in row] for row in rows])
    if not (walls[[0, -1]].all() and walls[:, [0, -1]].all()):
        raise ValueError("the border of a map must be wall ('#')")
    return walls


def make_task(
    walls: Sequence[str] | np.ndarray,
    goal: tuple[int, int],
    starts: Sequence[tuple[int, int]] | None = None,
    *,
    rewards: tuple[float, float, float] = (1.0, -0.01, -0.04),
) -> GridTask:
    """One task, as NumPy arrays.

    Args:
        walls: rows of text, or [H, W] bool.
        goal: (row, column).
        starts: cells (row, column) in which an episode may start. None: every floor cell but the goal.
        rewards: for reaching the goal, for any other step, and what hitting a wall adds to the latter.

    Raises:
        ValueError: the goal is not a floor cell, there is no start, or a start is the goal or cannot reach it.
    """
    walls = walls if isinstance(walls, np.ndarray) else parse_map(walls)
    distance = distances(walls, goal)
    if starts is None:
        starts = [cell for cell in floor_cells(walls) if cell != tuple(goal)]
    for start in starts:
        if distance[start] <= 0:
            raise ValueError(f"the goal {tuple(goal)} cannot be reached from the start {tuple(start)}")
    if not starts:
        raise ValueError("a task needs at least one start")
    cells = [row * walls.shape[1] + column for row, column in starts]
    padded = np.resize(np.asarray(cells, np.int32), walls.size)
    return GridTask(
        walls,
        np.asarray(goal[0] * walls.shape[1] + goal[1], np.int32),
        padded,
        np.asarray(len(cells), np.int32),
        np.asarray(rewards, np.float32),
    )


def stack_tasks(tasks: Sequence[GridTask]) -> GridTask:
    """Stack T tasks with maps of one size into a batch: leaves [T, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)


def floor_cells(walls: np.ndarray) -> list[tuple[int, int]]:
    """The (row, column) of every cell that is not wall."""
    return [(int(row), int(column)) for row, column in np.argwhere(~walls)]


def distances(walls: np.ndarray, goal: tuple[int, int]) -> np.ndarray:
    """Steps from every cell to the goal, [H, W] int; -1 for walls and unreachable cells.

    Raises:
        ValueError: the goal is not a floor cell.
    """
    inside = all(0 <= place < size for place, size in zip(goal, walls.shape, strict=True))
    if not inside or walls[tuple(goal)]:
        raise ValueError(f"the goal {tuple(goal)} is not a floor cell of the map")
    distance = np.full(walls.shape, -1)
    distance[tuple(goal)] = 0
    front = [tuple(goal)]
    while front:
        reached = []
        for row, column in front:
            for cell in ((row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1)):
                if not walls[cell] and distance[cell] < 0:
                    distance[cell] = distance[row, column] + 1
                    reached.append(cell)
        front = reached
    return distance
