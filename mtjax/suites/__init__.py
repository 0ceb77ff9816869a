"""Suites: named sets of tasks with parameters, metadata, splits and a version stamp."""

import importlib
import os

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

OWN = "MTJAX_SUITES"  # environment variable: comma-separated modules that register the user's own suites
NOT_REGISTERED = f"which is not registered: import the module that registers it, or name that module in {OWN}"

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


def _import_own() -> None:
    """Import the modules named in MTJAX_SUITES. Raises ValueError if one of them does not exist."""
    for module in filter(None, os.environ.get(OWN, "").split(",")):
        try:
            importlib.import_module(module.strip())
        except ModuleNotFoundError as error:
            if not f"{module.strip()}.".startswith(f"{error.name}."):  # one of its imports is missing
                raise
            raise ValueError(f"{OWN}={module}: there is no such module in PYTHONPATH") from None


_import_own()
