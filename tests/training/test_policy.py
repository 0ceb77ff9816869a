"""A trained policy in a program of one's own: what it does is what the run's evaluation did."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.learners.config import PPOConfig, SACConfig
from mtjax.networks.config import NetworkConfig
from mtjax.training import saved
from mtjax.training.config import RunConfig
from mtjax.training.evaluation import unseen_of_split
from mtjax.training.policy import load_policy
from mtjax.training.run import train
from mtjax.training.trainer import Trainer

CONFIG = RunConfig(
    suite="control-pendulum",
    grads="mean",
    num_envs=2,
    num_seeds=2,
    total_steps=64,
    evaluation_episodes=1,
    final_evaluation_episodes=1,
    hyper=PPOConfig(rollout_length=8, num_minibatches=2, num_epochs=1),
    network=NetworkConfig(hidden_sizes=(8,)),
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(CONFIG, folder, progress=False, tensorboard=False, video=False)
    return folder


def test_it_acts_as_the_learner_does(run_dir):
    """In every task, with the statistics that normalise observations; one observation, several, and draws."""
    suite = suites.make(CONFIG.suite)
    trainer = Trainer(CONFIG, suite)
    _, state, _ = saved.restore(run_dir, trainer, None, to_be="looked at")
    tasks, envs, key = suite.num_tasks, 3, jax.random.key(5)
    seen = np.random.default_rng(0).normal(size=(tasks, envs, suite.observation_size)).astype(np.float32)
    for seed in (0, 1):
        learner = jax.tree.map(lambda leaf, seed=seed: leaf[seed], state.learner)
        policy = load_policy(run_dir, seed=seed)
        assert policy.tasks == tuple(info.name for info in suite.tasks)
        mode = trainer.learner.policy(learner, seen, key, jnp.asarray(True), None)
        for index, name in enumerate(policy.tasks):
            found = policy(seen[index], task=name)
            np.testing.assert_allclose(found, mode[index], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(policy(seen[index, 1], index), mode[index, 1], rtol=1e-5, atol=1e-6)
        draws = [np.asarray(policy(seen[0], 0, key=k)) for k in (key, key, jax.random.key(6))]
        np.testing.assert_array_equal(draws[0], draws[1])
        assert (draws[0] != draws[2]).all() and (draws[0] != np.asarray(mode[0])).all()
    assert (load_policy(run_dir)(seen[0], 0) != policy(seen[0], 0)).any()  # another agent


def test_it_acts_in_tasks_that_were_held_out(run_dir):
    """As the evaluation does: told what the learner is told of unseen tasks."""
    suite = suites.make(CONFIG.suite)
    trainer = Trainer(CONFIG, suite)
    _, state, _ = saved.restore(run_dir, trainer, None, to_be="looked at")
    learner = jax.tree.map(lambda leaf: leaf[0], state.learner)
    policy, part = load_policy(run_dir, split="extrapolation"), suite.split("extrapolation")
    seen = np.random.default_rng(1).normal(size=(len(part), 2, suite.observation_size)).astype(np.float32)
    unseen = unseen_of_split(suite, "extrapolation", trainer.contexts)
    want = trainer.learner.policy(learner, seen, jax.random.key(0), jnp.asarray(True), unseen)
    assert policy.tasks == tuple(info.name for info in part.infos)
    for index in range(len(part)):
        np.testing.assert_allclose(policy(seen[index], index), want[index], rtol=1e-5, atol=1e-6)


def test_choices_of_an_agent_with_a_replay(tmp_path):
    """SAC's state holds one, which the policy is without; a checkpoint is taken by its step; actions are choices."""
    hyper = SACConfig(rollout_length=4, batch_size=4, replay_capacity=64, warm_start=8)
    network = NetworkConfig(hidden_sizes=(8,), arrangement="independent")
    quick = {"suite": "control-cartpole", "learner": "sac", "hyper": hyper, "network": network, "num_seeds": 1}
    config = dataclasses.replace(CONFIG, **quick, total_steps=1000, checkpoint_every=400)
    train(config, tmp_path, progress=False, tensorboard=False, video=False)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal())
    seen = np.random.default_rng(2).normal(size=(40, 4))
    first, last, newest = (load_policy(tmp_path, checkpoint=step)(seen, 0) for step in (steps[0], steps[-1], None))
    assert len(steps) > 1 and first.shape == (40,) and jnp.issubdtype(first.dtype, jnp.integer)
    assert set(np.asarray(first).tolist()) <= {0, 1}
    np.testing.assert_array_equal(last, newest)
    with pytest.raises(ValueError, match="extrapolation: every task has its own network, so there is none for"):
        load_policy(tmp_path, split="extrapolation")


def test_mistakes(run_dir, tmp_path):
    policy = load_policy(run_dir)
    with pytest.raises(ValueError, match="unknown task .*did you mean"):
        policy(np.zeros(policy.observation_size), task=policy.tasks[0] + "x")
    with pytest.raises(ValueError, match="task is 99; there are"):
        policy(np.zeros(policy.observation_size), task=99)
    with pytest.raises(ValueError, match=rf"which task\? The policy has {len(policy.tasks)}: {policy.tasks[0]}, "):
        policy(np.zeros(policy.observation_size))
    with pytest.raises(ValueError, match=r"observation has shape \(1,\); expected"):
        policy(np.zeros(1), 0)
    with pytest.raises(ValueError, match="seed is 2; the run has 2 seeds"):
        load_policy(run_dir, seed=2)
    with pytest.raises(ValueError, match="has no split 'nonsense'"):
        load_policy(run_dir, split="nonsense")
    with pytest.raises(ValueError, match="is not a run: it has no config.json"):
        load_policy(tmp_path)
