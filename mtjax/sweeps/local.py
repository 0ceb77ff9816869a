"""The local launcher: each program runs in a process with its share of this machine."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from mtjax.sweeps import plan, worker
from mtjax.sweeps.plan import Program
from mtjax.sweeps.schedule import End

CORES_PER_PROGRAM = 4  # a program on the CPU gains little from more
MEMORY = 0.9  # fraction of a device's memory for the programs that share it
ENTRY = "mtjax.launch.worker"
# Exit codes of a worker whose disk has no room for its outcome: its own, and Python's if its log could not be written.
WITHOUT_ROOM = (75, 120)


@dataclasses.dataclass(frozen=True)
class Slot:
    """A share of the machine.

    Attributes:
        cores: processor cores to run on; empty for all.
        device: index of an NVIDIA GPU, or None.
        sharers: number of programs on that device.
    """

    cores: tuple[int, ...] = ()
    device: str | None = None
    sharers: int = 1


def share(jobs: int, cores: Sequence[int], devices: Sequence[str]) -> list[Slot]:
    """Divide the machine into slots.

    Args:
        jobs: programs at once; 0 means one for each device or, without devices, one for every four cores.
        cores: usable processor cores.
        devices: usable devices.

    Returns:
        One slot per job: devices in turn, and cores in equal shares that do not overlap if there are enough.
    """
    jobs = jobs or len(devices) or max(1, len(cores) // CORES_PER_PROGRAM)
    if jobs == 1 and len(devices) <= 1:
        return [Slot()]
    slots = []
    for index in range(jobs):
        own = tuple(cores[len(cores) * index // jobs : len(cores) * (index + 1) // jobs])
        device = devices[index % len(devices)] if devices else None
        sharers = -(-(jobs - index % len(devices)) // len(devices)) if devices else 1
        slots.append(Slot(own or (cores[index % len(cores)],), device, sharers))
    return slots


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_devices(platform: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """NVIDIA GPUs that programs may run on, found without starting jax, which would occupy them."""
    if platform not in ("auto", "gpu") or environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [name.strip() for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE)


def spawn(
    folder: str | os.PathLike, program: str, attempt: int, environ: Mapping[str, str], cores: Sequence[int] = ()
) -> subprocess.Popen:
    """Start a program in a process that prints to the program's log and stops when its standard input closes.

    Args:
        folder: the sweep's folder.
        program: the program's name.
        attempt: number of the attempt, from the launcher.
        environ: environment of the process.
        cores: processor cores to run on; all if empty.
    """
    command = [sys.executable, "-m", ENTRY, str(folder), program, str(attempt), "--with_launcher"]
    if cores:
        command.append(f"--cores={','.join(map(str, cores))}")
    log = plan.program_dir(folder, program) / worker.LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,  # Ctrl-C reaches only the launcher, which tells the processes
        )


class LocalJob:
    """A program in a process of its own, which stops when its launcher ends (see ``mtjax.launch.worker``)."""

    def __init__(self, process: subprocess.Popen, free: list[Slot], slot: Slot):
        self.process, self._free, self._slot = process, free, slot
        self.name = f"process {process.pid}"

    def ended(self) -> End | None:
        code = self.process.poll()
        if code is None:
            return None
        if self._slot is not None:
            self._free.append(self._slot)
            self._slot = None
            self.process.stdin.close()
        if code < 0:
            why = " (out of memory?)" if -code == signal.SIGKILL else ""
            return End(f"killed by {signal.Signals(-code).name}{why}")
        return End(f"exit code {code}", without_room=code in WITHOUT_ROOM)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()


class LocalLauncher:
    """Runs programs on this machine.

    Args:
        folder: the sweep's folder.
        jobs: programs at once; 0 chooses a number that suits the machine.
        platform: kind of device.
        environ: environment of the programs; None is this process's.
    """

    name = "local"

    def __init__(
        self,
        folder: str | os.PathLike,
        jobs: int = 0,
        platform: str = "auto",
        environ: Mapping[str, str] | None = None,
    ):
        self.folder = pathlib.Path(folder)
        self.environ = dict(os.environ if environ is None else environ)
        self._free = share(jobs, usable_cores(), usable_devices(platform, self.environ))
        self.slots = len(self._free)

    def start(self, attempts: Sequence[tuple[Program, int]]) -> list[LocalJob | OSError]:
        """Start a process per attempt; its output goes to the program's log."""
        jobs: list[LocalJob | OSError] = []
        for program, attempt in attempts:
            try:
                jobs.append(self._start(program, attempt))
            except OSError as error:
                jobs.append(error)
        return jobs

    def _start(self, program: Program, attempt: int) -> LocalJob:
        slot = self._free.pop(0)
        environ = dict(self.environ)
        if slot.device is not None:
            environ["CUDA_VISIBLE_DEVICES"] = slot.device
        if slot.sharers > 1:
            environ.setdefault("XLA_CLIENT_MEM_FRACTION", f"{MEMORY / slot.sharers:.2f}")
        try:
            process = spawn(self.folder, program.name, attempt, environ, slot.cores)
        except OSError:
            self._free.append(slot)
            raise
        return LocalJob(process, self._free, slot)

    def find(self, job: str, program: Program, attempt: int) -> None:
        """None, as local programs end with their launcher."""
