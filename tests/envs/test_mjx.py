"""If a task's leaves are incomplete or stale, a hidden parameter is a label on the wrong physics."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs import Env, mjx
from mtjax.envs.mjx import render
from mtjax.envs.mjx.models import mjx as simulator
from mtjax.envs.mjx.models import mujoco
from mtjax.envs.mjx.sketch import hull
from mtjax.envs.play import _programs, play

USUAL, OTHER = {}, {"gravity": 0.8, "friction": 1.3, "mass": 1.2, "leg": 1.1, "strength": 0.9}
STEPS = 24


def rollout(env, task, key):
    """States [STEPS + 1, ...] and actions [STEPS, nu] of one environment under random actions."""
    state, _ = env.reset(task, key)
    actions = jax.random.uniform(jax.random.fold_in(key, 1), (STEPS, env.action.size), minval=-1, maxval=1)

    def advance(state, action):
        after, _ = env.step(task, state, action, key)
        return after, after

    states = jax.lax.scan(advance, state, actions)[1]
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, states), actions


@pytest.fixture(scope="module")
def models():
    return [mjx.compile_model(mjx.Hopper.mjcf(**parameters)) for parameters in (USUAL, USUAL, OTHER)]


@pytest.fixture(scope="module")
def hopper(models):
    base, leaves = mjx.stack_models(models)
    return mjx.Hopper(base), mjx.MjxTask(leaves, {})


@pytest.fixture(scope="module")
def trajectories(hopper):
    """Three tasks, the first two alike, from the same key: states [3, STEPS + 1, ...], actions [3, STEPS, 3]."""
    env, tasks = hopper
    run = jax.jit(jax.vmap(rollout, in_axes=(None, 0, None)), static_argnums=0)
    return jax.device_get(run(env, tasks, jax.random.key(3)))


def test_stacked_leaves_rebuild_every_variant(models, hopper):
    env, tasks = hopper[0], jax.device_get(hopper[1])
    for index, model in enumerate(models):
        task = jax.tree.map(lambda leaf, i=index: leaf[i], tasks)
        rebuilt, alone = env.task_model(task), simulator.put_model(model, impl="jax")
        for leaf, other in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(leaf, other)


def test_a_change_of_mass_changes_all_that_derives_from_it():
    heavy = mjx.compile_model(mjx.Hopper.mjcf(mass=2.0))
    leaves = jax.device_get(mjx.stack_models([mjx.compile_model(mjx.Hopper.mjcf()), heavy])[1])
    assert {"body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0"} <= set(leaves)
    np.testing.assert_allclose(leaves["body_subtreemass"][1], 2 * leaves["body_subtreemass"][0], rtol=1e-6)
    assert np.all(leaves["dof_invweight0"][1] < leaves["dof_invweight0"][0])


def test_equal_bodies_need_no_leaves():
    _, leaves = mjx.stack_models([mjx.compile_model(mjx.Hopper.mjcf())] * 2)
    assert leaves == {}


def test_bodies_of_another_structure_are_refused():
    models = [mjx.compile_model(body.mjcf()) for body in (mjx.Hopper, mjx.Walker)]
    with pytest.raises(ValueError, match="static fields"):
        mjx.stack_models(models)


def test_equal_parameters_give_equal_trajectories_and_others_do_not(trajectories):
    states, _ = trajectories
    np.testing.assert_array_equal(states.qpos[0], states.qpos[1])
    assert np.abs(states.qvel[0, 5] - states.qvel[2, 5]).max() > 1e-2


def test_a_task_moves_as_its_own_model_does_alone(models, trajectories):
    states, actions = trajectories
    env = mjx.Hopper(simulator.put_model(models[2], impl="jax"))
    alone, _ = jax.device_get(jax.jit(rollout, static_argnums=0)(env, mjx.MjxTask({}, {}), jax.random.key(3)))
    np.testing.assert_allclose(states.qpos[2, :8], alone.qpos[:8], atol=1e-4)
    np.testing.assert_allclose(states.qvel[2, :8], alone.qvel[:8], atol=1e-2)


def test_few_solver_iterations_follow_mujoco_with_many(models, trajectories):
    states, actions = trajectories
    errors = []
    for task, model in ((0, models[0]), (2, models[2])):
        model.opt.iterations, model.opt.ls_iterations = 100, 50
        data = mujoco.MjData(model)
        for t in range(STEPS):
            data.qpos[:], data.qvel[:] = states.qpos[task, t], states.qvel[task, t]
            data.qacc_warmstart[:], data.ctrl[:] = states.qacc[task, t], actions[task, t]
            mujoco.mj_step(model, data, mjx.Hopper.substeps)
            errors.append(np.abs(data.qvel - states.qvel[task, t + 1]).max())
    assert np.quantile(errors, 0.9) < 0.02 and np.max(errors) < 0.5, np.sort(errors)[-5:]


def test_every_reset_starts_elsewhere(hopper):
    env, tasks = hopper
    task = jax.tree.map(lambda leaf: leaf[2], jax.device_get(tasks))
    _, observations = jax.jit(jax.vmap(env.reset, in_axes=(None, 0)))(task, jax.random.split(jax.random.key(0), 8))
    assert len(np.unique(observations, axis=0)) == 8
    assert isinstance(env, Env) and observations.shape == (8, env.observation_size)


def state_of(qpos, qvel=None, target=()):
    qpos = np.asarray(qpos, np.float32)
    qvel = np.zeros_like(qpos) if qvel is None else np.asarray(qvel, np.float32)
    return mjx.MjxState(qpos, qvel, np.zeros_like(qvel), np.asarray(target, np.float32))


@functools.cache
def make(body):
    return body(simulator.put_model(mjx.compile_model(body.mjcf()), impl="jax"))


def outcome_of(body):
    """Reward, end and information of a step from one state to another by an action."""
    outcome = jax.jit(functools.partial(make(body).outcome, mjx.MjxTask({}, {})))
    return lambda before, after, action: outcome(before, after, np.asarray(action, np.float32))


def test_hopper_reward_by_hand():
    outcome = outcome_of(mjx.Hopper)
    before, after = state_of([0.0, 1.25, 0, 0, 0, 0]), state_of([0.032, 1.2, 0.1, 0, 0, 0])
    reward, fallen, _ = outcome(before, after, [1.0, -1.0, 0.0])
    assert float(reward) == pytest.approx(1 + 0.032 / 0.016 - 0.001 * 2, abs=1e-4) and not fallen
    assert outcome(before, state_of([0, 0.69, 0, 0, 0, 0]), np.zeros(3))[1]  # below 56% of 1.25 m
    assert outcome(before, state_of([0, 1.25, -0.5, 0, 0, 0]), np.zeros(3))[1]  # beyond 0.4 rad


def test_cartpole_reward_by_hand():
    outcome = outcome_of(mjx.Cartpole)
    hanging, upright = state_of([0.0, np.pi]), state_of([0.0, 0.0])
    assert float(outcome(hanging, upright, [0.0])[0]) == pytest.approx(1.0)
    assert float(outcome(hanging, upright, [1.0])[0]) == pytest.approx(0.8)
    assert float(outcome(upright, hanging, [0.0])[0]) == pytest.approx(0.0, abs=1e-6)


def test_reacher_reward_by_hand():
    outcome = outcome_of(mjx.Reacher)
    there, far = state_of([np.pi / 2, 0.0], target=[0.0, 0.24]), state_of([0.0, 0.0], target=[0.0, 0.24])
    reward, _, info = outcome(there, there, np.zeros(2))
    assert float(reward) == pytest.approx(0.0, abs=1e-6) and info["success"] == 1
    reward, _, info = outcome(there, far, np.ones(2))
    assert float(reward) == pytest.approx(-0.24 * 2**0.5 - 0.02, abs=1e-6) and info["success"] == 0


def test_finger_reward_by_hand():
    outcome = outcome_of(mjx.Finger)
    for speed, expected in ((-3.0, 0.0), (7.5, 0.5), (40.0, 1.0)):
        after = state_of([0, 0, 0], [0, 0, speed])
        assert float(outcome(after, after, np.zeros(2))[0]) == pytest.approx(expected)


def _frames(body, states, monkeypatch, opengl_error):
    monkeypatch.setattr(render, "opengl_error", lambda: opengl_error)
    poses = [(state.qpos, state.target) for state in states]
    return render.draw(make(body), body.mjcf(), mjx.MjxTask({}, {}), poses)


@pytest.mark.parametrize("body", [mjx.Reacher, mjx.Hopper, mjx.Cartpole])
def test_a_picture_is_drawn_with_and_without_opengl(body, monkeypatch):
    """A sketch shows the body where MuJoCo's renderer shows it, and of the same size."""
    why, env = render.opengl_error(), make(body)
    full = np.ones(env.action.size, np.float32)
    states = play(env, mjx.MjxTask({}, {}), lambda observation, key: full, seed=0, steps=6)
    assert [program._cache_size() for program in _programs(env)] == [1, 1]  # compiled once, whoever made the state
    frames, rate = _frames(body, states, monkeypatch, "there is no OpenGL")
    assert frames.dtype == np.uint8 and frames.shape[1:] == (240, 320, 3) and 20 < rate < 40
    places = [_place(frames[0])]
    if not why:
        drawn, its_rate = _frames(body, states, monkeypatch, "")
        assert drawn.shape == frames.shape and its_rate == rate
        places.append(_place(drawn[0]))
    np.testing.assert_allclose(places[0], places[-1], atol=4)  # of 320 × 240 pixels
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50  # it moves


def _place(frame):
    """Middle and spread of what is coloured (sky, floor and shadows are nearly grey), by columns and rows."""
    rows, columns = np.nonzero(np.ptp(frame.astype(int), axis=2) > 70)
    return [columns.mean(), rows.mean(), columns.std(), rows.std()]


def test_the_hull_of_points_in_the_plane():
    inside, corners = [(1.0, 1.0), (0.5, 1.5), (1.0, 0.0)], [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]
    assert sorted(hull(inside + corners)) == sorted(corners)


def test_a_machine_that_cannot_draw_is_told_once(monkeypatch):
    """Says what is missing and what the packages are called; then sketches are drawn."""

    def broken(*args, **options):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(mujoco, "Renderer", broken)
    render.opengl_error.cache_clear()
    try:
        with pytest.warns(UserWarning, match="MuJoCo cannot draw here .*eglQueryString.*sketches.*libegl1"):
            assert render.opengl_error()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert render.opengl_error()
    finally:
        render.opengl_error.cache_clear()
