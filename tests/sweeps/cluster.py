"""A SLURM of one node on the loopback, in a folder of its own, started and ended by a test."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
SYSTEM = ("/usr/sbin", "/usr/local/sbin")  # where daemons are, which is not on everybody's path

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=300
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


class CannotStart(RuntimeError):
    """Why there is no SLURM here."""


class Slurm:
    """Starts the daemons. A context manager.

    Args:
        folder: for sockets, logs and state; its path must be short enough for a socket.

    Attributes:
        environ: with what SLURM's commands need to find it.

    Raises:
        CannotStart: a program is missing, or a daemon ends.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self._processes = folder, []
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM])
        self.programs = {name: shutil.which(name, path=path) for name in PROGRAMS}

    def __enter__(self) -> Slurm:
        missing = [name for name, found in self.programs.items() if not found]
        if missing:
            raise CannotStart(f"{', '.join(missing)} not found (Debian: apt-get install slurm-wlm munge)")
        if os.getuid() != 0:
            raise CannotStart("its daemons need root")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        ports = {"controller": _free_port(), "node": _free_port()}
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, host=host, **ports))
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        self._daemon("munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items()))
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D", "-N", host)
        self._wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "slurmctld and slurmd")

    def _daemon(self, name: str, *arguments: str) -> None:
        command = [self.programs[name], *arguments]
        with (self.folder / f"{name}.out").open("wb") as output:
            process = subprocess.Popen(command, env=self.environ, stdout=output, stderr=subprocess.STDOUT)
        self._processes.append(process)

    def _wait(self, ready, what: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            dead = [process for process in self._processes if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "".join(p.read_text(errors="replace")[-500:] for p in sorted(self.folder.glob("*.out")))
                raise CannotStart(f"{what} did not start: {' '.join(logs.split())[-800:]}")
            time.sleep(0.2)

    def ask(self, *command: str) -> str:
        """What a command prints; nothing if it fails."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def __exit__(self, *_) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
