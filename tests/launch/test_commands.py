"""The real commands in processes of their own: killed, resumed, evaluated, and told off."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import mtjax

ROOT = pathlib.Path(mtjax.__file__).parents[1]  # so that mtjax need not be installed

TINY = (
    "--suite=gridworld-two-rooms",
    "--num_envs=4",
    "--rollout_length=16",
    "--num_minibatches=2",
    "--hidden_sizes=16",
    "--grads=mean",
    "--evaluation_episodes=2",
    "--final_evaluation_episodes=2",
    "--novideo",
)


def start(name: str, *arguments: str) -> subprocess.Popen:
    """Start ``python -m mtjax.launch.<name>``."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", f"mtjax.launch.{name}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environ, cwd=ROOT, **pipes)


def finish(process: subprocess.Popen, seconds: float = 600) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def kill_when_it_trains(process: subprocess.Popen, metrics) -> None:
    """Send SIGTERM once the record shows that training has begun."""
    deadline = time.monotonic() + 600
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)


def test_a_run_is_killed_resumed_and_evaluated(tmp_path):
    run_dir = tmp_path / "run"
    endless = (*TINY, f"--run_dir={run_dir}", "--total_steps=1_000_000_000", "--log_every=1")
    process = start("train", *endless)
    kill_when_it_trains(process, run_dir / "metrics.jsonl")
    code, out, err = finish(process)
    assert code == 75, err
    assert err.splitlines()[-1].startswith("train.py: stopped at step ") and "--resume" in err

    # The step at which it was stopped is the end of a run of so many steps: what is left is to finish.
    steps = max(int(folder.name) for folder in (run_dir / "checkpoints").iterdir() if folder.name.isdigit())
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps({**config, "total_steps": steps}))
    more = steps + 2000
    code, out, err = finish(start("train", f"--run_dir={run_dir}", "--resume", f"--total_steps={more}"))
    assert code == 0, err
    assert "Traceback" not in err and f"total_steps extended from {steps} to {more}" in out
    assert "train" in out and f"run folder: {run_dir}" in out
    assert json.loads((run_dir / "summary.json").read_text())["step"] >= more

    code, out, err = finish(start("evaluate", f"--run_dir={run_dir}", "--episodes=2", "--splits=train"))
    assert code == 0, err
    for mode in ("deterministic", "stochastic"):
        assert f"train, {mode} policy, checkpoint " in out
    assert "(worst)" in out and err == ""


@pytest.mark.parametrize(
    "name, typed, message",
    [
        ("train", "--sede=1", "train.py: Unknown command line flag 'sede'. Did you mean: seed, selection ?\n"),
        ("evaluate", "--run_dir=nowhere", "evaluate.py: nowhere is not a run: there is no such folder\n"),
    ],
)
def test_a_mistake_is_answered_at_once(name, typed, message):
    begin = time.monotonic()
    code, out, err = finish(start(name, typed))
    assert code == 1 and err.startswith(message) and out == "" and "Traceback" not in err
    assert time.monotonic() - begin < 5  # 0.3 s on an idle machine


def test_sizes_that_do_not_fit_are_refused_before_the_folder_is_made(tmp_path):
    code, out, err = finish(start("train", *TINY, "--rollout_length=15"))
    assert code == 1 and "--rollout_length is given twice" in err
    sizes = (
        *TINY[:1],
        "--num_envs=3",
        "--rollout_length=5",
        "--num_minibatches=4",
        f"--run_dir={tmp_path / 'run'}",
    )
    code, out, err = finish(start("train", *sizes))
    assert code == 1 and err == "train.py: num_minibatches: 4 does not divide rollout_length × num_envs = 5 × 3 = 15\n"
    assert not (tmp_path / "run").exists()
