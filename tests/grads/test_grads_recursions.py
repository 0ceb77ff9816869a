"""Methods with memory and loss balancers, over four calls, against NumPy written from the papers."""

import jacobians
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from mtjax import grads

T, P, CALLS = 3, 8, 4


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def moco(J, L, s):
    y = s.get("y", np.zeros((T, P)))
    y = y - 0.5 * (y - J)
    w = reference.simplex(s.get("w", np.full(T, 1 / T)) - 0.01 * (y @ y.T) @ s.get("w", np.full(T, 1 / T)))
    s.update(y=y, w=w)
    return y.T @ w


def sdmgrad(J, L, s):
    w, goal = s.get("w", np.full(T, 1 / T)), 0.3 * np.full(T, 1 / T)
    for _ in range(20):
        w = reference.simplex(w - 0.01 * (J @ (J.T @ (w + goal))))
    s["w"] = w
    return J.T @ (w + goal)


def modo(J, L, s):
    w = s.get("w", np.full(T, 1 / T))
    s["w"] = reference.simplex(w - 0.01 * (J @ (J.T @ w)))
    return J.T @ s["w"]


def db_mtl(J, L, s):
    s["k"] = s.get("k", 0) + 1
    rate = 0.9 / s["k"] ** 0.5
    s["y"] = rate * s.get("y", np.zeros((T, P))) + (1 - rate) * J / L[:, None]
    return np.linalg.norm(s["y"], axis=1).max() * reference.unit(s["y"]).sum(0)


def excess_mtl(J, L, s):
    s["sum"] = s.get("sum", 0) + J**2
    excess = (J**2 / np.sqrt(s["sum"])).sum(1)
    s.setdefault("first", excess)
    w = s.get("w", np.full(T, 1 / T)) * np.exp(excess / s["first"])
    s["w"] = w / w.sum()
    return J.T @ s["w"]


def cr_mogm(J, L, s):
    gram = jnp.asarray(J @ J.T, jnp.float32)
    fresh = np.asarray(grads.mgda().update(gram, ())[0], float)
    s["w"] = 0.9 * s.get("w", np.full(T, 1 / T)) + 0.1 * fresh
    return J.T @ s["w"]


def uncertainty(J, L, s):
    x = s.get("x", np.zeros(T))
    objective = lambda v: (0.5 * np.exp(-v) * L + 0.5 * v).sum()  # noqa: E731
    s["x"] = x - 0.1 * difference(objective, x)
    return J.T @ (0.5 * np.exp(-x))


def imtl_l(J, L, s):
    x = s.get("x", np.zeros(T))
    s["x"] = x - 0.1 * difference(lambda v: (np.exp(v) * L - v).sum(), x)
    return J.T @ np.exp(x)


def dwa(J, L, s):
    history = s.setdefault("history", [])
    w = T * softmax(history[-1] / history[-2] / 2.0) if len(history) > 1 else np.ones(T)
    history.append(L)
    return J.T @ w


def gls(J, L, s):
    return J.T @ difference(lambda v: np.prod(v) ** (1 / T), L)


def stch(J, L, s):
    return J.T @ difference(lambda v: 0.5 * np.log(np.exp(v / T / 0.5).sum()), L)


def famo(J, L, s):
    x = s.get("x", np.zeros(T))
    if "before" in s:  # the losses after the last step, on its batch
        delta = difference(lambda v: softmax(v) @ (np.log(s["before"]) - np.log(s["after"])), x)
        x = x - 0.025 * (delta + 0.01 * x)
    s.update(x=x, before=L, after=0.8 * L * np.array([1.0, 0.5, 1.1]))
    w = softmax(x) / L
    return J.T @ (w / w.sum())


def difference(f, x):
    """Central differences of f at x."""
    return np.array([(f(x + 1e-6 * e) - f(x - 1e-6 * e)) / 2e-6 for e in np.eye(len(x))])


CASES = {
    "moco": (grads.moco(0.5, 0.01), moco),
    "sdmgrad": (grads.sdmgrad(0.3, 0.01, 20), sdmgrad),
    "modo": (grads.modo(0.01), modo),
    "db_mtl": (grads.db_mtl(), db_mtl),
    "excess_mtl": (grads.excess_mtl(), excess_mtl),
    "cr_mogm": (grads.cr_mogm(grads.mgda(), 0.9), cr_mogm),
    "uncertainty": (grads.uncertainty(optax.sgd(0.1)), uncertainty),
    "imtl_l": (grads.imtl_l(optax.sgd(0.1)), imtl_l),
    "dwa": (grads.dwa(), dwa),
    "gls": (grads.gls(), gls),
    "stch": (grads.stch(mu=0.5), stch),
    "famo": (grads.famo(), famo),
}


@pytest.mark.parametrize("name", CASES)
def test_recursion(name):
    method, expected = CASES[name]
    tx = grads.aggregate(method, num_tasks=T)
    state, memory = tx.init(jnp.zeros(P)), {}
    for call, L in enumerate(jacobians.losses(T, CALLS)):
        J = jacobians.jacobian("iid", T, P, call)
        losses = jnp.asarray(L, jnp.float32)
        got, state = tx.update(jnp.asarray(J, jnp.float32), state, losses=losses)
        want = expected(J, L, memory)
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4)
        state = grads.observe(method, state, 0.8 * losses * jnp.array([1.0, 0.5, 1.1]))
