"""A simulator on the host that dies: one line that names task and checkpoint, and a run that goes on; and their end."""

import dataclasses
import gc
import weakref

import jax
import pytest
import test_run
import test_trainer

from mtjax.envs.padding import Grouped
from mtjax.suites import base
from mtjax.training import policy, record, run, simulators

setting, no_plots = test_run.setting, test_run.no_plots  # fixtures

CONFIG = dataclasses.replace(test_run.CONFIG, suite="trainer-host", num_seeds=1)
QUIET = {"progress": False, "video": False, "tensorboard": False}


class Frail(test_trainer._Pool):
    """The second task's simulator is gone after so many steps."""

    dies_after = 10**6

    def __init__(self, task, num_envs):
        super().__init__(task, num_envs)
        self.steps = 0

    def receive(self):
        self.steps += 1
        if self.task == 1 and self.steps > self.dies_after:
            raise EOFError("its process\nhas gone")
        return super().receive()


def test_a_simulator_that_dies(tmp_path, monkeypatch, caplog, no_plots):
    """In training, after two of eight updates; and in an evaluation."""
    monkeypatch.setattr(test_trainer, "_Pool", Frail)
    base._REGISTRY["trainer-host"] = test_trainer._host_suite
    monkeypatch.setattr(Frail, "dies_after", 20)
    place = tmp_path / "run"
    step = 2 * test_run.STEPS
    message = rf"^the simulator of task 'task_1' failed: EOFError: its process; has gone \(traceback in {place}/.*\); "
    with pytest.raises(run.SimulatorFailed, match=message) as caught:
        run.train(CONFIG, place, **QUIET)
    assert f"the last good checkpoint is step {step} in {place}: continue with --resume" in str(caught.value)
    assert record.read(place)[-1]["message"] == str(caught.value)
    assert 'raise EOFError("its process' in (place / simulators.FILE).read_text()
    assert not caplog.records  # one line, not jax's traceback besides

    monkeypatch.setattr(Frail, "dies_after", 10**6)
    assert run.train(CONFIG, place, resume=True, **QUIET)["step"] == test_run.UPDATES * test_run.STEPS
    monkeypatch.setattr(Frail, "dies_after", 3)
    with pytest.raises(run.SimulatorFailed, match="the simulator of task 'task_1' failed"):
        run.evaluate(place, episodes=1)


def test_groups_within_groups_are_closed():
    inner, outer = test_trainer._host_suite().vector_env(1), test_trainer._host_suite().vector_env(1)
    for env in (inner, outer):
        jax.block_until_ready(env.reset(jax.random.key(0)))
    simulators.close(Grouped((Grouped((inner,)), outer)))
    assert not inner._hosts and not outer._hosts


def test_runs_free_their_simulators(tmp_path, monkeypatch, no_plots):
    """A study of four MT10 runs in one process once took 24 GB, and the machine."""
    alive, opened, most, ever = weakref.WeakSet(), [], [0], [0]

    class Counted(test_trainer._Pool):
        def __init__(self, task, num_envs):
            super().__init__(task, num_envs)
            self.number = num_envs
            alive.add(self)
            opened.append(self.number)
            ever[0] += num_envs
            most[0] = max(most[0], sum(opened))

        def close(self):
            opened.remove(self.number)

    monkeypatch.setattr(test_trainer, "_Pool", Counted)
    base._REGISTRY["trainer-host"] = test_trainer._host_suite
    run.train(CONFIG, tmp_path / "run", **QUIET)
    gc.collect()
    assert not alive and not opened
    ever[0] = most[0] = 0
    monkeypatch.setattr(run, "SIMULATORS", 5)
    found = run.evaluate(tmp_path / "run", episodes=5)  # of two tasks: three rounds of two; and none for training
    gc.collect()
    assert not alive and found["episodes"] == 6 and most == ever == [4]
    assert found["results"]["train"]["deterministic"]["return"]["tasks"] == {"task_0": 5.0, "task_1": 10.0}
    ever[0] = 0
    policy.load_policy(tmp_path / "run")
    assert ever == [0]
