"""Read-only access to a saved run, which may still be training, in a folder that may be a colleague's."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import warnings
from typing import Any

from mtjax import suites
from mtjax.suites import Suite
from mtjax.training import memory
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.config import PROTOCOL, SUITE, RunConfig
from mtjax.training.trainer import Trainer, TrainState

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def require_suite(run_dir: str | os.PathLike, config: RunConfig) -> None:
    """Raise ValueError if no suite of the name that a saved run was trained on is registered."""
    if config.suite not in suites.names():
        raise ValueError(f"{run_dir} was trained on suite {config.suite!r}, {suites.NOT_REGISTERED}")


def suite_of(run_dir: str | os.PathLike, config: RunConfig, *, resuming: bool = False) -> Suite:
    """The suite of a saved run. Warns if its protocol is no longer what it was when the run was started.

    Args:
        run_dir: the run's folder.
        config: the run's configuration.
        resuming: refuse to continue the run by another protocol. Another version of the simulator is allowed, with a
            warning.

    Raises:
        ValueError: no suite of that name is registered, or it has other training tasks, or the run must not be
            continued.
    """
    require_suite(run_dir, config)
    suite = suites.make(config.suite)
    try:
        then = json.loads((pathlib.Path(run_dir) / SUITE).read_text())
        names, stamp = [info["name"] for info in then["tasks"]["train"]], then["version"]
    except (OSError, ValueError, KeyError, TypeError):  # killed before it was written, or not by us
        return suite
    if names != [task.name for task in suite.tasks]:
        raise ValueError(
            f"{run_dir} was trained on other tasks than suite {config.suite!r} has now: {', '.join(names[:3])} …"
        )
    differing = {
        part: f"{'revision' if part == 'suite' else part} {stamp[part]} in the run, {getattr(suite.version, part)} now"
        for part in (*PROTOCOL, "simulator")
        if part in stamp and stamp[part] != getattr(suite.version, part)
    }
    if not differing:
        return suite
    what = f"suite {config.suite!r} is not as it was when {run_dir} was started: {'; '.join(differing.values())}"
    if resuming and not differing.keys().isdisjoint(PROTOCOL):
        raise ValueError(f"{what}; start a new run in another folder")
    warnings.warn(what, stacklevel=3)
    return suite


def restore(
    run_dir: str | os.PathLike, trainer: Trainer, checkpoint: int | None, *, to_be: str
) -> tuple[int, TrainState, dict[str, Any]]:
    """Load a checkpoint of a run; nothing on the disk is changed.

    Newer checkpoints that are damaged are listed in a warning.

    Args:
        run_dir: the run's folder.
        trainer: the run's trainer.
        checkpoint: step of the checkpoint; None means the newest good one.
        to_be: what is to be done with the run, for the error message, e.g. "evaluated".

    Returns:
        (step, state, host), like :meth:`Checkpointer.restore`.

    Raises:
        ValueError: there is no such checkpoint (the message says why), or its replay does not fit into memory.
    """
    if trainer.learner.replay and trainer.learner.replay.saved:
        memory.require_replay(trainer)
    with Checkpointer(run_dir, read_only=True) as saver, warnings.catch_warnings():
        if checkpoint is not None:
            warnings.simplefilter("ignore")  # nothing to fall back on; the error below says why
        found = saver.restore(trainer.abstract(), checkpoint)
    if found is None:
        what = "no usable checkpoint" if checkpoint is None else f"no usable checkpoint {checkpoint}"
        why = f" ({'; '.join(problem for _, problem in saver.skipped)})" if saver.skipped else ""
        raise ValueError(f"{run_dir} has {what}{why}; nothing can be {to_be}")
    return found


def warn_unwritable(error: OSError, run_dir: str | os.PathLike, *, stacklevel: int) -> None:
    """Warn that results are not kept, as a folder is not writable; any other error is raised again.

    Args:
        error: the error raised by writing there.
        run_dir: the folder.
        stacklevel: that of the warning, as if the caller issued it.
    """
    if error.errno not in UNWRITABLE:
        raise error
    warnings.warn(f"{run_dir} is not writable: the results are not saved there", stacklevel=stacklevel + 1)
