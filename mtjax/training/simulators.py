"""Simulators on the host that fail: one line for people, the traceback in the run's folder."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mtjax.envs import host

FILE = "simulator_error.txt"  # in a run's folder: the traceback of a simulator that failed


class SimulatorFailed(RuntimeError):
    """A simulator on the host raised, or its process died; the message names task and checkpoint."""


def close(env: Any) -> None:
    """Close an environment's simulators on the host, some 18 MB each for Meta-World; one on the device has none."""
    if isinstance(env, host.HostVectorEnv):
        env.close()
    for group in getattr(env, "groups", ()):
        close(group)


@contextlib.contextmanager
def watched(folder: pathlib.Path, say: Callable[[str], str] = str) -> Iterator[None]:
    """Within it, a simulator on the host that fails raises SimulatorFailed; its traceback goes into a run's folder.

    Args:
        folder: of the run.
        say: makes the message of what the simulator failed of.
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
