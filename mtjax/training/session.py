"""One process's work on a run: the host loop around its compiled program."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mtjax.learners import replay
from mtjax.learners.replay import free_memory
from mtjax.suites.base import Suite
from mtjax.training import memory, plots, processes, record, signals, simulators
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.config import MODES, SUMMARY, RunConfig
from mtjax.training.evaluation import Evaluator
from mtjax.training.program import Program
from mtjax.training.progress import Progress
from mtjax.training.results import draw_videos, final_rounds, write_summary
from mtjax.training.trainer import FLAGS, STREAM_EVALUATION, Trainer, TrainState

CALL_SECONDS = 1.0  # target duration of one compiled call; signals are handled between calls


class Diverged(RuntimeError):
    """A loss or parameter is no longer finite; the message names seed, task, step and checkpoint."""


class Interrupted(RuntimeError):
    """SIGTERM, SIGUSR2 or Ctrl-C was received; the run was saved and can be resumed."""


class Session:
    """One process's work on a run, or on a program of packed trials: its progress, and what it writes.

    Attributes:
        lost: {"step", "message"} of every trial that diverged, by name. A run has a single trial and ends with it.
    """

    def __init__(self, config, suite, trainer, run_dir, saver, bar, stop):
        self.config: RunConfig = config
        self.suite: Suite = suite
        self.trainer: Trainer = trainer
        self.run_dir: pathlib.Path = run_dir
        self.saver: Checkpointer | processes.SharedCheckpoints = saver
        self.bar: Progress = bar
        self.stop: threading.Event | processes.CommonStop = processes.CommonStop(stop) if processes.several() else stop
        self.update = 0
        self.pace: float | None = None  # seconds per update in a loop, once one was timed
        self.saved: int | None = None  # step of the newest checkpoint
        self.lost: dict[str, dict[str, Any]] = {}
        self.seconds_before = 0.0
        self.started = self.mark = time.monotonic()  # mark: steps per second count from here; pauses shift it
        self.state: TrainState
        self.recorder: record.Recorder | record.Unrecorded = record.Unrecorded()
        self.evaluator = Evaluator(
            trainer.learner,
            suite,
            episodes=config.evaluation_episodes,
            num_seeds=config.num_seeds,
            seed=config.seed + 1,
            contexts=trainer.contexts,
            placement=trainer.placement,
            compiling=self.bar.compiling,
        )

    @property
    def step(self) -> int:
        """Environment steps of one seed, as a Python int, which never overflows."""
        return self.update * self.trainer.steps_per_update

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumes, including compilation and evaluation."""
        return self.seconds_before + time.monotonic() - self.started

    # ----------------------------------------------------------------------------------------- start

    def close(self) -> None:
        """Free the simulators, as this process may go on to train another run."""
        simulators.close(self.trainer.env)
        self.evaluator.close()

    def open(self, *, resume: bool, tensorboard: bool, stack: contextlib.ExitStack) -> None:
        """Restore a checkpoint or initialise the state, then compile."""
        if self.trainer.learner.replay:
            seeds = self.config.num_seeds // self.trainer.placement.layout.seed
            self.bar.message(self.trainer.learner.replay.describe(seeds))
        messages = self._restore() if resume else []
        self.recorder = self._recorder(resume, tensorboard, stack)
        if processes.first():  # a run that is extended or evaluated again is no longer finished
            (self.run_dir / SUMMARY).unlink(missing_ok=True)
        for message in messages:
            self.bar.message(message)
            self.recorder.event(self.step, self.seconds, message)
        if self.update == 0:
            with self.bar.compiling("the initial state"):
                self.state = jax.block_until_ready(self.trainer.init())
        self._compile()

    def _recorder(
        self, resume: bool, tensorboard: bool, stack: contextlib.ExitStack
    ) -> record.Recorder | record.Unrecorded:
        if not processes.first():
            return record.Unrecorded()
        if resume and (self.run_dir / record.FILE).exists():
            record.truncate_after(self.run_dir, self.step, ends=self.update >= self.trainer.num_updates)
        names = [info.name for info in self.suite.tasks]
        return stack.enter_context(record.Recorder(self.run_dir, names, tensorboard))

    def _restore(self) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skipped checkpoints are reported below
            found = self.saver.restore(self.trainer.abstract())
        messages = [f"checkpoint {step} is damaged and was set aside: {why}" for step, why in self.saver.skipped]
        if found is None and (self.run_dir / SUMMARY).exists():  # starting again would discard its results
            why = f" ({'; '.join(messages)})" if messages else ""
            raise ValueError(
                f"{self.run_dir} holds a finished run without a usable checkpoint{why}: it cannot be resumed; to train "
                "again, choose another folder"
            )
        if found is None:
            return [*messages, "no usable checkpoint: starting from the beginning"]
        step, self.state, host = found
        self.saved = step
        self.state = self.trainer.restored(self.state)
        self.update, self.seconds_before = host["update"], host["seconds"]
        self.lost = host.get("lost", {})
        if not self.suite.on_device:
            self.state = self.trainer.restart(self.state)
            messages.append("host simulators start new episodes: the run is not continued bit for bit")
        return [*messages, f"resumed from checkpoint {step}"]

    def _compile(self) -> None:
        """Compile, before steps per second are counted."""
        with self.bar.compiling("rollout and update"):
            self.program = Program(self.trainer, self.state)
        taken = memory.describe(self.program.memory, free_memory())
        if taken:
            self.bar.message(taken)

    # ------------------------------------------------------------------------------------------ loop

    def loop(self) -> None:
        """Train to the end. If a signal asks for a stop, save and raise Interrupted."""
        total = self.trainer.num_updates
        log_every = self.config.log_every or max(1, total // 200)
        evaluate_every = self._updates(self.config.evaluate_every, default=total / 10)
        checkpoint_every = self._updates(self.config.checkpoint_every, default=evaluate_every)
        self.bar.start(self.step)
        self.mark, mark_step = time.monotonic(), self.step
        metrics = None
        while self.update < total:
            log = (self.update + 1) % log_every == 0 or self.update + 1 == total
            before, timing = metrics, {}
            if log:
                metrics, timing = self._one_update()
            else:
                pauses = [self.update + every - self.update % every for every in (evaluate_every, checkpoint_every)]
                logged = min(total, self.update + log_every - self.update % log_every)
                metrics = self._several_updates(until=min(logged - 1, *pauses))
            if before is not None:  # checked one call late, so that the device never waits for the host
                self._check(before)
            if log:
                self._check(metrics)
                now = time.monotonic()
                if self.program.loops:  # call overhead dominates these timings: scale them to the mean update
                    each = (now - self.mark) * self.trainer.steps_per_update / (self.step - mark_step)
                    timing = {name: value * each / sum(timing.values()) for name, value in timing.items()}
                timing["steps_per_second"] = (self.step - mark_step) * self.config.num_seeds / (now - self.mark)
                self.mark, mark_step = now, self.step
                self._log(metrics, timing)
            if self.update % evaluate_every == 0 and self.update < total:
                self._check(metrics)
                with self._paused():
                    for split in filter(self._has_policy, self.config.evaluation_splits):
                        for mode in self.config.evaluation_modes:
                            self.evaluate(split, mode)
            if self.update % checkpoint_every == 0 or self.update == total:
                self._save(metrics)
            if self.update < total:
                self._stop_if_asked(metrics)

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Context manager: exclude the time spent inside from steps per second, on the screen and in the record."""
        started = time.monotonic()
        with self.bar.paused():
            yield
        self.mark += time.monotonic() - started

    def _stop_if_asked(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Save and raise Interrupted if a signal was received; without metrics, the state has already been saved."""
        if not self.stop.is_set():
            return
        if metrics is not None:
            self._save(metrics)
        self.saver.wait()
        self.recorder.event(self.step, self.seconds, "stopped by a signal; saved")
        raise Interrupted(f"stopped at step {self.step} and saved; continue with --resume")

    def _updates(self, steps: int, *, default: float) -> int:
        """Convert environment steps to updates, rounded, at least one; 0 means ``default`` updates."""
        return max(1, round(steps / self.trainer.steps_per_update if steps else default))

    def _one_update(self) -> tuple[Mapping[str, Any], dict[str, float]]:
        """Make one rollout and one update, and time each by waiting for the device before, between and after."""
        jax.block_until_ready(self.state.updates)
        start = time.perf_counter()
        self.state = self.program.collect(self.state)
        jax.block_until_ready(self.program.rollout.reward)
        middle = time.perf_counter()
        self.state, metrics = self.program.update(self.state)
        jax.block_until_ready(metrics)
        end = time.perf_counter()
        self.update += 1
        if self.program.loops:  # shared, so that all processes make equally many updates per call
            self.pace = processes.from_first(max(1, round((end - start) * 1e6))) / 1e6
        return metrics, {"seconds/rollout": middle - start, "seconds/update": end - middle}

    def _several_updates(self, until: int) -> Mapping[str, Any]:
        """Make as many updates as fit into CALL_SECONDS, up to ``until``. Their number does not affect the results."""
        count = 1
        quick = self.program.loops and self.suite.on_device  # host simulators may fail, and are slow anyway
        if quick and self.pace is not None:
            count = max(1, min(until - self.update, int(CALL_SECONDS / self.pace)))
        self.state, metrics = self.program(self.state, count)
        self.update += count
        return metrics

    def _log(self, metrics: Mapping[str, Any], timing: Mapping[str, float]) -> None:
        self.state, episodes = self.trainer.report(self.state)
        values = {**episodes, **metrics, **timing}
        values = {name: np.asarray(v) for name, v in values.items() if name not in FLAGS}
        self.recorder.train(self.step, self.update, self.seconds, values)
        self.bar.update(self.step, values)

    def _check(self, metrics: Mapping[str, Any]) -> None:
        """Look for trials in which an update of the call that returned ``metrics`` left anything non-finite.

        Raises:
            Diverged: every trial has diverged; the message names seeds and tasks.
        """
        losses, state, steps, updates = (np.asarray(metrics[name]) for name in FLAGS)  # [S, T], [S], [S, T], [S]
        if losses.all() and state.all():
            return
        for trial, rows in self.trainer.rows.slices.items():
            if trial not in self.lost and not (losses[rows].all() and state[rows].all()):
                bad = ~(losses[rows].all(axis=1) & state[rows])
                step = int(updates[rows][bad].min()) * self.trainer.steps_per_update
                message = self._diverged(trial, losses[rows], state[rows], steps[rows], step)
                self.lost[trial] = {"step": step, "message": message}
                self.recorder.event(step, self.seconds, message)
                if len(self.lost) < len(self.trainer.rows.trials):
                    self.bar.message(message)
        if len(self.lost) == len(self.trainer.rows.trials):
            raise Diverged("; ".join(lost["message"] for lost in self.lost.values()))

    def _diverged(self, trial: str, losses: np.ndarray, state: np.ndarray, steps: np.ndarray, step: int) -> str:
        """The message on what is not finite in a trial, given its flags: [seeds, T], [seeds] and [seeds, T]."""
        seed = self.trainer.rows.trials[trial].seed

        def of_tasks(what: str, fine: np.ndarray) -> list[str]:
            return [f"{what} of task {self.suite.tasks[t].name!r} (seed {seed + s})" for s, t in np.argwhere(~fine)]

        bad = of_tasks("a reward or observation from the environment", steps | losses)
        bad = bad or of_tasks("the loss", losses) or [f"a parameter of seed {seed + s}" for s in np.flatnonzero(~state)]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        what = f"{record.DIVERGED} {step}: not finite: {', '.join(bad[:5])}{more}"
        if trial:
            return f"trial {trial} {what}"
        return f"{what}; {self._newest()}"

    def _newest(self) -> str:
        good = self.saved
        saved = f"the last good checkpoint is step {good}" if good is not None else "no checkpoint has been saved yet"
        return f"{saved} in {self.run_dir}"

    def simulator_failed(self, why: str) -> str:
        """Record that a simulator failed. Returns the message, with the checkpoint from which to resume."""
        message = f"{why}; after step {self.step}; {self._newest()}: continue with --resume"
        self.recorder.event(self.step, self.seconds, message)
        return message

    def _save(self, metrics: Mapping[str, Any]) -> None:
        if self.saved == self.step:
            return
        self._check(metrics)  # waits for the update, whose time counts as training
        with self._paused():
            self.recorder.sync()
            host = {"update": self.update, "seconds": self.seconds, "lost": self.lost}
            state = self.trainer.placement.whole(self.trainer.saved(self.state))
            self.saver.save(self.step, state, host)
        self.saved = self.step

    # ------------------------------------------------------------------------------------ evaluation

    def evaluate(self, split: str, mode: str, *, rounds: int = 1, final: bool = False) -> Mapping[str, np.ndarray]:
        """Evaluate now and record the result. Returns the measures by name ("return", …), each [S, N]."""
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        keys = fold(fold(self.state.keys, STREAM_EVALUATION), self.update)
        certain = mode == "deterministic"
        values = self.evaluator(self.state.learner, split=split, deterministic=certain, key=keys, rounds=rounds)
        values = jax.tree.map(np.asarray, values)
        self.recorder.evaluation(
            self.step,
            self.seconds,
            split=split,
            mode=mode,
            final=final,
            episodes=rounds * self.config.evaluation_episodes,
            values=values,
            task_names=[info.name for info in self.suite.splits[split].infos],
        )
        self.bar.evaluation(self.step, split, mode, values)
        return values

    def _has_policy(self, split: str) -> bool:
        """False for held-out splits if every training task has its own network."""
        return split == "train" or self.trainer.learner.generalises

    def finish(self, *, draw: bool) -> dict[str, Any]:
        """Evaluate on all splits, draw plots and videos, write and return the summary; {} in other processes."""
        trained, measured = self.seconds, self.measure()
        self.recorder.sync()
        self.saver.wait()  # the summary marks the run as finished, so its last checkpoint must be on the disk
        self.bar.message("drawing plots and videos …" if draw else "drawing plots …")
        state = self.trainer.placement.whole(replay.emptied(self.state)) if draw else self.state
        if processes.several():
            if not processes.first():
                return {}
            self.stop = self.stop.mine  # from here on, only the first process works
        return self.conclude(self.run_dir, self.config, state, measured, seconds=trained, draw=draw)

    def measure(self) -> dict[str, dict[str, Mapping[str, np.ndarray]]]:
        """Run the final evaluation on every split. Returns {split: {mode: {measure: [S, N]}}}."""
        rounds = final_rounds(self.config)
        measured: dict[str, dict[str, Mapping[str, np.ndarray]]] = {}
        for split, tasks in self.suite.splits.items():
            if not len(tasks) or not self._has_policy(split):
                continue
            for mode in MODES if split == "train" else ("deterministic",):
                self._stop_if_asked()
                values = self.evaluate(split, mode, rounds=rounds, final=True)
                measured.setdefault(split, {})[mode] = values
            if not self.suite.on_device:
                self.evaluator.close()  # the next split has simulators of its own
        return measured

    def conclude(
        self,
        folder: pathlib.Path,
        config: RunConfig,
        state: TrainState,
        measured: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
        *,
        seconds: float,
        draw: bool,
    ) -> dict[str, Any]:
        """Write the summary of the final evaluation into ``folder``, and draw plots. Returns the summary.

        Args:
            folder: the folder of the run or trial, with its record.
            config: its configuration.
            state: its rows of the state.
            measured: its rows of what :meth:`measure` returned.
            seconds: duration of the training.
            draw: also draw videos.
        """
        summary = write_summary(folder, config, self.suite, measured, step=self.step, seconds=seconds)
        self._stop_if_asked()
        plots.plot_run(folder)
        if draw:
            draw_videos(self.trainer, self.suite, state, folder, "train", summary["results"]["train"])
        return summary


@contextlib.contextmanager
def at_work(
    trainer: Trainer, run_dir: pathlib.Path, *, resume: bool, progress: bool, tensorboard: bool
) -> Iterator[Session]:
    """Context manager: a session that is ready to train, in a folder that already holds the run's description.

    Raises the errors of :func:`mtjax.training.run.train`.
    """
    with contextlib.ExitStack() as stack:
        keeper = processes.SharedCheckpoints if processes.several() else Checkpointer
        saver = stack.enter_context(keeper(run_dir, trainer.config.keep_checkpoints))
        total_steps = trainer.num_updates * trainer.steps_per_update
        shown = progress and processes.first()
        seeds = trainer.config.num_seeds
        bar = stack.enter_context(Progress(total_steps, trainer.suite.name, num_seeds=seeds, enabled=shown))
        stop = stack.enter_context(stop_signals())
        session = Session(trainer.config, trainer.suite, trainer, run_dir, saver, bar, stop)
        stack.callback(session.close)
        with simulators.watched(run_dir, session.simulator_failed):
            session.open(resume=resume, tensorboard=tensorboard, stack=stack)
            yield session


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Context manager: an event set by SIGTERM, SIGUSR2 or Ctrl-C; once it is set, Ctrl-C interrupts at once."""
    event = threading.Event()

    def handle(number, frame):
        if number == signal.SIGINT and event.is_set():
            raise KeyboardInterrupt
        event.set()

    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR2] if hasattr(signal, "SIGUSR2") else [])]
    with signals.handled(numbers, handle):
        yield event
