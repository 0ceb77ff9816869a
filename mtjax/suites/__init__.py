"""Suites: named sets of tasks with parameters, metadata, splits and a version stamp."""

from mtjax.suites import bodies, control, goals, gridworld, hidden, metaworld, rich  # noqa: F401  (they register)
from mtjax.suites.base import (
    SPLITS,
    Split,
    Suite,
    TaskInfo,
    Version,
    from_env,
    make,
    names,
    register,
    stack,
)
from mtjax.suites.host import from_envpool, from_gymnasium

__all__ = [
    "SPLITS",
    "Split",
    "Suite",
    "TaskInfo",
    "Version",
    "from_env",
    "from_envpool",
    "from_gymnasium",
    "make",
    "names",
    "register",
    "stack",
]
