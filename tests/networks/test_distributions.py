"""Distributions: a wrong density is a wrong ratio, and PPO then improves something else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from mtjax.envs.base import continuous, discrete
from mtjax.networks import distributions
from mtjax.networks.distributions import Distribution, Normal, distribution


def array(*numbers) -> np.ndarray:
    return np.array(numbers, np.float32)


def _compiled(family: Distribution) -> Distribution:
    """Each of its functions compiles whole, and once for all tests."""
    return Distribution(*map(jax.jit, family))


@functools.cache
def gaussian(squash: bool) -> Distribution:
    return _compiled(distributions.gaussian(squash))


@functools.cache
def categorical() -> Distribution:
    return _compiled(distributions.categorical())


KEY = jax.random.key(0)
ALL = np.ones(3, np.float32)
MEAN, LOG_SCALE = array(0.3, -1.2, 2.0), array(-0.7, 0.1, 0.5)
P, Q = Normal(MEAN, LOG_SCALE), Normal(MEAN * 0.5 + 0.1, LOG_SCALE[::-1])
LOGITS, OTHER = array(0.2, -1.0, 1.7), array(1.0, 0.5, -0.5)


def test_gaussian_against_scipy():
    family, raw = gaussian(squash=False), array(0.1, 0.0, 2.5)
    normal = scipy.stats.norm(np.asarray(MEAN), np.exp(LOG_SCALE))
    np.testing.assert_allclose(family.log_prob(P, ALL, raw), normal.logpdf(raw).sum(), rtol=1e-5)
    np.testing.assert_allclose(family.entropy(P, ALL, KEY), normal.entropy().sum(), rtol=1e-5)
    np.testing.assert_array_equal(family.mode(P, ALL), MEAN)
    np.testing.assert_array_equal(family.to_action(array(-3.0, 0.5, 1.5)), [-1.0, 0.5, 1.0])


def test_only_clipping_has_an_excess():
    """Of real actions alone, beyond either bound; tanh and choices leave no action outside."""
    np.testing.assert_allclose(gaussian(squash=False).excess(P, ALL), 0.2**2 + 1.0**2, rtol=1e-5)
    np.testing.assert_allclose(gaussian(squash=False).excess(P, array(1.0, 1.0, 0.0)), 0.2**2, rtol=1e-5)
    assert np.asarray(gaussian(squash=True).excess(P, ALL)) == np.asarray(categorical().excess(LOGITS, ALL)) == 0.0


@pytest.mark.parametrize("squash", [False, True])
def test_gaussian_kl_is_the_expected_log_ratio(squash):
    """KL(p ‖ q), not KL(q ‖ p); squashing both changes neither."""
    family = gaussian(squash)
    raw = np.asarray(MEAN) + np.exp(LOG_SCALE) * np.random.default_rng(0).normal(size=(200_000, 3))
    ratio = np.asarray(family.log_prob(P, ALL, raw)) - np.asarray(family.log_prob(Q, ALL, raw))
    kl = float(family.kl(P, Q, ALL))
    np.testing.assert_allclose(kl, np.mean(ratio), rtol=0.02)
    assert abs(float(family.kl(Q, P, ALL)) - kl) > 0.1 * kl
    np.testing.assert_allclose(family.kl(P, P, ALL), 0.0, atol=1e-6)


def test_squashed_density_integrates_to_one_and_is_that_of_tanh():
    """The correction must make a density of the ACTION, or entropy and ratios have another unit."""
    family = distributions.gaussian(squash=True)  # as it is: quad sees the rounding of a fused program
    p = Normal(array(0.4), array(-0.3))

    def density(action):
        raw = jnp.asarray([np.arctanh(action)], jnp.float32)
        return float(jnp.exp(family.log_prob(p, jnp.ones(1), raw)))

    mass, _ = scipy.integrate.quad(density, -0.9999, 0.9999, limit=200)
    np.testing.assert_allclose(mass, 1.0, atol=2e-3)
    action = 0.6
    by_hand = scipy.stats.norm(0.4, np.exp(-0.3)).pdf(np.arctanh(action)) / (1 - action**2)
    np.testing.assert_allclose(density(action), by_hand, rtol=1e-5)


def test_squash_is_finite_far_out():
    """Saturated actions are common; their log-probability must not be infinite, nor its gradient NaN."""
    family, p = gaussian(squash=True), Normal(np.zeros(1, np.float32), np.zeros(1, np.float32))
    derivative = jax.jit(jax.value_and_grad(lambda x: family.log_prob(p, np.ones(1, np.float32), x[None])))
    for raw in (-40.0, 40.0):
        value, gradient = derivative(np.float32(raw))
        np.testing.assert_allclose(value, scipy.stats.norm.logpdf(raw) - 2 * (np.log(2) - 40), rtol=1e-5)
        assert np.isfinite(gradient)


def test_squashed_entropy_is_right_on_average():
    family, p = gaussian(squash=True), Normal(array(0.4), array(-0.3))
    keys = jax.random.split(KEY, 20_000)
    one = np.ones(1, np.float32)
    draw = jax.jit(jax.vmap(lambda k: (family.entropy(p, one, k), family.sample(p, one, k))))
    entropies, raw = jax.device_get(draw(keys))
    np.testing.assert_allclose(np.mean(entropies), -np.mean(np.asarray(family.log_prob(p, one, raw))), atol=0.02)
    assert np.abs(np.asarray(family.to_action(raw))).max() < 1


def test_gaussian_samples_have_the_stated_moments():
    family = gaussian(squash=False)
    raw = np.asarray(jax.jit(jax.vmap(lambda k: family.sample(P, ALL, k)))(jax.random.split(KEY, 20_000)))
    np.testing.assert_allclose(raw.mean(0), MEAN, atol=0.05)
    np.testing.assert_allclose(raw.std(0), np.exp(LOG_SCALE), rtol=0.03)


def test_categorical_against_scipy():
    family = categorical()
    p, q = (np.exp(x) / np.exp(x).sum() for x in (LOGITS, OTHER))
    np.testing.assert_allclose([family.log_prob(LOGITS, ALL, np.int32(i)) for i in range(3)], np.log(p), rtol=1e-5)
    np.testing.assert_allclose(family.entropy(LOGITS, ALL, KEY), scipy.stats.entropy(p), rtol=1e-5)
    np.testing.assert_allclose(family.kl(LOGITS, OTHER, ALL), scipy.stats.entropy(p, q), rtol=1e-5)
    assert np.asarray(family.mode(LOGITS, ALL)) == 2
    raw = np.asarray(jax.jit(jax.vmap(lambda k: family.sample(LOGITS, ALL, k)))(jax.random.split(KEY, 20_000)))
    assert raw.dtype == np.int32
    np.testing.assert_allclose(np.bincount(raw, minlength=3) / 20_000, p, atol=0.015)


@pytest.mark.parametrize("squash", [False, True])
def test_padded_entries_of_a_continuous_action_do_not_matter(squash):
    """A body with two motors in a suite whose largest has three acts as if it were alone."""
    family, mask = gaussian(squash), array(1.0, 1.0, 0.0)
    small_p, small_q = (Normal(x.mean[:2], x.log_scale[:2]) for x in (P, Q))
    two = np.ones(2, np.float32)
    raw = np.asarray(family.sample(P, mask, KEY))
    action, mode = jax.device_get((family.to_action(raw), family.mode(P, mask)))
    assert raw[2] == 0 and action[2] == 0 and mode[2] == 0
    np.testing.assert_allclose(family.log_prob(P, mask, raw), family.log_prob(small_p, two, raw[:2]), rtol=1e-6)
    np.testing.assert_allclose(family.kl(P, Q, mask), family.kl(small_p, small_q, two), rtol=1e-6)
    if not squash:
        np.testing.assert_allclose(family.entropy(P, mask, KEY), family.entropy(small_p, two, KEY), rtol=1e-6)
    for f in (lambda p: family.log_prob(p, mask, raw), lambda p: family.entropy(p, mask, KEY)):
        gradient = jax.device_get(jax.jit(jax.grad(f))(P))
        assert gradient.mean[2] == 0 and gradient.log_scale[2] == 0


def test_padded_choices_are_never_taken_and_do_not_matter():
    family, mask = categorical(), array(1.0, 1.0, 0.0)
    two, p, q = np.ones(2, np.float32), LOGITS[:2], OTHER[:2]
    draw = jax.jit(jax.vmap(lambda k: family.sample(LOGITS, mask, k)))
    assert np.asarray(draw(jax.random.split(KEY, 2_000))).max() == 1 and np.asarray(family.mode(LOGITS, mask)) == 0
    for choice in np.arange(2):
        np.testing.assert_allclose(family.log_prob(LOGITS, mask, choice), family.log_prob(p, two, choice), rtol=1e-6)
    np.testing.assert_allclose(family.entropy(LOGITS, mask, KEY), family.entropy(p, two, KEY), rtol=1e-6)
    np.testing.assert_allclose(family.kl(LOGITS, OTHER, mask), family.kl(p, q, two), rtol=1e-6)
    for f in (
        lambda x: family.log_prob(x, mask, np.int32(0)),
        lambda x: family.entropy(x, mask, KEY),
        lambda x: family.kl(OTHER, x, mask),
    ):
        gradient = np.asarray(jax.jit(jax.grad(f))(LOGITS))
        assert gradient[2] == 0 and np.isfinite(gradient).all()


def test_leading_axes():
    """Batches must give one number an action, not a sum over the batch."""
    p = Normal(np.zeros((5, 4, 3), np.float32), LOG_SCALE)
    family = gaussian(squash=True)
    raw = family.sample(p, ALL, KEY)
    assert raw.shape == (5, 4, 3)
    for value in (family.log_prob(p, ALL, raw), family.entropy(p, ALL, KEY), family.kl(p, p, ALL)):
        assert value.shape == (5, 4)
    logits, family = np.zeros((5, 4, 3), np.float32), categorical()
    raw = family.sample(logits, ALL, KEY)
    assert raw.shape == (5, 4)
    for value in (
        family.log_prob(logits, ALL, raw),
        family.entropy(logits, ALL, KEY),
        family.kl(logits, logits, ALL),
    ):
        assert value.shape == (5, 4)


def test_a_log_scale_comes_back_from_beyond_its_bounds():
    """Where a clip has no gradient, a scale that once grew too large would stay so for good."""
    x = np.float32([-7, -5, 0, 2, 4, 4, -7])
    slope = np.float32([1, 1, -1, -1, 1, -1, -1])  # of the loss, in what comes out

    def loss(x):
        out = distributions.within_bounds(x)
        return (slope * out).sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_array_equal(out, [-5, -5, 0, 2, 2, 2, -5])
    np.testing.assert_array_equal(gradient, [0, 1, -1, -1, 1, 0, -1])


def test_the_action_space_chooses_the_family():
    assert distribution(discrete(3), squash=False).to_action(jnp.asarray(2)) == 2
    assert distribution(continuous(1), squash=True).to_action(jnp.asarray(20.0)) == 1.0
