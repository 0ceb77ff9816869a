"""The mistakes that other implementations of GradNorm and FAMO make (see test_grads_bugs.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
from faults import fails

from mtjax import grads


def train_gradnorm(method, norms, losses):
    """GradNorm's weights after one call for each row of `losses`, with constant norms."""
    state, update = quick.jit(method.init, static_argnums=0)(len(norms)), quick.jit(method.update)
    for row in losses:
        gram = np.diag(np.square(norms)).astype(np.float32)
        weights, state = update(gram, state, losses=np.asarray(row, np.float32))
    return jax.device_get((weights, state))


def gradnorm_with(norms, losses, alpha, rate, stop=True, first_only=True, keep=True):
    """GradNorm in NumPy by finite differences, with the mistakes of a moving target, a moving L(0), a lost Σw = T."""
    w, used, first = np.ones(3), np.ones(3), losses[0]
    for row in losses:
        first = first if first_only else row

        def target(v, ratio=row / first):
            return (v * norms).mean() * (ratio / ratio.mean()) ** alpha

        held = target(w)
        value = lambda v: np.abs(v * norms - (held if stop else target(v))).sum()  # noqa: E731, B023
        slope = [(value(w + 1e-6 * e) - value(w - 1e-6 * e)) / 2e-6 for e in np.eye(3)]
        raw = np.maximum(w - rate * np.array(slope), 1e-4)
        used = raw * 3 / raw.sum()
        w = used if keep else raw
    return used


def test_gradnorm_holds_its_target_keeps_the_first_losses_and_the_sum():
    """Each mistake moves the weights by more than the comparison allows."""
    norms, alpha, rate = np.array([1.0, 1.2, 0.9]), 1.5, 0.1
    losses = np.array([[1.0, 2.0, 3.0], [0.2, 1.9, 2.9], [0.1, 1.9, 2.9]])  # task 0 is learnt fast
    ours, _ = train_gradnorm(grads.gradnorm(alpha, optax.sgd(rate)), norms, [*losses, losses[-1]])

    def check(weights):
        np.testing.assert_allclose(ours, weights, rtol=1e-4)

    check(gradnorm_with(norms, losses, alpha, rate))
    for mistake in ({"stop": False}, {"first_only": False}, {"keep": False}):
        fails(check, gradnorm_with(norms, losses, alpha, rate, **mistake))


def test_gradnorm_keeps_the_first_losses():
    _, state = train_gradnorm(grads.gradnorm(), np.ones(2), [[4.0, 2.0], [1.0, 1.0], [0.1, 0.3]])
    np.testing.assert_allclose(state.initial_losses, [4.0, 2.0])
    given = grads.gradnorm(initial_losses=np.array([5.0, 6.0]))
    _, state = train_gradnorm(given, np.ones(2), [[4.0, 2.0]])
    np.testing.assert_allclose(state.initial_losses, [5.0, 6.0])


def test_gradnorm_sees_the_last_shared_layer_only():
    """A huge gradient in another layer must not move the weights; with leaves="all" it does."""
    params = {"first": np.ones(2), "last": np.ones(2)}

    def check(method):
        tx = grads.aggregate(method, num_tasks=2)

        @quick.jit
        def after_two_calls(g):
            _, state = tx.update(g, tx.init(params), losses=jnp.ones(2))
            return tx.update(g, state, losses=jnp.ones(2))[1].weights

        def weights(first):
            return np.asarray(after_two_calls({"first": np.array(first), "last": np.array([[1.0, 0], [0, 3.0]])}))

        np.testing.assert_allclose(weights([[1e3, 0.0], [0, 0]]), weights([[0.0, 0], [0, 1.0]]))
        assert weights([[1e3, 0.0], [0, 0]])[0] > 1

    check(grads.gradnorm(optimizer=optax.sgd(0.1), leaves=lambda path: path == "last"))
    fails(check, grads.gradnorm(optimizer=optax.sgd(0.1), leaves="all"))


@pytest.mark.parametrize("spec", ["gradnorm({})", "every_k(gradnorm({}), 2)", "cr_mogm(gradnorm({}))"])
def test_gradnorm_of_several_layers_asks_which(spec):
    """All parameters in place of the last shared layer: other codebases do so without a word."""
    params, asks = {"first": np.ones(2), "last": np.ones(2)}, r"leaves=lambda path.*\['first', 'last'\]"
    for method in (grads.get(spec.format("")), grads.tunable(spec.format("alpha=0.5"))):
        with pytest.raises(ValueError, match=asks):
            jax.eval_shape(grads.aggregate(method, num_tasks=2).init, params)
        one = grads.aggregate(method, num_tasks=2, shared=lambda path: path == "last")
        jax.eval_shape(one.init, params)
        jax.eval_shape(grads.aggregate(method, num_tasks=2, groups="leaf").init, params)  # a Gram for each leaf
    jax.eval_shape(grads.aggregate(grads.get(spec.format('leaves="all"')), num_tasks=2).init, params)
    with pytest.raises(ValueError, match="\"all\" or None, not 'last'"):
        grads.gradnorm(leaves="last")


@pytest.mark.parametrize("surrogate", [None, "softplus", jnp.exp])
def test_gradnorm_of_negative_losses(surrogate):
    """An RL actor's losses: a negative number to the power α is NaN."""
    losses = [[-1.0, 0.0, 2.0], [-3.0, 0.5, -1.0], [0.0, 0.0, 0.0]]

    def check(surrogate):
        weights, state = train_gradnorm(grads.gradnorm(surrogate=surrogate), np.ones(3), losses)
        assert np.isfinite(weights).all() and np.isfinite(state.weights).all()
        np.testing.assert_allclose(state.weights.sum(), 3, rtol=1e-5)

    check(surrogate)
    fails(check, lambda losses: losses)  # no surrogate at all


def test_famo_observes():
    """The logits move by the progress on the SAME batch; the losses of the next batch say nothing of it."""
    method = grads.famo(optax.sgd(1.0), gamma=0.0)
    tx = optax.chain(grads.aggregate(method, num_tasks=2), optax.sgd(0.1))

    @quick.jit
    def two_calls(after):
        """The states after the losses were observed, and after one more call."""
        _, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 2.0]))
        state = grads.observe(method, state, after)
        _, later = tx.update(jnp.eye(2), state, losses=jnp.array([1.0, 2.0]))
        return grads.find_state(state), grads.find_state(later)

    def check(after):
        first, second = jax.device_get(two_calls(np.array(after)))
        z, progress = np.array([0.5, 0.5]), np.log([1 / 0.5, 2 / 2])
        logits = -(z * (progress - z @ progress))
        np.testing.assert_allclose(first.inner.logits[0], logits, rtol=1e-5)
        expected = np.exp(logits) / np.array([1.0, 2.0])
        np.testing.assert_allclose(second.weights, expected / expected.sum(), rtol=1e-5)

    check([0.5, 2.0])
    fails(check, [1.5, 1.9])  # another batch's losses
