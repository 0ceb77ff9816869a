"""``hidden-*``: suites of one body, whose physics differs from task to task and is not part of the observation.

Some lengths can be inferred from a single observation all the same: ``hidden-reacher`` observes its fingertip, which
follows from the joint angles and the two link lengths, and hoppers, walkers and ants start at a height that grows with
their legs.

Families that mix variations (``hidden-hopper``, ``hidden-cheetah`` …) have 8 training tasks. Every parameter
takes 8 evenly spaced values, in a different order for each parameter, so that the tasks cover the whole parameter
box. The 8 interpolation tasks lie strictly inside the box; in the 8 extrapolation tasks EVERY parameter lies outside.

Families of MTEnv (``hidden-walker-friction`` …) have ten values of one parameter: 6 for training, 2 between them
and 2 beyond them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence

import numpy as np

from mtjax.suites.base import Split, Suite, TaskInfo, Version, from_env, register


@dataclasses.dataclass(frozen=True)
class Variation:
    """One physical parameter that differs between tasks.

    Attributes:
        parameter: the argument of the body's ``mjcf``.
        low, high: range of the training tasks.
        phrase: its wording in descriptions, a format string for the value.
        margin: how far extrapolation goes beyond the range, as a fraction of the range's width.
    """

    parameter: str
    low: float
    high: float
    phrase: str
    margin: float = 0.25

    def at(self, place: float) -> float:
        """The value at a relative position in the range: 0 is ``low``, 1 is ``high``."""
        return round(float(self.low + place * (self.high - self.low)), 4)


@dataclasses.dataclass(frozen=True)
class Family:
    """A body and what it is to do.

    Attributes:
        body: name of the class in :mod:`mtjax.envs.mjx`.
        aim: the task in words; the descriptions begin with it.
        reward: the reward in words, for the version stamp.
        horizon: steps per episode.
        success: the success criterion, or "none"; if there is one, the body must report "success" in its info.
        goals: what is drawn for each episode besides the pose, for the version stamp.
    """

    body: str
    aim: str
    reward: str
    horizon: int
    success: str = "none"
    goals: str = "none"


GRAVITY = Variation("gravity", 0.7, 1.3, "{:.0%} of the usual gravity")
MASS = Variation("mass", 0.7, 1.3, "{:.0%} of the usual mass")
LEG = Variation("leg", 0.8, 1.2, "shanks of {:.0%} of the usual length")
STRENGTH = Variation("strength", 0.7, 1.3, "motors of {:.0%} of the usual strength")


def _friction(low: float, high: float) -> Variation:
    return Variation("friction", low, high, "a sliding friction of {:.2f}")


CARTPOLE = Family(
    "Cartpole",
    "Swing up a pole on a cart and balance it",
    "upright x centred x calm x gentle, in [0, 1]",
    500,
)
REACHER = Family(
    "Reacher",
    "Bring the tip of a two-link arm to a target drawn in every episode",
    "-distance - 0.01 |action|^2",
    100,
    success="tip within 3 cm of the target",
    goals="redrawn each episode, observed",
)
FINGER = Family(
    "Finger",
    "Spin a cross about its hinge with a finger of two links",
    "angular velocity / 15 rad/s, clipped to [0, 1]",
    500,
)
HOPPER = Family(
    "Hopper",
    "Hop forward on one leg as fast as possible without falling",
    "1 + forward velocity - 0.001 |action|^2; a fall ends the episode",
    500,
)
WALKER = Family(
    "Walker",
    "Walk forward on two legs as fast as possible without falling",
    "1 + forward velocity - 0.001 |action|^2; a fall ends the episode",
    500,
)
CHEETAH = Family(
    "Cheetah",
    "Run forward on two legs as fast as possible",
    "forward velocity - 0.1 |action|^2",
    500,
)
ANT = Family(
    "Ant",
    "Run forward on four legs as fast as possible without toppling",
    "1 + forward velocity - 0.5 |action|^2; leaving heights of 0.2 to 1 m ends the episode",
    500,
)

MIXED: dict[str, tuple[Family, tuple[Variation, ...]]] = {
    "hidden-cartpole-swingup": (
        CARTPOLE,
        (
            GRAVITY,
            Variation("cart_mass", 0.7, 1.3, "a cart of {:.2f} kg"),
            Variation("pole_mass", 0.07, 0.13, "a pole of {:.3f} kg"),
            Variation("pole_length", 0.7, 1.3, "a pole of {:.2f} m"),
            STRENGTH,
        ),
    ),
    "hidden-reacher": (
        REACHER,
        (
            Variation("upper", 0.11, 0.15, "an upper link of {:.3f} m"),
            Variation("lower", 0.11, 0.15, "a lower link of {:.3f} m"),
            MASS,
            Variation("damping", 0.7, 1.3, "joints of {:.0%} of the usual damping"),
            STRENGTH,
        ),
    ),
    "hidden-hopper": (HOPPER, (GRAVITY, _friction(0.7, 1.3), MASS, LEG, STRENGTH)),
    "hidden-walker": (WALKER, (GRAVITY, _friction(0.7, 1.3), MASS, LEG, STRENGTH)),
    "hidden-cheetah": (
        CHEETAH,
        (
            GRAVITY,
            _friction(0.6, 1.2),
            MASS,
            Variation("torso", 0.4, 0.6, "a torso of half-length {:.2f} m"),
            STRENGTH,
        ),
    ),
    "hidden-ant": (ANT, (GRAVITY, _friction(0.7, 1.3), MASS, LEG, STRENGTH)),
}


def _foot(i: int) -> float:
    return 0.046 if i == 1 else 0.0552 + 0.0046 * (i - 2)


# The families of MTEnv: ten values of one parameter (of two for the cartpole), numbered 1 to 10 as in MTEnv.
TEN: dict[str, tuple[Family, str, tuple[dict[str, float], ...]]] = {
    "hidden-cheetah-torso-length": (
        CHEETAH,
        "a torso of half-length {torso:.2f} m",
        tuple({"torso": 0.5 + 0.1 * i} for i in range(10)),
    ),
    "hidden-cheetah-foot-size": (
        CHEETAH,
        "feet of radius {foot:.4f} m",
        tuple({"foot": _foot(i)} for i in range(1, 11)),
    ),
    "hidden-walker-friction": (
        WALKER,
        "a sliding friction of {friction:.1f}",
        tuple({"friction": 0.7 + 0.1 * i} for i in range(10)),
    ),
    "hidden-walker-foot-length": (
        WALKER,
        "a left foot of half-length {left_foot:.2f} m",
        tuple({"left_foot": 0.08 + 0.01 * i} for i in range(10)),
    ),
    "hidden-cartpole-mass": (
        CARTPOLE,
        "a cart of {cart_mass:.1f} kg and a pole of {pole_mass:.2f} kg",
        tuple({"cart_mass": 1.0 + 0.5 * i, "pole_mass": 0.1 + 0.05 * i} for i in range(10)),
    ),
    "hidden-finger-size": (
        FINGER,
        "an outer link of {finger:.2f} m",
        tuple({"finger": 0.12 + 0.01 * i} for i in range(10)),
    ),
}
TEN_SPLITS = {"train": (2, 3, 5, 6, 8, 9), "interpolation": (4, 7), "extrapolation": (1, 10)}


# ---------------------------------------------------------------------------------------- splits


# A Latin hypercube of 8 held-out tasks: row j has the rank of parameter j in each. Any two rows are almost uncorrelated
# (at most 0.05), and each of the four combinations of a low (0 to 3) and a high rank (4 to 7) occurs in two tasks.
HELD_OUT = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [5, 4, 1, 0, 6, 7, 2, 3],
        [7, 1, 0, 6, 4, 2, 3, 5],
        [3, 5, 4, 2, 6, 0, 1, 7],
        [1, 7, 0, 6, 5, 3, 4, 2],
    ]
)


def mixed_parameters(variations: Sequence[Variation]) -> dict[str, list[dict[str, float]]]:
    """The parameters of every task of a mixed family, by split; every parameter has its own order."""
    train = np.arange(8) / 7.0
    inside = (np.arange(8) + 0.5) / 8.0
    far = np.array([1.0, 5 / 6, 4 / 6, 1 / 2])  # how far beyond the range, as fractions of the margin

    def places(values: np.ndarray, j: int) -> np.ndarray:
        steps = np.arange(1, len(values) + 1) * (2 * j + 1)
        return values[np.argsort(steps % 11)]  # 11 is prime: no ties, and another order for each j in 0..4

    def outside(j: int) -> np.ndarray:
        margin = variations[j].margin
        return np.concatenate([-margin * far, 1 + margin * far[::-1]])[HELD_OUT[j]]

    def tasks(columns: list[np.ndarray]) -> list[dict[str, float]]:
        return [
            {v.parameter: v.at(p) for v, p in zip(variations, row, strict=True)} for row in zip(*columns, strict=True)
        ]

    numbers = range(len(variations))
    return {
        "train": tasks([places(train, j) for j in numbers]),
        "interpolation": tasks([inside[HELD_OUT[j]] for j in numbers]),
        "extrapolation": tasks([outside(j) for j in numbers]),
    }


# ---------------------------------------------------------------------------------------- building


def build(
    name: str,
    family: Family,
    infos: Mapping[str, Sequence[TaskInfo]],
    goals: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    *,
    edition: str = "1",
) -> Suite:
    """Compile every task's body and make the suite.

    Args:
        infos: the tasks of every split. Their ``parameters`` are the arguments of the body's ``mjcf``, unless
            ``goals`` are given: then all tasks have the default body.
        goals: parameters of the reward by split: arrays [T, ...] by name.
        edition: the version stamp's "suite"; change it whenever tasks, splits or descriptions change.
    """
    from mtjax.envs import mjx  # importing MuJoCo takes seconds, so only when a suite is made
    from mtjax.envs.mjx.render import MjxRender

    body = getattr(mjx, family.body)
    mjcf = (lambda **_: body.mjcf()) if goals else body.mjcf
    every = [info for split in infos.values() for info in split]
    distinct = every[:1] if goals else every
    base, leaves = mjx.stack_models([mjx.compile_model(mjcf(**info.parameters)) for info in distinct])
    splits, first = {}, 0
    for label, members in infos.items():
        last = first + len(members)
        model = {leaf: values[first:last] for leaf, values in leaves.items()}
        first = last
        splits[label] = Split(tuple(members), mjx.MjxTask(model, dict((goals or {}).get(label, {}))))
    env = body(base)
    version = Version(
        suite=edition,
        simulator=f"mujoco-mjx {importlib.metadata.version('mujoco-mjx')}",
        reward=f"v1: {family.reward}",
        horizon=family.horizon,
        goals="fixed, not observed" if goals else family.goals,
        success=family.success,
    )
    return from_env(
        name,
        env,
        splits,
        version=version,
        has_success=family.success != "none",
        render=MjxRender(env, mjcf),
    )


def _mixed(name: str) -> Suite:
    family, variations = MIXED[name]
    infos = {
        split: [
            TaskInfo(f"{split}_{index}", _describe(family, variations, parameters), parameters)
            for index, parameters in enumerate(tasks)
        ]
        for split, tasks in mixed_parameters(variations).items()
    }
    return build(name, family, infos, edition="2")


def _ten(name: str) -> Suite:
    family, phrase, tasks = TEN[name]
    infos = {split: [_ten_info(family, phrase, tasks[i - 1]) for i in chosen] for split, chosen in TEN_SPLITS.items()}
    return build(name, family, infos)


def _ten_info(family: Family, phrase: str, parameters: Mapping[str, float]) -> TaskInfo:
    rounded = {parameter: round(value, 4) for parameter, value in parameters.items()}
    parameter, value = next(iter(rounded.items()))
    return TaskInfo(f"{parameter}_{value:g}", f"{family.aim}, with {phrase.format(**rounded)}.", rounded)


def _describe(family: Family, variations: Sequence[Variation], parameters: Mapping[str, float]) -> str:
    phrases = [v.phrase.format(parameters[v.parameter]) for v in variations]
    listed = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    return f"{family.aim}, with {listed}."


for _name in MIXED:
    register(_name)(lambda name=_name: _mixed(name))
for _name in TEN:
    register(_name)(lambda name=_name: _ten(name))
