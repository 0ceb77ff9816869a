"""Packed trials: trained as one program, then stored in one folder per trial, as if each had been trained alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from mtjax import options, suites
from mtjax.training import files, lock, memory, packing, record, run
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.config import CHECKPOINTS, RunConfig, refuse_changes
from mtjax.training.trainer import Trainer

FINISHED = "finished.json"  # in a program's folder, once each of its trials has its own


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the trials of a program ended.

    Attributes:
        summaries: contents of ``summary.json``, by name, of the trials that finished.
        diverged: messages, by name, of the trials that diverged.
    """

    summaries: Mapping[str, Mapping[str, Any]]
    diverged: Mapping[str, str]


def train_packed(
    trials: Mapping[str, RunConfig],
    program_dir: str | os.PathLike,
    trials_dir: str | os.PathLike,
    *,
    resume: bool = False,
    progress: bool = True,
    video: bool = True,
    tensorboard: bool = True,
) -> Outcome:
    """Train trials as the rows of one program, then give each the folder it would have if trained alone.

    A trial that diverges does not stop the others.

    Args:
        trials: name to configuration; they may differ only as :mod:`mtjax.training.packing` allows.
        program_dir: where the program keeps its record and its checkpoints while it trains.
        trials_dir: where every trial gets a folder of its name: configuration, record, last checkpoint, plots and
            summary. A folder is complete or absent. That of a diverged trial has only configuration and record.
        resume, progress, video, tensorboard: as in :func:`mtjax.training.run.train`.

    Raises:
        ValueError: the trials are not one program, ``program_dir`` holds a program and ``resume`` is False, or holds
            one of other trials; or another process is using it or a trial's folder.
        Interrupted: a signal was received; the state was saved.
    """
    program_dir, trials_dir = pathlib.Path(program_dir), pathlib.Path(trials_dir)
    for config in trials.values():
        config.validate()
    trainer = make_trainer(trials)
    memory.require_replay(trainer)
    with lock.lock(program_dir, "program"):
        if not resume and (program_dir / record.FILE).exists():
            raise ValueError(f"{program_dir} already holds a program; resume it, or choose another folder")
        if resume and (program_dir / packing.PROGRAM).exists():
            _require_same(packing.load_program(program_dir).trials, trainer.rows.trials, program_dir)
        if resume and (program_dir / FINISHED).exists():
            return _finished(program_dir, trials_dir)
        for name in trials:
            with _alone(trials_dir / name):  # if it is in use, fail now, not after hours of training
                pass
        files.write_json(program_dir / packing.PROGRAM, packing.describe_program(trainer.rows))
        with run.at_work(trainer, program_dir, resume=resume, progress=progress, tensorboard=False) as session:
            seconds, measured = 0.0, None
            with contextlib.suppress(run.Diverged):  # every trial has diverged; each has its message
                session.loop()
                seconds, measured = session.seconds, session.measure()
            session.recorder.sync()
            session.saver.wait()
            session.bar.message(f"writing the folders of {len(trials)} trials …")
            lines = record.read(program_dir)
            for name in trials:
                folder = trials_dir / f".{name}.part"
                shutil.rmtree(folder, ignore_errors=True)
                _leave(session, name, folder, lines, measured, seconds=seconds, draw=video, tensorboard=tensorboard)
                with _alone(trials_dir / name):
                    shutil.rmtree(trials_dir / name, ignore_errors=True)
                    os.replace(folder, trials_dir / name)
            files.sync_folder(trials_dir)
        return _finish(session, program_dir, trials_dir)


def _require_same(have: Mapping[str, RunConfig], trials: Mapping[str, RunConfig], folder: pathlib.Path) -> None:
    """Refuse to resume a program with other trials, or in another order, as rows are identified by position."""
    if list(have) != list(trials):
        raise ValueError(f"{folder} holds a program with trials {', '.join(have)}, not {', '.join(trials)}")
    for name, config in trials.items():
        refuse_changes(have[name], options.flatten(config), f"{folder} holds trial {name} with other options")


def _alone(place: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Context manager: lock a trial's folder, if it exists. Raises ValueError if another process holds it."""
    return lock.lock(place, "run") if place.exists() else contextlib.nullcontext()


def _finish(session: run.Session, program_dir: pathlib.Path, trials_dir: pathlib.Path) -> Outcome:
    """Record that every trial has its folder, with its rows of the last checkpoint, and delete the program's own."""
    states = {name: session.lost.get(name, {}).get("message") for name in session.trainer.rows.trials}
    files.write_json(program_dir / FINISHED, states)
    shutil.rmtree(program_dir / CHECKPOINTS, ignore_errors=True)
    return _finished(program_dir, trials_dir)


def _finished(program_dir: pathlib.Path, trials_dir: pathlib.Path) -> Outcome:
    """Read the outcome of a finished program."""
    states = json.loads((program_dir / FINISHED).read_text())
    diverged = {name: why for name, why in states.items() if why}
    done = [name for name in states if name not in diverged]
    return Outcome({name: json.loads((trials_dir / name / run.SUMMARY).read_text()) for name in done}, diverged)


def make_trainer(trials: Mapping[str, RunConfig]) -> Trainer:
    """Build the trainer of packed trials.

    Raises:
        ValueError: the trials are not one program; or their simulators run on the host, where a row's episodes
            depend on the other rows.
    """
    first = next(iter(trials.values()))
    suite = suites.make(first.suite)
    if not suite.on_device and len(trials) > 1:
        raise ValueError(f"suite {suite.name!r} cannot be packed: its simulators run on the host")
    learner = Trainer(first, suite).learner
    rows = packing.pack(trials, packing.vmapped_options(learner))
    return Trainer(rows.config, suite, rows)


def _leave(
    session: run.Session,
    name: str,
    folder: pathlib.Path,
    lines: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]] | None,
    *,
    seconds: float,
    draw: bool,
    tensorboard: bool,
) -> None:
    """Fill a trial's folder with its share of the record and, unless it diverged, of the state and the evaluation."""
    config, part = session.trainer.rows.trials[name], session.trainer.rows.slices[name]
    run.write_description(config, session.suite, folder)
    messages = {trial: lost["message"] for trial, lost in session.lost.items()}
    own = packing.lines_of(lines, session.trainer.rows, name, messages)
    packing.copy_record(own, folder, tensorboard=tensorboard)
    if name in session.lost or measured is None:
        return
    state = packing.rows_of(session.state, part)
    with Checkpointer(folder) as saver:
        host = {"update": session.update, "seconds": seconds, "lost": {}}
        saver.save(session.step, session.trainer.saved(state), host)
    values = {
        split: {mode: packing.values_of(found, part) for mode, found in modes.items()}
        for split, modes in measured.items()
    }
    session.conclude(folder, config, state, values, seconds=seconds, draw=draw)
