"""Two processes train one run: killed, it goes on from its checkpoint; a signal to one of them stops both."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from mtjax import suites
from mtjax.launch import presets
from mtjax.training import record
from mtjax.training.checkpoint import MANIFEST, Checkpointer
from mtjax.training.trainer import Trainer

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 4 * 8  # of an update and a task
OPTIONS = {
    "num_envs": 4,
    "num_seeds": 2,
    "rollout_length": 8,
    "grads": "mean",
    "num_epochs": 50,  # updates that take long enough to be interrupted
    "num_minibatches": 1,
    "learning_rate": 1e-5,
    "hidden_sizes": (8,),
    "normalize_observations": True,
    "log_every": 1,
    "evaluation_episodes": 1,
    "final_evaluation_episodes": 1,
}


class Pair:
    """The same command in two processes, each with one device."""

    def __init__(self, folder: pathlib.Path, *arguments: str):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "mtjax.launch.train", f"--run_dir={folder}", "--novideo", "--notensorboard"]
        command += [f"--compilation_cache={folder.parent / 'cache'}", f"--coordinator=localhost:{port}", *arguments]
        self.processes = [
            subprocess.Popen(
                [*command, "--num_processes=2", f"--process_id={index}"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in (0, 1)
        ]

    def wait_for(self, condition) -> None:
        """Until the condition holds; fails where a process ends before it does."""
        end = time.monotonic() + 120
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.ends()
            assert time.monotonic() < end, self.ends()
            time.sleep(0.02)

    def ends(self) -> list[tuple[int, str]]:
        """Exit codes and what was printed."""
        try:
            printed = [process.communicate(timeout=150)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, text) for process, text in zip(self.processes, printed, strict=True)]


def checkpoints(folder: pathlib.Path) -> list[int]:
    """Steps that are sealed."""
    return sorted(int(path.parent.name) for path in folder.glob(f"checkpoints/[0-9]*/{MANIFEST}"))


def flags(options):
    return [f"--{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in options.items()]


def test_kill_resume_and_signal(tmp_path, monkeypatch):
    """Environments in two processes, killed; then seeds in two, stopped: the numbers of one process alone."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    suite = suites.make("gridworld-two-rooms")
    size = suite.num_tasks * STEPS
    options = {**OPTIONS, "total_steps": 10 * size, "checkpoint_every": size, "evaluate_every": 100 * size}
    folder = tmp_path / "run"
    typed = (f"--suite={suite.name}", "--preset=none", *flags(options))

    pair = Pair(folder, *typed, "--mesh=env:2")
    pair.wait_for(lambda: checkpoints(folder))
    pair.processes[1].kill()
    (first, text), (second, _) = pair.ends()
    assert second == -signal.SIGKILL and first == 75, text
    assert text.splitlines()[-1].startswith("mtjax-train: another process of this run was lost (")
    before = checkpoints(folder)[-1]

    pair = Pair(folder, *typed, "--mesh=seed:2", "--resume")
    pair.wait_for(lambda: checkpoints(folder)[-1] > before)
    pair.processes[1].send_signal(signal.SIGTERM)
    (first, text), (second, silent) = pair.ends()
    assert (first, second) == (75, 75), text + silent
    assert "2 devices of 2 processes (cpu), mesh seed:2" in text and "run folder" not in silent
    last = checkpoints(folder)[-1]
    assert before < last < 10 * size

    trainer = Trainer(presets.configure(suite.name, preset="none", **options), suite)
    with Checkpointer(folder, read_only=True) as saver:
        _, got, host = saver.restore(trainer.abstract(), last)
    want = trainer.init()
    for _ in range(host["update"]):
        want, rollout = trainer.collect(trainer.env, want)
        want, _ = trainer.update(want, rollout)
    chex.assert_trees_all_close(got.learner.params, want.learner.params, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(got.carry.env.steps, want.carry.env.steps)
    # One process wrote the record, without a gap or a line twice.
    lines = record.read(folder)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(size, last + 1, size))
    messages = [line["message"] for line in lines if line["kind"] == "event"]
    assert messages == [f"resumed from checkpoint {before}", "stopped by a signal; saved"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--num_processes=2", "--num_processes needs --coordinator=HOST:PORT"),
        ("--process_id=0", "--process_id needs --coordinator=HOST:PORT"),
        ("--coordinator=here:1", "--coordinator needs --run_dir: all processes must name the same folder"),
        (
            "--coordinator=here --run_dir=run",
            "--coordinator=here: expected HOST:PORT of the first process, or auto",
        ),
        ("--coordinator=here:1 --run_dir=run", "--coordinator=here:1 needs --num_processes"),
        ("--coordinator=here:1 --run_dir=run --num_processes=2", "--coordinator=here:1 needs --process_id"),
        (
            "--coordinator=here:1 --run_dir=run --num_processes=2 --process_id=2",
            "--process_id=2: must be less than --num_processes=2",
        ),
        ("--mesh=seeds:2", "mesh 'seeds:2': unknown axis 'seeds'; did you mean seed?"),
        ("--mesh=seed:2", "mesh seed:2 needs 2 devices, but there are 1"),
    ],
)
def test_what_does_not_go_together_is_refused(command, training, typed, message):
    if typed.startswith("--mesh=seed:2") and jax.device_count() == 2:
        pytest.skip("this machine has two devices")
    result = command("--suite=launch-probe", "--num_seeds=2", *typed.split())
    assert (result.code, result.err) == (1, f"mtjax-train: {message}\n")
    assert not training.calls
