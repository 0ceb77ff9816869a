"""The trainer: seeds, repeatability, and suites whose simulator lives on the host."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs import continuous, probe
from mtjax.envs.host import HostVectorEnv, PoolStep
from mtjax.learners.config import PPOConfig
from mtjax.networks.config import NetworkConfig
from mtjax.suites.bodies import combine
from mtjax.training import evaluation
from mtjax.training import trainer as trainer_module
from mtjax.training.config import RunConfig
from mtjax.training.evaluation import Evaluator
from mtjax.training.rollout import compiler_options
from mtjax.training.trainer import Part, Trainer, training_env

CONFIG = RunConfig(
    suite="trainer-probe",
    total_steps=2 * 4 * 8 * 10,
    num_envs=4,
    seed=3,
    hyper=PPOConfig(rollout_length=8, num_epochs=2, num_minibatches=2, learning_rate=1e-2),
    network=NetworkConfig(hidden_sizes=(8,)),
)
UPDATES = 3


def _suite():
    infos = tuple(suites.TaskInfo(f"task_{i}", f"Task {i}.") for i in range(2))
    split = suites.Split(infos, probe.tasks([1.0, 2.0], terminates=[True, False]))
    version = suites.Version("1", "none", "v1", 5)
    return suites.from_env(CONFIG.suite, probe.Endless("continuous"), {"train": split}, version=version)


@functools.cache
def _trained(num_seeds=1, seed=5):
    """A trainer after three updates: (trainer, state, metrics of the last update)."""
    trainer = Trainer(dataclasses.replace(CONFIG, num_seeds=num_seeds, seed=seed), _suite())
    state, metrics = trainer.init(), None
    for _ in range(UPDATES):
        state, rollout = trainer.collect(trainer.env, state)
        state, metrics = trainer.update(state, rollout)
    return trainer, state, metrics


def _numbers(tree):
    """Every leaf as NumPy, keys as their data."""
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x),
        tree,
    )


def test_a_seed_in_a_batch_is_the_seed_alone():
    """Eight seeds in one program must be the eight runs that they replace."""
    _, batch, together = _trained(num_seeds=3, seed=3)
    _, alone, metrics = _trained(seed=3 + 2)
    own = jax.tree.map(lambda x: x[2:], (_numbers(batch), _numbers(together)))
    chex.assert_trees_all_close(own, (_numbers(alone), _numbers(metrics)), rtol=1e-4, atol=1e-5)
    first, second = (jax.tree.map(lambda x, i=i: x[i], batch.learner.params) for i in (0, 1))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def by_calls(trainer, *parts):
    """State and last metrics after these calls of the trainer's one program, which must stay one."""
    state = trainer.init()
    rollout, metrics = trainer.no_rollout(state), None
    for part in parts:
        state, rollout, metrics = trainer.train(trainer.env, state, rollout, part)
    assert trainer.train._cache_size() == 1
    return state, metrics


def test_the_same_configuration_twice_is_bit_for_bit_the_same():
    """Determinism per configuration is a promise, however many updates a call makes, and if halves are called alone."""
    trainer, *want = _trained()
    halves = (Part.of(1, updates=False), Part.of(1, collects=False))
    for parts in ([Part.of(UPDATES)], [Part.of(1), *halves, Part.of(1)], [*halves, Part.of(UPDATES - 1)]):
        chex.assert_trees_all_equal(_numbers(by_calls(trainer, *parts)), _numbers(tuple(want)))


def test_one_program_each_and_counts():
    """No update may compile again, and steps are counted over tasks and environments."""
    trainer, state, metrics = _trained()
    assert trainer.collect._cache_size() == trainer.update._cache_size() == 1
    assert trainer.steps_per_update == 2 * 4 * 8 and trainer.num_updates == 10
    assert state.updates.tolist() == state.learner.updates.tolist() == [UPDATES]
    assert metrics["finite"].all() and metrics["finite_state"].all()
    assert metrics["loss"].shape == (1, 2) and metrics["grads/cosine"].shape == (1, 2, 2)


def test_report_counts_anew():
    """Averages are of the environments' latest episodes, whether or not any has ended since the last report."""
    trainer, state, _ = _trained(num_seeds=3, seed=3)
    state = jax.tree.map(jnp.copy, state)
    state, values = trainer.report(state)
    episodes = UPDATES * 8 // 5  # of each environment: every episode takes 5 steps
    np.testing.assert_array_equal(values["episodes"], [[4 * episodes] * 2] * 3)
    np.testing.assert_allclose(values["length"], 5.0)
    np.testing.assert_allclose(values["return"], [[4.0, 8.0]] * 3)
    state, values = trainer.report(state)
    assert (values["episodes"] == 0).all()
    np.testing.assert_allclose(values["return"], [[4.0, 8.0]] * 3)
    assert (state.carry.running.length == UPDATES * 8 % 5).all()


def test_steps_are_rounded_up_to_whole_updates():
    config = dataclasses.replace(CONFIG, total_steps=2 * 4 * 8 * 10 + 1)
    assert Trainer(config, _suite()).num_updates == 11


def test_a_method_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="pcgrad"):
        Trainer(dataclasses.replace(CONFIG, grads="pcgrat"), _suite())


def test_environments_follow_detours_and_the_policy_elsewhere():
    """What was done is read off a pendulum's speed: held on a detour, the policy's own action elsewhere."""
    hyper = dataclasses.replace(CONFIG.hyper, rollout_length=64, detour_share=0.4, detour_steps=9)
    config = dataclasses.replace(CONFIG, suite="control-pendulum", num_seeds=2, hyper=hyper)
    trainer = Trainer(config, suites.make("control-pendulum"))
    state, first = trainer.collect(trainer.env, trainer.init())
    state, second = trainer.collect(trainer.env, state._replace(updates=state.updates + 1))
    detours = np.stack([first.extras["detour"], second.extras["detour"]])[:, :, :, 0]  # of the usual pendulum
    assert 0.25 < detours.mean() < 0.55
    halves = detours.reshape(-1, *detours.shape[2:])
    assert all((a != b).any() for i, a in enumerate(halves) for b in halves[:i])  # new ones for each rollout and seed

    for rollout in (first, second):
        before, after = (np.asarray(x[:, :, 0], np.float64) for x in (rollout.observation, rollout.final_observation))
        torque = ((after - before)[..., 2] / 0.05 - 15.0 * before[..., 1]) / 3.0
        free = np.abs(after[..., 2]) < 7.9  # of the speed's limit
        detour = np.asarray(rollout.extras["detour"][:, :, 0])
        own = 2.0 * np.clip(np.asarray(rollout.extras["raw_action"][:, :, 0, :, 0]), -1, 1)
        np.testing.assert_allclose(torque[free & ~detour], own[free & ~detour], atol=1e-3)
        assert np.abs(torque - own)[free & detour].mean() > 0.3
        held = free & detour
        held = held[:, 1:] & held[:, :-1]
        same = np.abs(np.diff(torque, axis=1))[held] < 1e-3
        assert 0.7 < same.mean() < 1.0  # one detour may follow another at once


class _Pool:
    """A simulator on the host: N counters of one task; the observation is (task, environment, time)."""

    def __init__(self, task, num_envs):
        self.task, self.time = task, np.zeros(num_envs, int)

    def _observe(self, indices):
        return np.stack([np.full(len(indices), self.task), indices, self.time[indices]], axis=1)

    def send(self, actions):
        assert actions.shape == (len(self.time), 1)
        self.actions = actions[:, 0]

    def receive(self):
        self.time += 1
        number = len(self.time)
        reward, no = np.full(number, float(self.task + 1)), np.zeros(number, bool)
        return PoolStep(self._observe(np.arange(number)), reward, no, no, {"success": self.time == 2})

    def send_reset(self, indices):
        self.indices = indices

    def receive_reset(self):
        self.time[self.indices] = 0
        return self._observe(self.indices)


def _host_suite():
    made = []

    def make_vector_env(split, num_envs, *, seed):
        pools = tuple(functools.partial(_Pool, task) for task in range(len(split)))
        made.append(HostVectorEnv(pools, num_envs, 3, continuous(1), 5, ("success",)))
        return made[-1]

    infos = tuple(suites.TaskInfo(f"task_{i}", f"Task {i}.") for i in range(2))
    return suites.Suite(
        name="trainer-host",
        version=suites.Version("1", "none", "v1", 5),
        observation_size=3,
        action=continuous(1),
        horizon=5,
        splits={"train": suites.Split(infos, (0, 1))},
        make_vector_env=make_vector_env,
        has_success=True,
        on_device=False,
    )


def test_a_resumed_run_has_other_episodes_on_the_host():
    """A simulator cannot be put back to where it was; to begin again as at first would repeat what was trained on."""
    seeds = []
    suite = _host_suite()
    made = suite.make_vector_env
    suite = dataclasses.replace(suite, make_vector_env=lambda *a, seed: seeds.append(seed) or made(*a, seed=seed))
    for begin in (0, 0, 1000, 1000, 2000):
        training_env(dataclasses.replace(CONFIG, seed=3), suite, begin)
    assert seeds[0] == seeds[1] == 3 and seeds[2] == seeds[3] and len(set(seeds)) == 3


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_simulator_on_the_host(num_seeds):
    """Meta-World's way in: S·E environments a task, each seed and task with its own, rewards in their place."""
    trainer = Trainer(dataclasses.replace(CONFIG, suite="trainer-host", num_seeds=num_seeds), _host_suite())
    state = trainer.init()
    for _ in range(2):
        state, rollout = trainer.collect(trainer.env, state)
        np.testing.assert_array_equal(rollout.reward[:, :, 0], 1.0)
        np.testing.assert_array_equal(rollout.reward[:, :, 1], 2.0)
        assert rollout.observation.shape == (num_seeds, 8, 2, 4, 3)
        np.testing.assert_array_equal(rollout.observation[:, :, 1, :, 0], 1.0)
        for t in range(num_seeds):
            np.testing.assert_array_equal(rollout.observation[t, 0, 0, :, 1], np.arange(4 * t, 4 * t + 4))
        state, metrics = trainer.update(state, rollout)
    state, values = trainer.report(state)
    # The first episodes are cut to 5, 4, 3 and 2 steps, so that not all end at once, and those of less than 5 are not
    # counted; two whole ones follow.
    np.testing.assert_array_equal(values["episodes"], [[9.0, 9.0]] * num_seeds)
    np.testing.assert_array_equal(values["return"], [[5.0, 10.0]] * num_seeds)
    np.testing.assert_array_equal(values["success"], [[1.0, 1.0]] * num_seeds)

    assert (state.learner.return_sums > 0).any()
    learnt = jax.tree.map(jnp.copy, state.learner)
    state = trainer.restart(state)  # as after a resume: the simulators' episodes are gone, the learner is not
    assert (state.carry.running.length == 0).all() and (state.carry.observation[..., 2] == 0).all()
    chex.assert_trees_all_equal(state.learner, learnt._replace(return_sums=jnp.zeros_like(learnt.return_sums)))
    state, rollout = trainer.collect(trainer.env, state)
    assert trainer.collect._cache_size() == 1

    evaluator = Evaluator(trainer.learner, trainer.suite, episodes=3, num_seeds=num_seeds, seed=0)
    values = evaluator(state.learner, key=jax.random.key(0), rounds=2)
    np.testing.assert_array_equal(values["return"], [[5.0, 10.0]] * num_seeds)
    np.testing.assert_array_equal(values["success_any"], [[1.0, 1.0]] * num_seeds)
    np.testing.assert_array_equal(values["success_last"], [[0.0, 0.0]] * num_seeds)


def test_training_horizon_cuts_episodes_of_training_alone():
    """On the host, on the device, and in groups; an evaluation's episodes stay whole, and values reach beyond a cut."""
    host, device = _host_suite(), _suite()
    both = combine("both", [host, dataclasses.replace(host, name="other", horizon=4)])
    for suite, tasks in ((host, 2), (device, device.num_tasks), (both, 4)):
        config = dataclasses.replace(CONFIG, suite=suite.name, training_horizon=3)
        trainer = Trainer(config, suite)
        state, rollout = trainer.collect(trainer.env, trainer.init())
        ended = np.asarray(rollout.truncated)[0]
        assert not rollout.terminated.any() and ended.shape[1] == tasks
        for t in range(tasks):
            ends = np.flatnonzero(ended[:, t, 0])
            np.testing.assert_array_equal(ends, np.arange(2, len(ended), 3))
        _, means = trainer.report(jax.tree.map(jnp.copy, state))
        np.testing.assert_array_equal(means["length"], np.full((config.num_seeds, tasks), 3))
        evaluator = Evaluator(trainer.learner, suite, episodes=2, num_seeds=config.num_seeds, seed=0)
        values = evaluator(state.learner, key=jax.random.key(0), rounds=1)
        np.testing.assert_array_equal(values["length"], np.full((config.num_seeds, tasks), suite.horizon))


def test_a_training_horizon_that_cuts_nothing_is_refused():
    with pytest.raises(
        ValueError, match="training_horizon: a horizon of 5 steps cuts nothing short: the longest episode has 5"
    ):
        Trainer(dataclasses.replace(CONFIG, suite="trainer-host", training_horizon=5), _host_suite())

    class Own:
        on_device, num_envs = True, 4

    suite = dataclasses.replace(_suite(), make_vector_env=lambda split, num_envs, seed: Own())
    with pytest.raises(ValueError, match="training_horizon: Own has no horizon that could be changed"):
        Trainer(dataclasses.replace(CONFIG, training_horizon=3), suite)


def test_simulators_of_several_suites_are_staggered_and_named_too():
    suite = combine("both", [_host_suite(), dataclasses.replace(_host_suite(), name="other")])
    env = Trainer(dataclasses.replace(CONFIG, suite="both"), suite).env
    assert [group.task_names[1] for group in env.groups] == ["trainer-host/task_1", "other/task_1"]
    state, _ = env.reset(jax.random.key(0))
    ends = []
    for _ in range(5):
        state, step = env.step(state, jnp.zeros((4, 4, 1)), jax.random.key(0))
        ends.append(step.truncated.sum(axis=-1))
    np.testing.assert_array_equal(ends, [[0] * 4, *[[1] * 4] * 4])
    assert not any(group.stagger for group in suite.vector_env(4).groups)  # an evaluation's: whole episodes


def test_what_steps_simulators_keeps_its_small_sums():
    """XLA hands them to a library, each in a call of its own, and MJX is made of them. Products go there still."""

    def library(function, options):
        return "ynn" in jax.jit(function, compiler_options=options).lower(jnp.ones((300, 500))).compile().as_text()

    assert not library(lambda x: jnp.sum(x * x, axis=0), compiler_options())
    assert library(lambda x: x @ x.T, compiler_options()) == library(lambda x: x @ x.T, None)


@pytest.mark.parametrize("module", [trainer_module, evaluation])
def test_rollouts_and_evaluations_are_compiled_with_these_options(monkeypatch, module):
    monkeypatch.setattr(module, "compiler_options", lambda: {"no_such_option": "1"})
    trainer = Trainer(CONFIG, _suite())
    state = trainer.init()
    evaluator = Evaluator(trainer.learner, trainer.suite, episodes=1, num_seeds=1, seed=0)
    run = {
        trainer_module: lambda: trainer.collect(trainer.env, state),
        evaluation: lambda: evaluator(state.learner, key=jax.random.key(0)),
    }
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        run[module]()
