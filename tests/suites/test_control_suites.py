"""The control suites: complete, labelled, drawn, and every task, held out or not, can be solved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites

NAMES = (
    "control-cartpole",
    "control-cartpole-continuous",
    "control-acrobot",
    "control-acrobot-continuous",
    "control-pendulum",
)


@pytest.mark.parametrize("name", NAMES)
def test_suite_is_complete(name):
    suite = suites.make(name)
    assert suite.name == name and suite.num_tasks >= 8 and set(suite.splits) == set(suites.SPLITS)
    assert suite.has_success == (suite.version.success != "none")
    every = [info for split in suite.splits.values() for info in split.infos]
    assert len({info.name for info in every}) == len({info.description for info in every}) == len(every)
    parameters = [tuple(info.parameters.values()) for info in every]
    assert len(set(parameters)) == len(every), "a held-out task is trained on"
    for split in suite.splits.values():
        for index, info in enumerate(split.infos):
            for field, value in info.parameters.items():
                assert getattr(split.tasks, field)[index] == np.float32(value)


@pytest.mark.parametrize("name", NAMES)
def test_interpolation_is_within_training_and_extrapolation_beyond(name):
    suite = suites.make(name)
    train = suite.splits["train"].tasks
    for split, within in (("interpolation", True), ("extrapolation", False)):
        tasks = suite.splits[split].tasks
        inside = np.all(
            [(np.min(seen) <= new) & (new <= np.max(seen)) for seen, new in zip(train, tasks, strict=True)],
            axis=0,
        )
        assert (inside == within).all()


def _play(suite, split, policy, steps):
    """Play E = 4 environments a task; returns the Steps, [steps, T, E, ...]."""
    envs = suite.vector_env(4, split=split)
    state, observation = envs.reset(jax.random.key(0))

    def step(carry, key):
        state, observation = carry
        state, out = envs.step(state, policy(observation), key)
        return (state, out.observation), out

    return jax.lax.scan(step, (state, observation), jax.random.split(jax.random.key(1), steps))[1]


@pytest.mark.parametrize("split", suites.SPLITS)
def test_every_acrobot_can_be_swung_up(split):
    """By pushing the joint the way it turns."""
    suite = suites.make("control-acrobot-continuous")
    way = jnp.sign(jnp.asarray(suite.splits[split].tasks.torque))[:, None, None]
    steps = _play(suite, split, lambda seen: way * jnp.sign(seen[..., 5:]), 500)
    assert (steps.info["success"].max(0) == 1).all()


@pytest.mark.parametrize("split", suites.SPLITS)
def test_every_cartpole_can_be_balanced(split):
    """By a linear controller that knows only the direction of the force."""
    suite = suites.make("control-cartpole-continuous")
    way = jnp.sign(jnp.asarray(suite.splits[split].tasks.force))[:, None, None]
    gains = jnp.asarray([0.5, 1.0, 12.0, 3.0])
    steps = _play(suite, split, lambda seen: way * jnp.clip(seen @ gains, -1, 1)[..., None], 300)
    assert not steps.terminated.any()


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_one_frame_a_state(name):
    suite = suites.make(name)
    action = jnp.int32(0) if suite.action.kind == "discrete" else jnp.ones(suite.action.size)
    frames, rate = suite.render(suite.splits["train"], 8, lambda seen, key: action, seed=0, steps=3)
    assert frames.shape[0] == 4 and frames.shape[3] == 3 and frames.dtype == np.uint8
    assert (frames[0] != frames[-1]).any() and rate > 0


def test_a_picture_ends_with_the_episode():
    suite = suites.make("control-cartpole")
    frames, _ = suite.render(suite.splits["train"], 0, lambda seen, key: jnp.int32(1), seed=0, steps=100)
    assert len(frames) < 20
