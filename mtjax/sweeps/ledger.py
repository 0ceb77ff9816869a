"""The ledger of a sweep: one line per event, only ever appended to, from which the state of every trial is known.

    {"time", "event": "opened", "launcher", "host", "pid"}
    {"time", "event": "started", "program", "attempt", "job"}
    {"time", "event": "ended", "program", "attempt", "state", "error", "trials": {name: {"state", "error"}}, "again"}
    {"time", "event": "halved", "program", "into"}      its trials are those of two other programs from now on
    {"time", "event": "closed", "why"}

The launcher alone writes it, under a lock that dies with it. Every line is durable before what it announces
happens; a last line that was torn by a kill is dropped. ``ended`` comes from the outcome that the program itself
left, so a launcher that was away learns of it later; ``again`` in the same line says that a failed program has a retry
left, which a launcher that comes later still owes it.
"""

from __future__ import annotations

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
    """Appends to the ledger of a sweep. A context manager; hold the sweep's lock meanwhile.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: str | os.PathLike):
        path = pathlib.Path(folder) / FILE
        if path.exists():
            files.drop_torn_line(path)
        self._file = path.open("ab")

    def write(self, event: str, **fields: Any) -> None:
        """Append one line and make it durable."""
        self._file.write(files.json_line({"time": round(clock.time(), 3), "event": event, **fields}))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The events, in order; none if there is no ledger yet. A torn last line is left out.

    Raises:
        ValueError: a line other than the last is broken; the message has its number.
    """
    path = pathlib.Path(folder) / FILE
    return files.parse_lines(path, {"time", "event"}) if path.exists() else []


@dataclasses.dataclass
class Progress:
    """How far a program or a trial is.

    Attributes:
        state: one of STATES.
        attempt: how often it was started.
        failures: how many of these attempts failed.
        again: it failed, and is owed another attempt (programs only).
        error: of the last attempt, if it failed or diverged.
        started, ended: seconds since 1970, of the last attempt.
        job: what the launcher calls the last attempt.
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
    """The state of a sweep: of its programs and of its trials, by name."""

    programs: Mapping[str, Progress]
    trials: Mapping[str, Progress]

    def count(self) -> dict[str, int]:
        """How many trials are in each state."""
        return {state: sum(trial.state == state for trial in self.trials.values()) for state in STATES}


def fold(plan: Plan, events: Iterable[Mapping[str, Any]]) -> State:
    """The state that the events lead to. A program that started and of whose end nothing is known is running."""
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
