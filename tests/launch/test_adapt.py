"""``mtjax-evaluate --adapt`` of saved runs, as a user would type it: numbers, picture, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs import Step, continuous
from mtjax.launch import evaluate
from mtjax.learners import replay
from mtjax.learners.config import HiPBMDPConfig, PPOConfig, SACConfig
from mtjax.networks.config import NetworkConfig
from mtjax.suites import base
from mtjax.training import adaptation, files
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.config import RunConfig
from mtjax.training.trainer import Trainer

SMALL = {"rollout_length": 4, "batch_size": 4, "replay_capacity": 32, "warm_start": 0, "num_critics": 1}
MODELS = {"latent_size": 3, "state_encoder_sizes": (), "theta_size": 2, "theta_hidden_sizes": (), "model_sizes": (4,)}
TASKS = ["task_0", "task_1", "task_2"]


class Task(NamedTuple):
    hidden: jax.Array


class Push:
    """A number that action and hidden parameter push; it is the reward, too."""

    observation_size = 1
    action = continuous(1)

    def reset(self, task, key):
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, task, state, action, key):
        state, no = 0.9 * state + action + task.hidden, jnp.zeros((), bool)
        return state, Step(state, state[0], no, no, state, {})


@pytest.fixture(autouse=True)
def saved(monkeypatch):
    """A function that saves a run of an untrained learner on the suite "push", in the folder "run"."""

    def split(*hidden):
        infos = tuple(suites.TaskInfo(f"task_{i}", f"Task {i}.") for i in range(len(hidden)))
        return suites.Split(infos, Task(jnp.asarray(hidden)))

    splits = {"train": split(0.0, 0.1), "extrapolation": split(0.5, -1.0, 2.0)}
    suite = suites.from_env("push", Push(), splits, version=suites.Version("1", "none", "1", 8))
    monkeypatch.setitem(base._REGISTRY, "push", lambda: suite)

    def save(learner, hyper, arrangement="none", of_critics="same", *, checkpoints=(16,)):
        network = NetworkConfig(arrangement=arrangement, value_arrangement=of_critics, hidden_sizes=(4,), scale="state")
        config = RunConfig("push", learner, "mean", num_envs=2, num_seeds=2, hyper=hyper, network=network)
        files.write_json("run/config.json", dataclasses.asdict(config))
        if checkpoints:
            trainer = Trainer(config, suite)
            state = trainer.saved(trainer.init())
            with Checkpointer("run") as saver:
                for step in checkpoints:
                    saver.save(step, state, {"update": 1, "seconds": 0.0})

    return save


@pytest.fixture
def adapted(command):
    """A function that runs mtjax-evaluate on the folder "run"."""
    return lambda *arguments: command("--run_dir=run", *arguments, main=evaluate.main, program="mtjax-evaluate")


def test_both_ways_of_adapting(saved, adapted, tmp_path):
    """The table says what the file says; zero-shot is where both curves begin, and they leave it apart."""
    saved("hipbmdp", HiPBMDPConfig(**SMALL, **MODELS))
    result = adapted("--adapt=all", "--adapt_episodes=0,1,2", "--episodes=2", "--seed=3")
    assert (result.code, result.err) == (0, "")
    written = json.loads((tmp_path / "run" / "adaptation.json").read_text())
    assert written.keys() == {"extrapolation"}
    found = written["extrapolation"]
    assert (found["checkpoint"], found["seed"], found["evaluation_episodes"]) == (16, 3, 2)
    assert found["episodes"] == [0, 1, 2] and found["tasks"] == TASKS
    curves = {method: found["values"][method]["return"] for method in ("inferred", "fine-tuned")}
    for task in TASKS:
        values = {method: [point["tasks"][task]["value"] for point in points] for method, points in curves.items()}
        assert values["inferred"][0] == values["fine-tuned"][0]
        assert len({*values["inferred"], *values["fine-tuned"]}) == 5
        for method, numbers in values.items():
            row = next(line.split() for line in result.out.splitlines() if line.split()[:2] == [task, method])
            assert [float(word) for word in row[2:] if word[0] != "[" and word[-1] != "]"] == [
                pytest.approx(number, rel=1e-3) for number in numbers
            ]
    for points in curves.values():
        for point in points:
            each = [point["tasks"][task]["value"] for task in TASKS]
            assert point["mean"]["value"] == pytest.approx(sum(each) / 3, rel=1e-4, abs=1e-5)
            assert point["mean"]["low"] <= point["mean"]["value"] <= point["mean"]["high"]
    picture = tmp_path / "run" / "plots" / "adaptation.png"
    assert picture.stat().st_size > 10_000 and "run/plots/adaptation.png" in result.out


@pytest.fixture
def unmeasured(monkeypatch):
    """Every protocol finds 0 at once."""
    found = adaptation.Curves((0,), tuple(TASKS), {"zero-shot": {"return": np.zeros((1, 2, 3))}})
    monkeypatch.setattr(adaptation, "measure", lambda *_, **__: found)


def test_an_older_checkpoint_is_not_taken_without_a_word(saved, unmeasured, tmp_path):
    """Numbers of a run half trained must not pass for the run's: as mtjax-evaluate without --adapt says it."""
    saved("sac", SACConfig(**SMALL), checkpoints=(16, 32))
    (tmp_path / "run" / "checkpoints" / "32" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="skipped damaged checkpoints .* so its save was interrupted.*; using 16"):
        adaptation.measure_run("run", splits=["extrapolation"])
    written = json.loads((tmp_path / "run" / "adaptation.json").read_text())
    assert written["extrapolation"]["checkpoint"] == 16
    with pytest.raises(ValueError, match=r"no usable checkpoint 32 \(it has no manifest, so .* interrupted\)"):
        adaptation.measure_run("run", checkpoint=32)


def test_a_replay_that_was_not_saved_needs_no_memory(saved, unmeasured, monkeypatch):
    """A run of the cluster is measured on a laptop: what it had learnt from is not in the checkpoint, nor asked for."""
    saved("sac", SACConfig(**SMALL, checkpoint_replay=False))
    monkeypatch.setattr(replay, "free_memory", lambda: 0)
    monkeypatch.setattr(Trainer, "restored", lambda *_: pytest.fail("nobody reads a replay"))
    assert adaptation.measure_run("run", splits=["extrapolation"]).keys() == {"extrapolation"}
    saved("sac", SACConfig(**SMALL), checkpoints=())
    with pytest.raises(ValueError, match="replay: 32 transitions .* but 0 B are free"):
        adaptation.measure_run("run")


HIP, SAC, PPO = ("hipbmdp", HiPBMDPConfig()), ("sac", SACConfig()), ("ppo", PPOConfig())
DEEP = ("hipbmdp", HiPBMDPConfig(theta_size=0))
NO_THETA = "has no task embedding to infer; hipbmdp with theta_size > 0 has; --adapt=finetune works here"
OWN_CRITICS = "in this run every task has its own critic (--value_arrangement), so an unseen task has none"
# What was typed for which run, and the whole message after "mtjax-evaluate: ".
REFUSED = (
    ("--adapt=embeding", HIP, "--adapt=embeding: unknown adapt 'embeding'; did you mean embedding?"),
    (
        "--adapt_episodes=0,1",
        HIP,
        "--adapt_episodes has no effect without --adapt; set --adapt to embedding or finetune, or all",
    ),
    (
        "--adapt=all --adapt_episodes=1,5",
        HIP,
        "--adapt_episodes=1,5: expected ascending numbers that start with 0, e.g. 0,1,5,20",
    ),
    (
        "--adapt=all --modes=stochastic",
        HIP,
        "--modes has no effect with --adapt, which evaluates the deterministic policy on one device",
    ),
    (
        "--adapt=all --splits=train",
        HIP,
        "--splits: --adapt takes only held-out splits; train is the training split",
    ),
    (
        "--adapt=all --splits=interpolation",
        HIP,
        "suite 'push' has no split 'interpolation'; it has train, extrapolation",
    ),
    ("--adapt=embedding", SAC, f"--adapt=embedding: this run of sac {NO_THETA}"),
    ("--adapt=embedding,finetune", DEEP, f"--adapt=embedding,finetune: this run of hipbmdp {NO_THETA}"),
    ("--adapt=finetune", PPO, "--adapt=finetune: ppo cannot be fine-tuned on a single task; sac and hipbmdp can"),
    (
        "--adapt=all",
        PPO,
        "--adapt=all: ppo supports neither 'embedding' nor 'finetune'; hipbmdp supports both, sac supports 'finetune'",
    ),
    ("--adapt=finetune", (*SAC, "none", "independent"), f"--adapt=finetune: {OWN_CRITICS}"),
    ("--adapt=all", (*SAC, "none", "independent"), f"--adapt=all: {OWN_CRITICS}"),
    (
        "--adapt=finetune",
        (*SAC, "independent"),
        "--adapt=finetune: in this run every task has its own network, so there is none for an unseen task",
    ),
    (
        "--adapt=finetune --checkpoint=8",
        SAC,
        "run has no usable checkpoint 8 (there is no such checkpoint); nothing can be adapted",
    ),
)


@pytest.mark.parametrize(("typed", "run", "message"), REFUSED)
def test_what_is_refused_with_one_line(saved, adapted, typed, run, message):
    saved(*run, checkpoints=())
    result = adapted(*typed.split())
    assert (result.code, result.err) == (1, f"mtjax-evaluate: {message}\n")
