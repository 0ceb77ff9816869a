"""Gymnasium's spaces, as mtjax sees them: vectors in [-1, 1] or one of n choices."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtjax.envs.base import ActionSpec, continuous, discrete


def action_spec(space: Any, task: str) -> ActionSpec:
    """The mtjax action space for a gymnasium one.

    Args:
        space: a one-dimensional ``Box`` with finite bounds, or a ``Discrete``.
        task: the task's name, for the error message.

    Raises:
        ValueError: the space is of another kind.
    """
    if hasattr(space, "n") and np.ndim(space.n) == 0 and not space.shape:  # MultiBinary has an n, too
        return discrete(int(space.n))
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or np.ndim(low) != 1 or not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"task {task!r} has action space {space}; supported are Discrete and Box (one-dimensional, finite bounds)"
        )
    return continuous(len(low))


def native_action(space: Any, actions: np.ndarray) -> np.ndarray:
    """Convert mtjax actions, [N, size] in [-1, 1] (clipped) or [N] choices, to those of ``space``."""
    if hasattr(space, "n"):
        return (actions + getattr(space, "start", 0)).astype(space.dtype)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return (middle + half * np.clip(actions, -1.0, 1.0)).astype(space.dtype)
