"""One bad batch: an infinite loss or a NaN must not decide the rest of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import grads

BAD = (np.inf, -np.inf, np.nan)


@pytest.mark.parametrize("spec", ["famo", "cr_mogm(famo)", "every_k(famo, 1)"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("when", ["before", "after"])
def test_famo_after_a_bad_loss(spec, bad, when):
    """The logits became NaN, and with them every later update, while that step's own update was finite."""
    method = grads.get(spec)
    tx = grads.aggregate(method, num_tasks=3)
    state, fine = tx.init(jnp.zeros(3)), np.float32([1.0, 2.0, 3.0])
    spoilt = np.where(np.arange(3) == 0, bad, fine).astype(np.float32)
    _, state = tx.update(jnp.eye(3), state, losses=spoilt if when == "before" else fine)
    state = grads.observe(method, state, spoilt if when == "after" else fine * [1.0, 0.5, 1.0])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.inner))
    update, _ = tx.update(jnp.eye(3), state, losses=fine)
    assert np.isfinite(update).all() and (update > 0).all()


def test_famo_learns_from_the_other_tasks():
    """What a bad loss leaves: the step of the problem without that task."""
    method = grads.famo(gamma=0.0)
    before, after = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 1.0, 3.0])
    _, state = method.update(jnp.eye(3), method.init(3), losses=before.at[0].set(jnp.inf))
    _, small = method.update(jnp.eye(2), method.init(2), losses=before[1:])
    got, want = method.observe(after, state).logits, method.observe(after[1:], small).logits
    np.testing.assert_allclose(got[1:], want, rtol=1e-6)
    assert got[0] == 0 and want[0] != 0
    weights, _ = method.update(jnp.eye(2), method.init(2), losses=jnp.array([jnp.inf, jnp.inf]))
    np.testing.assert_allclose(weights, 0.5)


@pytest.mark.parametrize("bad_gradient", [False, True])
def test_gradnorm_after_a_nan(bad_gradient):
    """Its weights became NaN for good, but only without jit: a bug that a debugger would have hidden."""
    tx = grads.aggregate(grads.gradnorm(), num_tasks=3)
    g, losses = jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
    for run in (lambda update: update, jax.jit):
        step = run(lambda g, state, losses: tx.update(g, state, losses=losses))
        _, state = step(g, tx.init(g[0]), losses)
        bad = g.at[0].set(jnp.nan) if bad_gradient else g
        _, state = step(bad, state, losses.at[0].set(jnp.nan))
        update, state = step(g, state, losses)
        assert np.isfinite(update).all() and np.isfinite(state.inner.weights).all()


@pytest.mark.parametrize("spec", ["gradnorm", "normalize(gradnorm)", "cr_mogm(gradnorm)"])
def test_the_loss_of_a_task_that_overflows(spec):
    """Such a task counts as absent: its loss, often NaN, must not reach the others' weights."""
    tx = grads.aggregate(grads.get(spec), num_tasks=3)
    g, losses = jnp.eye(3).at[0].set(1e30), jnp.array([jnp.nan, 2.0, 3.0])
    state = tx.init(g[0])
    for _ in range(2):
        _, state = tx.update(g, state, losses=losses)
        assert np.isfinite(state.weights).all() and state.weights[0] == 0 and (state.weights[1:] > 0).all()


def test_the_loss_of_a_task_that_overflows_on_the_lean_path():
    lean = grads.lean(grads.gradnorm(), num_tasks=3)
    loss = lambda p, scale: jnp.where(scale > 9, jnp.nan, scale) + scale * jnp.sum(p)  # noqa: E731
    state = lean.init(None)
    for _ in range(2):
        _, _, state = lean.direction(loss, jnp.ones(2), jnp.array([1e30, 1.0, 2.0]), state)
        assert np.isfinite(state.weights).all() and state.weights[0] == 0 and (state.weights[1:] > 0).all()


def test_cr_mogm_forgets_a_nan():
    """Its weights are an average over calls: one NaN stayed in it for ever."""
    tx = grads.aggregate(grads.cr_mogm(grads.gls()), num_tasks=2)
    _, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 2.0]))
    update, after = tx.update(jnp.eye(2), state, losses=jnp.array([jnp.nan, 2.0]))
    assert np.isnan(update).any()  # hiding it would hide a bug
    np.testing.assert_array_equal(after.inner.weights, state.inner.weights)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_gate_without_its_main_task(weighted):
    """Nothing says which auxiliary gradients help, and the unweighted gate let all of them through."""
    tx = grads.aggregate(grads.cosine_gate(0, weighted=weighted), num_tasks=3)
    g, state = jnp.eye(3), tx.init(jnp.zeros(3))
    for first, mask in ((1.0, jnp.array([False, True, True])), (1e30, None), (0.0, None)):
        update, _ = tx.update(g.at[0].multiply(first), state, mask=mask)
        np.testing.assert_array_equal(update[1:], 0)
    np.testing.assert_array_equal(tx.update(g, state)[1].weights, [1, 0, 0] if weighted else [1, 1, 1])
