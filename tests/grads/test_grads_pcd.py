"""Priority-constrained descent against Lawson and Hanson's least-distance program, in float64, over several calls."""

import functools

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import scipy.optimize

from mtjax import grads

SIZES = {1: (4,), 2: (8, 1), 3: (8, 2), 10: (40, 4), 50: (80, 20)}  # T: the numbers of parameters P
CALLS, BETA, EPSILON = 3, 0.9, 1e-8
# T > P, where float32 does not always tell what can only just be satisfied from what cannot.
ON_THE_EDGE = {"spread", "duplicates"}


def nearest(g, tau, main):
    """d [P] nearest to g[main] with ⟨g_j, d⟩ ≥ τ‖g_j‖² for the others; g[main] where there is none."""
    others = [j for j in range(len(g)) if j != main and np.linalg.norm(g[j])]
    if not others:
        return g[main]
    A = g[others]
    b = tau * (A**2).sum(1) - A @ g[main]
    matrix = np.vstack([A.T, b])
    target = np.append(np.zeros(g.shape[1]), 1.0)
    u, _ = scipy.optimize.nnls(matrix, target, maxiter=10_000)
    rest = matrix @ u - target
    return g[main] if np.linalg.norm(rest) < 1e-9 else g[main] - rest[:-1] / rest[-1]


def directions(Js, tau, main=0):
    """Of one call after the other, d as long as the main gradient; and how many times as long as d that was before."""
    squares, found = 0.0, []
    for n, J in enumerate(Js, 1):
        squares = BETA * squares + (1 - BETA) * (J**2).sum(1)
        scaled = J / np.sqrt(squares / (1 - BETA**n) + EPSILON)[:, None]
        d = nearest(scaled, tau, main)
        length, before = np.linalg.norm(d), np.linalg.norm(scaled[main])
        zero = length <= 1e-9 * before
        found.append((0 * d, 1.0) if zero else (d * np.linalg.norm(J[main]) / length, before / length))
    return found


@functools.cache
def calls(num_tasks):
    """(P, kind, J of three calls) for all kinds and sizes."""
    return [
        (size, kind, [np.asarray(jacobians.jacobian(kind, num_tasks, size, seed), float) for seed in range(CALLS)])
        for size in SIZES[num_tasks]
        for kind in jacobians.KINDS
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_tasks", SIZES)
def test_against_the_least_distance_program(num_tasks, dtype):
    """For three values of τ side by side, and with another main task.

    A Gram in precision ε knows ‖d‖² to ε‖ĝ_main‖²: where the constraints leave little of ĝ_main, d is known less well.
    """
    taus, mains = np.array([0.0, 0.02, 0.5]), {0, num_tasks - 1}
    limit, epsilon = (1e-3 if dtype == "float32" else 1e-8), np.finfo(dtype).eps
    for main in mains:
        with jax.enable_x64(dtype == "float64"):

            def train(tau, grams, main=main):
                method = grads.pcd(main, tau=tau, beta=BETA, epsilon=EPSILON)
                step = lambda state, gram: method.update(gram, state)[::-1]  # noqa: E731
                return jax.lax.scan(step, method.init(num_tasks), grams)[1]

            grams = np.stack([[J @ J.T for J in Js] for *_, Js in calls(num_tasks)]).astype(dtype)
            every = jax.vmap(jax.vmap(train, (0, None)), (None, 0))
            weights = np.asarray(quick.jit(every)(taus.astype(dtype), grams), float)  # [N, 3, calls, T]
        assert np.isfinite(weights).all()
        for (size, kind, Js), of_case in zip(calls(num_tasks), weights, strict=True):
            for tau, of_tau in zip(taus, of_case, strict=True):
                if dtype == "float32" and tau and num_tasks > size and kind in ON_THE_EDGE:
                    continue
                for J, w, (want, times) in zip(Js, of_tau, directions(Js, tau, main), strict=True):
                    allowed = limit + 10 * epsilon * times**2
                    off, whole = np.linalg.norm(J.T @ w - want), np.linalg.norm(J[main])
                    assert allowed < 0.5 and off <= allowed * whole, (size, kind, tau, main, off)


def test_by_hand():
    """τ = 0, and the main gradient (1, 0) against (−1, 1): what is left of it runs along (1, 1)."""
    J = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    method = grads.pcd(tau=0.0)
    weights, _ = method.update(J @ J.T, method.init(2))
    np.testing.assert_allclose(weights @ J, np.ones(2) / np.sqrt(2), rtol=1e-5)


def test_what_cannot_be_satisfied_leaves_the_main_gradient():
    J = jnp.array([[1.0, 2.0], [0.0, 3.0], [0.0, -1.0]])
    method = grads.pcd(tau=0.1)
    weights, _ = method.update(J @ J.T, method.init(3))
    np.testing.assert_allclose(weights, [1.0, 0.0, 0.0], atol=1e-5)


def test_other_tasks_have_no_scale():
    """Ten times another task's gradients at every call are the same direction."""
    Js = [np.asarray(jacobians.jacobian("conflicting", 3, 8, seed), np.float32) for seed in range(CALLS)]
    method, found = grads.pcd(tau=0.3), []
    for factor in (1.0, 10.0):
        state = method.init(3)
        for J in Js:
            J = J * np.array([[1.0], [factor], [1.0]], np.float32)
            weights, state = method.update(jnp.asarray(J @ J.T), state)
        found.append(np.asarray(weights) @ J)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_an_absent_task_keeps_its_average_and_asks_for_nothing():
    method, gram = grads.pcd(tau=0.5), jnp.array([[1.0, -1.0, 0.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    _, state = method.update(gram, method.init(3))
    weights, after = method.update(gram, state, mask=jnp.array([True, False, True]))
    assert weights[1] == 0 and after.squares[1] == state.squares[1] and after.count[1] == 1 and after.count[0] == 2
    nothing, _ = method.update(gram, state, mask=jnp.array([False, True, True]))
    np.testing.assert_array_equal(nothing, 0)  # as of a main gradient that is 0


def test_numbers_out_of_bounds():
    for options, message in (
        ({"tau": 1.5}, "tau must be at most 1"), ({"beta": 1.5}, "beta must be at most 1"),
        ({"epsilon": -1.0}, "epsilon must be at least 0"), ({"main_task": -1}, "main_task must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            grads.pcd(**options)
    with pytest.raises(ValueError, match="main_task 2 is out of range for 2 tasks"):
        grads.pcd(2).update(jnp.eye(2), grads.pcd(2).init(2))
