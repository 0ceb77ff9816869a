"""A program of packed trials: trained as one, left behind as one folder a trial, as if each had been alone."""

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
from mtjax.training.checkpoint import FOLDER as CHECKPOINTS
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.config import RunConfig, refuse_changes
from mtjax.training.trainer import Trainer

FINISHED = "finished.json"  # in a program's folder, once all its trials have theirs


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the trials of a program ended.

    Attributes:
        summaries: what ``summary.json`` holds, of the trials that came to the end.
        diverged: why the others did not, by name.
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
    """Train trials as the rows of one program, then give each the folder that it would have left alone.

    A trial that diverges is left behind; the others go on.

    Args:
        trials: name to configuration; they differ in options of the learner's ``hyper`` and in their seeds only.
        program_dir: where the program keeps its record and its checkpoints while it trains.
        trials_dir: here every trial gets a folder of its name: configuration, record, last checkpoint, plots,
            summary. A folder is there whole or not at all. Of a trial that diverged it has no summary.
        resume, progress, video, tensorboard: as in :func:`mtjax.training.run.train`.

    Raises:
        ValueError: the trials are not one program, ``program_dir`` holds one and ``resume`` is False, or holds one of
            other trials; or another process is at work in it or in a trial's folder.
        Interrupted: a signal came; the state was saved.
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
            with _alone(trials_dir / name):  # else it is said now, not after hours of training
                pass
        files.write_json(program_dir / packing.PROGRAM, packing.describe_program(trainer.rows))
        with run.at_work(trainer, program_dir, resume=resume, progress=progress, tensorboard=False) as session:
            seconds, measured = 0.0, None
            with contextlib.suppress(run.Diverged):  # no trial is left; each has its message
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
    """Refuse to go on with other trials than those that a program holds, whose rows are told apart by their place."""
    if list(have) != list(trials):
        raise ValueError(f"{folder} holds a program of the trials {', '.join(have)}, not of {', '.join(trials)}")
    for name, config in trials.items():
        refuse_changes(have[name], options.flatten(config), f"{folder} holds trial {name} with other options")


def _alone(place: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Hold a trial's folder, if it is there. ValueError if another process does."""
    return lock.lock(place, "run") if place.exists() else contextlib.nullcontext()


def _finish(session: run.Session, program_dir: pathlib.Path, trials_dir: pathlib.Path) -> Outcome:
    """Note that every trial has its folder, with its rows of the last checkpoint, and delete the program's."""
    states = {name: session.lost.get(name, {}).get("message") for name in session.trainer.rows.trials}
    files.write_json(program_dir / FINISHED, states)
    shutil.rmtree(program_dir / CHECKPOINTS, ignore_errors=True)
    return _finished(program_dir, trials_dir)


def _finished(program_dir: pathlib.Path, trials_dir: pathlib.Path) -> Outcome:
    """The outcome of a program that has come to its end."""
    states = json.loads((program_dir / FINISHED).read_text())
    diverged = {name: why for name, why in states.items() if why}
    done = [name for name in states if name not in diverged]
    return Outcome({name: json.loads((trials_dir / name / run.SUMMARY).read_text()) for name in done}, diverged)


def make_trainer(trials: Mapping[str, RunConfig]) -> Trainer:
    """The trainer of packed trials.

    Raises:
        ValueError: the trials are not one program; or their simulators run on the host, where a row's episodes
            depend on the rows beside it.
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
    """Fill one trial's folder with its share of the record, and unless it diverged of the state and the evaluation."""
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
