"""The SLURM launcher: on a real SLURM of one node, where one can be started."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import cluster
import pytest

import mtjax
from mtjax.sweeps import ledger, plan, slurm

ROOT = pathlib.Path(mtjax.__file__).parents[1]
TINY = (
    "--suite=gridworld-two-rooms",
    "--num_envs=2",
    "--rollout_length=8",
    "--num_minibatches=2",
    "--hidden_sizes=8",
    "--grads=mean",
    "--evaluation_episodes=1",
    "--final_evaluation_episodes=1",
    "--log_every=1",
    "--evaluate_every=100_000",
    "--notensorboard",
)


def test_options_of_jobs():
    """Each goes where submitit and sbatch expect it."""
    asked = slurm.parse_options("partition=gpu,gpus_per_node=1,timeout_min=30,gres=gpu:a100:1,setup='a,b'")
    told = slurm.parameters(asked, jobs=3)
    others = told.pop("slurm_additional_parameters")
    assert others == {"no_requeue": True, "gres": "gpu:a100:1"}
    assert told["slurm_partition"] == "gpu" and told["gpus_per_node"] == 1 and told["timeout_min"] == 30
    assert told["slurm_array_parallelism"] == 3 and told["slurm_setup"] == "'a,b'"
    assert slurm.parse_options("") == {}
    assert slurm.parameters({})["timeout_min"] == 24 * 60


@pytest.mark.parametrize("text", ["gpu", "partition=", "=x", "partition=a,,b=c", "gpus_per_node=one"])
def test_options_that_cannot_be(text):
    with pytest.raises(ValueError, match="--slurm=|a value is empty"):
        slurm.parse_options(text)


@pytest.fixture
def one_node():
    pytest.importorskip("submitit")
    with tempfile.TemporaryDirectory(prefix="mtjax-slurm-") as folder:  # a socket's path must be short
        try:
            started = cluster.Slurm(pathlib.Path(folder)).__enter__()
        except cluster.CannotStart as error:
            pytest.skip(f"no SLURM here: {error}")
        try:
            yield started
        finally:
            started.__exit__()


def start(one_node, folder, *arguments):
    environ = {**one_node.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environ |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "mtjax.launch.sweep", *arguments]
    return subprocess.Popen(
        command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_jobs_outlive_the_launcher_and_go_on_after_preemption(one_node, tmp_path):
    """An array of two. The launcher is killed, the next one finds the job; a preempted job saves and is sent again."""
    steps = 60_000
    axes = (f"--sweep=total_steps={steps},200", "--sweep=learning_rate=1e-3,1e-2")
    folder = tmp_path / "sweeps" / "mine"
    first = start(one_node, tmp_path, *TINY, *axes, "--name=mine", "--launcher=slurm", "--slurm=timeout_min=30")
    record = plan.program_dir(folder, "p001") / "metrics.jsonl"

    def trains(since: int) -> bool:
        return record.exists() and record.read_text().count('"train"') > since

    wait_until(lambda: trains(0), first)
    job = ledger.fold(plan.load(folder), ledger.read(folder)).programs["p001"].job
    assert job and job.startswith("slurm ")
    number = job.removeprefix("slurm ")
    one_node.ask("scancel", "--signal=STOP", number)  # or it would end before the next launcher has started
    first.send_signal(signal.SIGKILL)
    first.communicate()

    second = start(one_node, tmp_path, f"--resume={folder}", "--launcher=slurm")
    with second:
        lines = [second.stdout.readline() for _ in range(2)]
        assert any(f"p001 is still active ({job})" in line for line in lines), lines
        for name in ("TERM", "CONT"):
            one_node.ask("scancel", f"--signal={name}", number)
        out = second.communicate(timeout=500)[0]
    assert second.returncode == 0, out + logs(folder)
    assert "p001 stopped and can be continued" in out and "p001 started again (slurm " in out
    made = plan.load(folder)
    state = ledger.fold(made, ledger.read(folder))
    assert [trial.state for trial in state.trials.values()] == [ledger.DONE] * 4
    assert state.programs["p001"].attempt == 2 and state.programs["p001"].failures == 0
    assert "resumed from checkpoint" in record.read_text()
    for name in made.trials:
        assert json.loads((plan.trial_dir(folder, name) / "summary.json").read_text())["seeds"] == 1


def test_a_job_that_dies_without_a_word_is_learnt_of(one_node, tmp_path, monkeypatch):
    """A job whose process is killed leaves no outcome; SLURM no longer has it."""
    for name, value in one_node.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(slurm.Work, "__call__", lambda self: None)
    launcher = slurm.SlurmLauncher(tmp_path, options={"timeout_min": 30})
    program = plan.Program("p001", ("a",))
    (job,) = launcher.start([(program, 1)])  # there is no sweep in the folder: it fails at once
    assert not isinstance(job, Exception), job
    wait_until(lambda: job.ended() is not None)
    assert job.ended().how.startswith("SLURM reports ") and not job.ended().interrupted
    assert launcher.find(job.name, program, 1) is None
    refused = slurm.SlurmLauncher(tmp_path, options={"partition": "nonsense"}).start([(program, 1)])
    assert isinstance(refused[0], Exception) and "partition" in str(refused[0])


def test_jobs_get_the_environment_of_the_shell(monkeypatch, tmp_path):
    """The launcher keeps off the devices and says so in its own environment, which sbatch would hand on."""
    pytest.importorskip("submitit")
    for name, script in (("srun", "true"), ("sbatch", f"env > {tmp_path}/seen; echo Submitted batch job 7")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    shell = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | {"OF_THE_SHELL": "1"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    launcher = slurm.SlurmLauncher(tmp_path / "sweep", options={"timeout_min": 30}, environ=shell)
    (job,) = launcher.start([(plan.Program("p001", ("a",)), 1)])
    assert not isinstance(job, Exception), job
    seen = (tmp_path / "seen").read_text().splitlines()
    assert "OF_THE_SHELL=1" in seen and not [line for line in seen if line.startswith("JAX_PLATFORMS")]
    assert os.environ["JAX_PLATFORMS"] == "cpu" and "OF_THE_SHELL" not in os.environ


def wait_until(true, process=None, seconds=400):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline and (process is None or process.poll() is None), (
            process.communicate()[0] if process and process.poll() is not None else "too slow"
        )
        time.sleep(0.1)


def logs(folder):
    return "".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("slurm/**/*.err"))


def test_without_slurm(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ValueError, match="there is no sbatch on this machine"):
        slurm.SlurmLauncher(tmp_path)
