"""The Ray launcher: what is asked of a cluster, and an embedded one that really runs programs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mtjax import options
from mtjax.sweeps import ledger, local, plan, raycluster, schedule
from mtjax.training.config import RunConfig

NODES = [{"CPU": 8.0, "GPU": 1.0, "memory": 8 * 2.0**30}, {"CPU": 64.0, "memory": 64 * 2.0**30}]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"CPU": 8.0, "GPU": 0.5, "memory": 0.0}, None),
        ({"CPU": 65.0, "GPU": 0.0}, "--ray=num_cpus=65: no node of the cluster has more than 64"),
        ({"CPU": 1.0, "GPU": 2.0}, "--ray=num_gpus=2: no node of the cluster has more than 1"),
        ({"CPU": 1.0, "memory": 2.0**40}, "--ray=memory_gb=1024: no node of the cluster has more than 64"),
        ({"CPU": 16.0, "GPU": 1.0}, "no single node of the cluster has all of"),
    ],
)
def test_what_no_node_has_is_refused(asked, message):
    """Ray itself would leave such a task pending without a word."""
    if message is None:
        return raycluster.require(asked, NODES)
    with pytest.raises(ValueError, match=message):
        raycluster.require(asked, NODES)


def test_options():
    assert raycluster.parse_options("num_gpus=0.5,num_cpus=4,address=auto") == {
        "num_gpus": 0.5,
        "num_cpus": 4.0,
        "address": "auto",
    }
    for text, message in (
        ("num_gpu=1", "did you mean num_gpus"),
        ("num_gpus", "write NAME=VALUE"),
        ("num_gpus=some", "'some' is not a number"),
        ("num_gpus=-1", "must be a number between 0 and 1e6"),
    ):
        with pytest.raises(ValueError, match=message):
            raycluster.parse_options(text)


WORKER = """
import json, os, pathlib, sys, time
folder, program, attempt = sys.argv[1:4]
own = pathlib.Path(folder, "programs", program)
(own / f"seen-{attempt}.json").write_text(json.dumps(os.environ.get("MARK")))
if program == "p002" and attempt == "1":
    sys.stdin.read()  # until the launcher, or what runs the task, is gone
state = "stopped" if program == "p002" and attempt == "1" else "done"
trials = json.loads(pathlib.Path(folder, "sweep.json").read_text())["programs"][program]
outcome = {"attempt": int(attempt), "state": state, "error": None}
outcome["trials"] = {name: {"state": state, "error": None} for name in trials}
if program == "p003":
    os.kill(os.getpid(), 9)
(own / "outcome.json").write_text(json.dumps(outcome))
"""


CANNOT_START = 77


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_embedded_ray_runs_stops_and_notices(tmp_path):
    """Three programs on a real Ray: one is done, one saves when it is cancelled, one dies and is tried again.

    In a process of its own: Ray forks when it starts, and in this one there are jax's threads.
    """
    pytest.importorskip("ray")
    script = "import pathlib, sys, test_raycluster; sys.exit(test_raycluster.embedded(pathlib.Path(sys.argv[1])))"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path), os.path.dirname(__file__)])}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], env=environ, capture_output=True, text=True, timeout=280
    )
    if done.returncode == CANNOT_START:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr


def embedded(folder):
    """The test above, in its process. Returns an exit code."""
    import ray

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as where a script starts a sweep with &; Ray's workers inherit it

    (folder / "fake_worker.py").write_text(WORKER)
    local.ENTRY = "fake_worker"
    raycluster.run_program = with_entry(raycluster.run_program, "fake_worker")
    assert "jax" not in sys.modules
    try:
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    except Exception as error:
        print(f"Ray cannot start here: {error}")
        return CANNOT_START
    try:
        changes = [{"num_epochs": n} for n in (1, 2, 3)]
        trials = [(change, options.replace(RunConfig(), change)) for change in changes]
        made = plan.make_plan("s", trials, lambda config: plan.Facts(1), most_rows=1)
        plan.save(made, folder)
        environ = {"PYTHONPATH": str(folder), "MARK": "of the launcher"}
        launcher = raycluster.RayLauncher(folder, options={"num_cpus": 1.0}, environ=environ)
        with pytest.raises(ValueError, match="num_gpus=1: no node of the cluster has more than 0"):
            raycluster.RayLauncher(folder, options={"num_gpus": 1.0})
        seen = plan.program_dir(folder, "p002") / "seen-1.json"
        launcher = CancelOnce(launcher, seen)
        state = schedule.run(folder, made, launcher, schedule.Policy(retries=1), report=lambda line: None)
    finally:
        ray.shutdown()
    states = {name: dataclasses.astuple(progress)[:3] for name, progress in state.programs.items()}
    assert states == {"p001": ("done", 1, 0), "p002": ("done", 2, 0), "p003": ("failed", 2, 2)}
    assert json.loads(seen.read_text()) == "of the launcher"
    assert state.programs["p003"].error and "-9" in state.programs["p003"].error
    assert [event["event"] for event in ledger.read(folder)][-1] == "closed"
    return 0


class CancelOnce:
    """A launcher that cancels the first attempt at p002 once it is at work, as a cluster may."""

    name = "ray"

    def __init__(self, launcher, seen):
        self.launcher, self.slots, self.find, self.seen = launcher, launcher.slots, launcher.find, seen

    def start(self, attempts):
        jobs = self.launcher.start(attempts)
        for (program, attempt), job in zip(attempts, jobs, strict=True):
            if (program.name, attempt) == ("p002", 1):
                threading.Thread(target=self.cancel, args=(job,), daemon=True).start()
        return jobs

    def cancel(self, job):
        while not self.seen.exists():
            time.sleep(0.1)
        job.stop()


def with_entry(function, entry):
    """The task with another program to start: Ray's workers do not see what is patched here."""

    def task(folder, program, attempt, environ, share):
        from mtjax.sweeps import local

        local.ENTRY = entry
        return function(folder, program, attempt, environ, share)

    return task
