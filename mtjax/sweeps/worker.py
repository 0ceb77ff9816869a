"""Runs one program of a sweep, from its plan to its outcome; every launcher runs this."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import tempfile
import traceback
from collections.abc import Mapping
from typing import Any

from mtjax.sweeps import plan
from mtjax.sweeps.ledger import DIVERGED, DONE, FAILED, STOPPED
from mtjax.training import lock
from mtjax.training.files import write_json

OUTCOME, LOG = "outcome.json", "log.txt"
PATIENCE = 120.0  # seconds to wait for a killed launcher's worker to finish saving
DISK_FULL = "the disk is full"  # the error of an outcome that a full disk stopped


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an attempt at a program ended, as ``outcome.json`` holds it.

    Attributes:
        attempt: number of the attempt.
        state: "done" (perhaps with trials that diverged), "stopped" (saved, to be continued) or "failed".
        error: one line, if it failed; ``DISK_FULL`` if a full disk stopped it.
        trials: {"state", "error"} of each trial, by name.
    """

    attempt: int
    state: str
    error: str | None
    trials: Mapping[str, Mapping[str, Any]]


def run(folder: str | os.PathLike, name: str, attempt: int) -> Outcome:
    """Train a program, from where an earlier attempt stopped, and write its outcome.

    An exception in training becomes the outcome; its traceback goes to standard error. If a full disk
    caused it, the program counts as stopped, and continues from its last checkpoint once there is room. If an earlier
    attempt, of a launcher that is gone, is still running, this one counts as interrupted, and the launcher tries again
    later.

    Args:
        folder: the sweep's folder.
        name: the program's name.
        attempt: number of the attempt, from the launcher, which tells this outcome from an earlier attempt's.

    Raises:
        ValueError: there is no such program.
    """
    made = plan.load(folder)
    if name not in made.programs:
        raise ValueError(f"{folder} has no program {name!r}")
    program = made.programs[name]
    own = plan.program_dir(folder, name)
    try:
        with lock.lock(own, "program", wait=PATIENCE):
            try:
                outcome = _train(folder, made, program, attempt)
            except Exception as error:
                with contextlib.suppress(OSError):  # the log may be on a full disk
                    traceback.print_exc()
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                outcome = _all(program, attempt, FAILED, text)
                if disk_full(error):
                    with contextlib.suppress(OSError):
                        print(f"{DISK_FULL}: {name} continues from its last checkpoint once there is room", flush=True)
                    outcome = without_room(program, attempt)
            try:
                write_json(own / OUTCOME, dataclasses.asdict(outcome))
            except OSError as error:
                if not disk_full(error):
                    raise
                outcome = without_room(program, attempt)  # which the exit code says
    except lock.InUse as error:
        print(f"{error}; it will be retried", flush=True)
        outcome = interrupted(program, attempt)
        write_json(own / OUTCOME, dataclasses.asdict(outcome))  # safe: the earlier attempt has another number
    return outcome


def _train(folder: str | os.PathLike, made: plan.Plan, program: plan.Program, attempt: int) -> Outcome:
    from mtjax.training import packed, record
    from mtjax.training import run as training

    options = {"progress": True} | {name: made.process[name] for name in ("video", "tensorboard")}
    trials = {name: made.trials[name].config for name in program.trials}
    try:
        if program.packed:
            own = plan.program_dir(folder, program.name)
            resume = (own / record.FILE).exists()
            found = packed.train_packed(trials, own, pathlib.Path(folder) / plan.TRIALS, resume=resume, **options)
            outcomes = {trial: {"state": DONE, "error": None} for trial in found.summaries}
            outcomes |= {trial: {"state": DIVERGED, "error": why} for trial, why in found.diverged.items()}
            return Outcome(attempt, DONE, None, outcomes)
        (trial, config), *_ = trials.items()
        own = plan.trial_dir(folder, trial)
        training.train(config, own, resume=(own / record.FILE).exists(), **options)
        return _all(program, attempt, DONE)
    except training.Interrupted:
        return _all(program, attempt, STOPPED)
    except training.Diverged as error:
        return Outcome(attempt, DONE, None, {trial: {"state": DIVERGED, "error": str(error)} for trial in trials})


def _all(program: plan.Program, attempt: int, state: str, error: str | None = None) -> Outcome:
    return Outcome(attempt, state, error, {name: {"state": state, "error": error} for name in program.trials})


def disk_full(error: BaseException | None) -> bool:
    """True if a full disk (or quota) caused the error: it, or an exception that led to it, says so."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True  # as the text of a CheckpointError
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def has_room(folder: str | os.PathLike) -> bool:
    """False if a full disk (or quota) has no room for a small file in this folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return not disk_full(error)
    return True


def outcome_of(folder: str | os.PathLike, program: plan.Program, attempt: int) -> Outcome | None:
    """The outcome that an attempt wrote, or None if there is none: it is still running, or was killed."""
    path = plan.program_dir(folder, program.name) / OUTCOME
    try:
        found = Outcome(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.attempt == attempt and set(found.trials) == set(program.trials) else None


def killed(program: plan.Program, attempt: int, how: str) -> Outcome:
    """The outcome of an attempt that died without writing one."""
    return _all(program, attempt, FAILED, how)


def interrupted(program: plan.Program, attempt: int) -> Outcome:
    """The outcome of an attempt that was cut off without a failure of its own: all its trials can be continued."""
    return _all(program, attempt, STOPPED)


def without_room(program: plan.Program, attempt: int) -> Outcome:
    """The outcome of an attempt that a full disk has stopped."""
    return _all(program, attempt, STOPPED, DISK_FULL)
