"""Runs of a learner with a replay: the same promises as for PPO, and the replay among what a checkpoint holds."""

import dataclasses
import json
import signal

import chex
import jax
import numpy as np
import pytest
import test_run
import test_trainer

from mtjax.launch import train as command
from mtjax.learners import replay
from mtjax.learners.config import SACConfig
from mtjax.training import memory, packed, plots, record, run
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.trainer import Part, Trainer

setting, no_plots = test_run.setting, test_run.no_plots  # fixtures

HYPER = SACConfig(rollout_length=8, update_to_data=0.125, batch_size=8, replay_capacity=64, warm_start=16)
CONFIG = dataclasses.replace(test_run.CONFIG, learner="sac", hyper=HYPER)
UPDATES, STEPS = test_run.UPDATES, test_run.STEPS


# ------------------------------------------------------------------------------------------- the trainer


def _trained(suite, num_seeds=1, seed=5):
    """A trainer after three updates: (trainer, state, metrics of the last one)."""
    config = dataclasses.replace(test_trainer.CONFIG, learner="sac", hyper=HYPER, num_seeds=num_seeds, seed=seed)
    trainer = Trainer(config, suite)
    state, metrics = trainer.init(), None
    for _ in range(3):
        state, rollout = trainer.collect(trainer.env, state)
        state, metrics = trainer.update(state, rollout)
    return trainer, state, metrics


def test_a_seed_in_a_batch_is_the_seed_alone():
    """And a host simulator's steps go into the replay as a device's do: without a second program, raw."""
    suite = test_trainer._suite()
    trainer, batch, together = _trained(suite, num_seeds=2, seed=3)
    _, alone, metrics = _trained(suite, seed=4)
    own = jax.tree.map(lambda x: x[1:], test_trainer._numbers((batch, together)))
    chex.assert_trees_all_close(own, test_trainer._numbers((alone, metrics)), rtol=1e-3, atol=1e-4)
    assert trainer.collect._cache_size() == trainer.update._cache_size() == 1
    assert metrics["finite"].all() and metrics["finite_state"].all() and metrics["loss"].shape == (1, 2)
    one_call = test_trainer.by_calls(trainer, Part.of(3))
    chex.assert_trees_all_equal(*map(test_trainer._numbers, (one_call, (batch, together))))


def test_a_simulator_on_the_host():
    """Meta-World's way in: rewards 1 and 2 are those of the two tasks, and lie in the replay as they came."""
    trainer, state, metrics = _trained(test_trainer._host_suite())
    rows = trainer.learner.replay.unpack(state.learner.replay.rows[0])
    np.testing.assert_array_equal(rows.reward, np.broadcast_to([[1.0], [2.0]], rows.reward.shape))
    np.testing.assert_array_equal(rows.observation[1, :, 0], 1.0)
    assert state.learner.replay.size == 64 and metrics["finite"].all()


def test_too_large_a_replay_is_refused_before_it_is_taken(tmp_path):
    config = dataclasses.replace(CONFIG, hyper=dataclasses.replace(HYPER, replay_capacity=10**9, replay_limit=1.0))
    told = "replay: 1,000,000,000 transitions .* but replay_limit allows 1 GB"
    with pytest.raises(ValueError, match=told):
        test_run._train(tmp_path / "run", config)
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(ValueError, match=told):
        memory.require(Trainer(config, test_run.make_suite()))  # as mtjax-train does, earlier
    with pytest.raises(ValueError, match=told):
        packed.train_packed({"a": config}, tmp_path / "program", tmp_path / "trials")


# --------------------------------------------------------------------------------------------- whole runs


def _final_state(folder, config):
    with Checkpointer(folder, read_only=True) as saver:
        step, state, _ = saver.restore(Trainer(config, test_run.make_suite()).abstract())
    assert step == UPDATES * STEPS
    return test_trainer._numbers(state)


@pytest.fixture(scope="module")
def straight(setting, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_run", lambda folder: [])
        test_run._train(folder, CONFIG)
    return folder


def test_how_many_updates_a_call_makes_changes_nothing(straight, tmp_path, no_plots, monkeypatch):
    """Between two lines of the record a run does not return to Python, but for what is due then."""
    config = dataclasses.replace(CONFIG, log_every=5, checkpoint_every=3 * STEPS)
    several, counts = run.Session._several_updates, []

    def spy(self, until):
        before, self.pace = self.update, 1e-6
        metrics = several(self, until)
        counts.append((before, self.update))
        return metrics

    monkeypatch.setattr(run.Session, "_several_updates", spy)
    test_run._train(tmp_path / "run", config)
    assert counts == [(0, 3), (3, 4), (5, 6), (6, 7)]  # a line at 5 and 8, an evaluation at 4, checkpoints at 3, 6, 8
    chex.assert_trees_all_equal(*(_final_state(folder, CONFIG) for folder in (tmp_path / "run", straight)))
    lines = [line["values"] for line in record.read(tmp_path / "run") if line["kind"] == "train"]
    for values in lines:  # the halves of an update, of which one was timed, add up to what all have taken
        halves = values["seconds/rollout"] + values["seconds/update"]
        assert halves * values["steps_per_second"] == pytest.approx(STEPS * CONFIG.num_seeds)
    mine, theirs = (
        [line["values"] for line in test_run._lines(folder) if line["kind"] == "evaluation"]
        for folder in (tmp_path / "run", straight)
    )
    chex.assert_trees_all_equal(mine, theirs)


def test_a_stopped_run_resumes_bit_for_bit(straight, tmp_path, monkeypatch, no_plots):
    """The replay, its position, temperatures and targets are all part of what is saved."""
    with monkeypatch.context() as patch:
        patch.setattr(run.Session, "_one_update", test_run.kill_after(4, signal.SIGTERM))
        with pytest.raises(run.Interrupted):
            test_run._train(tmp_path / "run", CONFIG)
    test_run._train(tmp_path / "run", CONFIG, resume=True)
    chex.assert_trees_all_equal(_final_state(tmp_path / "run", CONFIG), _final_state(straight, CONFIG))
    mine, theirs = test_run._lines(tmp_path / "run"), test_run._lines(straight)
    for a, b in zip(mine, theirs, strict=True):
        chex.assert_trees_all_equal(a.pop("values", {}), b.pop("values", {}))
        assert a == b


def test_a_checkpoint_without_the_replay(tmp_path, monkeypatch, no_plots):
    """Small, and said so in the help: learning goes on once the replay holds a warm start again."""
    config = dataclasses.replace(CONFIG, hyper=dataclasses.replace(HYPER, checkpoint_replay=False))
    with monkeypatch.context() as patch:
        patch.setattr(run.Session, "_one_update", test_run.kill_after(4, signal.SIGTERM))
        with pytest.raises(run.Interrupted):
            test_run._train(tmp_path / "run", config)
    test_run._train(tmp_path / "run", config, resume=True)
    state = _final_state(tmp_path / "run", config)
    assert [x.rows.size for x in jax.tree.leaves(state, is_leaf=replay.is_replay) if replay.is_replay(x)] == [0]
    sizes = [line["values"]["replay/size"][0] for line in record.read(tmp_path / "run") if line["kind"] == "train"]
    assert sizes == [16, 32, 48, 64, 64, 16, 32, 48]


def test_the_command_from_end_to_end(tmp_path, monkeypatch, capsys):
    """mtjax-train --learner=sac: flags, memory, training, evaluation, plots, and --resume that needs no --learner."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--run_dir=run", "--novideo", "--notensorboard", "--compilation_cache=none"]
    sac = ["--suite=run-drift", "--learner=sac", "--num_envs=2", "--rollout_length=8", "--batch_size=8"]
    sac += ["--hidden_sizes=8", "--evaluation_episodes=2", "--final_evaluation_episodes=2", "--total_steps=128"]
    sac += ["--num_seeds=2", "--update_to_data=0.125", "--replay_capacity=64", "--warm_start=16", "--preset=none"]
    for more in (sac, ["--resume", "--total_steps=160", "--warm_start=16"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(["mtjax-train", *arguments, *more])
        printed = capsys.readouterr()
        assert not stopped.value.code, printed.err
        assert "replay: 64 transitions of each of 2 tasks and 2 seeds, 5.12 kB on the device" in printed.err
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["learner"] == "sac" and saved["hyper"]["warm_start"] == 16 and "ppo" not in saved
    assert (tmp_path / "run" / "plots").is_dir() and "total_steps extended from 128 to 160" in printed.out
    with pytest.raises(SystemExit):
        command.main(["mtjax-train", *arguments, "--resume", "--gae_lambda=0.9"])
    assert "gae_lambda is an option of learner ppo and distral; the learner here is sac" in capsys.readouterr().err
