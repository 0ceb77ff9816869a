"""Failures of host simulators: a one-line message for the user, and the traceback in the run's folder."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mtjax.envs import host

FILE = "simulator_error.txt"  # in a run's folder: the traceback of a simulator that failed


class SimulatorFailed(RuntimeError):
    """A host simulator raised, or its process died; the message names task and checkpoint."""


def close(env: Any) -> None:
    """Close an environment's host simulators (about 18 MB each for Meta-World); a device environment has none."""
    if isinstance(env, host.HostVectorEnv):
        env.close()
    for group in getattr(env, "groups", ()):
        close(group)


@contextlib.contextmanager
def watched(folder: pathlib.Path, say: Callable[[str], str] = str) -> Iterator[None]:
    """Context manager: turn the failure of a host simulator into SimulatorFailed, and save its traceback.

    Args:
        folder: the run's folder, for the traceback.
        say: turns the reason of the failure into the message.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        why = host.failure(error)
        if why is None:
            raise
        with contextlib.suppress(OSError):
            (folder / FILE).write_text(str(error))
        raise SimulatorFailed(say(f"{why} (traceback in {folder / FILE})")) from error
