"""The rich suites: tasks of other suites behind observations that must be decoded to recover the state.

Task parameters, dynamics, rewards, splits and descriptions are those of the wrapped suites; :mod:`mtjax.envs.rich`
documents the observations and their limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtjax.envs.base import Env
from mtjax.envs.rich import Pictured, Projected
from mtjax.envs.vectorize import Vectorized
from mtjax.suites import base, gridworld, pictures
from mtjax.suites.base import Suite, from_env, register
from mtjax.suites.render import renderer


def behind(
    name: str,
    suite: Suite,
    emission: Callable[[Env], Env],
    *,
    about: str,
    draw: Callable | None = None,
    frames_per_second: float = 20.0,
) -> Suite:
    """Wrap a suite's environment so that its tasks have other observations.

    Args:
        name: the new suite's name.
        suite: a suite of a pure environment, as :func:`mtjax.suites.from_env` makes it.
        emission: environment -> environment with the same tasks, e.g. ``Projected``; the attribute ``env`` of its
            states is the inner state.
        about: the kind of observations in a few words, for the version stamp.
        draw: as in :func:`mtjax.suites.render.renderer`, for inner states; None: the suite cannot be drawn.
        frames_per_second: for playback in real time.

    Raises:
        ValueError: the suite does not consist of one pure environment.
    """
    vector = suite.vector_env(1)
    if not isinstance(vector, Vectorized):
        raise ValueError(
            f"suite {suite.name!r} is not made of one pure environment; its observations cannot be wrapped"
        )
    env = emission(vector.env)
    version = dataclasses.replace(suite.version, suite=f"{suite.version.suite} + {about} 1")

    def inside(task: Any, states: Sequence[Any]) -> Sequence[np.ndarray]:
        return draw(task, [state.env for state in states])

    render = renderer(env, inside, frames_per_second=frames_per_second, horizon=suite.horizon) if draw else None
    return from_env(name, env, suite.splits, version=version, has_success=suite.has_success, render=render)


@register("control-pendulum-rich")
def rich_pendulum() -> Suite:
    """Pendulum swing-up behind a random projection: 64 numbers, into which 8 distractors are mixed."""
    pendulum = base.make("control-pendulum")
    return behind("control-pendulum-rich", pendulum, Projected, about="projected", draw=pictures.pendulum)


@register("gridworld-two-rooms-pixels")
def two_rooms_pixels() -> Suite:
    """Distral's two rooms as pictures of 7 × 17 × 3 numbers, with new colours in every episode and hidden goals.

    Unlike in "gridworld-two-rooms", the previous action and reward are not observed.
    """
    rooms = base.make("gridworld-two-rooms")
    return behind(
        "gridworld-two-rooms-pixels",
        rooms,
        Pictured,
        about="pictured",
        draw=gridworld.draw,
        frames_per_second=8.0,
    )
