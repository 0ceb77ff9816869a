"""A saved run, for those who only look at it: it may be training meanwhile, and its folder may be a colleague's."""

from __future__ import annotations

import errno
import os
import warnings
from typing import Any

from mtjax.training import memory
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.trainer import Trainer, TrainState

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def restore(
    run_dir: str | os.PathLike, trainer: Trainer, checkpoint: int | None, *, to_be: str
) -> tuple[int, TrainState, dict[str, Any]]:
    """A checkpoint of a run; nothing on the disk is changed.

    Damaged ones that are newer than the one taken are named in a warning.

    Args:
        run_dir: the run's folder.
        trainer: the run's.
        checkpoint: its step; None is the newest good one.
        to_be: what is to be done with it, for the message: "evaluated".

    Returns:
        (step, state, host), as :meth:`Checkpointer.restore`.

    Raises:
        ValueError: there is none, and the message says why; or it holds a replay that is larger than the memory.
    """
    if trainer.learner.replay and trainer.learner.replay.saved:
        memory.require_replay(trainer)
    with Checkpointer(run_dir, read_only=True) as saver, warnings.catch_warnings():
        if checkpoint is not None:
            warnings.simplefilter("ignore")  # there is nothing else to fall back on, and it is said below
        found = saver.restore(trainer.abstract(), checkpoint)
    if found is None:
        what = "no usable checkpoint" if checkpoint is None else f"no usable checkpoint {checkpoint}"
        why = f" ({'; '.join(problem for _, problem in saver.skipped)})" if saver.skipped else ""
        raise ValueError(f"{run_dir} has {what}{why}; nothing can be {to_be}")
    return found


def warn_unwritable(error: OSError, run_dir: str | os.PathLike, *, stacklevel: int) -> None:
    """Warn that results are not kept in a folder that cannot be written; any other error is raised again.

    Args:
        error: what came of writing there.
        run_dir: the folder.
        stacklevel: of the warning, as if the caller gave it.
    """
    if error.errno not in UNWRITABLE:
        raise error
    warnings.warn(f"{run_dir} cannot be written: the results are not kept there", stacklevel=stacklevel + 1)
