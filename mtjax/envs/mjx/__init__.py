"""MJX bodies: rigid-body environments in which the task carries the physics (gravity, masses, lengths …).

Importing this package imports MuJoCo; suites import it only when they are made.
"""

from mtjax.envs.mjx.ant import Ant
from mtjax.envs.mjx.env import MjxEnv, MjxState, MjxTask
from mtjax.envs.mjx.locomotion import Cheetah, Hopper, Walker
from mtjax.envs.mjx.manipulation import Cartpole, Finger, GoalReacher, Reacher
from mtjax.envs.mjx.models import compile_model, stack_models

__all__ = [
    "Ant",
    "Cartpole",
    "Cheetah",
    "Finger",
    "GoalReacher",
    "Hopper",
    "MjxEnv",
    "MjxState",
    "MjxTask",
    "Reacher",
    "Walker",
    "compile_model",
    "stack_models",
]
