"""Classic control: the reference dynamics at the defaults, and parameters that really change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs import Env, vectorize
from mtjax.envs.control import Acrobot, AcrobotTask, CartPole, CartPoleTask, Pendulum, PendulumTask

BODIES = [
    (CartPole("discrete"), CartPoleTask),
    (CartPole("continuous"), CartPoleTask),
    (Acrobot("discrete"), AcrobotTask),
    (Acrobot("continuous"), AcrobotTask),
    (Pendulum(), PendulumTask),
]


def as_arrays(task):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), task)


def random_actions(env, rng, number):
    if env.action.kind == "discrete":
        return rng.integers(env.action.size, size=number, dtype=np.int32)
    return rng.uniform(-1, 1, (number, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("env", "make", "reference"),
    [
        (CartPole("discrete"), CartPoleTask, "CartPole-v1"),
        (Acrobot("discrete"), AcrobotTask, "Acrobot-v1"),
        (Pendulum(), PendulumTask, "Pendulum-v1"),
    ],
)
def test_defaults_follow_gymnasium_step_by_step(env, make, reference):
    """Every step from the same state: observation, reward and end agree, for many episodes."""
    gymnasium = pytest.importorskip("gymnasium")
    theirs, task = gymnasium.make(reference).unwrapped, as_arrays(make())
    step, rng, ends = jax.jit(env.step), np.random.default_rng(0), 0
    theirs.reset(seed=0)
    for action in random_actions(env, rng, 400):
        state = jnp.asarray(theirs.state, jnp.float32)
        _, ours = step(task, state, jnp.asarray(action), jax.random.key(0))
        scaled = action * 2.0 if env.action.kind == "continuous" else action
        observation, reward, terminated, _, _ = theirs.step(scaled)
        np.testing.assert_allclose(ours.observation, observation, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(ours.reward, reward, rtol=1e-5, atol=1e-5)
        assert bool(ours.terminated) == terminated
        if terminated:
            theirs.reset()
            ends += 1
    assert ends > 0 or reference != "CartPole-v1"


def test_acrobot_ends_where_gymnasium_ends():
    """Random play never gets there, so states near the top are set."""
    gymnasium = pytest.importorskip("gymnasium")
    theirs, env = gymnasium.make("Acrobot-v1").unwrapped, Acrobot("discrete")
    theirs.reset(seed=0)
    step, rng, ends = jax.jit(env.step), np.random.default_rng(1), 0
    for _ in range(300):
        state = rng.uniform([2.0, -1.0, -3.0, -3.0], [4.0, 1.0, 3.0, 3.0]).astype(np.float32)
        theirs.state = state
        _, ours = step(as_arrays(AcrobotTask()), jnp.asarray(state), jnp.int32(1), jax.random.key(0))
        _, reward, terminated, _, _ = theirs.step(1)
        height = -np.cos(theirs.state[0]) - np.cos(theirs.state[:2].sum())
        if abs(height - 1.0) > 1e-4:
            assert bool(ours.terminated) == terminated == bool(ours.info["success"])
            assert float(ours.reward) == reward
            ends += terminated
    assert 50 < ends < 250


@pytest.mark.parametrize(("env", "make"), BODIES)
def test_every_parameter_changes_the_dynamics_and_equal_ones_do_not(env, make):
    assert isinstance(env, Env)
    default = make()
    step = jax.jit(env.step)
    rng = np.random.default_rng(0)
    state, _ = env.reset(as_arrays(default), jax.random.key(0))
    state = state + jnp.asarray(rng.uniform(0.1, 0.2, state.shape), jnp.float32)
    action = jnp.int32(0) if env.action.kind == "discrete" else jnp.asarray([0.7])

    def after(task):
        return np.asarray(step(as_arrays(task), state, action, jax.random.key(0))[0])

    np.testing.assert_array_equal(after(default), after(make()))
    for field in default._fields:
        changed = default._replace(**{field: 1.5 * getattr(default, field)})
        assert np.abs(after(changed) - after(default)).max() > 1e-5, field


@pytest.mark.parametrize(("env", "make"), BODIES)
def test_a_negative_force_turns_every_action_round(env, make):
    default = make()
    name = "force" if "force" in default._fields else "torque"
    reversed_ = default._replace(**{name: -getattr(default, name)})
    state, _ = env.reset(as_arrays(default), jax.random.key(3))
    for action in random_actions(env, np.random.default_rng(0), 5):
        opposite = env.action.size - 1 - action if env.action.kind == "discrete" else -action
        one, _ = env.step(as_arrays(default), state, jnp.asarray(action), jax.random.key(0))
        two, _ = env.step(as_arrays(reversed_), state, jnp.asarray(opposite), jax.random.key(0))
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [CartPole, Acrobot])
def test_full_continuous_actions_are_the_discrete_ones(make):
    task = as_arrays(CartPoleTask() if make is CartPole else AcrobotTask())
    few, many = make("discrete"), make("continuous")
    state, _ = few.reset(task, jax.random.key(0))
    for choice, number in ((0, -1.0), (few.action.size - 1, 1.0), (few.action.size - 1, 9.0)):
        one, _ = few.step(task, state, jnp.int32(choice), jax.random.key(0))
        two, _ = many.step(task, state, jnp.asarray([number]), jax.random.key(0))
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_acrobot_conserves_energy_without_torque():
    """A wrong inertia or centre of mass for longer or heavier links would show here."""
    env = Acrobot("continuous")
    task = as_arrays(AcrobotTask(mass_2=1.5, length_1=1.25, length_2=0.75))

    def energy(state):
        a1, a2, s1, s2 = np.asarray(state, np.float64)
        l1, m1, m2, c1, c2 = 1.25, 1.0, 1.5, 0.625, 0.375
        i1, i2 = m1 * l1**2, m2 * 0.75**2
        speed_2 = l1**2 * s1**2 + c2**2 * (s1 + s2) ** 2 + 2 * l1 * c2 * s1 * (s1 + s2) * np.cos(a2)
        kinetic = 0.5 * ((i1 + m1 * c1**2) * s1**2 + m2 * speed_2 + i2 * (s1 + s2) ** 2)
        height_1, height_2 = -c1 * np.cos(a1), -l1 * np.cos(a1) - c2 * np.cos(a1 + a2)
        return kinetic + 9.8 * (m1 * height_1 + m2 * height_2)

    state = jnp.asarray([0.3, -0.2, 0.0, 0.0])
    start = energy(state)
    bottom = energy([0.0, 0.0, 0.0, 0.0])
    for _ in range(20):
        state, _ = env.step(task, state, jnp.zeros(1), jax.random.key(0))
        assert abs(energy(state) - start) < 0.05 * (start - bottom)


@pytest.mark.parametrize(("env", "make"), BODIES)
def test_long_random_play_stays_finite(env, make):
    tasks = jax.tree.map(lambda x: jnp.full(2, x, jnp.float32), make())
    envs = vectorize(env, tasks, 8, horizon=500)

    def step(state, key):
        shape = (2, 8, *env.action.shape)
        if env.action.kind == "discrete":
            actions = jax.random.randint(key, shape, 0, env.action.size)
        else:
            actions = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        state, out = envs.step(state, actions, key)
        return state, (out.observation, out.reward)

    state, _ = envs.reset(jax.random.key(0))
    _, (observation, reward) = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 600))
    assert np.isfinite(observation).all() and np.isfinite(reward).all()
