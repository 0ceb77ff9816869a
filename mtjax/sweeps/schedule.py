"""Runs the missing programs of a sweep: starts them as slots become free and records how each ends."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mtjax.sweeps import ledger, worker
from mtjax.sweeps.ledger import DIVERGED, DONE, FAILED, RUNNING, STOPPED, Ledger, State
from mtjax.sweeps.plan import Plan, Program, halved, program_dir, save
from mtjax.training import lock
from mtjax.training.signals import handled

POLL_SECONDS = 0.5
MOST_INTERRUPTIONS = 100  # attempts at one program, from which on an interruption by its machine counts as a failure


class End(NamedTuple):
    """How a job ended; used only if the job left no outcome.

    Attributes:
        how: description in words.
        interrupted: True if the machine preempted the job or died, so that the program is not to blame.
        without_room: True if its exit code says that the disk has no room for the outcome.
    """

    how: str
    interrupted: bool = False
    without_room: bool = False


class Job(Protocol):
    """A started program.

    Attributes:
        name: the launcher's name for it, e.g. of a process or a SLURM job.
    """

    name: str

    def ended(self) -> End | None:
        """How the job ended; None while it runs or is queued."""

    def stop(self) -> None:
        """Ask the job to save and exit."""

    def kill(self) -> None:
        """End the job at once."""


class Launcher(Protocol):
    """Starts programs somewhere.

    Attributes:
        name: "local", "slurm" or "ray".
        slots: how many programs may run at once.
    """

    name: str
    slots: int

    def start(self, attempts: Sequence[tuple[Program, int]]) -> list[Job | Exception]:
        """Start attempts; an attempt that cannot be started yields the exception instead of a job."""

    def find(self, job: str, program: Program, attempt: int) -> Job | None:
        """Find a job by its name that an earlier launcher started and that still exists, else None."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which failed programs run again.

    Attributes:
        retries: how many times a failing program is started again.
        retry_failed: whether to restart programs that failed before this launcher started.
    """

    retries: int = 0
    retry_failed: bool = False


class Stopped(RuntimeError):
    """A signal came, or the disk is full: the programs were told to save, and have ended; the sweep can be resumed."""


def run(
    folder: str | os.PathLike,
    plan: Plan,
    launcher: Launcher,
    policy: Policy = Policy(),
    *,
    grow: Callable[[Plan, State], Plan | None] = lambda plan, state: None,
    report: Callable[[str], None] = print,
) -> State:
    """Run exactly the missing programs. Returns the sweep's state when nothing is left to do.

    Args:
        folder: the sweep's folder.
        plan: the sweep's plan.
        launcher: starts the programs.
        policy: which failed programs run again. The trials of a packed program that has failed are split into halves,
            repeatedly, until a bad trial is alone with its error; each split is saved in the plan.
        grow: extends and saves the plan when all its programs have ended; returns None to end the sweep.
        report: called with a line for every event.

    Raises:
        ValueError: another launcher is running the sweep.
        Stopped: a signal arrived, or the disk is full.
    """
    try:
        return _run(folder, plan, launcher, policy, grow, report)
    except OSError as error:  # of the ledger or the plan; the programs stop when the launcher ends, if not already
        if not worker.disk_full(error):
            raise
        raise Stopped(_full(folder)) from error


def _full(folder: str | os.PathLike) -> str:
    return f"{worker.DISK_FULL}: free space, then continue with --resume={folder}"


def _run(folder, plan: Plan, launcher: Launcher, policy: Policy, grow, report) -> State:
    signals, both = _Signals(), (signal.SIGINT, signal.SIGTERM)
    with lock.lock(folder, "sweep"), Ledger(folder) as book, handled(both, signals.handle):
        book.write("opened", launcher=launcher.name, host=socket.gethostname(), pid=os.getpid())
        while True:
            schedule = _Schedule(folder, plan, launcher, policy, book, report)
            try:
                schedule.take_over()
                schedule.loop(signals)
            except OSError:
                schedule.tell_all()
                raise
            plan, state = schedule.plan, schedule.state
            if schedule.full:
                book.write("closed", why=worker.DISK_FULL)
                raise Stopped(_full(folder))
            if signals.count and schedule.missing():
                book.write("closed", why="signal")
                raise Stopped(f"stopped; running programs were saved; continue with --resume={folder}")
            longer = None if signals.count else grow(plan, state)
            if longer is None:
                break
            plan, policy = longer, dataclasses.replace(policy, retry_failed=False)
        book.write("closed", why="complete")
    return state


class _Schedule:
    def __init__(self, folder, plan: Plan, launcher: Launcher, policy: Policy, book: Ledger, report):
        self.folder, self.plan, self.launcher = folder, plan, launcher
        self.policy, self.book, self.report = policy, book, report
        self.jobs: dict[str, Job] = {}
        self.allowed = dict.fromkeys(plan.programs, policy.retries)
        self.queue: list[str] = []
        self.full = False  # the disk: nothing is started any more

    @property
    def state(self) -> State:
        return ledger.fold(self.plan, ledger.read(self.folder))

    def missing(self) -> list[str]:
        """Programs that have to be started, restarted or halved."""
        return [
            name
            for name, progress in self.state.programs.items()
            if progress.state not in (DONE, FAILED)
            or progress.again
            or (progress.state == FAILED and self.plan.programs[name].packed)
        ]

    def take_over(self) -> None:
        """Find out what has happened since the last launcher died, and queue the missing programs."""
        for name, progress in self.state.programs.items():
            if progress.state != RUNNING:
                continue
            program, attempt = self.plan.programs[name], progress.attempt
            job = self.launcher.find(progress.job, program, attempt) if progress.job else None
            outcome = worker.outcome_of(self.folder, program, attempt)
            if job is not None and outcome is None:
                self.jobs[name] = job
                self.report(f"{name} is still active ({job.name})")
            else:
                self._book(name, outcome or worker.interrupted(program, attempt))
        for name, progress in self.state.programs.items():
            again = progress.again or self.policy.retry_failed
            if progress.state == FAILED and self.plan.programs[name].packed and not again:
                self._halve(name)  # the last launcher died before halving it
        for name, progress in self.state.programs.items():
            again = progress.state == FAILED and (progress.again or self.policy.retry_failed)
            if again or (progress.state not in (DONE, FAILED) and name not in self.jobs):
                self.queue.append(name)
        # Programs that were started before come first: they are nearer their end.
        attempts = {name: progress.attempt for name, progress in self.state.programs.items()}
        self.queue.sort(key=lambda name: -min(1, attempts[name]))

    def loop(self, signals: _Signals) -> None:
        def ending() -> bool:
            return signals.count > 0 or self.full

        told, told_full = 0, False
        while self.jobs or (self.queue and not ending()):
            free = self.launcher.slots - len(self.jobs)
            if self.queue and free > 0 and not ending():
                self._start([self.queue.pop(0) for _ in range(min(free, len(self.queue)))])
            if signals.count > told:
                told = signals.count
                self._stop_all(kill=told > 1 or told_full)
            elif self.full and not told and not told_full and self.jobs:
                told_full = True
                self._stop_all(kill=False)
            for name, job in list(self.jobs.items()):
                end = job.ended()
                if end is not None:
                    del self.jobs[name]
                    self._end(name, end, stopping=ending())
            if self.jobs:
                signals.wait(POLL_SECONDS)

    def _start(self, names: Sequence[str]) -> None:
        state = self.state
        attempts = [(self.plan.programs[name], state.programs[name].attempt + 1) for name in names]
        for program, attempt in attempts:  # ledger first: every running program is known to have started
            self.book.write("started", program=program.name, attempt=attempt, job=None)
        for (program, attempt), job in zip(attempts, self.launcher.start(attempts), strict=True):
            if isinstance(job, Exception):
                outcome = worker.killed(program, attempt, f"could not be started: {job}")
                if worker.disk_full(job):
                    outcome = worker.without_room(program, attempt)
                self._settle(program.name, outcome, stopping=False)
                continue
            self.jobs[program.name] = job
            self.book.write("started", program=program.name, attempt=attempt, job=job.name)
            again = " again" if attempt > 1 else ""
            self.report(f"{program.name} started{again} ({job.name}): {_members(program)}")

    def _end(self, name: str, end: End, *, stopping: bool) -> None:
        program, attempt = self.plan.programs[name], self.state.programs[name].attempt
        outcome = worker.outcome_of(self.folder, program, attempt)
        if outcome is None:
            forgiven = stopping or end.interrupted
            outcome = worker.interrupted(program, attempt) if forgiven else worker.killed(program, attempt, end.how)
            if not stopping and (end.without_room or not worker.has_room(self.folder)):
                outcome = worker.without_room(program, attempt)
        if outcome.state == STOPPED and attempt >= MOST_INTERRUPTIONS and not stopping:
            outcome = worker.killed(program, attempt, f"interrupted too often, last in attempt {attempt}")
        self._settle(name, outcome, stopping=stopping)

    def _settle(self, name: str, outcome: worker.Outcome, *, stopping: bool) -> None:
        """Record an outcome, and queue the program again if it should continue or be retried."""
        again = self._book(name, outcome)
        if outcome.state == STOPPED and outcome.error == worker.DISK_FULL:
            self.full = True
        if stopping or self.full:
            return
        if outcome.state == STOPPED:
            self.queue.insert(0, name)  # its machine preempted it: continue elsewhere, or later
        elif again:
            self.queue.append(name)
            self.report(f"{name} will be retried")
        elif outcome.state == FAILED and self.plan.programs[name].packed:
            self.queue += self._halve(name)

    def _halve(self, name: str) -> tuple[str, str]:
        """Split the trials of a failed packed program over two programs, so that a bad one spares the others."""
        self.plan, halves = halved(self.plan, name)
        save(self.plan, self.folder)
        self.book.write("halved", program=name, into=halves)
        self.allowed |= dict.fromkeys(halves, self.policy.retries)
        self.report(f"the trials of {name} will be retried as {halves[0]} and {halves[1]}")
        return halves

    def _book(self, name: str, outcome: worker.Outcome) -> bool:
        """Record how an attempt ended. Returns whether it failed and will be retried, which is recorded too."""
        again = outcome.state == FAILED and self.allowed[name] > 0
        self.allowed[name] -= again
        self.book.write("ended", program=name, **dataclasses.asdict(outcome), again=again)
        diverged = [f"{trial}: {end['error']}" for trial, end in outcome.trials.items() if end["state"] == DIVERGED]
        done = sum(end["state"] == DONE for end in outcome.trials.values())
        trials = f"{len(outcome.trials)} trial{'' if len(outcome.trials) == 1 else 's'}"
        words = {DONE: f"done: {done} of {trials}", STOPPED: "stopped and can be continued"}
        if outcome.state == STOPPED and outcome.error:
            words[STOPPED] += f": {outcome.error}"
        self.report(f"{name} {words.get(outcome.state) or f'failed: {outcome.error}{self._log(name)}'}")
        for line in diverged:
            self.report(f"  {line}")
        return again

    def _log(self, name: str) -> str:
        """Where a failed program's traceback is, to be appended to its error; empty if it has no log."""
        log = program_dir(self.folder, name) / worker.LOG
        return f"; its log: {log}" if log.exists() else ""

    def _stop_all(self, *, kill: bool) -> None:
        verb, number = "killing" if kill else "saving and stopping", len(self.jobs)
        again = "send a signal" if self.full else "repeat the signal"
        advice = "" if kill else f" ({again} to kill)"
        self.report(f"{verb} {number} program{'' if number == 1 else 's'} …{advice}")
        self.tell_all(kill=kill)

    def tell_all(self, *, kill: bool = False) -> None:
        """Ask every job to save and stop, or end them at once."""
        for job in self.jobs.values():
            job.kill() if kill else job.stop()


def _members(program: Program) -> str:
    first = program.trials[0]
    return f"{len(program.trials)} trials, from {first}" if program.packed else first


class _Signals:
    """Counts SIGINT and SIGTERM."""

    def __init__(self):
        self.count = 0
        self._event = threading.Event()

    def wait(self, seconds: float) -> None:
        """Sleep, but wake up on a signal."""
        self._event.wait(seconds)
        self._event.clear()

    def handle(self, number, frame) -> None:
        self.count += 1
        self._event.set()
