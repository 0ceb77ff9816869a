"""A program of packed trials: trained as one, left behind as one folder a trial, as if each had been alone."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from mtjax import suites
from mtjax.training import packing, record, run, versions
from mtjax.training.checkpoint import FOLDER as CHECKPOINTS
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.config import RunConfig
from mtjax.training.trainer import Trainer


FINISHED = "finished"  # in a program's folder: all its trials have theirs


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
        ValueError: the trials are not one program, or ``program_dir`` holds one and ``resume`` is False.
        Interrupted: a signal came; the state was saved.
    """
    program_dir, trials_dir = pathlib.Path(program_dir), pathlib.Path(trials_dir)
    for config in trials.values():
        config.validate()
    trainer = make_trainer(trials)
    if not resume and (program_dir / record.FILE).exists():
        raise ValueError(f"{program_dir} already holds a program; resume it, or choose another folder")
    if resume and (program_dir / FINISHED).exists():
        return _as_left(trials, trials_dir)
    versions.write_json(program_dir / packing.PROGRAM, packing.describe_program(trainer.rows))
    with run.at_work(trainer, program_dir, resume=resume, progress=progress, tensorboard=False) as session:
        try:
            session.loop()
        except run.Diverged:
            session.recorder.sync()
            for name in trials:
                _leave(session, name, trials_dir, None, draw=False, tensorboard=tensorboard)
            return Outcome({}, {name: lost["message"] for name, lost in session.lost.items()})
        trained, measured = session.seconds, session.measure()
        session.recorder.sync()
        session.saver.wait()
        session.bar.message(f"writing the folders of {len(trials)} trials …")
        summaries = {
            name: _leave(session, name, trials_dir, measured, seconds=trained, draw=video, tensorboard=tensorboard)
            for name in trials
        }
    # Every trial has its own rows of the last checkpoint. The name goes first, whole: see where a program resumes.
    shutil.rmtree(program_dir / FINISHED, ignore_errors=True)
    os.replace(program_dir / CHECKPOINTS, program_dir / FINISHED)
    for path in (program_dir / FINISHED).iterdir():
        shutil.rmtree(path)
    return Outcome(
        {name: summary for name, summary in summaries.items() if summary is not None},
        {name: lost["message"] for name, lost in session.lost.items()},
    )


def _as_left(trials: Mapping[str, RunConfig], trials_dir: pathlib.Path) -> Outcome:
    """The outcome of a program that has come to its end, from the folders of its trials."""
    summaries, diverged = {}, {}
    for name in trials:
        summary = trials_dir / name / run.SUMMARY
        if summary.is_file():
            summaries[name] = json.loads(summary.read_text())
        else:
            diverged[name] = record.read(trials_dir / name)[-1]["message"]
    return Outcome(summaries, diverged)


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
    trials_dir: pathlib.Path,
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]] | None,
    *,
    draw: bool,
    tensorboard: bool,
    seconds: float = 0.0,
) -> dict[str, Any] | None:
    """Make one trial's folder, in one piece. Returns its summary, or None if it diverged."""
    config, part = session.trainer.rows.trials[name], session.trainer.rows.slices[name]
    folder = trials_dir / f".{name}.part"
    shutil.rmtree(folder, ignore_errors=True)
    run.write_description(config, session.suite, folder)
    messages = {trial: lost["message"] for trial, lost in session.lost.items()}
    lines = packing.lines_of(record.read(session.run_dir), session.trainer.rows, name, messages)
    packing.copy_record(lines, folder, tensorboard=tensorboard)
    summary = None
    if name not in session.lost and measured is not None:
        state = packing.rows_of(session.state, part)
        with Checkpointer(folder) as saver:
            host = {"update": session.update, "seconds": seconds, "lost": {}}
            saver.save(session.step, session.trainer.saved(state), host)
        own = {
            split: {mode: packing.values_of(values, part) for mode, values in modes.items()}
            for split, modes in measured.items()
        }
        summary = session.conclude(folder, config, state, own, seconds=seconds, draw=draw)
    shutil.rmtree(trials_dir / name, ignore_errors=True)
    os.replace(folder, trials_dir / name)
    versions.sync_folder(trials_dir)
    return summary
