"""The gridworld suites: two rooms with a corridor, four rooms, and random mazes. Pure JAX, discrete actions.

In all of them, reaching the goal earns 1 and ends the episode with success, every other step costs 0.01, and
hitting a wall costs 0.04 more. The actions are up, right, down and left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtjax.envs import gridworld
from mtjax.envs.gridworld import GridTask, Gridworld
from mtjax.suites.base import Split, Suite, TaskInfo, Version, from_env, register
from mtjax.suites.render import renderer

HORIZON = 100

TWO_ROOMS = (
    "#################",
    "#.....#####.....#",
    "#.....#####.....#",
    "#...............#",
    "#.....#####.....#",
    "#.....#####.....#",
    "#################",
)

FOUR_ROOMS = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)

FOUR_ROOMS_MOVED_DOORS = (
    "#############",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "#.....#.....#",
    "#.....#.....#",
    "####.##.....#",
    "#.....####.##",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "#############",
)


def _suite(name: str, features: Sequence[str], goals: str, splits: dict[str, list]) -> Suite:
    """Make a suite from (task, info) pairs by split; all maps have the same size."""
    height, width = splits["train"][0][0].walls.shape
    env = Gridworld(height, width, tuple(features))
    version = Version(
        suite="1",
        simulator="mtjax gridworld 1",
        reward="1",
        horizon=HORIZON,
        goals=goals,
        success="the goal is reached",
    )
    return from_env(
        name,
        env,
        {
            label: Split(tuple(info for _, info in pairs), gridworld.stack_tasks([task for task, _ in pairs]))
            for label, pairs in splits.items()
        },
        version=version,
        has_success=True,
        render=renderer(env, draw, frames_per_second=8.0, horizon=HORIZON),
    )


# --------------------------------------------------------------------------------------------- two rooms


def _two_rooms_task(row: int, column: int) -> tuple[GridTask, TaskInfo]:
    """The task with its goal at this row and column of the map; an episode starts in any cell of the other room."""
    walls = gridworld.parse_map(TWO_ROOMS)
    left = column <= 5
    starts = [cell for cell in gridworld.floor_cells(walls) if (cell[1] >= 11 if left else cell[1] <= 5)]
    here, there = ("left", "right") if left else ("right", "left")
    info = TaskInfo(
        f"{here}_{row}_{column}",
        f"Walk from anywhere in the {there} room through the corridor to row {row}, column {column} "
        f"in the {here} room.",
        {"goal_row": row, "goal_column": column},
    )
    return gridworld.make_task(walls, (row, column), starts), info


@register("gridworld-two-rooms")
def two_rooms() -> Suite:
    """Distral's two rooms joined by a corridor: 8 goals, hidden from the agent.

    As in the paper, the observation is the map location (one-hot), the previous action and the previous
    reward. An episode starts anywhere in the room opposite the goal. Interpolation: goals between the training
    goals. Extrapolation: goals in the rooms' corners, outside the range of the training goals.
    """
    rows = {
        "train": [(row, column) for row in (2, 4) for column in (2, 4, 12, 14)],
        "interpolation": [(3, 3), (2, 3), (3, 13), (4, 13)],
        "extrapolation": [(1, 1), (5, 1), (1, 15), (5, 15)],
    }
    splits = {label: [_two_rooms_task(*goal) for goal in goals] for label, goals in rows.items()}
    return _suite("gridworld-two-rooms", ("position", "previous"), "fixed", splits)


# -------------------------------------------------------------------------------------------- four rooms


def _four_rooms_task(rows: Sequence[str], row: int, column: int) -> tuple[GridTask, TaskInfo]:
    room = f"{'upper' if row <= 6 else 'lower'} {'left' if column <= 6 else 'right'}"
    moved = rows is FOUR_ROOMS_MOVED_DOORS
    info = TaskInfo(
        f"{'moved_doors_' if moved else ''}{room.replace(' ', '_')}_{row}_{column}",
        f"Walk through four rooms{' whose doors were moved' if moved else ''} to row {row}, column {column} "
        f"in the {room} room.",
        {"goal_row": row, "goal_column": column, "moved_doors": float(moved)},
    )
    return gridworld.make_task(rows, (row, column)), info


@register("gridworld-four-rooms")
def four_rooms() -> Suite:
    """Four rooms joined by four doors: 12 hidden goals; an episode starts in any other cell.

    The observation is the map location, one-hot. Interpolation: goals between the training goals.
    Extrapolation: training goals on a map with moved doors.
    """
    corners = ((2, 2), (2, 4), (4, 2))
    train = [(row + down, column + right) for down in (0, 6) for right in (0, 6) for row, column in corners]
    between = [(3, 3), (3, 9), (9, 3), (9, 9)]
    splits = {
        "train": [_four_rooms_task(FOUR_ROOMS, *goal) for goal in train],
        "interpolation": [_four_rooms_task(FOUR_ROOMS, *goal) for goal in between],
        "extrapolation": [_four_rooms_task(FOUR_ROOMS_MOVED_DOORS, *goal) for goal in train[::3]],
    }
    return _suite("gridworld-four-rooms", ("position",), "fixed", splits)


# ------------------------------------------------------------------------------------------------- mazes


def generate_maze(seed: int, size: int = 11, *, loops: float = 0.0) -> np.ndarray:
    """A random maze, walls [size, size] bool; the same arguments give the same maze on every machine.

    A depth-first walk carves a maze without loops; then each remaining wall between two passages is
    opened with probability ``loops``.

    Raises:
        ValueError: ``size`` is not odd and at least 5, or ``loops`` not in [0, 1].
    """
    if size < 5 or size % 2 == 0 or not 0.0 <= loops <= 1.0:
        raise ValueError(f"size must be odd and at least 5, loops in [0, 1]; got {size} and {loops}")
    rng = np.random.Generator(np.random.PCG64(seed))
    walls = np.ones((size, size), bool)
    walls[1, 1] = False
    path = [(1, 1)]
    while path:
        row, column = path[-1]
        ahead = [(row - 2, column), (row, column + 2), (row + 2, column), (row, column - 2)]
        ahead = [(r, c) for r, c in ahead if 0 < r < size and 0 < c < size and walls[r, c]]
        if not ahead:
            path.pop()
            continue
        following = ahead[rng.integers(len(ahead))]
        walls[following] = walls[(row + following[0]) // 2, (column + following[1]) // 2] = False
        path.append(following)
    for row, column in np.argwhere(walls[1:-1, 1:-1]) + 1:
        if (row + column) % 2 == 1 and rng.random() < loops:
            walls[row, column] = False
    return walls


def _maze_task(seed: int, loops: float) -> tuple[GridTask, TaskInfo]:
    """A maze whose goal is one of the 25% of cells that are farthest from the upper left corner."""
    walls = generate_maze(seed, loops=loops)
    distance = gridworld.distances(walls, (1, 1))
    cells = gridworld.floor_cells(walls)
    far = [cell for cell in cells if distance[cell] >= np.quantile([distance[c] for c in cells], 0.75)]
    row, column = far[seed % len(far)]
    from_goal = gridworld.distances(walls, (row, column))
    starts = [cell for cell in cells if from_goal[cell] >= from_goal.max() // 2]
    kind = "with loops" if loops else "without loops"
    info = TaskInfo(
        f"maze_{seed}",
        f"Find the way through a maze {kind} (number {seed}) to row {row}, column {column}, "
        f"at most {from_goal.max()} steps away.",
        {"loops": loops, "longest_way": float(from_goal.max())},
    )
    return gridworld.make_task(walls, (row, column), starts), info


@register("gridworld-mazes")
def mazes() -> Suite:
    """16 random mazes of 11 × 11 cells with some loops.

    Episodes start at least half the longest distance (rounded down) from the goal. The observation is the agent's
    and the goal's coordinates, the walls within two cells, the previous action and the previous reward, so that a
    policy can work in unseen mazes. Interpolation: other mazes of the same generator. Extrapolation: mazes without
    loops, whose paths are longer.
    """
    splits = {
        "train": [_maze_task(seed, 0.25) for seed in range(16)],
        "interpolation": [_maze_task(seed, 0.25) for seed in range(100, 108)],
        "extrapolation": [_maze_task(seed, 0.0) for seed in range(200, 208)],
    }
    return _suite("gridworld-mazes", ("coordinates", "goal", "walls", "previous"), "fixed, visible", splits)


# ----------------------------------------------------------------------------------------------- picture

_CELL = 32  # pixels
_COLOURS = {
    "wall": (52, 61, 78),
    "floor": (246, 244, 239),
    "line": (228, 225, 218),
    "start": (230, 236, 246),
    "trail": (250, 214, 165),
    "goal": (63, 160, 103),
    "agent": (222, 98, 48),
}


def draw(task: GridTask, states: Sequence[gridworld.GridState]) -> list[np.ndarray]:
    """One picture [H * 32, W * 32, 3] uint8 per state: walls, starts (blue), goal, agent and its trail."""
    height, width = task.walls.shape
    board = np.empty((height * width, 3), np.uint8)
    board[:] = _COLOURS["floor"]
    board[task.starts[: task.num_starts]] = _COLOURS["start"]
    board[task.walls.reshape(-1)] = _COLOURS["wall"]
    square = _square_mask()
    frames = []
    for state in states:
        picture = np.kron(board.reshape(height, width, 3), np.ones((_CELL, _CELL, 1), np.uint8))
        floor = np.kron(~task.walls, np.ones((_CELL, _CELL), bool))
        edge = (np.arange(height * _CELL)[:, None] % _CELL == 0) | (np.arange(width * _CELL) % _CELL == 0)
        picture[floor & edge] = _COLOURS["line"]
        _paint(picture, task.goal, width, square, "goal")
        _paint(picture, state.cell, width, _disc_mask(0.34), "agent")
        frames.append(picture)
        board[int(state.cell)] = _COLOURS["trail"]
    return frames


def _paint(picture: np.ndarray, cell: int, width: int, mask: np.ndarray, colour: str) -> None:
    """Blend a colour into one cell of the picture, in place; ``mask`` is [32, 32] in [0, 1]."""
    top, left = (int(cell) // width) * _CELL, (int(cell) % width) * _CELL
    block = picture[top : top + _CELL, left : left + _CELL]
    block[:] = np.round(mask[..., None] * np.asarray(_COLOURS[colour]) + (1.0 - mask[..., None]) * block)


def _disc_mask(radius: float) -> np.ndarray:
    """A disc with a soft edge; ``radius`` as a fraction of the cell's side."""
    place = np.arange(_CELL) - (_CELL - 1) / 2
    return np.clip(radius * _CELL - np.hypot(place[:, None], place) + 0.5, 0.0, 1.0)


def _square_mask() -> np.ndarray:
    """A square with a margin of an eighth of the cell."""
    mask = np.zeros((_CELL, _CELL))
    mask[_CELL // 8 : -_CELL // 8, _CELL // 8 : -_CELL // 8] = 1.0
    return mask
