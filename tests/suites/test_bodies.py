"""Case I: different bodies in one suite, by padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.suites.bodies import combine


def test_bodies_control_is_three_bodies():
    suite = suites.make("bodies-control")
    assert suite.num_tasks == 3 and suite.action_sizes == (1, 1, 1) and suite.observation_size == 6
    assert [info.name for info in suite.tasks] == [
        "control-cartpole-continuous/default",
        "control-acrobot-continuous/default",
        "control-pendulum/default",
    ]
    assert set(suite.splits) == set(suites.SPLITS) and suite.horizon == 500 and not suite.has_success
    for split in suite.splits:
        envs = suite.vector_env(2, split=split)
        state, observation = jax.eval_shape(envs.reset, jax.random.key(0))
        _, step = jax.eval_shape(envs.step, state, jnp.zeros((3, 2, 1)), jax.random.key(1))
        assert observation.shape == step.observation.shape == (3, 2, 6)


def test_combining_whole_suites_keeps_every_task_and_its_sizes():
    members = [suites.make(name) for name in ("control-cartpole", "control-acrobot", "gridworld-two-rooms")]
    suite = combine("all", members)
    assert suite.num_tasks == 12 + 12 + 8 == len({info.name for info in suite.tasks})
    assert suite.action_sizes == (2,) * 12 + (3,) * 12 + (4,) * 8 and suite.action.size == 4
    assert suite.splits["interpolation"].action_sizes == (2,) * 8 + (3,) * 8 + (4,) * 4
    assert suite.vector_env(2).action_sizes == suite.action_sizes
    assert suite.version.simulator == "mtjax control 1 + mtjax gridworld 1"
    few = combine("few", members, tasks_per_suite=2)
    assert few.num_tasks == 6 and [info.name for info in few.tasks][::2] == [
        f"{member.name}/{member.tasks[0].name}" for member in members
    ]
    _, observation = jax.eval_shape(few.vector_env(1).reset, jax.random.key(0))
    assert observation.shape == (6, 1, 124)
    nested = combine("nested", [few, suites.make("gridworld-mazes")])
    assert nested.action_sizes == few.action_sizes + (4,) * 16


def test_success_is_kept_only_if_all_have_it():
    both = combine("both", [suites.make("control-acrobot"), suites.make("gridworld-mazes")])
    assert both.has_success
    assert not combine("one", [suites.make("control-acrobot"), suites.make("control-cartpole")]).has_success


def test_a_picture_of_each_body_by_a_policy_of_padded_spaces():
    suite = suites.make("bodies-control")

    def policy(observation, key):
        assert observation.shape == (6,)
        return jnp.ones(1)

    shapes = []
    for task in range(3):
        frames, _ = suite.render(suite.splits["train"], task, policy, seed=0, steps=2)
        shapes.append(frames.shape)
    assert shapes == [(3, 320, 480, 3), (3, 320, 320, 3), (3, 320, 320, 3)]


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (
            ["control-cartpole", "control-pendulum"],
            {},
            "share their kind of action.*'control-pendulum': 'cont",
        ),
        (["control-cartpole", "control-cartpole"], {}, "needs different suites"),
        ([], {}, "at least one"),
        (["control-cartpole"], {"tasks_per_suite": 0}, "must be positive"),
    ],
)
def test_what_cannot_be_combined_is_named(members, options, message):
    with pytest.raises(ValueError, match=message):
        combine("mixed", [suites.make(member) for member in members], **options)


def test_bodies_mjx_is_three_bodies():
    suite = suites.make("bodies-mjx")
    assert suite.num_tasks == 3 and len(set(suite.action_sizes)) > 1
    envs = suite.vector_env(1)
    sizes = [group.observation_size for group in envs.groups]
    _, observation = jax.jit(envs.reset)(jax.random.key(0))
    for row, size in zip(np.asarray(observation), sizes, strict=True):
        assert not row[0, size:].any()
