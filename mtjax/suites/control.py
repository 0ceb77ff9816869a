"""The control suites: CartPole, Acrobot and Pendulum, with tasks that differ in hidden physical parameters.

The parameters are those of MTEnv (gravity, masses, lengths, force, and the sign of force or torque). Every task
but the default changes one of them. Train: within MTEnv's ranges. Interpolation: between the training values.
Extrapolation: beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtjax.envs import control
from mtjax.envs.base import Env
from mtjax.suites import pictures
from mtjax.suites.base import Split, Suite, TaskInfo, Version, from_env, register
from mtjax.suites.render import renderer

_Values = Sequence[tuple[str, float]]  # one (parameter, value) per task

_CARTPOLE: dict[str, _Values] = {
    "train": [
        *(("gravity", value) for value in (4.8, 14.8)),
        *(("cart_mass", value) for value in (0.5, 1.5)),
        *(("pole_mass", value) for value in (0.02, 0.19)),
        *(("half_length", value) for value in (0.25, 0.8)),
        *(("force", value) for value in (5.0, -5.0, -10.0)),
    ],
    "interpolation": [
        *(("gravity", value) for value in (7.0, 12.0)),
        *(("cart_mass", value) for value in (0.75, 1.25)),
        ("pole_mass", 0.15),
        ("half_length", 0.65),
        *(("force", value) for value in (7.5, -7.5)),
    ],
    "extrapolation": [
        *(("gravity", value) for value in (2.0, 20.0)),
        *(("cart_mass", value) for value in (0.25, 3.0)),
        ("pole_mass", 0.5),
        ("half_length", 1.2),
        *(("force", value) for value in (15.0, -15.0)),
    ],
}

_ACROBOT: dict[str, _Values] = {
    "train": [
        *(("gravity", value) for value in (7.0, 12.0)),
        *((name, value) for name in ("mass_1", "mass_2") for value in (0.5, 1.5)),
        *((name, value) for name in ("length_1", "length_2") for value in (0.75, 1.25)),
        ("torque", -1.0),
    ],
    "interpolation": [
        *(("gravity", value) for value in (8.5, 11.0)),
        *((name, 0.75) for name in ("mass_1", "mass_2")),
        *((name, 1.15) for name in ("length_1", "length_2")),
        *(("torque", value) for value in (0.8, -0.8)),
    ],
    "extrapolation": [
        *(("gravity", value) for value in (4.0, 15.0)),
        *((name, 2.0) for name in ("mass_1", "mass_2")),
        *((name, 0.5) for name in ("length_1", "length_2")),
        *(("torque", value) for value in (1.5, -1.5)),
    ],
}

_PENDULUM: dict[str, _Values] = {
    "train": [
        *(("gravity", value) for value in (6.0, 12.0)),
        *(("mass", value) for value in (0.7, 1.2)),
        *(("length", value) for value in (0.7, 1.2)),
        *(("torque", value) for value in (3.0, -2.0)),
    ],
    "interpolation": [("gravity", 8.0), ("mass", 0.85), ("length", 0.85), ("torque", 2.5)],
    "extrapolation": [("gravity", 3.0), ("mass", 0.4), ("length", 0.5), ("torque", -4.0)],
}

_UNITS = {
    "gravity": "m/s²",
    "force": "N",
    "torque": "N m",
    "half_length": "m",
    "length": "m",
    "length_1": "m",
    "length_2": "m",
}
_SPOKEN = {
    "cart_mass": "a cart",
    "pole_mass": "a pole",
    "half_length": "a pole of half-length",
    "mass": "a rod",
    "length": "a rod of length",
    "mass_1": "a link at the pivot",
    "mass_2": "an outer link",
    "length_1": "a link at the pivot of length",
    "length_2": "an outer link of length",
}


def _describe(goal: str, name: str, value: float, usual: float) -> str:
    """One sentence, e.g. "Balance a pole on a moving cart, with a gravity of 4.8 m/s² (usually 9.8)."."""
    unit = _UNITS.get(name, "kg")
    if name in ("force", "torque"):
        turned = " that acts the wrong way round" if value < 0 else ""
        return f"{goal}, with a {name} of {abs(value):g} {unit} (usually {usual:g}){turned}."
    of = {"gravity": "a gravity of"}.get(name, _SPOKEN.get(name, name))
    of = of if name == "gravity" or "length" in name else f"{of} of"
    return f"{goal}, with {of} {value:g} {unit} (usually {usual:g})."


def _split(default: NamedTuple, goal: str, values: _Values, *, with_default: bool) -> Split:
    """One task per value, changing one parameter of ``default``; ``with_default`` adds the default as first task."""
    tasks = [default._replace(**{name: value}) for name, value in values]
    names = [f"{name}_{value:g}" for name, value in values]
    sentences = [_describe(goal, name, value, getattr(default, name)) for name, value in values]
    if with_default:
        tasks, names = [default, *tasks], ["default", *names]
        sentences = [f"{goal}, with the usual parameters.", *sentences]
    infos = tuple(
        TaskInfo(name, sentence, task._asdict()) for name, sentence, task in zip(names, sentences, tasks, strict=True)
    )
    return Split(infos, jax.tree.map(lambda *numbers: np.asarray(numbers, np.float32), *tasks))


def _suite(
    name: str,
    env: Env,
    default: NamedTuple,
    goal: str,
    values: dict[str, _Values],
    draw: Callable,
    *,
    horizon: int,
    success: str = "none",
) -> Suite:
    splits = {label: _split(default, goal, split, with_default=label == "train") for label, split in values.items()}
    version = Version(suite="1", simulator="mtjax control 1", reward="gymnasium v1", horizon=horizon, success=success)
    render = renderer(env, draw, frames_per_second=1.0 / env.time_step, horizon=horizon)
    return from_env(name, env, splits, version=version, has_success=success != "none", render=render)


def _cartpole(name: str, kind: control.Kind) -> Suite:
    goal = "Balance a pole on a moving cart"
    return _suite(name, control.CartPole(kind), control.CartPoleTask(), goal, _CARTPOLE, pictures.cartpole, horizon=500)


def _acrobot(name: str, kind: control.Kind) -> Suite:
    return _suite(
        name,
        control.Acrobot(kind),
        control.AcrobotTask(),
        "Swing up two hanging links by the joint between them",
        _ACROBOT,
        pictures.acrobot,
        horizon=500,
        success="the tip is one link's length above the pivot",
    )


@register("control-cartpole")
def cartpole() -> Suite:
    """CartPole with two discrete actions, 12 training tasks; horizon 500."""
    return _cartpole("control-cartpole", "discrete")


@register("control-cartpole-continuous")
def cartpole_continuous() -> Suite:
    """CartPole with continuous actions, 12 training tasks; horizon 500."""
    return _cartpole("control-cartpole-continuous", "continuous")


@register("control-acrobot")
def acrobot() -> Suite:
    """Acrobot with three discrete actions, 12 training tasks; horizon 500."""
    return _acrobot("control-acrobot", "discrete")


@register("control-acrobot-continuous")
def acrobot_continuous() -> Suite:
    """Acrobot with continuous actions, 12 training tasks; horizon 500."""
    return _acrobot("control-acrobot-continuous", "continuous")


@register("control-pendulum")
def pendulum() -> Suite:
    """Pendulum swing-up with continuous actions, 9 training tasks; horizon 200."""
    return _suite(
        "control-pendulum",
        control.Pendulum(),
        control.PendulumTask(),
        "Swing up a rod and hold it there",
        _PENDULUM,
        pictures.pendulum,
        horizon=200,
    )
