"""A run, from its configuration to the folder it leaves behind.

The folder holds::

    config.json  versions.json  suite.json  metrics.jsonl  tensorboard/  checkpoints/  plots/  videos/  summary.json
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mtjax import options, suites
from mtjax.training import lock, memory, meshes, processes, record, saved, simulators
from mtjax.training.checkpoint import newest_step
from mtjax.training.config import CONFIG, MODES, SUMMARY, RunConfig, load_config, resumed
from mtjax.training.evaluation import Evaluator
from mtjax.training.results import draw_videos, summarize_evaluation, write_description
from mtjax.training.session import Diverged, Interrupted, Session, at_work, stop_signals
from mtjax.training.simulators import SimulatorFailed
from mtjax.training.trainer import STREAM_EVALUATION, Trainer

# Added to the seed of the host simulators in ``evaluate``, so that they do not repeat the run's own evaluations.
OF_COMMAND = 1_000_000
# Maximum number of host simulators in ``evaluate``: one of Meta-World takes 18 MB, and some time to create.
SIMULATORS = 256

__all__ = [
    "SUMMARY",
    "Diverged",
    "Interrupted",
    "Session",
    "SimulatorFailed",
    "at_work",
    "evaluate",
    "stop_signals",
    "train",
    "write_description",
]


def train(
    config: RunConfig,
    run_dir: str | os.PathLike,
    *,
    resume: bool = False,
    progress: bool = True,
    video: bool = True,
    tensorboard: bool = True,
    mesh: str = "",
) -> dict[str, Any]:
    """Train a run and write all its results into ``run_dir``.

    Args:
        config: the configuration.
        run_dir: the run's folder; created if it does not exist.
        resume: continue from the newest good checkpoint in ``run_dir``; without one, start from the beginning.
        progress: show progress on the screen.
        video: at the end, draw a video of one episode of every task.
        tensorboard: also write TensorBoard files.
        mesh: devices along the axes "seed" and "env", e.g. "seed:4,env:2"; "" is one device. It is not part of
            the configuration: a run may be resumed on another mesh. If there are several processes, all call this.

    Returns:
        The contents of ``summary.json``; {} in processes other than the first.

    Raises:
        ValueError: the configuration is invalid, another process is using the folder, the folder holds a run and
            ``resume`` is False; or the run to be resumed has another configuration or another version of the suite, or
            is finished and has no usable checkpoint; or the mesh does not fit the run or the machine, or the replay
            does not fit into memory.
        Diverged: a loss or parameter is not finite.
        Interrupted: a signal was received; the state was saved.
        SimulatorFailed: a host simulator raised, or its process died; earlier checkpoints remain valid.
    """
    run_dir = pathlib.Path(run_dir)
    config.validate()
    with lock.lock(run_dir, "run") if processes.first() else contextlib.nullcontext():
        if not resume and processes.first() and (run_dir / record.FILE).exists():
            raise ValueError(f"{run_dir} already holds a run; resume it, or choose another folder")
        if resume and (run_dir / CONFIG).exists():
            resumed(load_config(run_dir), options.flatten(config), run_dir)  # refuses another configuration
        suite = saved.suite_of(run_dir, config, resuming=True) if resume else suites.make(config.suite)
        begin = newest_step(run_dir) if resume else 0
        trainer = Trainer(config, suite, placement=meshes.placed(meshes.parse(mesh), config, suite), begin=begin)
        memory.require_replay(trainer)
        known = resume and (run_dir / CONFIG).exists()
        if processes.first() and not known:
            write_description(config, suite, run_dir)
        with at_work(trainer, run_dir, resume=resume, progress=progress, tensorboard=tensorboard) as session:
            if processes.first() and known:  # only now: the checkpoint may be refused, which must change nothing
                write_description(config, suite, run_dir)
            session.loop()
            return session.finish(draw=video)


def evaluate(
    run_dir: str | os.PathLike,
    *,
    splits: str | Sequence[str] = ("train",),
    modes: str | Sequence[str] = ("deterministic",),
    episodes: int = 50,
    seed: int = 0,
    checkpoint: int | None = None,
    video: bool = False,
    mesh: str = "",
) -> dict[str, Any]:
    """Evaluate a saved run on fresh environments and keys, and append the result to its record.

    The run may still be training. If its folder is not writable (a colleague's), nothing is recorded, with a warning.

    Args:
        run_dir: the run's folder.
        splits: the split or splits to evaluate.
        modes: "deterministic", "stochastic" or both.
        episodes: episodes per seed and task; host simulators may play a few more, to fill rounds of equal size.
        seed: seed of the evaluation's own randomness.
        checkpoint: step of the checkpoint; None means the newest good one.
        video: draw a video of one episode of every task of the splits.
        mesh: as in :func:`train`; it may differ from the mesh of the training.

    Returns:
        {"step", "suite", "episodes", "results": {split: {mode: see ``summarize_evaluation``}}}.

    Raises:
        ValueError: the folder is not a run or has no usable checkpoint, or a split or mode does not exist.
        SimulatorFailed: a host simulator raised, or its process died.
    """
    run_dir = pathlib.Path(run_dir)
    splits, modes = ((names,) if isinstance(names, str) else tuple(names) for names in (splits, modes))
    config = load_config(run_dir)
    suite = saved.suite_of(run_dir, config)
    names = {split: [info.name for info in suite.split(split).infos] for split in splits}
    for mode in modes:
        if mode not in MODES:
            raise ValueError(options.unknown("mode", mode, MODES))
    trainer = Trainer(config, suite, placement=meshes.placed(meshes.parse(mesh), config, suite))
    step, state, host = saved.restore(run_dir, trainer, checkpoint, to_be="evaluated")
    tasks = config.num_seeds * max(map(len, names.values()), default=1)
    rounds, at_once = (1, episodes) if suite.on_device else _rounds(episodes, tasks)
    evaluator = Evaluator(
        trainer.learner,
        suite,
        episodes=at_once,
        num_seeds=config.num_seeds,
        seed=OF_COMMAND + config.seed + seed,
        contexts=trainer.contexts,
        placement=trainer.placement,
    )
    key = jax.random.fold_in(jax.random.key(seed), STREAM_EVALUATION)
    results: dict[str, dict[str, Any]] = {}
    with _recorder(run_dir, suite) as recorder, contextlib.closing(evaluator), contextlib.ExitStack() as after:
        after.callback(simulators.close, trainer.env)
        for split in splits:
            if split != "train" and not trainer.learner.generalises:
                warnings.warn(
                    f"{split} is skipped: every task has its own network, so there is none for an unseen task",
                    stacklevel=2,
                )
                continue
            for mode in modes:
                with simulators.watched(run_dir):
                    certain = mode == "deterministic"
                    values = evaluator(state.learner, split=split, deterministic=certain, key=key, rounds=rounds)
                    values = jax.tree.map(np.asarray, values)
                recorder.evaluation(
                    step, host["seconds"], split=split, mode=mode, final=False, episodes=rounds * at_once,
                    values=values, task_names=names[split],
                )  # fmt: skip
                results.setdefault(split, {})[mode] = summarize_evaluation(values, names[split])
            if not suite.on_device:
                evaluator.close()  # the next split has simulators of its own
            if video:
                draw_videos(trainer, suite, state, run_dir, split, results[split])
    return {"step": step, "suite": suite.name, "episodes": rounds * at_once, "results": results}


def _rounds(episodes: int, tasks: int) -> tuple[int, int]:
    """(rounds, episodes per task and round), such that at most ``SIMULATORS`` (or one per task) run at once."""
    rounds = -(-episodes // max(1, SIMULATORS // tasks))
    return rounds, -(-episodes // rounds)


@contextlib.contextmanager
def _recorder(run_dir: pathlib.Path, suite: suites.Suite) -> Iterator[record.Recorder]:
    """Context manager: an evaluation's recorder, which writes to a temporary folder if the run's is not writable."""
    names, alone = [task.name for task in suite.tasks], not lock.held(run_dir)
    with contextlib.ExitStack() as stack:
        try:
            recorder = record.Recorder(run_dir, names, tensorboard=False, alone=alone)
        except OSError as error:
            saved.warn_unwritable(error, run_dir, stacklevel=4)
            elsewhere = stack.enter_context(tempfile.TemporaryDirectory())
            recorder = record.Recorder(elsewhere, names, tensorboard=False)
        yield stack.enter_context(recorder)
