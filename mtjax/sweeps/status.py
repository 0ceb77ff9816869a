"""Progress of a sweep, from its ledger and the last lines of its records, for people to watch."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtjax.sweeps import ledger, plan, worker
from mtjax.sweeps.ledger import DIVERGED, DONE, FAILED, RUNNING, STOPPED, WAITING, State
from mtjax.sweeps.plan import Plan
from mtjax.training import lock
from mtjax.training.config import METRICS

TAIL = 2**18  # bytes at the end of a record to read first; with many tasks, a line is long
OUTLIVES = "slurm "  # names of jobs that may outlive their launcher
ORDER = (RUNNING, STOPPED, FAILED, DIVERGED, WAITING, DONE)


class Row(NamedTuple):
    """One trial.

    Attributes:
        trial, program: names of the trial and its program.
        state: as in the ledger.
        share: fraction of its environment steps that is done, 0 to 1.
        speed: environment steps per second of its program, or None.
        measures: {"mean" | "worst": value} over tasks, averaged over seeds, of the newest measurement.
        measure: what was measured: "success" or "return"; "" if nothing yet.
        error: why it failed or diverged, or None.
    """

    trial: str
    program: str
    state: str
    share: float
    speed: float | None
    measures: Mapping[str, float]
    measure: str
    error: str | None


class Status(NamedTuple):
    """A sweep at one moment.

    Attributes:
        plan, state: plan and state of the sweep; a program that was killed with its launcher is stopped.
        rows: rows of its trials: running ones first, then stopped, failed and diverged ones, then the rest.
        elapsed: seconds since the first program started, until now or, if nothing is running, the last event.
        left: seconds that the remaining steps will take at the current speed, without evaluations and compilation; None
            if unknown.
        launcher: True if a launcher is running.
    """

    plan: Plan
    state: State
    rows: tuple[Row, ...]
    elapsed: float
    left: float | None
    launcher: bool


def look(folder: str | os.PathLike, now: float | None = None) -> Status:
    """Read the status of a sweep without changing anything.

    Args:
        folder: the sweep's folder.
        now: the time in seconds since 1970; None reads the clock.

    Raises:
        ValueError: the folder holds no sweep, or a broken ledger.
    """
    made = plan.load(folder)
    events = ledger.read(folder)
    state, launcher = ledger.fold(made, events), lock.held(folder)
    if not launcher:
        _find_ends(folder, made, state)
    rows = []
    for program in made.programs.values():
        own = plan.program_dir(folder, program.name)
        start = 0
        for name in program.trials:
            config, progress = made.trials[name].config, state.trials[name]
            part = slice(start, start + config.num_seeds) if program.packed else slice(None)
            start += config.num_seeds
            record = own if program.packed else plan.trial_dir(folder, name)
            lines = {} if progress.state == WAITING else _newest(record / METRICS)
            rows.append(_row(made, program.name, name, progress, lines, part))
    rows.sort(key=lambda row: ORDER.index(row.state))
    times = [event["time"] for event in events if event["event"] == "started"]
    now = time.time() if now is None else now
    running = any(row.state == RUNNING for row in rows)
    end = now if running else max((event["time"] for event in events), default=now)
    elapsed = max(0.0, end - times[0]) if times else 0.0
    shares = [row.share * made.trials[row.trial].steps for row in rows]
    total = sum(made.trials[row.trial].steps for row in rows if row.state not in (FAILED, DIVERGED))
    done = sum(s for s, row in zip(shares, rows, strict=True) if row.state not in (FAILED, DIVERGED))
    speed = sum({row.program: row.speed for row in rows if row.state == RUNNING and row.speed}.values())
    left = (total - done) / speed if speed else None
    return Status(made, state, tuple(rows), elapsed, left, launcher)


def _find_ends(folder: str | os.PathLike, made: Plan, state: State) -> None:
    """Correct the states of programs that ended after their launcher, whose ledger says that they are running."""
    for name, progress in state.programs.items():
        own = plan.program_dir(folder, name)
        if progress.state != RUNNING or lock.held(own):
            continue
        program, attempt = made.programs[name], progress.attempt
        outcome = worker.outcome_of(folder, program, attempt)
        if outcome is None and (progress.job or "").startswith(OUTLIVES):
            continue  # perhaps it waits in the queue
        outcome = outcome or worker.interrupted(program, attempt)
        progress.state, progress.error = outcome.state, outcome.error
        for trial, end in outcome.trials.items():
            state.trials[trial].state, state.trials[trial].error = end["state"], end["error"]


def _row(made: Plan, program: str, name: str, progress: Any, lines: Mapping[str, dict], part: slice) -> Row:
    trial = made.trials[name]
    total = trial.steps / trial.config.num_seeds
    train, evaluation = lines.get("train"), lines.get("evaluation")
    step = max((line["step"] for line in (train, evaluation) if line), default=0)
    share = 1.0 if progress.state == DONE else min(1.0, step / total) if total else 0.0
    speed = train["values"].get("steps_per_second") if train and progress.state == RUNNING else None
    measure, found = _measure(evaluation or train, part)
    return Row(name, program, progress.state, share, speed, found, measure, progress.error)


def _measure(line: Mapping[str, Any] | None, part: slice) -> tuple[str, dict[str, float]]:
    """The measure in a line of a record, and its mean and worst over tasks, averaged over the trial's seeds."""
    for name in ("success_any", "success", "return"):
        if line and name in line["values"]:
            values = np.array(line["values"][name], float)[part]  # [S, T]
            known = values[np.isfinite(values).all(axis=-1)]
            if len(known):
                found = {"mean": float(known.mean()), "worst": float(known.min(axis=-1).mean())}
                return name.removesuffix("_any"), found
    return "", {}


def _newest(path: pathlib.Path) -> dict[str, dict]:
    """The newest training line and the newest deterministic evaluation of the training tasks in a record.

    Newest by step: an old checkpoint may have been evaluated since. Reads no more of the file's end than needed.
    """
    found: dict[str, dict] = {}
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            reach = TAIL
            while True:
                file.seek(max(0, size - reach))
                lines = file.read().split(b"\n")
                for text in reversed(lines if reach >= size else lines[1:]):
                    if _take(found, text):
                        return found
                if reach >= size:
                    return found
                reach *= 8
    except OSError:
        return found


def _take(found: dict[str, dict], text: bytes) -> bool:
    """Take in a line of a record that is read backwards. Returns True if earlier lines cannot be newer."""
    try:
        line = json.loads(text)
    except ValueError:
        return False  # empty or incomplete
    kind = line.get("kind")
    other = kind == "evaluation" and (line["split"], line["mode"]) != ("train", "deterministic")
    if kind in ("train", "evaluation") and not other:
        newest = found.setdefault(kind, line)
        if line["step"] > newest["step"]:
            found[kind] = line
    # What the run itself evaluated at later steps, it has recorded after this training line.
    return kind == "train" and "evaluation" in found and line["step"] <= found["evaluation"]["step"]
