"""mtjax-train with one more suite, "frail": two tasks whose simulators are processes of their own, for faults.py.

Each simulator's process id is appended to the file that the variable FRAIL_PROCESSES names. If FRAIL_NAN is set, the
rewards of the task "right" are NaN after that many steps.
"""

from __future__ import annotations

import functools
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np

from mtjax import suites
from mtjax.envs.base import continuous
from mtjax.envs.host import HostVectorEnv, PoolStep
from mtjax.launch import train

HORIZON = 20
TARGETS = {"left": -0.5, "right": 0.5}

# Process of one environment: reads an action and answers with the new position; NaN resets the position.
SERVER = """
import math, struct, sys
position = 0.0
while data := sys.stdin.buffer.read(4):
    push, = struct.unpack("f", data)
    position = 0.0 if math.isnan(push) else max(-1.0, min(1.0, position + 0.1 * push))
    sys.stdout.buffer.write(struct.pack("f", position))
    sys.stdout.buffer.flush()
"""


class Remote:
    """N environments of one task, each a process behind a pipe."""

    def __init__(self, num_envs: int, name: str):
        self.name, self.steps, self.indices = name, 0, np.arange(0)
        command = [sys.executable, "-c", SERVER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(num_envs)]
        with pathlib.Path(os.environ["FRAIL_PROCESSES"]).open("a") as file:
            file.writelines(f"{process.pid}\n" for process in self.processes)

    def send(self, actions: np.ndarray) -> None:
        for process, action in zip(self.processes, actions[:, 0], strict=True):
            self._tell(process, float(action))

    def receive(self) -> PoolStep:
        position = self._hear(self.processes)
        self.steps += 1
        reward = -np.abs(position - TARGETS[self.name])
        if self.name == "right" and self.steps > float(os.environ.get("FRAIL_NAN", "inf")):
            reward = reward * np.nan
        never = np.zeros(len(position), bool)
        return PoolStep(position[:, None], reward, never, never, {})

    def send_reset(self, indices: np.ndarray) -> None:
        self.indices = indices
        for index in indices:
            self._tell(self.processes[index], float("nan"))

    def receive_reset(self) -> np.ndarray:
        return self._hear([self.processes[index] for index in self.indices])[:, None]

    @staticmethod
    def _tell(process: subprocess.Popen, number: float) -> None:
        process.stdin.write(struct.pack("f", number))
        process.stdin.flush()

    @staticmethod
    def _hear(processes: list[subprocess.Popen]) -> np.ndarray:
        answers = [process.stdout.read(4) for process in processes]
        if not all(answers):
            raise EOFError("its process has gone")
        return np.array([struct.unpack("f", answer)[0] for answer in answers])


def make(split: suites.Split, num_envs: int, *, seed: int) -> HostVectorEnv:
    """The environments of the suite, which are deterministic."""
    del seed
    pools = tuple(functools.partial(Remote, name=name) for name in split.tasks)
    return HostVectorEnv(pools, num_envs, 1, continuous(1), HORIZON)


@suites.register("frail")
def frail() -> suites.Suite:
    """Go left, go right."""
    infos = tuple(suites.TaskInfo(name, f"Go {name}.") for name in TARGETS)
    version = suites.Version(suite="1", simulator="pipes", reward="1", horizon=HORIZON, success="none")
    return suites.Suite(
        name="frail",
        version=version,
        observation_size=1,
        action=continuous(1),
        horizon=HORIZON,
        splits={"train": suites.Split(infos, tuple(TARGETS))},
        make_vector_env=make,
        has_success=False,
        on_device=False,
    )


if __name__ == "__main__":
    sys.argv[0] = "train.py"
    sys.exit(train.main())
