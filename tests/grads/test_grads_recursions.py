"""Methods with memory and loss balancers, over four calls, against NumPy written from the papers."""

from functools import cache, partial

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import reference

from mtjax import grads

CALLS = 4


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def start(J, value):
    return np.full(len(J), value)


def moco(J, L, s, gamma=0.01, rho=0.0):
    s["y"] = s.get("y", 0) + 0.5 * (J - s.get("y", 0))
    w = s.get("w", start(J, 1 / len(J)))
    s["w"] = reference.simplex(w - gamma * (s["y"] @ (s["y"].T @ w) + rho * w))
    return s["y"].T @ s["w"]


def sdmgrad(J, L, s):
    w, goal = s.get("w", start(J, 1 / len(J))), start(J, 0.3 / len(J))
    for _ in range(20):
        w = reference.simplex(w - 0.01 * (J @ (J.T @ (w + goal))))
    s["w"] = w
    return J.T @ (w + goal)


def modo(J, L, s, gamma=0.01, rho=0.0):
    w = s.get("w", start(J, 1 / len(J)))
    s["w"] = reference.simplex(w - gamma * (J @ (J.T @ w) + rho * w))
    return J.T @ s["w"]


def db_mtl(J, L, s, beta=0.9, decay=0.0):
    s["k"] = s.get("k", 0) + 1
    rate = beta / s["k"] ** decay
    s["y"] = rate * s.get("y", 0) + (1 - rate) * J / L[:, None]
    return np.linalg.norm(s["y"], axis=1).max() * reference.unit(s["y"]).sum(0)


def excess_mtl(J, L, s):
    s["sum"] = s.get("sum", 0) + J**2
    excess = (J**2 / np.sqrt(np.where(s["sum"] > 0, s["sum"], 1))).sum(1)
    s.setdefault("first", np.where(excess > 0, excess, np.inf))
    first = s["first"] = np.where(np.isfinite(s["first"]), s["first"], np.where(excess > 0, excess, np.inf))
    s["log w"] = s.get("log w", start(J, 0.0)) + 0.01 * excess / first
    return J.T @ softmax(s["log w"])


def excess_absolute(J, L, s):
    """Equations 6 and 7 without the scale processing of section 3.2."""
    s["sum"] = s.get("sum", 0) + J**2
    root = np.sqrt(s["sum"])
    s["log w"] = s.get("log w", start(J, 0.0)) + 0.5 * (J**2 / np.where(root > 0, root, 1)).sum(1)
    return J.T @ softmax(s["log w"])


def cr_mogm(J, L, s):
    gate = np.maximum(reference.unit(J) @ reference.unit(J)[0], 0)  # the weights of `cosine_gate`
    gate[0] = 1
    s["w"] = 0.9 * s.get("w", start(J, 1 / len(J))) + 0.1 * gate
    return J.T @ s["w"]


def uncertainty(J, L, s, factor=0.5):
    """`factor` 1 is equation 10, of classification."""
    x = s.get("x", start(J, 0.0))
    objective = lambda v: (factor * np.exp(-v) * L + 0.5 * v).sum()  # noqa: E731
    s["x"] = x - 0.1 * difference(objective, x)
    return J.T @ (factor * np.exp(-x))


def imtl_l(J, L, s):
    x = s.get("x", start(J, 0.0))
    s["x"] = x - 0.1 * difference(lambda v: (np.exp(v) * L - v).sum(), x)
    return J.T @ np.exp(x)


def dwa(J, L, s, window=1):
    history = s.setdefault("history", [])
    epochs = [np.mean(history[n : n + window], axis=0) for n in range(0, len(history) - window + 1, window)]
    w = len(J) * softmax(epochs[-1] / epochs[-2] / 2.0) if len(epochs) > 1 else start(J, 1.0)
    history.append(L)
    return J.T @ w


def gls(J, L, s):
    return J.T @ difference(lambda v: np.prod(v ** (1 / len(J))), L)


def stch(J, L, s):
    return J.T @ difference(lambda v: 0.5 * np.log(np.exp(v / len(J) / 0.5).sum()), L)


def stch_preferred(J, L, s):
    preference, ideal = uneven(len(J)), ideals(len(J))
    return J.T @ difference(lambda v: 0.5 * np.log(np.exp(preference * (v - ideal) / 0.5).sum()), L)


def famo(J, L, s):
    x = s.get("x", start(J, 0.0))
    if "before" in s:  # the losses after the last step, on its batch
        delta = difference(lambda v: softmax(v) @ (np.log(s["before"]) - np.log(s["after"])), x)
        x = x - 0.025 * (delta + 0.001 * x)
    s.update(x=x, before=L, after=0.8 * L * np.resize(AFTER, len(J)))
    w = softmax(x) / L
    return J.T @ (w / w.sum())


def gradnorm(J, L, s, first=None, positive=lambda L: L):
    """Algorithm 1; the loss of the weights by differences, its targets held still."""
    w, n = s.get("w", start(J, 1.0)), np.linalg.norm(J, axis=1)
    ratio = positive(L) / positive(s.setdefault("first", L) if first is None else first(len(J)))
    target = (w * n).mean() * (ratio / ratio.mean()) ** 1.5
    new = w - 1e-3 * difference(lambda v: np.abs(v * n - target).sum(), w)
    new = np.maximum(new, 1e-4)
    s["w"] = new * len(J) / new.sum()
    return J.T @ w


def difference(f, x):
    """Central differences of f at x."""
    return np.array([(f(x + 1e-6 * e) - f(x - 1e-6 * e)) / 2e-6 for e in np.eye(len(x))])


CASES = {
    "moco": (grads.moco(0.5, 0.01), moco),
    "sdmgrad": (grads.sdmgrad(0.3, 0.01, 20), sdmgrad),
    "modo": (grads.modo(0.01), modo),
    "db_mtl": (grads.db_mtl(), db_mtl),
    "excess_mtl": (grads.excess_mtl(), excess_mtl),
    "cr_mogm": (grads.cr_mogm(grads.cosine_gate()), cr_mogm),
    "uncertainty": (grads.uncertainty(optax.sgd(0.1)), uncertainty),
    "imtl_l": (grads.imtl_l(optax.sgd(0.1)), imtl_l),
    "dwa": (grads.dwa(), dwa),
    "dwa_window": (grads.dwa(window=2), partial(dwa, window=2)),
    "gls": (grads.gls(), gls),
    "stch": (grads.stch(mu=0.5), stch),
    "famo": (grads.famo(), famo),
    "gradnorm": (grads.gradnorm(alpha=1.5, optimizer=optax.sgd(1e-3)), gradnorm),
}


def uneven(num_tasks: int) -> np.ndarray:
    """A preference, or any number for each task."""
    return np.linspace(0.5, 1.5, num_tasks) / num_tasks


def ideals(num_tasks: int) -> np.ndarray:
    return np.linspace(-0.3, 0.1, num_tasks)


# Options that the defaults do not reach: T -> method, and the same in NumPy.
OPTIONS = {
    "moco_rho": (lambda T: grads.moco(0.5, 1.0, rho=0.5), partial(moco, gamma=1.0, rho=0.5)),
    "modo_rho": (lambda T: grads.modo(1.0, rho=0.5), partial(modo, gamma=1.0, rho=0.5)),
    "db_mtl_decay": (lambda T: grads.db_mtl(0.5, beta_decay=0.5), partial(db_mtl, beta=0.5, decay=0.5)),
    "excess_mtl_absolute": (lambda T: grads.excess_mtl(0.5, relative=False), excess_absolute),
    "uncertainty_softmax": (
        lambda T: grads.uncertainty(optax.sgd(0.1), "softmax"), partial(uncertainty, factor=1.0)
    ),
    "stch_preferred": (lambda T: grads.stch(0.5, tuple(uneven(T)), tuple(ideals(T))), stch_preferred),
    "gradnorm_given": (
        lambda T: grads.gradnorm(1.5, optax.sgd(1e-3), initial_losses=tuple(1 + uneven(T)), surrogate="softplus"),
        partial(gradnorm, first=lambda T: 1 + uneven(T), positive=lambda L: np.log1p(np.exp(L))),
    ),
}  # fmt: skip
SIZES_OF_OPTIONS = [(3, 8), (10, 4)]  # (T, P)
SCALED = ("moco", "sdmgrad", "modo", "excess_mtl_absolute")  # their steps have a scale
AFTER = np.array([1.0, 0.5, 1.1])  # losses after the step, relative to 0.8 of those before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "P"), [(1, 4), (2, 8), (3, 8), (10, 40), (10, 4), (50, 20)])
@pytest.mark.parametrize("name", CASES)
def test_recursion(name, T, P, dtype):
    check_calls(name, CASES[name][1], T, P, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "P"), SIZES_OF_OPTIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, T, P, dtype):
    check_calls(name, OPTIONS[name][1], T, P, dtype)


@cache
def gradients(T, P, scaled):
    """[calls, kinds, T, P]; of order 1 for methods whose steps have a scale, or only rounding is compared."""
    J = np.stack([jacobians.batch(T, P, call) for call in range(CALLS)])
    size = np.linalg.norm(J, axis=(2, 3), keepdims=True)
    return J / np.where(size > 0, size, 1) if scaled else J


@cache
def run_all(T, P, dtype):
    """Every method's four updates [kinds, calls, P]."""
    methods = {name: method for name, (method, _) in CASES.items()}
    if (T, P) in SIZES_OF_OPTIONS:
        methods |= {name: method(T) for name, (method, _) in OPTIONS.items()}
    L = jacobians.losses(T, CALLS)
    losses = L.astype(dtype), (0.8 * L * np.resize(AFTER, T)).astype(dtype)

    def four_calls(name, J):
        tx = grads.aggregate(methods[name], num_tasks=T)

        def call(state, item):
            g, losses, losses_after = item
            update, state = tx.update(g, state, losses=losses)
            return grads.observe(methods[name], state, losses_after), update

        return jax.lax.scan(call, tx.init(J[0, 0]), (J, *losses))[1]

    @quick.jit
    @jax.vmap
    def run(plain, scaled):
        return quick.each(methods, lambda name: four_calls(name, scaled if name.startswith(SCALED) else plain))

    with jax.enable_x64(dtype == "float64"):
        given = [gradients(T, P, scaled).swapaxes(0, 1).astype(dtype) for scaled in (False, True)]
        return jax.device_get(run(*given))


def check_calls(name, expected, T, P, dtype):
    """Four calls on every kind of Jacobian, batched; the method must carry its state as the paper does."""
    L, J = jacobians.losses(T, CALLS), gradients(T, P, name.startswith(SCALED))
    got = run_all(T, P, dtype)[name].astype(float)
    # A sum of T·P products, and (excess_mtl, gradnorm) exponentials and signs of what was rounded before.
    tolerance = 1e-3 if dtype == "float32" else 1e-6  # central differences are good to 1e-8
    for n, kind in enumerate(jacobians.KINDS):
        memory = {}
        for call in range(CALLS):
            want = expected(J[call, n], L[call], memory)
            scale = np.linalg.norm(want) + 0.1 * np.linalg.norm(J[call, n]) / T
            assert np.linalg.norm(got[n, call] - want) <= tolerance * scale, (kind, call)


def cross_modo(J, other, T, memory):
    w = memory.get("w", np.full(T, 1 / T))
    memory["w"] = reference.simplex(w - 0.5 * (J @ (other.T @ w) + 0.1 * w))
    return memory["w"]


def cross_sdmgrad(J, other, T, memory):
    w, goal = memory.get("w", np.full(T, 1 / T)), np.full(T, 0.3 / T)
    for _ in range(20):
        w = reference.simplex(w - 0.05 * (J @ (other.T @ (w + goal))))
    memory["w"] = w
    return w + goal


CROSS = {"modo": (grads.modo(0.5, 0.1), cross_modo), "sdmgrad": (grads.sdmgrad(0.3, 0.05, 20), cross_sdmgrad)}


@cache
def crossed(T, dtype):
    """Three batches of each call, and either method's weights and updates after it."""
    rng = np.random.default_rng(T)
    batches = rng.standard_normal((CALLS, 1, T, 12)) + 0.7 * rng.standard_normal((CALLS, 3, T, 12))
    batches /= np.linalg.norm(batches, axis=(2, 3), keepdims=True) / np.sqrt(3)

    def calls(name, batches):
        tx = grads.aggregate(CROSS[name][0], num_tasks=T)

        def call(state, batch):
            first, second, third = [{"a": J[:, :5], "b": J[:, 5:]} for J in batch]
            update, state = tx.update(third, state, gram=grads.gram_matrix(first, second))
            return state, (state.weights, jnp.concatenate([update["a"], update["b"]]))

        return jax.lax.scan(call, tx.init({"a": batches[0, 0, 0, :5], "b": batches[0, 0, 0, 5:]}), batches)[1]

    with jax.enable_x64(dtype == "float64"):
        run = quick.jit(lambda batches: quick.each(CROSS, lambda name: calls(name, batches)))
        return batches, jax.device_get(run(batches.astype(dtype)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("T", [2, 3, 10, 50])
@pytest.mark.parametrize("name", CROSS)
def test_independent_samples(name, T, dtype):
    """Three batches a call: the Gram of two, which is not symmetric, moves the weights, and the third takes them.

    Weights that saw its transpose, its symmetric part or the third batch's own Gram would be others.
    """
    expected, memory, wrong = CROSS[name][1], {}, [{}, {}]
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    batches, results = crossed(T, dtype)
    for (first, second, third), weights, update in zip(batches, *results[name], strict=True):
        want = expected(first, second, T, memory)
        np.testing.assert_allclose(weights, want, rtol=0, atol=tolerance)
        np.testing.assert_allclose(update, want @ third, atol=10 * tolerance)
        swapped, own = expected(second, first, T, wrong[0]), expected(third, third, T, wrong[1])
        for other in (swapped, own):
            assert np.abs(other - want).max() > 10 * tolerance
