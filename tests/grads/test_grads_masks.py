"""Masks: a task that is absent from a batch has no influence, and is as it was when it comes back."""

import functools

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from mtjax import grads
from mtjax.grads.methods.famo import FamoState
from mtjax.grads.methods.gradvac import vaccinate
from mtjax.grads.methods.pcgrad import project

T, P, CALLS = 6, 12, 3
HERE = np.array([1, 1, 0, 1, 0, 1], bool)
KEPT = np.flatnonzero(HERE)
OWN_DRAWS = {"pcgrad", "gradvac", "rlw"}  # draws of T numbers differ from draws of 4: see the tests below
SPECS = {
    **{name: name for name in grads.names()},
    "cr_mogm": "cr_mogm(mgda)", "every_k": "every_k(mgda, 2)", "normalize": "normalize(mgda)",
    "fixed": "fixed((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))", "dwa": "dwa(window=1)",
}  # fmt: skip


@functools.cache
def runner(spec: str, num_tasks: int):
    """One jitted call of a method: (task_grads, losses, mask or None, state) -> (update, state)."""
    method = grads.get(spec)
    tx = grads.aggregate(method, num_tasks=num_tasks)

    @quick.jit
    def call(J, losses, mask, state):
        gram = grads.gram_matrix(J) if getattr(method, "on_representation", False) else None
        update, state = tx.update(J, state, losses=losses, mask=mask, gram=gram)
        return update, grads.observe(method, state, 0.9 * losses + 0.01)

    return tx, call


def per_task(inner) -> list[np.ndarray]:
    """The leaves of a method's state that belong to tasks, with the task axis first."""
    if isinstance(inner, FamoState):
        inner = inner._replace(present=())  # a record of the last call
    leaves = [x for x in jax.tree.leaves(inner) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    leaves = [x[0] if x.ndim > 1 and x.shape[:2] == (1, T) else x for x in leaves]
    return [np.asarray(x) for x in leaves if x.ndim and x.shape[0] == T]


def _sees_the_gram(name):
    method = grads.get(SPECS[name])
    return isinstance(method, grads.Weighting) and method.needs_gram


@pytest.mark.parametrize("name", [name for name in grads.names() if _sees_the_gram(name)])
def test_a_task_whose_norm_overflows_counts_as_absent(name):
    """The others' direction is that under a mask without it. As a zero gradient it would take all of MGDA's weight."""
    big, call = runner(SPECS[name], T)
    J = 0.3 * jacobians.jacobian("conflicting", T, P, 0).astype(np.float32)
    losses = jacobians.losses(T, 1)[0].astype(np.float32)
    huge = J.copy()
    huge[2] *= 1e25
    here = np.arange(T) != 2
    want, masked = call(J, losses, here, big.init(jnp.zeros(P)))
    got, state = call(huge, losses, None, big.init(jnp.zeros(P)))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.weights, masked.weights, rtol=1e-4, atol=1e-6)
    assert state.weights[2] == 0 and np.abs(got).max() > 1e-3


@pytest.mark.parametrize("name", grads.names())
def test_absent_tasks_have_no_influence(name):
    """Over three calls the direction is that of the smaller problem, and the absent tasks' state stands still."""
    smaller = f"fixed({(KEPT + 1.0).tolist()})" if name == "fixed" else SPECS[name]
    big, call = runner(SPECS[name], T)
    small, call_small = runner(smaller, len(KEPT))
    state, state_small = big.init(jnp.zeros(P)), small.init(jnp.zeros(P))
    start = per_task(state.inner)
    for n, losses in enumerate(jacobians.losses(T, CALLS)):
        J = 0.3 * jacobians.jacobian("conflicting", T, P, n).astype(np.float32)
        losses = losses.astype(np.float32)
        hole = np.where(HERE[:, None], J, np.nan), np.where(HERE, losses, np.nan)
        got, state = call(*hole, HERE, state)
        want, state_small = call_small(J[KEPT], losses[KEPT], None, state_small)
        assert np.isfinite(got).all()
        assert (np.asarray(state.weights)[~HERE] == 0).all()
        if name not in OWN_DRAWS:
            np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
    for before, after in zip(start, per_task(state.inner), strict=True):
        np.testing.assert_array_equal(before[~HERE], after[~HERE])
    nobody, _ = call(*hole, np.zeros(T, bool), state)
    np.testing.assert_array_equal(nobody, np.zeros(P))


@pytest.mark.parametrize("name", ["moco", "gradnorm", "dwa", "famo", "uncertainty", "excess_mtl", "gradvac", "sdmgrad"])
def test_a_task_that_leaves_comes_back_as_it_was(name):
    """After a call with all tasks, a call without two of them leaves those two as they were."""
    big, call = runner(name, T)
    J, losses = jacobians.jacobian("iid", T, P).astype(np.float32), jacobians.losses(T, 1)[0].astype(np.float32)
    _, state = call(J, losses, np.ones(T, bool), big.init(jnp.zeros(P)))
    before = per_task(state.inner)
    _, state = call(J[::-1], losses[::-1].copy(), HERE, state)
    after = per_task(state.inner)
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[~HERE], b[~HERE])


def test_a_preference_of_zero_is_no_absence():
    """Aligned-MTL makes all present gradients orthogonal, preferred or not: a mask of ones changes nothing."""
    G = jnp.array([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.2], [0.5, 0.2, 1.0]])
    method = grads.aligned_mtl(preference=jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(method.update(G, (), mask=jnp.ones(3, bool))[0], method.update(G, ())[0], rtol=1e-5)


def test_random_orders_of_the_present_tasks():
    """PCGrad and GradVac with a mask are those of the smaller problem, in the order that the present tasks have."""
    J = jacobians.jacobian("conflicting", T, P)
    gram = jnp.asarray(J @ J.T, jnp.float32)
    orders = np.argsort(np.random.default_rng(0).uniform(size=(T, T)), axis=1)  # [row, step]
    smaller = [[list(KEPT).index(j) for j in orders[i] if j in KEPT] for i in KEPT]
    here, all_here = jnp.asarray(HERE, jnp.float32), jnp.ones(len(KEPT))
    few, order, short = gram[np.ix_(KEPT, KEPT)], jnp.asarray(orders.T), jnp.asarray(smaller).T
    np.testing.assert_allclose(project(gram, order, here)[KEPT], project(few, short, all_here), rtol=1e-4)
    target = jnp.full((T, T), 0.3)
    weights, moved = vaccinate(gram, target, order, here, 0.5)
    want, moved_small = vaccinate(few, target[: len(KEPT), : len(KEPT)], short, all_here, 0.5)
    np.testing.assert_allclose(weights[KEPT], want, rtol=1e-4)
    np.testing.assert_allclose(moved[np.ix_(KEPT, KEPT)], moved_small, rtol=1e-4)
    np.testing.assert_array_equal(moved[~HERE], target[~HERE])


def test_random_weights_of_the_present_tasks_sum_to_one():
    weights, _ = grads.rlw().update(jnp.eye(T), jax.random.key(3), mask=jnp.asarray(HERE))
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert (np.asarray(weights)[~HERE] == 0).all() and (np.asarray(weights)[HERE] > 0).all()


def test_trimmed_mean_of_few_present_tasks_is_their_median():
    tx = grads.aggregate(grads.trimmed_mean(2), num_tasks=6)
    J = jnp.array([[1.0], [9.0], [2.0], [50.0], [3.0], [7.0]])
    update, _ = tx.update(J, tx.init(J[0]), mask=jnp.array([True, False, True, True, False, False]))
    np.testing.assert_allclose(update, [2.0])  # of 1, 2 and 50
