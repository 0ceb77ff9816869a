"""Pictures of on-device environments: play one episode of one task, draw its states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtjax.envs.base import Env, Task
from mtjax.suites.base import Render, Split

Draw = Callable[[Task, Sequence[Any]], Sequence[np.ndarray]]


def episode(env: Env, task: Task, policy: Callable, *, seed: int, steps: int) -> list[Any]:
    """The states of one episode, on the host: the first, then one a step, until it ends or for ``steps``."""
    key = jax.random.key(seed)
    state, observation = jax.jit(env.reset)(task, jax.random.fold_in(key, 0))
    step = jax.jit(env.step)
    states = [jax.device_get(state)]
    for time in range(steps):
        action_key, step_key = jax.random.split(jax.random.fold_in(key, time + 1))
        state, out = step(task, state, policy(observation, action_key), step_key)
        observation = out.observation
        states.append(jax.device_get(state))
        if bool(out.terminated) or bool(out.truncated):
            break
    return states


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
        states = episode(env, task, policy, seed=seed, steps=min(steps, horizon))
        return np.stack(draw(task, states)), float(frames_per_second)

    return render
