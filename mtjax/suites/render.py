"""Pictures of on-device environments: play one episode of one task, draw its states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtjax.envs.base import Env, Task
from mtjax.envs.play import play
from mtjax.suites.base import Render, Split

Draw = Callable[[Task, Sequence[Any]], Sequence[np.ndarray]]


def renderer(env: Env, draw: Draw, *, frames_per_second: float, horizon: int) -> Render:
    """A suite's ``render`` of a pure environment.

    Args:
        env: the environment.
        draw: ``draw(task, states)`` returns one RGB picture [height, width, 3] uint8 a state.
        frames_per_second: of real time.
        horizon: an episode is cut there.
    """

    def render(split: Split, task_index: int, policy: Callable, *, seed: int, steps: int):
        task = jax.tree.map(lambda leaf: np.asarray(leaf[task_index]), split.tasks)
        states = play(env, task, policy, seed=seed, steps=min(steps, horizon))
        return np.stack(draw(task, states)), float(frames_per_second)

    return render
