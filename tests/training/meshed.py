"""Run by test_meshes.py in a process with eight fake devices: a run on a mesh is the run on one device."""

import dataclasses
import pathlib
import re
import signal
import sys
import tempfile

import chex
import jax
import numpy as np
import test_off_policy
import test_run
import test_trainer

from mtjax import suites
from mtjax.suites import base
from mtjax.training import meshes, plots, run
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.trainer import Trainer

MESH = "seed:4,env:2"
LAYOUT = meshes.parse(MESH)
UPDATES, STEPS = 4, 2 * 4 * 8  # of a run, of an update
PPO = dataclasses.replace(
    test_run.CONFIG,
    num_seeds=4,
    num_envs=4,
    total_steps=UPDATES * STEPS,
    evaluate_every=2 * STEPS,
    final_evaluation_episodes=2,
)
SAC = dataclasses.replace(
    PPO,
    learner="sac",
    grads="mean",
    hyper=dataclasses.replace(
        test_off_policy.HYPER,
        return_scaling="range",
        checkpoint_replay=False,
        exploration="rnd",
        exploration_bonus=0.01,
    ),
)
QUIET = {"progress": False, "video": False, "tensorboard": False}
COMMUNICATION = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def make_suite():
    """Tasks to train on, and none held out: every split is a program more."""
    suite = test_run.make_suite()
    return dataclasses.replace(suite, splits={"train": suite.splits["train"]})


def same(got, want):
    chex.assert_trees_all_close(*map(test_trainer._numbers, (got, want)), rtol=1e-3, atol=1e-4)


def trained(config, layout, updates):
    """A trainer after a few updates: (trainer, state, rollouts and metrics)."""
    suite = suites.make(config.suite)
    trainer = Trainer(config, suite, placement=meshes.placed(layout, config, suite))
    state, seen = trainer.init(), []
    for _ in range(updates):
        state, rollout = trainer.collect(trainer.env, state)
        state, metrics = trainer.update(state, rollout)
        seen.append(test_trainer._numbers((rollout, metrics)))
    return trainer, state, seen


def shares(tree):
    """Shapes of what one device holds of every leaf."""
    return [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(tree)]


def the_numbers_of_one_device(config, updates):
    """Rollouts, gradients, running statistics, permutations of minibatches and draws from the replay are the same."""
    trainer, state, seen = trained(config, LAYOUT, updates)
    _, alone, expected = trained(config, meshes.ONE, updates)
    same(seen, expected)
    same(state, alone)
    # And the work is really divided: a device has one seed of four and two environments of four.
    assert all(shape[0] == 1 for shape in shares((state.learner, state.keys)))
    assert all(shape[::2][:2] == (1, 2) for shape in shares(state.carry))
    return trainer, state, alone


def rollouts_do_not_communicate(trainer, state):
    """Or a step of the environments would wait for the slowest device. Updates average gradients, and do."""
    rollout = jax.eval_shape(trainer.collect, trainer.env, state)[1]
    programs = trainer.collect.lower(trainer.env, state), trainer.update.lower(state, rollout)
    found = [set(COMMUNICATION.findall(program.compile().as_text())) for program in programs]
    assert found[0] == set() and "all-reduce" in found[1], found


def a_replay_that_was_not_saved(trainer, state):
    """It comes back empty, and where it was."""
    again = trainer.restored(trainer.saved(state))
    assert shares(again.learner.replay) == shares(state.learner.replay)
    assert not np.asarray(again.learner.replay.rows).any() and not np.asarray(again.learner.replay.size).any()


def killed(folder, config, mesh):
    """A run that a signal stops in its third update."""
    one_update = run.Session._one_update
    run.Session._one_update = test_run.kill_after(2, signal.SIGTERM)
    try:
        run.train(config, folder, mesh=mesh, **QUIET)
    except run.Interrupted:
        return
    finally:
        run.Session._one_update = one_update
    raise AssertionError("it was not stopped")


def runs_go_on_elsewhere(config, alone, folder):
    """Killed on a mesh and resumed on one device, and the other way round: the run that nobody disturbed."""
    for name, before, after in (("to_one", MESH, ""), ("to_mesh", "", MESH)):
        killed(folder / name, config, before)
        summary = run.train(config, folder / name, resume=True, mesh=after, **QUIET)
        assert summary["step"] == UPDATES * STEPS
        trainer = Trainer(config, suites.make(config.suite))
        with Checkpointer(folder / name, read_only=True) as saver:
            step, state, _ = saver.restore(trainer.abstract())
        assert step == UPDATES * STEPS
        latest = state.carry.latest._replace(episodes=alone.carry.latest.episodes)  # counted anew after every report
        state = state._replace(carry=state.carry._replace(latest=latest))
        same(state, alone)
    results = [run.evaluate(folder / "to_one", episodes=2, mesh=mesh)["results"] for mesh in ("", MESH)]
    returns = [found["train"]["deterministic"]["return"]["tasks"] for found in results]
    chex.assert_trees_all_close(*returns, rtol=1e-4)


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    base._REGISTRY["run-drift"] = make_suite
    plots.plot_run = lambda folder: []
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_disable_most_optimizations", True)
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        trainer, state, _ = the_numbers_of_one_device(SAC, 3)
        a_replay_that_was_not_saved(trainer, state)
        trainer, state, alone = the_numbers_of_one_device(PPO, UPDATES)
        rollouts_do_not_communicate(trainer, state)
        runs_go_on_elsewhere(PPO, alone, pathlib.Path(folder))
    print("meshed ok", file=sys.stdout)
