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
def runner(num_tasks: int):
    """The methods' first states, and one call, in one program, of those whose states it is given.

    (task_grads, losses, mask or None, states) -> {spec: (update, state)}.
    """
    methods = {spec: grads.get(spec) for spec in [*SPECS.values(), "dwa"]}
    if num_tasks == len(KEPT):
        methods[SPECS["fixed"]] = grads.fixed(tuple(KEPT + 1.0))
    txs = {spec: grads.aggregate(method, num_tasks=num_tasks) for spec, method in methods.items()}

    @quick.jit
    def call(J, losses, mask, states):
        def of(spec):
            gram = grads.gram_matrix(J) if getattr(methods[spec], "on_representation", False) else None
            update, state = txs[spec].update(J, states[spec], losses=losses, mask=mask, gram=gram)
            return update, grads.observe(methods[spec], state, 0.9 * losses + 0.01)

        return quick.each(states, of)

    return quick.jit(lambda: {spec: tx.init(np.zeros(P, np.float32)) for spec, tx in txs.items()})(), call


def states_of(results) -> dict:
    return {spec: state for spec, (_, state) in results.items()}


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


SEE_THE_GRAM = [name for name in grads.names() if _sees_the_gram(name)]


@functools.cache
def one_overflows():
    """Results without a task, and with it where its squared norm overflows."""
    start, call = runner(T)
    J = 0.3 * jacobians.jacobian("conflicting", T, P, 0).astype(np.float32)
    losses = jacobians.losses(T, 1)[0].astype(np.float32)
    huge = J.copy()
    huge[2] *= 1e25
    seeing = {SPECS[name]: start[SPECS[name]] for name in SEE_THE_GRAM}
    return jax.device_get((call(J, losses, np.arange(T) != 2, start), call(huge, losses, None, seeing)))


@pytest.mark.parametrize("name", SEE_THE_GRAM)
def test_a_task_whose_norm_overflows_counts_as_absent(name):
    """The others' direction is that under a mask without it. As a zero gradient it would take all of MGDA's weight."""
    (want, masked), (got, state) = [results[SPECS[name]] for results in one_overflows()]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.weights, masked.weights, rtol=1e-4, atol=1e-6)
    assert state.weights[2] == 0 and np.abs(got).max() > 1e-3


@functools.cache
def three_calls():
    """The first states, the results of three calls and those of the smaller problem, and a call without any task."""
    start, call = runner(T)
    states_small, call_small = runner(len(KEPT))
    states, pairs = start, []
    for n, losses in enumerate(jacobians.losses(T, CALLS).astype(np.float32)):
        J = 0.3 * jacobians.jacobian("conflicting", T, P, n).astype(np.float32)
        hole = np.where(HERE[:, None], J, np.nan), np.where(HERE, losses, np.nan)
        pairs.append((call(*hole, HERE, states), call_small(J[KEPT], losses[KEPT], None, states_small)))
        states, states_small = map(states_of, pairs[-1])
    return start, pairs, call(*hole, np.zeros(T, bool), states)


@pytest.mark.parametrize("name", grads.names())
def test_absent_tasks_have_no_influence(name):
    """Over three calls the direction is that of the smaller problem, and the absent tasks' state stands still."""
    states, pairs, nobody = three_calls()
    for results, smaller in pairs:
        (got, state), want = results[SPECS[name]], np.asarray(smaller[SPECS[name]][0])
        assert np.isfinite(np.asarray(got)).all()
        assert (np.asarray(state.weights)[~HERE] == 0).all()
        if name not in OWN_DRAWS:
            np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
    for before, after in zip(per_task(states[SPECS[name]].inner), per_task(state.inner), strict=True):
        np.testing.assert_array_equal(before[~HERE], after[~HERE])
    np.testing.assert_array_equal(nobody[SPECS[name]][0], np.zeros(P))


@functools.cache
def two_calls():
    """The states after a call with all tasks, and after one more without two of them."""
    start, call = runner(T)
    J, losses = jacobians.jacobian("iid", T, P).astype(np.float32), jacobians.losses(T, 1)[0].astype(np.float32)
    first = states_of(call(J, losses, np.ones(T, bool), start))
    return first, states_of(call(J[::-1], losses[::-1].copy(), HERE, first))


@pytest.mark.parametrize("name", ["moco", "gradnorm", "dwa", "famo", "uncertainty", "excess_mtl", "gradvac", "sdmgrad"])
def test_a_task_that_leaves_comes_back_as_it_was(name):
    """After a call with all tasks, a call without two of them leaves those two as they were."""
    before, after = [per_task(states[name].inner) for states in two_calls()]
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[~HERE], b[~HERE])


def test_a_preference_of_zero_is_no_absence():
    """Aligned-MTL makes all present gradients orthogonal, preferred or not: a mask of ones changes nothing."""
    G = np.array([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.2], [0.5, 0.2, 1.0]], np.float32)
    method = grads.aligned_mtl(preference=np.array([1.0, 0.0, 1.0]))
    both = quick.jit(lambda here: (method.update(G, (), mask=here)[0], method.update(G, ())[0]))
    np.testing.assert_allclose(*both(np.ones(3, bool)), rtol=1e-5)


def test_random_orders_of_the_present_tasks():
    """PCGrad and GradVac with a mask are those of the smaller problem, in the order that the present tasks have."""
    J = jacobians.jacobian("conflicting", T, P)
    gram = (J @ J.T).astype(np.float32)
    orders = np.argsort(np.random.default_rng(0).uniform(size=(T, T)), axis=1)  # [row, step]
    smaller = [[list(KEPT).index(j) for j in orders[i] if j in KEPT] for i in KEPT]
    here, all_here = HERE.astype(np.float32), np.ones(len(KEPT), np.float32)
    few, order, short = gram[np.ix_(KEPT, KEPT)], orders.T, np.array(smaller).T
    target = np.full((T, T), 0.3, np.float32)

    @quick.jit
    def both(gram, target, order, here):
        return project(gram, order, here), *vaccinate(gram, target, order, here, 0.5)

    projected, weights, moved = jax.device_get(both(gram, target, order, here))
    want, weights_small, moved_small = both(few, target[: len(KEPT), : len(KEPT)], short, all_here)
    np.testing.assert_allclose(projected[KEPT], want, rtol=1e-4)
    np.testing.assert_allclose(weights[KEPT], weights_small, rtol=1e-4)
    np.testing.assert_allclose(moved[np.ix_(KEPT, KEPT)], moved_small, rtol=1e-4)
    np.testing.assert_array_equal(moved[~HERE], target[~HERE])


def test_random_weights_of_the_present_tasks_sum_to_one():
    weigh = quick.jit(lambda here: grads.rlw().update(jnp.eye(T), jax.random.key(3), mask=here)[0])
    weights = np.asarray(weigh(HERE))
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert (weights[~HERE] == 0).all() and (weights[HERE] > 0).all()


def test_trimmed_mean_of_few_present_tasks_is_their_median():
    tx = grads.aggregate(grads.trimmed_mean(2), num_tasks=6)
    J = np.array([[1.0], [9.0], [2.0], [50.0], [3.0], [7.0]], np.float32)
    update = quick.jit(lambda J, mask: tx.update(J, tx.init(J[0]), mask=mask)[0])
    np.testing.assert_allclose(update(J, np.array([True, False, True, True, False, False])), [2.0])  # of 1, 2 and 50
