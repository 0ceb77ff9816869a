"""Derivatives of an update, which meta-learning and bilevel optimisation take: in both modes, and of second order."""

import functools

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from mtjax import grads
from mtjax.grads import gram


def entry(name, J):
    """A number that depends on the whole update."""
    tx = grads.aggregate(grads.get(name), num_tasks=len(J))
    return jnp.sum(jnp.sin(tx.update(J, tx.init(J[0]))[0]))


def test_forward_mode_of_a_weighted_sum():
    """The power of two that keeps sums from overflowing made every tangent NaN."""
    np.testing.assert_array_equal(jax.jacfwd(lambda w: grads.weighted_sum(w, jnp.eye(2)))(jnp.ones(2)), np.eye(2))
    long = np.ones((2, gram._LONG), np.float32) * [[1], [3]]  # summed row by row
    for dtype in (np.float32, jnp.bfloat16):
        weights, tangent = jnp.array([1.0, 2.0]), jnp.array([0.5, 100.0])
        _, got = jax.jvp(lambda w, dtype=dtype: grads.weighted_sum(w, long.astype(dtype)), (weights,), (tangent,))
        np.testing.assert_allclose(np.float32(got), 300.5, rtol=0.01)


def test_second_derivatives_of_a_weighted_sum():
    A = np.array([[1.0, 2.0], [0.5, -1.0]], np.float32)
    square = lambda w: jnp.sum(grads.weighted_sum(w, A) ** 2)  # noqa: E731
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacfwd(f)), lambda f: jax.jacrev(jax.grad(f))):
        np.testing.assert_allclose(hessian(square)(jnp.ones(2)), 2 * A @ A.T, rtol=1e-5)


def test_derivatives_of_an_update():
    """A meta-gradient that is NaN or wrong in one of the two modes would be looked for in the user's own code."""
    J = jacobians.jacobian("conflicting", 4, 6).astype(np.float32)
    along = np.random.default_rng(0).standard_normal(J.shape).astype(np.float32)

    def slopes(name):
        """The derivative along a direction: by forward mode, by reverse mode if there is one, by differences."""
        f = functools.partial(entry, name)
        forward = jax.jvp(f, (J,), (along,))[1]
        reverse = jnp.sum(jax.grad(f)(J) * along) if name != "mgda" else forward
        return forward, reverse, (f(J + 1e-3 * along) - f(J - 1e-3 * along)) / 2e-3

    names = ("mean", "pcgrad", "imtl_g", "config", "trimmed_mean", "mgda")
    for name, (*got, difference) in quick.jit(lambda: quick.each(names, slopes))().items():
        np.testing.assert_allclose(got, [difference] * 2, rtol=0.02, atol=0.02, err_msg=name)


def test_derivatives_of_a_lean_direction():
    """Its weighted sum is another than that of `aggregate`, with the same power of two."""
    lean, targets = grads.lean(grads.normalize(grads.mean()), num_tasks=2), jnp.eye(2)
    loss = lambda p, target: 0.5 * jnp.sum((p - target) ** 2)  # noqa: E731
    direction = jax.jit(lambda p: lean.direction(loss, p, targets, lean.init(p))[1])
    p, ahead = jnp.zeros(2), jnp.array([1e-2, 0.0])
    slope = (direction(p + ahead) - direction(p - ahead)) / 2e-2
    np.testing.assert_allclose(jax.jacfwd(direction)(p)[:, 0], slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["imtl_g", "config", "cosine_gate", "normalize(mean)"])
def test_derivatives_where_a_gradient_is_zero(name):
    """The root of its squared norm has an infinite slope: 0·∞ made the derivatives of all tasks NaN."""
    J = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [2.0, -0.5, 1.0]], np.float32)
    assert np.isfinite(jax.grad(functools.partial(entry, name))(J)).all()
