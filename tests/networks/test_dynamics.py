"""Models of one step, and the distances between what they predict, against NumPy."""

import jax
import numpy as np
import pytest

from mtjax.networks import dynamics
from mtjax.networks.distributions import Normal

negative_log_likelihood, wasserstein = jax.jit(dynamics.negative_log_likelihood), jax.jit(dynamics.wasserstein)
SIZES = {"latent": 3, "action": 2, "theta": 4}


def _normal(seed, members=2, rows=5):
    draw = np.random.default_rng(seed)
    mean, log_scale = (draw.normal(size=(members, rows, 3)).astype(np.float32) for _ in range(2))
    return Normal(mean, np.float32(0.3) * log_scale)


def test_likelihood_against_numpy():
    """½ ((μ − z')/σ)² + log σ; with its scale fixed at 1, half the squared error."""
    p, target = _normal(0), np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    sigma = np.exp(np.asarray(p.log_scale))
    expected = (0.5 * ((np.asarray(p.mean) - target) / sigma) ** 2 + np.log(sigma)).mean(axis=(0, 2))
    np.testing.assert_allclose(negative_log_likelihood(p, target), expected, rtol=1e-5)
    certain = p._replace(log_scale=np.zeros_like(p.mean))
    error = 0.5 * ((np.asarray(p.mean) - target) ** 2).mean(axis=(0, 2))
    np.testing.assert_allclose(negative_log_likelihood(certain, target), error, rtol=1e-5)


def test_wasserstein_counts_means_and_scales_row_by_row():
    """Peers leave the scales out, and take one norm over the whole batch."""
    p, q = _normal(0), _normal(1)
    means = np.asarray(p.mean) - np.asarray(q.mean)
    scales = np.exp(np.asarray(p.log_scale)) - np.exp(np.asarray(q.log_scale))
    expected = np.sqrt((means**2).sum(-1) + (scales**2).sum(-1)).mean(axis=0)
    np.testing.assert_allclose(wasserstein(p, q), expected, rtol=1e-5)
    np.testing.assert_array_equal(wasserstein(p, p), np.zeros(5))
    only_scales = p._replace(log_scale=q.log_scale)
    np.testing.assert_allclose(wasserstein(p, only_scales), np.sqrt((scales**2).sum(-1)).mean(axis=0), rtol=1e-5)


def test_the_length_of_nothing_has_a_gradient():
    """Embeddings that coincide must not turn parameters into NaN."""
    gradient = jax.jit(jax.grad(dynamics.length))
    np.testing.assert_array_equal(gradient(np.zeros(3, np.float32)), np.zeros(3))
    np.testing.assert_allclose(gradient(np.array([3.0, 4.0], np.float32)), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("kind", dynamics.TRANSITIONS)
def test_transition_models(kind):
    """Shapes, θ without leading axes, members that differ, scales within bounds however far the inputs lie."""
    model = dynamics.make_transition(kind, **SIZES, sizes=(8,), members=3)
    parameters = jax.jit(model.init)(jax.random.key(0))
    z, a, theta = np.ones((5, 3), np.float32), np.zeros((5, 2), np.float32), np.arange(4, dtype=np.float32)
    run = jax.jit(model.apply)
    apply = lambda *given: jax.device_get(run(parameters, *given))  # noqa: E731
    found = apply(z, a, theta)
    members = 3 if kind == "ensemble" else 1
    assert found.mean.shape == found.log_scale.shape == (members, 5, 3)
    np.testing.assert_allclose(found.mean, apply(z, a, np.tile(theta, (5, 1))).mean, rtol=1e-5)
    if kind == "ensemble":
        assert (found.mean[0] != found.mean[1]).all()
    far = apply(1e6 * z, a, theta).log_scale
    assert (far == 0).all() if kind == "deterministic" else ((far >= -5) & (far <= 2)).all()
    moved = apply(z, a, theta + 1.0)
    assert (moved.mean != found.mean).all(), "θ must matter"


def test_linear_models_are_linear():
    """Without hidden layers the change is W [z, a, θ] + b, and so is the reward."""
    transition = dynamics.make_transition("deterministic", **SIZES, sizes=())
    reward = dynamics.make_reward(**SIZES, sizes=())
    p, r = jax.jit(transition.init)(jax.random.key(0)), jax.jit(reward.init)(jax.random.key(1))
    z, a, theta = (np.random.default_rng(n).normal(size=n).astype(np.float32) for n in (3, 2, 4))
    x = np.concatenate([z, a, theta])
    kernel = np.asarray(p["params"]["Head_0"]["Dense_0"]["kernel"])[0]
    moved = jax.device_get(jax.jit(transition.apply)(p, z, a, theta))
    np.testing.assert_allclose(moved.mean[0], z + x @ kernel, rtol=1e-4, atol=1e-6)
    kernel = np.asarray(r["params"]["Head_0"]["Dense_0"]["kernel"])[:, 0]
    np.testing.assert_allclose(jax.jit(reward.apply)(r, z, a, theta), x @ kernel, rtol=1e-4, atol=1e-6)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'gausian' is not one of deterministic, gaussian, ensemble"):
        dynamics.make_transition("gausian", **SIZES)
