"""The SLURM launcher: programs run as jobs of an array, through submitit.

A program runs inside submitit's own process, where SIGTERM (preemption, scancel) and SIGUSR2 (shortly before the time
limit) make it save and exit; the launcher then submits it again, and it continues from its checkpoint. The outcome file
that a program leaves in its folder is what counts, so SLURM's accounting is not needed.
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

FOLDER = "slurm"  # folder within a sweep's for submitit's scripts and logs
EVERYTHING = 10_000  # slots without --jobs: submit all programs, SLURM queues them
ASK_SECONDS = 5.0  # least time between two queries to SLURM
SIGNAL_SECONDS = 120  # how long before the time limit the signal comes, to leave time for saving
OPTIONS = ("cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min")  # submitit's names, on every cluster
SLURM_OPTIONS = ("account", "comment", "constraint", "exclude", "partition", "qos", "reservation", "setup")
NOT_TO_BLAME = ("PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "CANCELLED")


@dataclasses.dataclass(frozen=True)
class Work:
    """The callable that a job runs; submitit pickles it."""

    folder: str
    program: str
    attempt: int

    def __call__(self) -> int:
        """Train the program in this process."""
        from mtjax.launch.worker import main

        return main([self.folder, self.program, str(self.attempt)])

    def checkpoint(self, *args: Any) -> Any:
        """Resubmit the same work, if a signal arrives before training handles signals itself (submitit calls this)."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint


class SlurmJob:
    """A SLURM job."""

    def __init__(self, launcher: SlurmLauncher, number: str, program: Program, attempt: int):
        self._launcher, self.number, self._program, self._attempt = launcher, number, program, attempt
        self.name = f"slurm {number}"

    def ended(self) -> End | None:
        """The job has ended if it left an outcome, or if SLURM no longer lists it."""
        if worker.outcome_of(self._launcher.folder, self._program, self._attempt) is not None:
            return End("ended")
        if self._launcher.queued(self.number):
            return None
        # The job may have written its outcome since the first check.
        if worker.outcome_of(self._launcher.folder, self._program, self._attempt) is not None:
            return End("ended")
        state = self._launcher.last_state(self.number)
        return End(f"SLURM reports {state or 'nothing'} for job {self.number}", state in NOT_TO_BLAME)

    def stop(self) -> None:
        """Cancel the job if it is pending, else let it save and exit."""
        _run("scancel", "--state=PENDING", self.number)
        _run("scancel", "--signal=TERM", self.number)

    def kill(self) -> None:
        _run("scancel", self.number)


class SlurmLauncher:
    """Runs programs as SLURM jobs.

    Args:
        folder: the sweep's folder, on a file system that the nodes share.
        jobs: most programs at once; 0 is as many as SLURM runs.
        options: options of the jobs, see :func:`parse_options`.
        environ: environment that sbatch passes on to the jobs; None is this process's.

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
            raise ValueError(
                "--launcher=slurm: there is no sbatch on this machine; start the sweep where jobs are submitted"
            )
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
        except Exception as error:  # submitit's own exceptions, which quote sbatch
            text = str(error).strip().splitlines()
            return [RuntimeError(text[-1] if text else type(error).__name__) for _ in attempts]
        self._known |= {job.job_id for job in jobs}
        return [
            SlurmJob(self, job.job_id, program, attempt) for job, (program, attempt) in zip(jobs, attempts, strict=True)
        ]

    def find(self, job: str, program: Program, attempt: int) -> SlurmJob | None:
        """A job of an earlier launcher, if it is still pending or running."""
        number = job.removeprefix("slurm ")
        self._asked = 0.0
        return SlurmJob(self, number, program, attempt) if self.queued(number) else None

    def queued(self, number: str) -> bool:
        """True while the job is pending or running. Queries all jobs at once, at most every ``ASK_SECONDS``."""
        if time.monotonic() - self._asked > ASK_SECONDS:
            listed = _run("squeue", "--me", "--noheader", "--array", "--format=%i %T")
            if listed is not None:  # None: squeue failed, so keep the last known state
                lines = [line.split() for line in listed.splitlines() if line.strip()]
                self._known = {i for i, state in lines if state not in ("COMPLETED", "FAILED", *NOT_TO_BLAME)}
                self._asked = time.monotonic()
        return number in self._known

    @staticmethod
    def last_state(number: str) -> str | None:
        """The last state that SLURM remembers of a job that has gone; None if it remembers none."""
        told = _run("scontrol", "--oneliner", "show", "job", number) or ""
        fields = dict(part.split("=", 1) for part in told.split() if "=" in part)
        return fields.get("JobState")


def parse_options(text: str) -> dict[str, Any]:
    """Parse the options of the jobs: "partition=gpu,gpus_per_node=1,timeout_min=240".

    Raises:
        ValueError: the text does not have this form.
    """
    found: dict[str, Any] = {}
    for part in split_list(text) if text else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"--slurm={text}: write NAME=VALUE,…, e.g. partition=gpu,timeout_min=240, not {part!r}")
        found[name] = int(value) if value.isdigit() else value
    for name in OPTIONS:
        if name in found and not isinstance(found[name], int):
            raise ValueError(f"--slurm={text}: {name} must be a whole number")
    return found


def parameters(options: Mapping[str, Any], jobs: int = 0) -> dict[str, Any]:
    """Parameters for submitit: its own options, SLURM's with the prefix, and the rest as options of sbatch."""
    told: dict[str, Any] = {"name": "mtjax", "timeout_min": 24 * 60, "slurm_signal_delay_s": SIGNAL_SECONDS}
    # No requeueing by SLURM: the launcher resubmits preempted jobs, so that a program never runs twice at once.
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
    """Context in which this process has the jobs' environment, without what the launcher has set for itself."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(*command: str) -> str | None:
    """The output of a SLURM command, or None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
