"""The ledger of a sweep: an append-only file of one line per event, which gives the state of every trial.

    {"time", "event": "opened", "launcher", "host", "pid"}
    {"time", "event": "started", "program", "attempt", "job"}
    {"time", "event": "ended", "program", "attempt", "state", "error", "trials": {name: {"state", "error"}}, "again"}
    {"time", "event": "halved", "program", "into"}      from now on, two other programs have its trials
    {"time", "event": "closed", "why"}

Only the launcher writes the ledger, under a lock that ends with the launcher. Every line is on disk before the event
that it announces happens; a last line that was cut off by a kill is dropped. ``ended`` is taken from the outcome file
that the program itself wrote, so a restarted launcher learns of it later; ``again`` in the same line says that a failed
program has a retry left, which a restarted launcher still has to make.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time as clock
from collections.abc import Iterable, Mapping
from typing import Any

from mtjax.sweeps.plan import Plan
from mtjax.training import files

FILE = "ledger.jsonl"
WAITING, RUNNING, STOPPED, DONE, FAILED, DIVERGED = "waiting", "running", "stopped", "done", "failed", "diverged"
STATES = (DONE, RUNNING, STOPPED, WAITING, FAILED, DIVERGED)


class Ledger:
    """Appends to the ledger of a sweep. A context manager; hold the sweep's lock while it is open.

    Args:
        folder: the sweep's folder.
    """

    def __init__(self, folder: str | os.PathLike):
        path = pathlib.Path(folder) / FILE
        if path.exists():
            files.drop_torn_line(path)
        self._file = path.open("ab")

    def write(self, event: str, **fields: Any) -> None:
        """Append one line and flush it to disk."""
        self._file.write(files.json_line({"time": round(clock.time(), 3), "event": event, **fields}))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):  # what a full disk had no room for, which the writer has been told
            self._file.close()


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The events in order; empty if there is no ledger yet. An incomplete last line is left out.

    Raises:
        ValueError: a line other than the last is malformed; the message has its number.
    """
    path = pathlib.Path(folder) / FILE
    return files.parse_lines(path, {"time", "event"}) if path.exists() else []


@dataclasses.dataclass
class Progress:
    """How far a program or a trial is.

    Attributes:
        state: one of STATES.
        attempt: number of the last attempt.
        failures: how many attempts failed.
        again: True if it failed and has another attempt left (programs only).
        error: error of the last attempt, if it failed or diverged.
        started, ended: when the last attempt started and ended, in seconds since 1970.
        job: the launcher's name for the last attempt.
    """

    state: str = WAITING
    attempt: int = 0
    failures: int = 0
    again: bool = False
    error: str | None = None
    started: float | None = None
    ended: float | None = None
    job: str | None = None


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a sweep: the progress of its programs and of its trials, by name."""

    programs: Mapping[str, Progress]
    trials: Mapping[str, Progress]

    def count(self) -> dict[str, int]:
        """How many trials are in each state."""
        return {state: sum(trial.state == state for trial in self.trials.values()) for state in STATES}


def fold(plan: Plan, events: Iterable[Mapping[str, Any]]) -> State:
    """Replay the events to obtain the state. A program that started and has no recorded end counts as running."""
    programs = {name: Progress() for name in plan.programs}
    trials = {name: Progress() for name in plan.trials}
    for event in events:
        if event.get("program") not in programs:
            continue
        program = programs[event["program"]]
        members = [trials[name] for name in plan.programs[event["program"]].trials]
        if event["event"] == "started":
            for item in (program, *members):
                item.state, item.attempt, item.started = RUNNING, event["attempt"], event["time"]
                item.ended, item.error, item.job, item.again = None, None, event.get("job"), False
        elif event["event"] == "ended":
            program.state, program.error, program.ended = event["state"], event.get("error"), event["time"]
            program.failures += event["state"] == FAILED
            program.again = event.get("again", False)
            for name, outcome in event["trials"].items():
                trial = trials[name]
                trial.state, trial.error, trial.ended = outcome["state"], outcome.get("error"), event["time"]
                trial.failures += outcome["state"] == FAILED
    return State(programs, trials)
