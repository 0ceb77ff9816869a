"""The SLURM launcher: programs as jobs of an array, through submitit.

A program runs inside submitit's own process, where SIGTERM (preemption, scancel) and SIGUSR2 (shortly before the time
limit) make it save and end; the launcher then submits it again, and it goes on from its checkpoint. What counts is the
outcome that a program leaves in its folder: SLURM's accounting need not be there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtjax.sweeps import worker
from mtjax.sweeps.plan import Program
from mtjax.sweeps.schedule import End
from mtjax.sweeps.space import split_list

FOLDER = "slurm"  # of a sweep: submitit's scripts and logs
EVERYTHING = 10_000  # programs at once, unless --jobs says otherwise: SLURM has a queue of its own
ASK_SECONDS = 5.0  # between two questions to SLURM
SIGNAL_SECONDS = 120  # before the time limit, to save in
OPTIONS = ("cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min")  # submitit's names, on every cluster
SLURM_OPTIONS = ("account", "comment", "constraint", "exclude", "partition", "qos", "reservation", "setup")
NOT_TO_BLAME = ("PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "CANCELLED")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a job runs. Pickled by submitit."""

    folder: str
    program: str
    attempt: int

    def __call__(self) -> int:
        """Train the program in this process."""
        from mtjax.launch.worker import main

        return main([self.folder, self.program, str(self.attempt)])

    def checkpoint(self, *args: Any) -> Any:
        """What submitit submits if a signal comes before training looks after signals itself: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint


class SlurmJob:
    """A job of SLURM."""

    def __init__(self, launcher: SlurmLauncher, number: str, program: Program, attempt: int):
        self._launcher, self.number, self._program, self._attempt = launcher, number, program, attempt
        self.name = f"slurm {number}"

    def ended(self) -> End | None:
        """By its outcome, or because SLURM no longer knows it."""
        if worker.outcome_of(self._launcher.folder, self._program, self._attempt) is not None:
            return End("ended")
        if self._launcher.queued(self.number):
            return None
        # It may have left its outcome just now.
        if worker.outcome_of(self._launcher.folder, self._program, self._attempt) is not None:
            return End("ended")
        state = self._launcher.last_state(self.number)
        return End(f"SLURM says {state or 'nothing'} of job {self.number}", state in NOT_TO_BLAME)

    def stop(self) -> None:
        """Cancel it if it waits, else let it save."""
        _run("scancel", "--state=PENDING", self.number)
        _run("scancel", "--signal=TERM", self.number)

    def kill(self) -> None:
        _run("scancel", self.number)


class SlurmLauncher:
    """Runs programs as SLURM jobs.

    Args:
        folder: of the sweep, on a file system that the nodes share.
        jobs: programs at once; 0 is as many as SLURM lets run.
        options: of the jobs, see :func:`parse_options`.
        environ: of the jobs, which sbatch hands on to them; None is this process's.

    Raises:
        ImportError: submitit is not installed.
        ValueError: this machine cannot submit jobs.
    """

    name = "slurm"

    def __init__(
        self,
        folder: str | os.PathLike,
        jobs: int = 0,
        options: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ):
        try:
            import submitit
        except ImportError as error:
            raise ImportError("--launcher=slurm needs submitit; install it with: pip install 'mtjax[slurm]'") from error
        if not shutil.which("sbatch"):
            raise ValueError("--launcher=slurm: there is no sbatch on this machine; run it where jobs are submitted")
        self.folder = pathlib.Path(folder).absolute()
        self.slots = jobs or EVERYTHING
        self._executor = submitit.AutoExecutor(folder=self.folder / FOLDER / "%j", cluster="slurm")
        self._executor.update_parameters(**parameters(options or {}, jobs))
        self._environ = dict(os.environ if environ is None else environ)
        self._known: set[str] = set()
        self._asked = 0.0

    def start(self, attempts: Sequence[tuple[Program, int]]) -> list[SlurmJob | Exception]:
        """Submit attempts as one array of jobs."""
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        try:
            with _environment(self._environ), self._executor.batch():
                jobs = [self._executor.submit(Work(str(self.folder), p.name, attempt)) for p, attempt in attempts]
        except Exception as error:  # submitit raises its own, with sbatch's words in it
            text = str(error).strip().splitlines()
            return [RuntimeError(text[-1] if text else type(error).__name__) for _ in attempts]
        self._known |= {job.job_id for job in jobs}
        return [
            SlurmJob(self, job.job_id, program, attempt) for job, (program, attempt) in zip(jobs, attempts, strict=True)
        ]

    def find(self, job: str, program: Program, attempt: int) -> SlurmJob | None:
        """A job of an earlier launcher, if it still waits or runs."""
        number = job.removeprefix("slurm ")
        self._asked = 0.0
        return SlurmJob(self, number, program, attempt) if self.queued(number) else None

    def queued(self, number: str) -> bool:
        """True while SLURM has the job waiting or running. Asks for all jobs at once, and not too often."""
        if time.monotonic() - self._asked > ASK_SECONDS:
            listed = _run("squeue", "--me", "--noheader", "--array", "--format=%i %T")
            if listed is not None:  # else nobody answers: what was true remains so
                lines = [line.split() for line in listed.splitlines() if line.strip()]
                self._known = {i for i, state in lines if state not in ("COMPLETED", "FAILED", *NOT_TO_BLAME)}
                self._asked = time.monotonic()
        return number in self._known

    @staticmethod
    def last_state(number: str) -> str | None:
        """What SLURM remembers of a job that is gone; None if nothing."""
        told = _run("scontrol", "--oneliner", "show", "job", number) or ""
        fields = dict(part.split("=", 1) for part in told.split() if "=" in part)
        return fields.get("JobState")


def parse_options(text: str) -> dict[str, Any]:
    """Options of the jobs: "partition=gpu,gpus_per_node=1,timeout_min=240".

    Raises:
        ValueError: it is not written like that.
    """
    found: dict[str, Any] = {}
    for part in split_list(text) if text else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"--slurm={text}: write NAME=VALUE,…, e.g. partition=gpu,timeout_min=240, not {part!r}")
        found[name] = int(value) if value.isdigit() else value
    for name in OPTIONS:
        if name in found and not isinstance(found[name], int):
            raise ValueError(f"--slurm={text}: {name} is a whole number")
    return found


def parameters(options: Mapping[str, Any], jobs: int = 0) -> dict[str, Any]:
    """What submitit is told: its own options, SLURM's under its prefix, any other as an option of sbatch."""
    told: dict[str, Any] = {"name": "mtjax", "timeout_min": 24 * 60, "slurm_signal_delay_s": SIGNAL_SECONDS}
    # The launcher submits again what was preempted, so that a program never runs twice at once.
    others: dict[str, Any] = {"no_requeue": True}
    for name, value in options.items():
        if name in OPTIONS:
            told[name] = value
        elif name in SLURM_OPTIONS:
            told[f"slurm_{name}"] = value
        else:
            others[name] = value
    if jobs:
        told["slurm_array_parallelism"] = jobs
    return {**told, "slurm_additional_parameters": others}


@contextlib.contextmanager
def _environment(environ: Mapping[str, str]) -> Iterator[None]:
    """This process's environment as it is to reach the jobs: without what the launcher has set for itself."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(*command: str) -> str | None:
    """What a command of SLURM prints, or None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
