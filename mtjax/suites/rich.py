"""The rich suites: tasks of other suites behind observations from which the state must be learnt.

Task parameters, dynamics, rewards, splits and descriptions are those of the suites inside; the observations are those
of :mod:`mtjax.envs.rich`, which says what they are and are not.
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
    """A suite whose observations are made from another's.

    Args:
        name: the new suite's name.
        suite: of a pure environment, as :func:`mtjax.suites.from_env` makes it.
        emission: environment -> environment with the same tasks, e.g. ``Projected``; its states have the state inside
            as ``env``.
        about: what the observations are, in a few words for the version.
        draw: as in :func:`mtjax.suites.render.renderer`, of states inside; None: the suite has no picture.
        frames_per_second: of real time.

    Raises:
        ValueError: the suite is not one of a pure environment.
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
    """Pendulum swing-up behind a random projection: 64 numbers, of which 8 distractors are mixed in."""
    pendulum = base.make("control-pendulum")
    return behind("control-pendulum-rich", pendulum, Projected, about="projected", draw=pictures.pendulum)


@register("gridworld-two-rooms-pixels")
def two_rooms_pixels() -> Suite:
    """Distral's two rooms as pictures of 7 × 17 × 3 numbers, in other colours in every episode; goals hidden.

    The previous action and reward, which the suite without pictures shows, are not to be seen.
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
