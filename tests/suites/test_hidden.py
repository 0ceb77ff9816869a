"""A split that overlaps, or a variant that explodes, makes every number of a hidden suite worthless."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs import mjx
from mtjax.suites import hidden

NAMES = [*hidden.MIXED, *hidden.TEN]
BODIES = ["Ant", "Cartpole", "Cheetah", "Finger", "Hopper", "Reacher", "Walker"]


def parameters(name):
    """Every task's parameters by split."""
    if name in hidden.MIXED:
        return hidden.mixed_parameters(hidden.MIXED[name][1])
    tasks = hidden.TEN[name][2]
    return {split: [tasks[i - 1] for i in chosen] for split, chosen in hidden.TEN_SPLITS.items()}


@pytest.mark.parametrize("name", NAMES)
def test_splits_lie_where_their_names_say(name):
    splits = parameters(name)
    for key in splits["train"][0]:
        values = {split: np.array([task[key] for task in tasks]) for split, tasks in splits.items()}
        low, high = values["train"].min(), values["train"].max()
        assert np.all((values["interpolation"] > low) & (values["interpolation"] < high))
        assert np.all((values["extrapolation"] < low) | (values["extrapolation"] > high))
        assert np.all(values["extrapolation"] > 0)
    every = [tuple(task.values()) for tasks in splits.values() for task in tasks]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("name", hidden.MIXED)
def test_mixed_families_do_not_move_two_parameters_together(name):
    for split, largest in {"train": 0.8, "interpolation": 0.1, "extrapolation": 0.1}.items():
        table = np.array([list(task.values()) for task in parameters(name)[split]])
        correlations = np.corrcoef(table.T)[~np.eye(table.shape[1], dtype=bool)]
        assert table.shape == (8, 5) and np.abs(correlations).max() < largest, split
        high = table > table.mean(axis=0)
        if split != "train":  # heavy and strong, heavy and weak, light and strong, light and weak: each twice
            for j in range(1, 5):
                for i in range(j):
                    assert np.unique(2 * high[:, i] + high[:, j], return_counts=True)[1].tolist() == [2, 2, 2, 2]


def test_the_families_of_mtenv_have_its_numbers():
    expected = {
        "hidden-cheetah-torso-length": ("torso", 0.5, 1.4),
        "hidden-cheetah-foot-size": ("foot", 0.046, 0.092),
        "hidden-walker-friction": ("friction", 0.7, 1.6),
        "hidden-walker-foot-length": ("left_foot", 0.08, 0.17),
        "hidden-cartpole-mass": ("cart_mass", 1.0, 5.5),
    }
    for name, (key, first, last) in expected.items():
        values = [task[key] for task in hidden.TEN[name][2]]
        assert len(values) == 10 and np.all(np.diff(values) > 0)
        np.testing.assert_allclose([values[0], values[-1]], [first, last])
    assert hidden.TEN["hidden-cartpole-mass"][2][9]["pole_mass"] == pytest.approx(0.55)


@pytest.mark.parametrize("name", NAMES)
def test_suites_say_what_their_tasks_are(name):
    suite = suites.make(name)
    assert set(suite.splits) == set(suites.SPLITS)
    assert "mujoco-mjx" in suite.version.simulator and suite.version.reward
    assert suite.version.horizon == suite.horizon
    for split in suite.splits.values():
        assert all(info.description.endswith(".") and info.parameters for info in split.infos)
        assert len({info.description for info in split.infos}) == len(split)
    assert jax.eval_shape(suite.vector_env(2).reset, jax.random.key(0))[1].shape == (
        suite.num_tasks,
        2,
        suite.observation_size,
    )


def families_of(body):
    return [name for name in NAMES if {**hidden.MIXED, **hidden.TEN}[name][0].body == body]


def play(env, tasks, horizon, num_envs):
    """Observations [T, horizon, num_envs, obs] and rewards under random actions, the same for every task."""

    def one(task, key):
        state, _ = env.reset(task, key)

        def advance(state, key):
            action_key, reset_key = jax.random.split(key)
            action = jax.random.uniform(action_key, env.action.shape, minval=-1, maxval=1)
            state, step = env.step(task, state, action, key)
            fresh, _ = env.reset(task, reset_key)
            state = jax.tree.map(lambda new, old: jnp.where(step.terminated, new, old), fresh, state)
            return state, (step.observation, step.reward)

        return jax.lax.scan(advance, state, jax.random.split(key, horizon))[1]

    keys = jax.random.split(jax.random.key(0), num_envs)
    everywhere = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
    # LLVM's optimiser would take longer than what it saves.
    return jax.jit(everywhere, compiler_options={"xla_backend_optimization_level": 0})(tasks, keys)


@pytest.mark.parametrize("body", BODIES)
def test_no_task_of_any_split_explodes_and_all_differ(body):
    every = [task for name in families_of(body) for tasks in parameters(name).values() for task in tasks]
    kind = getattr(mjx, body)
    base, leaves = mjx.stack_models([mjx.compile_model(kind.mjcf(**task)) for task in every])
    observations, rewards = play(kind(base), mjx.MjxTask(leaves, {}), horizon=500, num_envs=2)
    assert np.isfinite(observations).all() and np.isfinite(rewards).all()
    assert np.abs(observations).max() < 200 and np.abs(rewards).max() < 50
    first = np.asarray(observations[:, :, :60]).reshape(len(every), -1)
    index = 0
    for name in families_of(body):
        size = sum(map(len, parameters(name).values()))
        family = first[index : index + size]
        index += size
        gaps = np.abs(family[:, None] - family[None]).max(-1) + np.eye(size)
        assert gaps.min() > 1e-3, f"two tasks of {name} move alike"
