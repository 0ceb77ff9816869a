"""The models alone, on linear dynamics with a known hidden parameter, where every answer can be computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtjax.envs.base import continuous, discrete
from mtjax.learners import world as worlds
from mtjax.learners.config import HiPBMDPConfig
from mtjax.learners.world import Steps, make_world

A = np.asarray([[0.9, 0.2], [-0.1, 0.8]])
B, C = np.asarray([0.5, 1.0]), np.asarray([0.4, -0.3])  # of action and hidden parameter; ‖C‖ = 0.5
NOISE = 0.1
HIDDEN = np.linspace(-1.0, 1.0, 12)
LINEAR = {
    "state_encoder": "identity",
    "model_sizes": (),
    "theta_hidden_sizes": (),
    "theta_size": 1,
}


def sample(hidden, number, seed):
    """Transitions [..., number] of s' = A s + B a + C h + noise, r = s₀ + 2 h, for every h."""
    draw = np.random.default_rng(seed)
    hidden = np.asarray(hidden, float)[..., None]
    shape = (*hidden.shape[:-1], number)
    state, action = draw.normal(size=(*shape, 2)), draw.uniform(-1, 1, shape)
    after = state @ A.T + action[..., None] * B + hidden[..., None] * C + NOISE * draw.normal(size=(*shape, 2))
    steps = Steps(state, action[..., None], state[..., 0] + 2 * hidden, after)
    return jax.tree.map(lambda x: x.astype(np.float32), steps)


def drawn(world):
    """Random parameters, where it does not matter how a world starts: nothing is compiled for them."""
    draw, shapes = np.random.default_rng(0), jax.eval_shape(world.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: 0.5 * draw.normal(size=leaf.shape).astype(np.float32), shapes)


@functools.cache
def trained(**options):
    """(world, parameters, θ of all tasks) after full-batch descent on all losses."""
    config = HiPBMDPConfig(**{**LINEAR, **options, "transition_members": 2})
    tasks = len(HIDDEN)
    world = make_world(config, observation_size=2, action=continuous(1), num_tasks=tasks)
    data, optimizer = sample(HIDDEN, 128, seed=0), optax.adam(3e-2)

    def of_task(parameters, steps, index, key):
        theta = world.embeddings(parameters)[index]
        value = worlds.transition_loss(world, parameters, steps, theta).mean()
        value += worlds.reward_loss(world, parameters, steps, theta).mean()
        if config.theta_size and config.theta_cost:
            other = (index + jax.random.randint(key, (128,), 1, tasks)) % tasks
            value += worlds.theta_error(world, parameters, steps.observation, steps.action, index, other).mean()
        return value

    def descend(carry, key):
        parameters, state = carry

        def loss(parameters):
            keys = jax.random.split(key, tasks)
            return jax.vmap(of_task, in_axes=(None, 0, 0, 0))(parameters, data, jnp.arange(tasks), keys).sum()

        change, state = optimizer.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, change), state), None

    @jax.jit
    def run(key):
        parameters = world.init(key)
        start = parameters, optimizer.init(parameters)
        return jax.lax.scan(descend, start, jax.random.split(key, 1500))[0][0]

    parameters = run(jax.random.key(1))
    return world, *jax.device_get((parameters, world.embeddings(parameters)))


def unexplained(theta, hidden):
    """Share of θ's variance that no affine map of the hidden parameter explains."""
    x = np.stack([hidden, np.ones_like(hidden)], axis=1)
    rest = theta - x @ np.linalg.lstsq(x, theta, rcond=None)[0]
    return rest.var() / theta.var()


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
def test_embeddings_recover_the_hidden_parameter(kind):
    """Up to an affine map; and by the θ-learning error its scale is that of the dynamics, whose W₂ is ‖C‖ |h − h'|."""
    _, _, theta = trained(transition_model=kind)
    assert unexplained(theta[:, 0], HIDDEN) < 0.02
    apart = np.abs(theta[:, None, 0] - theta[None, :, 0])
    expected = 0.5 * np.abs(HIDDEN[:, None] - HIDDEN[None])
    np.testing.assert_allclose(apart, expected, atol=0.12)


def test_without_the_theta_error_the_scale_is_free():
    """What tells the test above from one that cannot fail."""
    _, _, theta = trained(transition_model="deterministic", theta_cost=0.0)
    assert unexplained(theta[:, 0], HIDDEN) < 0.02
    assert abs(np.ptp(theta) - 1.0) > 0.3


HELD_OUT = np.asarray([0.45, -1.6])  # between the training tasks, and beyond them


@functools.partial(jax.jit, static_argnums=0, static_argnames=("num_steps", "batch_size"))
def infer(world, parameters, steps, weight=None, **options):
    start = world.embeddings(parameters).mean(axis=0)
    return worlds.infer(world, parameters, start, steps, weight, **options)


@pytest.mark.parametrize("kind", ["deterministic", "ensemble"])
def test_a_held_out_parameter_is_inferred_from_a_few_steps(kind):
    """One step's error comes down to the noise, far below that of a model which is told nothing."""
    world, parameters, _ = trained(transition_model=kind)
    blind_world, blind, _ = trained(transition_model=kind, theta_size=0)

    @functools.partial(jax.jit, static_argnums=0)
    def squared_error(world, parameters, theta, steps):
        found = world.transition(parameters, steps.observation, steps.action, theta)
        return jnp.square(found.mean.mean(axis=0) - steps.next_observation).mean()

    predicted = jax.jit(world.reward)
    for hidden in HELD_OUT:
        theta = infer(world, parameters, sample(hidden, 20, seed=1), num_steps=300)
        test = sample(hidden, 2000, seed=2)
        told = float(squared_error(world, parameters, theta, test))
        untold = float(squared_error(blind_world, blind, np.zeros(0, np.float32), test))
        assert told < 1.25 * NOISE**2 and told < 0.7 * untold
        reward = np.asarray(predicted(parameters, test.observation, test.action, theta))
        assert np.abs(reward - test.reward).mean() < 0.35  # 20 steps tell h up to its noise


def test_inference_is_least_squares_for_a_linear_model():
    """θ* = w·(mean residual) / ‖w‖², of the transitions that count; and θ stays where none does."""
    world, parameters, theta = trained(transition_model="deterministic")
    steps = sample(HELD_OUT[0], 20, seed=3)
    head = parameters["transition"]["params"]["Head_0"]["Dense_0"]
    kernel, bias = np.asarray(head["kernel"])[0], np.asarray(head["bias"])[0]
    x = np.concatenate([steps.observation, steps.action], axis=1)
    residual = steps.next_observation - steps.observation - x @ kernel[:3] - bias
    for number in (20, 7):
        weight = (np.arange(20) < number).astype(np.float32)
        expected = kernel[3] @ residual[:number].mean(axis=0) / (kernel[3] @ kernel[3])
        found = infer(world, parameters, steps, weight, num_steps=600)
        np.testing.assert_allclose(found, [expected], atol=5e-3)
    np.testing.assert_allclose(infer(world, parameters, steps, np.zeros(20, np.float32)), [theta.mean()], atol=1e-6)


def test_what_does_not_count_may_be_anything():
    """Of 20 transitions 7 count; the others are NaN: in one go, and drawn by their weight."""
    world, parameters, theta = trained(transition_model="deterministic")
    steps, weight = sample(HELD_OUT[0], 20, seed=3), (np.arange(20) % 3 == 1).astype(np.float32)
    counted = jax.tree.map(lambda x: x[weight > 0], steps)
    expected = float(infer(world, parameters, counted, num_steps=600)[0])
    assert abs(expected - theta.mean()) > 0.05

    def broken(x):
        return np.where(weight.reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, np.nan).astype(np.float32)

    steps = jax.tree.map(broken, steps)
    np.testing.assert_allclose(infer(world, parameters, steps, weight, num_steps=600), [expected], atol=5e-3)
    drawn_ones = [
        infer(world, parameters, steps, weight, num_steps=600, learning_rate=3e-3, batch_size=256, key=key)[0]
        for key in jax.random.split(jax.random.key(0), 4)
    ]
    np.testing.assert_allclose(drawn_ones, expected, atol=0.03)


def test_a_prior_draws_an_inferred_theta_to_the_training_tasks():
    """Ridge regression in units of the training tasks' spread: the loss is a parabola whose curvature is known."""
    world, parameters, theta = trained(transition_model="deterministic")
    steps, head = sample(HELD_OUT[1], 20, seed=3), parameters["transition"]["params"]["Head_0"]["Dense_0"]
    slope, spread = np.asarray(head["kernel"])[0, 3], theta[:, 0].std()
    free = float(infer(world, parameters, steps, num_steps=600)[0])
    curvature = slope @ slope / 2 * spread**2  # in z, of ½ (prediction − target)², the mean of two dimensions
    for cost in (0.3 * curvature, 3.0 * curvature):
        expected = theta.mean() + (free - theta.mean()) * curvature / (curvature + cost)
        found = infer(world, parameters, steps, num_steps=600, prior_cost=cost)
        np.testing.assert_allclose(found, [expected], atol=5e-3)


def test_inference_searches_only_where_training_tasks_differ():
    """Embeddings on a line: the other direction is one in which no model and no policy has seen anything."""
    config = HiPBMDPConfig(latent_size=3, theta_size=2, theta_hidden_sizes=(), state_encoder_sizes=(), model_sizes=(4,))
    world = make_world(config, observation_size=2, action=discrete(3), num_tasks=3)
    parameters, states = drawn(world), np.random.default_rng(1).normal(size=(2, 9, 2)).astype(np.float32)
    line = np.float32([[0.0, 1.0], [0.1, 1.2], [-0.2, 0.6]])
    parameters["embedding"]["table"] = line
    np.testing.assert_allclose(world.embeddings(parameters), line)
    steps = worlds.Steps(states[0], np.zeros(9, np.int32), np.zeros(9, np.float32), states[1])
    found = np.asarray(infer(world, parameters, steps)) - line.mean(axis=0)
    assert np.linalg.norm(found) > 0.01
    np.testing.assert_allclose(found[1], 2.0 * found[0], rtol=0.02)


def test_theta_error_against_numpy_and_where_its_gradient_goes():
    """Every pair has its own norm and W₂; only the embeddings are moved."""
    config = HiPBMDPConfig(latent_size=3, theta_size=2, theta_hidden_sizes=(4,), state_encoder_sizes=(5,))
    world = make_world(config, observation_size=2, action=discrete(3), num_tasks=4)
    parameters = drawn(world)
    observation = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    action, other = jnp.asarray([0, 1, 2, 0, 1, 2]), jnp.asarray([0, 1, 3, 3, 1, 0])

    @jax.jit
    def known(parameters):
        error = lambda p: worlds.theta_error(world, p, observation, action, jnp.asarray(2), other)  # noqa: E731
        thetas, z = world.embeddings(parameters), world.encode(parameters, observation)
        ahead = [world.transition(parameters, z, action, theta) for theta in (thetas[2], thetas[other])]
        return error(parameters), thetas, ahead, jax.grad(lambda p: error(p).mean())(parameters)

    found, thetas, (p, q), gradient = jax.tree.map(np.asarray, known(parameters))
    squares = (p.mean - q.mean)[0] ** 2 + (np.exp(p.log_scale) - np.exp(q.log_scale))[0] ** 2
    expected = (np.linalg.norm(thetas[2] - thetas[np.asarray(other)], axis=1) - np.sqrt(squares.sum(axis=1))) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    largest = {
        name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(part))
        for name, part in gradient.items()
        if jax.tree.leaves(part)
    }
    assert largest["embedding"] > 1e-4 and largest["encoder"] == largest["transition"] == largest["reward"] == 0


def test_targets_have_no_gradient():
    """φ(s') is to be met, not to come nearer: an encoder that shrinks must not lower the loss of still states."""
    config = HiPBMDPConfig(latent_size=3, transition_model="deterministic", state_encoder_sizes=())
    world = make_world(config, observation_size=2, action=continuous(1), num_tasks=2)
    parameters = drawn(world)
    steps = jax.tree.map(lambda x: x[0], sample([0.5], 16, seed=0))
    theta, target = jax.jit(lambda p: (world.embeddings(p)[0], world.encode(p, steps.next_observation)))(parameters)

    def by_hand(parameters):
        z = world.encode(parameters, steps.observation)
        mean = world.transition(parameters, z, steps.action, theta).mean[0]
        return (0.5 * jnp.square(mean - target)).mean()

    found = jax.jit(jax.grad(lambda p: worlds.transition_loss(world, p, steps, theta).mean()))(parameters)
    expected = jax.jit(jax.grad(by_hand))(parameters)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_parts_without_a_cost_have_no_parameters():
    """SAC-AE is an encoder and a decoder, nothing else."""
    config = HiPBMDPConfig(theta_size=0, transition_cost=0.0, reward_cost=0.0, reconstruction_cost=1.0, latent_size=3)
    world = make_world(config, observation_size=2, action=continuous(1), num_tasks=2)
    parameters = drawn(world)
    assert {name for name, part in parameters.items() if jax.tree.leaves(part)} == {"encoder", "decoder"}
    steps = jax.tree.map(lambda x: x[0], sample([0.5], 16, seed=0))

    @jax.jit
    def known(parameters):
        z = world.encode(parameters, steps.observation)
        return worlds.reconstruction_loss(world, parameters, steps, latent_cost=0.1), z, world.decode(parameters, z)

    found, z, decoded = jax.device_get(known(parameters))
    error = np.square(decoded - steps.observation).mean(axis=1)
    np.testing.assert_allclose(found, error + 0.05 * np.square(z).sum(axis=1), rtol=1e-4)
