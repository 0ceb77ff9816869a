"""Run commands in this process as a user would type them, with a training loop that costs nothing."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import types

import pytest

import mtjax.training
from mtjax.launch import train
from mtjax.training.config import save_config

SUITE = "launch-probe"
NUMBER = {"value": 0.5, "low": 0.25, "high": 0.75}
MEASURE = {
    "mean": NUMBER,
    "median": NUMBER,
    "worst": NUMBER,
    "iqm": NUMBER,
    "tasks": {"task_0": 1.0, "task_1": 0.0},
}
RESULTS = {"train": {"deterministic": {"return": MEASURE, "length": MEASURE}}}
SUMMARY = {
    "step": 12345,
    "seeds": 2,
    "episodes": 50,
    "seconds_of_training": 10.0,
    "steps_per_second": 2469.0,
    "results": RESULTS,
}


@dataclasses.dataclass
class Result:
    """What a command left on the screen."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def clean_process(monkeypatch, tmp_path):
    """Every command runs in an empty folder and leaves jax and the environment as they were."""
    monkeypatch.chdir(tmp_path)
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "MUJOCO_GL"):
        value = os.environ.get(name)
        monkeypatch.setenv(name, value or "")  # so that monkeypatch restores it
        if value is None:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import jax

    names = (
        "jax_platforms",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def command(capsys):
    """A function that runs ``mtjax-train``, or another main, with arguments."""

    def run(*arguments, main=train.main, program="mtjax-train") -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([program, *map(str, arguments)])
        captured = capsys.readouterr()
        return Result(stopped.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def probe_suite(monkeypatch) -> str:
    """The name of a registered suite of two tasks that is built at once."""
    from mtjax import suites
    from mtjax.envs import probe
    from mtjax.suites import base

    def make():
        infos = tuple(suites.TaskInfo(f"task_{i}", f"Task {i}.") for i in range(2))
        version = suites.Version("1", "no simulator", "v1", 1, warnings=("task_1 is not what it seems",))
        splits = {"train": suites.Split(infos, probe.tasks([1.0, 2.0]))}
        return suites.from_env(SUITE, probe.ConstantReward(), splits, version=version)

    monkeypatch.setitem(base._REGISTRY, SUITE, make)
    return SUITE


@pytest.fixture
def training(monkeypatch, probe_suite):
    """Stands in for ``mtjax.training.run``: records how it was called, then does ``work``."""
    fake = types.ModuleType("mtjax.training.run")

    def train(config, run_dir, **options):
        fake.calls.append((config, run_dir, options))
        save_config(config, run_dir)
        fake.work()
        (pathlib.Path(run_dir) / "checkpoints" / "12345").mkdir(parents=True, exist_ok=True)
        return SUMMARY

    def evaluate(run_dir, **options):
        fake.calls.append((run_dir, options))
        return {"step": 12345, "suite": SUITE, "episodes": 50, "results": RESULTS}

    fake.calls, fake.work, fake.train, fake.evaluate = [], lambda: None, train, evaluate
    for name in ("Interrupted", "Diverged", "SimulatorFailed"):
        setattr(fake, name, type(name, (Exception,), {}))
    monkeypatch.setitem(sys.modules, "mtjax.training.run", fake)
    monkeypatch.setattr(mtjax.training, "run", fake, raising=False)
    return fake
