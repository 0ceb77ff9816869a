"""The protocols of adaptation, with a learner whose every number can be foretold, and with real ones."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import grads, suites
from mtjax.envs import Step, continuous
from mtjax.learners.base import Adaptation, FineTuning, Learner, TaskSpec
from mtjax.learners.config import HiPBMDPConfig
from mtjax.learners.hipbmdp import make_hipbmdp
from mtjax.networks.config import NetworkConfig
from mtjax.training import adaptation
from mtjax.training.adaptation import Settings, measure

HORIZON, S = 8, 2
SETTINGS = Settings(episodes=(0, 1, 3), evaluation_episodes=2, num_steps=5, batch_size=4)


class Task(NamedTuple):
    hidden: jax.Array
    length: jax.Array


class Drift:
    """Earns the action, and once in an episode the hidden number, at the first step; ends after ``length`` steps."""

    observation_size = 1
    action = continuous(1)

    def reset(self, task, key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, task, state, action, key):
        state = state + 1.0
        reward = action[0] + jnp.where(state == 1.0, task.hidden, 0.0)
        over = state >= task.length
        return state, Step(state[None], reward, over, ~over & False, state[None], {})


@pytest.fixture(scope="module")
def suite():
    def split(hidden, lengths):
        infos = tuple(suites.TaskInfo(f"task_{i}", f"Task {i}.") for i in range(len(hidden)))
        return suites.Split(infos, Task(jnp.asarray(hidden), jnp.asarray(lengths)))

    splits = {"train": split([0.0, 0.0], [4.0, 4.0]), "extrapolation": split([0.5, -1.0, 2.0], [4.0, 2.0, 100.0])}
    return suites.from_env("drift", Drift(), splits, version=suites.Version("1", "none", "1", HORIZON))


def _counting():
    """θ is the sum of the rewards of the episodes seen; fine-tuning acts by the number of updates made."""

    def policy(state, observation, key, deterministic, unseen):
        return jnp.zeros((*observation.shape[:2], 1)) + 0.0 * state

    def infer(state, theta, seen, weight, unseen, key, num_steps, learning_rate, batch_size, prior_cost):
        assert (num_steps, batch_size) == (5, 4) and seen.observation.shape == (3, 3 * HORIZON, 1)
        return theta + (seen.reward * weight).sum(axis=1, keepdims=True)

    adapt = Adaptation(
        start=lambda state, unseen: jnp.full((len(unseen.masks), 1), state),
        infer=infer,
        policy=lambda state, theta, observation, key, deterministic, unseen: jnp.broadcast_to(
            theta[:, None], (*observation.shape[:2], 1)
        ),
    )
    tune = FineTuning(
        start=lambda state, unseen, key: state,
        act=lambda state, unseen, observation, key: (jnp.zeros((1, 1, 1)), {}),
        update=lambda state, unseen, rollout, key: (state + 1.0 + 0.0 * rollout.reward.sum(), {}),
        policy=lambda state, unseen, observation, key, deterministic: jnp.zeros((1, observation.shape[1], 1)) + state,
        rollout_length=2,
    )
    return Learner(None, None, None, policy, adaptation=adapt, fine_tuning=lambda steps: tune)


def test_exactly_the_episodes_that_were_seen_count(suite):
    """After k episodes θ is k times the hidden number, each seed's own start aside; later steps are padding."""
    found = measure(_counting(), suite, jnp.asarray([0.0, 10.0]), split="extrapolation", key=jax.random.key(0),
                    settings=SETTINGS)  # fmt: skip
    hidden, lengths = np.asarray([0.5, -1.0, 2.0]), np.asarray([4, 2, HORIZON])
    assert found.episodes == (0, 1, 3) and found.tasks == ("task_0", "task_1", "task_2")
    returns = found.values["inferred"]["return"]
    assert returns.shape == (3, S, 3)
    np.testing.assert_allclose(returns[0], np.broadcast_to(hidden, (S, 3)))
    for index, number in ((1, 1), (2, 3)):
        for seed, start in enumerate((0.0, 10.0)):
            np.testing.assert_allclose(returns[index, seed], hidden + lengths * (start + number * hidden), rtol=1e-5)
    np.testing.assert_array_equal(found.values["inferred"]["length"][1], np.broadcast_to(lengths, (S, 3)))


def test_fine_tuning_has_the_steps_of_k_episodes(suite):
    """4 updates of 2 steps an episode of 8; the curves go on where they were."""
    found = measure(_counting(), suite, jnp.zeros(S), split="extrapolation", key=jax.random.key(0), settings=SETTINGS)
    hidden, lengths = np.asarray([0.5, -1.0, 2.0]), np.asarray([4, 2, HORIZON])
    for index, updates in ((0, 0), (1, 4), (2, 12)):
        expected = hidden + lengths * updates
        np.testing.assert_allclose(found.values["fine-tuned"]["return"][index], np.broadcast_to(expected, (S, 3)))
    plain = adaptation.as_dict(found)
    assert plain["values"]["fine-tuned"]["return"][1]["mean"]["value"] == pytest.approx(np.mean(hidden + lengths * 4))


def _note(used, key):
    """Add a key to those used, for each seed and task that uses it."""
    jax.debug.callback(lambda data: used.append(tuple(np.ravel(data).tolist())), jax.random.key_data(key))


@jax.tree_util.register_static
class Watched:
    """Three tasks with one environment each, in which nothing happens; notes the keys it is given."""

    def __init__(self, used):
        self.used = used

    def reset(self, key):
        _note(self.used, key)
        return jnp.zeros(()), jnp.zeros((3, 1, 1))

    def step(self, state, action, key):
        _note(self.used, key)
        zeros, no, seen = jnp.zeros((3, 1)), jnp.zeros((3, 1), bool), jnp.zeros((3, 1, 1))
        return state, Step(seen, zeros, no, no, seen, {})


def test_no_key_is_used_twice(monkeypatch):
    """What is drawn for an agent's start, its actions, its environment and its learning must not be the same."""
    used, learner = [], _counting()

    def noting(place, result):
        return lambda *given: _note(used, given[place]) or result

    def infer(state, theta, seen, weight, unseen, key, **settings):
        for task in jax.random.split(key, 3):  # as HiP-BMDP does
            for step in range(2):
                _note(used, jax.random.fold_in(task, step))
        return theta

    tune = learner.fine_tuning(4)._replace(
        start=noting(2, jnp.zeros(())),
        act=noting(3, (jnp.zeros((1, 1, 1)), {})),
        update=noting(3, (jnp.zeros(()), {})),
    )
    adapt = learner.adaptation._replace(infer=infer)
    learner = learner._replace(policy=noting(2, jnp.zeros((3, 1, 1))), adaptation=adapt)
    learner = learner._replace(fine_tuning=lambda steps: tune)
    held_out = suites.Split(tuple(suites.TaskInfo(name, "A task.") for name in "abc"), (0, 1, 2))
    suite = types.SimpleNamespace(
        vector_env=lambda number, split: Watched(used),
        horizon=4,
        splits={"train": held_out, "extrapolation": held_out},
        action=continuous(1),
    )
    monkeypatch.setattr(adaptation._Protocol, "evaluator", lambda *asked: lambda *given, **named: {})
    protocol = adaptation._Protocol(learner, suite, "extrapolation", {}, SETTINGS._replace(episodes=(0, 1)))
    for run, number in ((protocol.inferred, 1 + 4 * 2 + 6), (protocol.fine_tuned, 1 + 3 + 4 * (1 + 3) + 2 * 3)):
        used.clear()
        run(jnp.zeros(1), jax.random.split(jax.random.key(0), 1), None)
        jax.effects_barrier()
        assert len(set(used)) == len(used) == number


SMALL = {
    "rollout_length": 4,
    "batch_size": 4,
    "replay_capacity": 32,
    "learning_rate": 0.1,
    "warm_start": 1000,
    "num_critics": 1,
}
MODELS = {"latent_size": 3, "state_encoder_sizes": (), "theta_size": 2, "theta_hidden_sizes": (), "model_sizes": (4,)}


def test_a_real_agent_learns_on(suite, monkeypatch):
    """HiP-BMDP, with heads of its own and all: what belonged to the training tasks has become one task's."""
    network = NetworkConfig(arrangement="multi_head", hidden_sizes=(4,), scale="state")
    config = HiPBMDPConfig(**SMALL, **MODELS, transition_model="deterministic", reward_cost=0.0)
    learner = make_hipbmdp(config, network, grads.mean(), TaskSpec(2, 1, suite.action), num_envs=2, num_updates=1)
    states = jax.jit(jax.vmap(learner.init))(jax.random.split(jax.random.key(0), S))
    settings = SETTINGS._replace(episodes=(0, 2))
    assert learner.fine_tuning(2 * HORIZON).replay.capacity == 16 < SMALL["replay_capacity"]
    assert learner.fine_tuning(99 * HORIZON).replay.capacity == SMALL["replay_capacity"]
    with monkeypatch.context() as patch, pytest.raises(ValueError) as caught:
        patch.setattr("mtjax.learners.replay.free_memory", lambda: 1900)
        measure(learner, suite, states, split="extrapolation", key=jax.random.key(1), settings=settings)
    assert str(caught.value) == (
        "fine-tuning: replay buffers of 16 transitions for 6 agents, one for each of 3 tasks and 2 seeds, take "
        "1.92 kB, but 1.9 kB are free; use fewer episodes"
    )
    found = measure(
        learner, suite, states, split="extrapolation", key=jax.random.key(1), methods=("fine-tuned",), settings=settings
    )
    returns = found.values["fine-tuned"]["return"]
    assert returns.shape == (2, S, 3) and np.isfinite(returns).all()
    assert (returns[0] != returns[1]).all(), "nothing was learnt"


def test_a_learner_that_can_do_neither_is_measured_zero_shot(suite):
    learner = _counting()._replace(adaptation=None, fine_tuning=None)
    found = measure(learner, suite, jnp.zeros(S), split="extrapolation", key=jax.random.key(1), settings=SETTINGS)
    assert found.values.keys() == {"zero-shot"} and found.episodes == (0,)
    assert found.values["zero-shot"]["return"].shape == (1, S, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "train"}, "split 'train' is the training split"),
        ({"split": "interpolation"}, "has no split 'interpolation'"),
        ({"methods": ("tuned",)}, r"unknown method 'tuned'; did you mean fine-tuned\?"),
        ({"settings": Settings(episodes=(1, 5))}, r"episodes must ascend from 0; got \(1, 5\)"),
        ({"learner": _counting()._replace(generalises=False)}, "every task has its own network"),
        ({"suite": types.SimpleNamespace(name="host", on_device=False)}, "suite 'host' runs on the host"),
    ],
)
def test_what_cannot_be_measured_is_refused(suite, changes, message):
    asked = {"learner": _counting(), "suite": suite, "states": jnp.zeros(S), "split": "extrapolation", **changes}
    with pytest.raises(ValueError, match=message):
        measure(**asked, key=jax.random.key(0))


def test_what_a_learner_is_able_to_do():
    learner = _counting()
    assert adaptation.able(learner) == ("inferred", "fine-tuned")
    assert adaptation.able(learner._replace(adaptation=None)) == ("fine-tuned",)
    assert adaptation.able(learner._replace(adaptation=None, fine_tuning=None)) == ()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        adaptation.measure_run(tmp_path)
