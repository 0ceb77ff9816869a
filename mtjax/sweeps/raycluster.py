"""The Ray launcher: programs run as tasks of Ray Core, on the user's cluster or on an embedded one.

A task starts a program as a separate process, as the local launcher does: jax holds a device for as long as its process
lives, and Ray reuses its workers. When a task is cancelled or its worker ends, the process's standard input closes, and
the process saves and stops. The sweep's folder must be shared by all nodes.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mtjax.sweeps import local
from mtjax.sweeps.plan import Program
from mtjax.sweeps.schedule import End
from mtjax.sweeps.space import split_list

EVERYTHING = 10_000  # slots without --jobs: submit all programs, Ray queues them
OPTIONS: Mapping[str, type] = {"address": str, "num_cpus": float, "num_gpus": float, "memory_gb": float}
POLL_SECONDS = 0.5
SAVE_SECONDS = 120.0  # time for a program to save after it was asked to stop
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def run_program(folder: str, program: str, attempt: int, environ: Mapping[str, str], share: float) -> int:
    """The Ray task: run a program in a process and return its exit code. Cancelling the task lets the program save.

    Args:
        folder: the sweep's folder.
        program: the program's name.
        attempt: number of the attempt, from the launcher.
        environ: the launcher's environment variables, which this node may lack.
        share: number of GPUs that the program asked for; below 1, its share of one.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # inherited if a script started the launcher with &
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray cancels by SIGINT
    # The launcher's environment, except for variables it lacks and CUDA's, by which Ray assigns devices to this task.
    kept = {name: value for name, value in os.environ.items() if name not in environ or name.startswith("CUDA")}
    own = {**environ, **kept}
    if 0 < share < 1:
        own.setdefault("XLA_CLIENT_MEM_FRACTION", f"{local.MEMORY * share:.2f}")
    process = local.spawn(folder, program, attempt, own)
    try:
        while process.poll() is None:  # cancelling interrupts Python code, but not a blocking system call
            time.sleep(POLL_SECONDS)
        return process.returncode
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


class RayJob:
    """A Ray task."""

    def __init__(self, ray: Any, task: Any):
        self._ray, self._task = ray, task
        self.name = f"ray task {task.task_id().hex()[:16]}"

    def ended(self) -> End | None:
        """How the task ended, by its exit code or by Ray's exception; None while it runs."""
        done, _ = self._ray.wait([self._task], timeout=0)
        if not done:
            return None
        try:
            code = self._ray.get(self._task)
            return End(f"exit code {code}", without_room=code in local.WITHOUT_ROOM)
        except (self._ray.exceptions.TaskCancelledError, KeyboardInterrupt):
            return End("cancelled", interrupted=True)
        except self._ray.exceptions.RayTaskError as error:
            return End(str(error.cause or error).splitlines()[0])
        except self._ray.exceptions.RayError as error:  # its worker or node has died
            return End(str(error).splitlines()[0], interrupted=True)

    def stop(self) -> None:
        self._ray.cancel(self._task, force=False)

    def kill(self) -> None:
        self._ray.cancel(self._task, force=True)


class RayLauncher:
    """Runs programs as tasks of Ray.

    Args:
        folder: the sweep's folder.
        jobs: most programs at once; 0 is as many as Ray finds room for.
        options: see :func:`parse_options`.
        environ: environment of the programs; None is this process's.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster cannot be reached, or none of its nodes has what a program asks for.
    """

    name = "ray"

    def __init__(
        self,
        folder: str | os.PathLike,
        jobs: int = 0,
        options: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ):
        options = dict(options or {})
        ray = join(options)
        self.folder = pathlib.Path(folder).absolute()
        self.slots = jobs or EVERYTHING
        self._ray, self._environ = ray, dict(os.environ if environ is None else environ)
        self._share = options.get("num_gpus", 0.0)
        asked = {"CPU": options.get("num_cpus", 1.0), "GPU": self._share}
        asked["memory"] = options.get("memory_gb", 0.0) * 2**30
        require(asked, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        wanted = {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"], "max_retries": 0, "max_calls": 1}
        if asked["memory"]:
            wanted["memory"] = int(asked["memory"])
        self._task = ray.remote(**wanted)(run_program)

    def start(self, attempts: Sequence[tuple[Program, int]]) -> list[RayJob]:
        """Submit attempts to Ray, which starts each as soon as there is room."""
        return [
            RayJob(self._ray, self._task.remote(str(self.folder), program.name, attempt, self._environ, self._share))
            for program, attempt in attempts
        ]

    def find(self, job: str, program: Program, attempt: int) -> None:
        """None, as tasks end with the launcher that submitted them."""


def join(options: Mapping[str, Any]) -> Any:
    """Join the cluster that the options name, or an embedded one. Returns the module ``ray``.

    Call it before jax is imported: an embedded Ray is started by forking.

    Args:
        options: see :func:`parse_options`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ImportError("--launcher=ray needs Ray; install it with: pip install 'mtjax[ray]'") from error
    connect(ray, options.get("address"))
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Join the cluster at ``address`` (or RAY_ADDRESS), or start one on this machine alone.

    Raises:
        ValueError: there is no cluster at that address.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if not address:
        ray.init(include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"--ray=address={address}: no cluster at this address ({str(error).splitlines()[0]})"
        ) from None


def require(asked: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse resources that no node of the cluster has: Ray would wait for them silently.

    Raises:
        ValueError: the message says what was requested, and the most that a node has.
    """
    if any(all(node.get(name, 0.0) >= number for name, number in asked.items()) for node in nodes):
        return
    units = {"CPU": ("num_cpus", 1.0), "GPU": ("num_gpus", 1.0), "memory": ("memory_gb", 2.0**30)}
    for name, number in asked.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if number > most:
            option, unit = units[name]
            raise ValueError(
                f"--ray={option}={number / unit:g}: no node of the cluster has more than {most / unit:.3g}; "
                "Ray would wait forever"
            )
    raise ValueError(f"--ray: no single node of the cluster has all of {dict(asked)}; Ray would wait forever")


def parse_options(text: str) -> dict[str, Any]:
    """Parse the resources that a program asks Ray for: "num_gpus=0.5,num_cpus=4,address=auto".

    Raises:
        ValueError: the text does not have this form.
    """
    from mtjax import options

    found: dict[str, Any] = {}
    for part in split_list(text) if text else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"--ray={text}: write NAME=VALUE,…, e.g. num_gpus=0.5,num_cpus=4, not {part!r}")
        if name not in OPTIONS:
            raise ValueError(f"--ray={text}: {options.unknown('option', name, OPTIONS)}")
        try:
            found[name] = OPTIONS[name](value)
        except ValueError:
            raise ValueError(f"--ray={text}: {name}: {value!r} is not a number") from None
        if OPTIONS[name] is float and not 0 <= found[name] < 1e6:
            raise ValueError(f"--ray={text}: {name} must be a number between 0 and 1e6")
    return found
