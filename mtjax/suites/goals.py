"""``goals-*``: suites of one body, whose tasks differ in the reward. The goal is not observed.

Extrapolation goals lie beyond the training goals (for directions: in the half-plane that training never covers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mtjax.suites.base import Suite, TaskInfo, register
from mtjax.suites.hidden import Family, build

Goals = Mapping[str, Sequence]  # by split: the goals, numbers or points


def _suite(
    name: str,
    family: Family,
    parameter: str,
    goals: Goals,
    info: Callable[..., TaskInfo],
    **options: str,
) -> Suite:
    infos = {split: [info(goal) for goal in goals[split]] for split in goals}
    arrays = {split: {parameter: np.asarray(goals[split], np.float32)} for split in goals}
    return build(name, family, infos, arrays, **options)


def _velocity_info(verb: str) -> Callable[[float], TaskInfo]:
    def info(velocity: float) -> TaskInfo:
        description = f"{verb} at {abs(velocity):.2f} m/s."
        return TaskInfo(f"velocity_{velocity:g}", description, {"velocity": float(velocity)})

    return info


# ---------------------------------------------------------------------------------------- ant

ANT_FALL = "leaving heights of 0.2 to 1 m ends the episode"
ANT_DIRECTIONS = {
    "train": (-90, -65, -40, -15, 10, 35, 60, 85),
    "interpolation": (-75, -25, 25, 75),
    "extrapolation": (-150, -120, 120, 150),
}


@register("goals-ant-direction")
def _ant_direction() -> Suite:
    def info(degrees: float) -> TaskInfo:
        side = "left" if degrees > 0 else "right"
        description = f"Run on four legs in the direction {abs(degrees)} degrees to the {side} of straight ahead."
        return TaskInfo(f"direction_{degrees}", description, {"degrees": float(degrees)})

    family = Family("Ant", "", f"1 + velocity along the goal's direction - 0.5 |action|^2; {ANT_FALL}", 500)
    radians = {split: np.deg2rad(degrees) for split, degrees in ANT_DIRECTIONS.items()}
    infos = {split: [info(degrees) for degrees in chosen] for split, chosen in ANT_DIRECTIONS.items()}
    goals = {split: {"angle": np.asarray(angles, np.float32)} for split, angles in radians.items()}
    return build("goals-ant-direction", family, infos, goals)


ANT_VELOCITIES = {
    "train": (0.5, 0.8, 1.1, 1.4, 1.7, 2.0, 2.3, 2.6),
    "interpolation": (0.65, 1.25, 1.85, 2.45),
    "extrapolation": (0.2, 0.35, 2.9, 3.2),
}


@register("goals-ant-velocity")
def _ant_velocity() -> Suite:
    reward = f"1 - |forward velocity - goal| - 0.5 |action|^2; {ANT_FALL}"
    family = Family("Ant", "", reward, 500)
    return _suite("goals-ant-velocity", family, "velocity", ANT_VELOCITIES, _velocity_info("Run forward on four legs"))


# ---------------------------------------------------------------------------------------- cheetah

CHEETAH_VELOCITIES = {
    "train": (0.5, 0.8, 1.1, 1.4, 1.7, 2.0, 2.3, 2.6),
    "interpolation": (0.65, 1.25, 1.85, 2.45),
    "extrapolation": (0.2, 0.35, 2.9, 3.2),
}


@register("goals-cheetah-velocity")
def _cheetah_velocity() -> Suite:
    family = Family("Cheetah", "", "-|forward velocity - goal| - 0.1 |action|^2", 500)
    return _suite(
        "goals-cheetah-velocity",
        family,
        "velocity",
        CHEETAH_VELOCITIES,
        _velocity_info("Run forward on two legs"),
    )


# There are only two directions, so the held-out tasks differ in the weight of the velocity relative to the effort.
CHEETAH_DIRECTIONS = {"train": (1.0, -1.0), "interpolation": (0.5, -0.5), "extrapolation": (2.0, -2.0)}
CHEETAH_EFFORT = {
    0.5: ", where effort costs twice as much",
    1.0: " as fast as possible",
    2.0: ", where effort costs half",
}


@register("goals-cheetah-direction")
def _cheetah_direction() -> Suite:
    def info(direction: float) -> TaskInfo:
        name, size = "forward" if direction > 0 else "backward", abs(direction)
        description = f"Run {name} on two legs{CHEETAH_EFFORT[size]}."
        return TaskInfo(name if size == 1 else f"{name}_{size:g}", description, {"direction": float(direction)})

    family = Family("Cheetah", "", "goal (+1 or -1 in training) x forward velocity - 0.1 |action|^2", 500)
    return _suite("goals-cheetah-direction", family, "direction", CHEETAH_DIRECTIONS, info, edition="2")


# ---------------------------------------------------------------------------------------- reacher


def _ring(radii: Sequence[float], degrees: Sequence[float]) -> list[tuple[float, float]]:
    turns = np.deg2rad(degrees)
    return [(round(r * np.cos(t), 4), round(r * np.sin(t), 4)) for r, t in zip(radii, turns, strict=True)]


REACHER_TARGETS = {
    "train": _ring([0.1, 0.18] * 4, np.arange(8) * 45.0),
    "interpolation": _ring([0.14] * 4, np.arange(4) * 90.0 + 22.5),
    "extrapolation": _ring([0.05, 0.22] * 2, np.arange(4) * 90.0 + 67.5),
}


@register("goals-reacher")
def _reacher() -> Suite:
    def info(target: tuple[float, float]) -> TaskInfo:
        x, y = target
        description = f"Bring the tip of a two-link arm to the point {x:.2f} m ahead and {y:.2f} m to the left."
        return TaskInfo(f"target_{x:+.2f}_{y:+.2f}", description, {"x": float(x), "y": float(y)})

    family = Family("GoalReacher", "", "-distance - 0.01 |action|^2", 100, success="tip within 3 cm of the target")
    return _suite("goals-reacher", family, "target", REACHER_TARGETS, info)
