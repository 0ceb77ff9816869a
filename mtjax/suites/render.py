"""Pictures of environments: play an episode of one task and draw its states, or let the simulator draw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtjax.envs.base import Env, Task
from mtjax.envs.host import Pool
from mtjax.envs.play import play
from mtjax.suites.base import Render, Split

Draw = Callable[[Task, Sequence[Any]], Sequence[np.ndarray]]


def renderer(env: Env, draw: Draw, *, frames_per_second: float, horizon: int) -> Render:
    """Make the ``render`` of a suite from its pure environment.

    Args:
        env: the environment.
        draw: ``draw(task, states)`` returns one RGB picture [height, width, 3] uint8 per state.
        frames_per_second: for playback in real time.
        horizon: maximum number of steps drawn.
    """

    def render(split: Split, task_index: int, policy: Callable, *, seed: int, steps: int):
        task = jax.tree.map(lambda leaf: np.asarray(leaf[task_index]), split.tasks)
        states = play(env, task, policy, seed=seed, steps=min(steps, horizon))
        return np.stack(draw(task, states)), float(frames_per_second)

    return render


def film(
    pool: Pool, picture: Callable[[], np.ndarray], policy: Callable, *, seed: int, steps: int, every: int = 1
) -> np.ndarray:
    """Play one episode of a host simulator, with pictures that the simulator draws itself.

    Args:
        pool: a pool of one environment.
        picture: draws the environment's current state, [height, width, 3].
        policy: ``policy(observation [obs], key) -> action``.
        seed: of the policy's keys.
        steps: maximum number of steps.
        every: number of steps between pictures.

    Returns:
        Frames [N, height, width, 3] uint8: of the initial state, then after every ``every`` steps, and of the last.

    Raises:
        RuntimeError: the simulator returns no picture.
    """
    pool.send_reset(np.zeros(1, np.int32))
    observation, key, frames = pool.receive_reset(), jax.random.key(seed), []
    for index in range(steps):
        if index % every == 0:
            frames.append(_checked(picture()))
        action = policy(jnp.asarray(observation[0], jnp.float32), jax.random.fold_in(key, index))
        pool.send(np.asarray(action)[None])
        step = pool.receive()
        observation = step.observation
        if step.terminated[0] or step.truncated[0]:
            break
    frames.append(_checked(picture()))
    return np.stack(frames)


def _checked(frame: Any) -> np.ndarray:
    if np.ndim(frame) != 3:
        raise RuntimeError(f"the simulator must return a picture [height, width, 3], not {type(frame).__name__}")
    return np.array(frame, np.uint8)  # a copy, as simulators may reuse the memory for the next picture
