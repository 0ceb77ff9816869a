"""Every method that has no memory against the references: a wrong equation or an early-stopped solver fails here.

All sizes T, T > P among them, all kinds of Jacobian, float32 and float64; one program for each T and dtype, whose
batch goes through all methods: it compiles in about half the time that a program for each of them takes. The tolerance
follows the conditioning of the case (`allowed`), and nothing else but `CASES` says.
"""

import functools

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import reference
import scipy.stats

from mtjax import grads
from mtjax.grads.gram import _COLUMNS
from mtjax.grads.methods import graddrop
from mtjax.grads.methods.gradvac import vaccinate
from mtjax.grads.methods.pcgrad import project

SIZES = {1: (4,), 2: (8, 1), 3: (8, 2), 10: (40, 4), 50: (80, 20)}  # T: the numbers of parameters P
OPTIONS = {
    "cagrad_wide", "aligned_preferred", "upgrad_preferred", "dualproj_preferred",
    "cosine_keep", "cosine_other",
}  # at T = 10 only  # fmt: skip
PREFERENCE = np.linspace(0.05, 0.3, 10)

# name: (method, reference, which matrix conditions it, the reference's own relative error)
CASES = {
    "mean": (grads.mean(), lambda J: J.mean(0), None, 0),
    "sum": (grads.sum(), lambda J: J.sum(0), None, 0),
    "mgda": (grads.mgda(), reference.mgda, "cosine", 0),
    "mgda_ub": (grads.mgda_ub(), reference.mgda, "cosine", 0),
    "cagrad": (grads.cagrad(), lambda J: reference.cagrad(J, 0.4), "norms", 1e-6),
    "cagrad_wide": (grads.cagrad(c=0.9), lambda J: reference.cagrad(J, 0.9), "norms", 1e-6),
    "imtl_g": (grads.imtl_g(), reference.imtl_g, "cosine", 0),
    "config": (grads.config(), reference.config, "cosine", 0),
    "nash_mtl": (grads.nash_mtl(), lambda J: reference.alpha_fair(J, 1.0), "cosine", 0),
    "fairgrad": (grads.fairgrad(alpha=2.0), lambda J: reference.alpha_fair(J, 2.0), "cosine", 0),
    "aligned_mtl": (grads.aligned_mtl(), reference.aligned_mtl, "gram", 0),
    "aligned_median": (grads.aligned_mtl("median"), lambda J: reference.aligned_mtl(J, "median"), "gram", 0),
    "aligned_rmse": (grads.aligned_mtl("rmse"), lambda J: reference.aligned_mtl(J, "rmse"), "gram", 0),
    "upgrad": (grads.upgrad(), reference.upgrad, "cosine", 0),
    "dualproj": (grads.dualproj(), reference.dualproj, "cosine", 0),
    "aligned_preferred": (
        grads.aligned_mtl(preference=PREFERENCE), lambda J: reference.aligned_mtl(J, preference=PREFERENCE), "gram", 0,
    ),
    "upgrad_preferred": (grads.upgrad(PREFERENCE), lambda J: reference.upgrad(J, PREFERENCE), "cosine", 0),
    "dualproj_preferred": (grads.dualproj(PREFERENCE), lambda J: reference.dualproj(J, PREFERENCE), "cosine", 0),
    "cosine_gate": (grads.cosine_gate(), lambda J: reference.cosine_gate(J, 0, True), None, 0),
    "cosine_keep": (grads.cosine_gate(weighted=False), lambda J: reference.cosine_gate(J, 0, False), None, 0),
    "cosine_other": (grads.cosine_gate(main_task=3), lambda J: reference.cosine_gate(J, 3, True), None, 0),
}  # fmt: skip

# GradVac's g'_i is 0 there, up to rounding, whose cosine is anything: opposite gradients of one parameter. (T, P, kind)
VANISHES = {(2, 1, "iid"), (2, 1, "conflicting"), (2, 1, "spread")}


@functools.cache
def jacobians_of(num_tasks: int) -> list[tuple[str, np.ndarray]]:
    """(kind, J [T, P]) for all kinds and sizes P."""
    return [(kind, jacobians.jacobian(kind, num_tasks, size)) for size in SIZES[num_tasks] for kind in jacobians.KINDS]


@functools.cache
def grams(num_tasks: int, dtype: str) -> np.ndarray:
    """Their Gram matrices [N, T, T], computed in `dtype` from the gradients in `dtype`."""
    batches = [jacobians.batch(num_tasks, size).astype(dtype) for size in SIZES[num_tasks]]
    with jax.enable_x64(dtype == "float64"):
        return np.concatenate(quick.jit(lambda all_of: list(map(jax.vmap(grads.gram_matrix), all_of)))(batches))


@functools.cache
def solutions(num_tasks: int, dtype: str) -> dict[str, np.ndarray]:
    """Every method's weights [N, T] for them."""
    methods = {name: case[0] for name, case in CASES.items() if num_tasks == 10 or name not in OPTIONS}
    with jax.enable_x64(dtype == "float64"):

        @quick.jit
        @jax.vmap
        def solve(gram):
            return quick.each(methods, lambda name: methods[name].update(gram, methods[name].init(num_tasks))[0])

        return jax.device_get(solve(grams(num_tasks, dtype)))


@functools.cache
def answers(name: str, num_tasks: int) -> list[np.ndarray | None]:
    """The reference's directions, once for both dtypes."""
    return [CASES[name][1](J) for _, J in jacobians_of(num_tasks)]


def allowed(J, weights, want, matrix: str | None, error: float, dtype: str) -> float:
    """The largest ‖d − d_ref‖ that rounding of the Gram explains.

    A Gram in precision ε knows ‖Σ w_i g_i‖² to ε L², with L = Σ|w_i|‖g_i‖ the length before cancellation. So d is
    known to ε L / λ, λ the least relative eigenvalue of the matrix that the method inverts, and never worse than
    to √ε L, as where that matrix is singular. The factor 60 is for the arithmetic; measured, it is at most 35
    (mgda, 50 × 80, norms over 10⁴). In float32 this is 7e-6 to 3.5e-4 of L; Frank-Wolfe's usual stop is off by
    4e-3 to 0.3, ten ADMM steps by 1e-2 to 1e-1.
    """
    eps = float(np.finfo(dtype).eps)
    norm = np.linalg.norm(J, axis=1)
    rows = reference.unit(J)[norm > 0] if matrix == "cosine" else J[norm > 0]
    values = np.linalg.eigvalsh(rows @ rows.T) if len(rows) and matrix else np.ones(1)
    least = max(values[0] / (1 if matrix == "cosine" else values[-1]), eps)
    length = max(np.abs(weights) @ norm, np.linalg.norm(want), 0.5 * min(norm[norm > 0], default=0))
    return (min(60 * eps / least, np.sqrt(eps)) + error) * length


MANY = {(t, p) for t, sizes in SIZES.items() for p in sizes if t > 1}
OPPOSITE = "one parameter and opposite signs: only 0 has equal projections on both gradients"
STATIONARY = "0 is in the hull of the gradients: the bargaining has no solution"
PLANE, LOW = {(2, 1)}, {(2, 1), (10, 4), (50, 20)}
BOTH, BARGAINING = ("float32", "float64"), ("nash_mtl", "fairgrad")

# All that is not compared: (methods that start so, kinds, their (T, P), dtypes, why).
SKIPPED = [
    (("cagrad",), ("zero_row",), MANY, BOTH, "g_w = 0 solves the dual, and g_w/‖g_w‖ is undefined"),
    (("aligned",), ("spread",), MANY, ("float32",), "eigenvalues over 10⁸, more than a float32 Gram holds"),
    (("imtl_g", "config"), ("iid", "conflicting", "spread"), PLANE, BOTH, OPPOSITE),
    (BARGAINING, ("iid", "conflicting", "spread"), LOW, BOTH, STATIONARY),
    (BARGAINING, ("spread",), {(3, 2)}, BOTH, STATIONARY),
    (BARGAINING, ("duplicates", "zero_row"), {(50, 20)}, BOTH, STATIONARY),
]


def listed(name: str, num_tasks: int, dtype: str) -> set[tuple[int, str]]:
    """What is skipped of a method: (P, kind)."""
    return {
        (size, kind)
        for starts, kinds, sizes, dtypes, _ in SKIPPED
        for kind in kinds
        for tasks, size in sizes
        if name.startswith(starts) and tasks == num_tasks and dtype in dtypes
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "num_tasks"), [(n, t) for n in CASES for t in SIZES if t == 10 or n not in OPTIONS])
def test_against_the_reference(name, num_tasks, dtype):
    _, _, matrix, error = CASES[name]
    weights = solutions(num_tasks, dtype)[name]
    assert weights.dtype == dtype and np.isfinite(weights).all()
    skipped = set()
    cases = zip(jacobians_of(num_tasks), weights.astype(float), answers(name, num_tasks), strict=True)
    for (kind, J), w, want in cases:
        case = (J.shape[1], kind)
        if want is None or (name.startswith("aligned") and case in listed(name, num_tasks, dtype)):
            skipped.add(case)
            continue
        off = np.linalg.norm(J.T @ w - want)
        assert off <= allowed(J, w, want, matrix, error, dtype), (kind, J.shape, off)
    assert skipped == listed(name, num_tasks, dtype)  # a case that the reference loses or gains has to be told


def test_the_tolerance_catches_a_solver_that_stops_early():
    """Ten Frank-Wolfe steps for MGDA and ten projected-gradient steps for the dual cone fail the comparison above."""

    def frank_wolfe(gram):
        w = np.full(10, 0.1)
        for n in range(10):
            w += 2 / (n + 2) * (np.eye(10)[np.argmin(gram @ w)] - w)
        return w

    def projected_gradient(gram):
        v = np.full(10, 0.1)
        for _ in range(10):
            v = np.maximum(v - gram @ v / np.linalg.eigvalsh(gram)[-1], 0.1)
        return v

    for early, exact in ((frank_wolfe, reference.mgda), (projected_gradient, reference.dualproj)):
        caught = 0
        for _, J in jacobians_of(10):
            w, want = early(J @ J.T), exact(J)
            caught += np.linalg.norm(J.T @ w - want) > allowed(J, w, want, "cosine", 0, "float32")
        assert caught >= 5, early


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_through_aggregate(dtype):
    """The whole path from gradients to update, as users compile it."""
    J = jacobians.batch(10, 40)
    with jax.enable_x64(dtype == "float64"):
        tx = grads.aggregate(grads.mgda(), num_tasks=10)
        got = np.asarray(jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g[0]))[0]))(J.astype(dtype)))
    assert got.dtype == dtype
    for matrix, direction in zip(J, got, strict=True):
        want = reference.mgda(matrix)
        limit = allowed(matrix, np.zeros(10), want, "cosine", 0, dtype)
        assert np.linalg.norm(direction - want) <= limit


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_tasks", SIZES)
def test_random_orders(num_tasks, dtype):
    """PCGrad and GradVac in given orders; the latter twice, so that its moving targets count."""
    orders = np.argsort(np.random.default_rng(0).uniform(size=(num_tasks, num_tasks)), axis=1)
    tolerance = 2e-3 if dtype == "float32" else 1e-9
    with jax.enable_x64(dtype == "float64"):
        given, here = jnp.asarray(orders.T), np.ones(num_tasks, dtype)
        step = quick.jit(jax.vmap(lambda g, t: (project(g, given, here), *vaccinate(g, t, given, here, 0.3))))
        _, _, targets = step(grams(num_tasks, dtype), np.zeros_like(grams(num_tasks, dtype)))
        second = step(grams(num_tasks, dtype), targets)
        cleaned, vaccinated, targets = [np.asarray(x, float) for x in second]
    vanished = set()
    for n, (kind, J) in enumerate(jacobians_of(num_tasks)):
        assert relative(J.T @ cleaned[n], reference.pcgrad(J, orders), J) < tolerance, kind
        wanted = np.zeros((num_tasks, num_tasks))
        _, least = reference.gradvac(J, orders, wanted, 0.3)
        expected, last = reference.gradvac(J, orders, wanted, 0.3)
        limit = tolerance + 60 * np.finfo(dtype).eps / max(min(least, last), 1e-9) ** 2  # ‖g'‖² is known to ε‖g‖²
        if limit > 0.02:
            vanished.add((num_tasks, J.shape[1], kind))
            continue
        assert relative(J.T @ vaccinated[n], expected, J) < limit, kind
        np.testing.assert_allclose(targets[n], wanted, atol=limit)
    assert vanished == {case for case in VANISHES if case[0] == num_tasks}


def relative(got, want, J) -> float:
    return np.linalg.norm(got - want) / (np.linalg.norm(want) + 0.01 * np.linalg.norm(J, axis=1).mean() + 1e-30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("num_tasks", "trim"), [(1, 0), (2, 0), (3, 1), (10, 0), (10, 3), (50, 6), (50, 20)])
def test_trimmed_mean(num_tasks, trim, dtype):
    J = jacobians.batch(num_tasks, 20)
    if trim:
        J[0, 1] = 1e30  # adding and subtracting an outlier would lose everything else
    with jax.enable_x64(dtype == "float64"):
        tx = grads.aggregate(grads.trimmed_mean(trim), num_tasks=num_tasks)
        here = np.ones(num_tasks, bool)
        both = quick.jit(jax.vmap(lambda g: [tx.update(g, tx.init(g[0]), mask=mask)[0] for mask in (None, here)]))
        got, same = jax.device_get(both(J.astype(dtype)))
    want = np.stack([reference.trimmed_mean(matrix, trim) for matrix in J])
    longest = np.sort(np.abs(J), axis=1)[:, -1 - trim]  # of what is kept
    for result in (got, same):
        assert (np.abs(result - want) <= 20 * np.finfo(dtype).eps * longest).all()


@pytest.mark.parametrize(("num_tasks", "trim", "masked"), [(5, 1, False), (5, 1, True), (50, 6, False)])
def test_trimmed_mean_of_a_long_leaf(num_tasks, trim, masked):
    """In a straight line over the rows; and, on the CPU, by slices of columns, of which the last is a shorter one."""
    J = np.random.default_rng(0).standard_normal((num_tasks, 2, _COLUMNS + 50)).astype(np.float32)
    tx = grads.aggregate(grads.trimmed_mean(trim), num_tasks=num_tasks)
    here = np.ones(num_tasks, bool) if masked else None
    got = quick.jit(lambda g: tx.update(g, tx.init(g[0]), mask=here)[0])(J)
    np.testing.assert_allclose(got, np.sort(J, axis=0)[trim : num_tasks - trim].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("own", [False, True])
def test_graddrop(own, num_tasks, dtype):
    """With one leak for all, and with one for each task."""
    J, leak = jacobians.batch(num_tasks, 40), np.linspace(0, 1, num_tasks)[:, None] if own else 0.25
    with jax.enable_x64(dtype == "float64"):
        tx = grads.aggregate(grads.graddrop(tuple(leak[:, 0]) if own else leak), num_tasks=num_tasks, seed=3)

        @quick.jit
        def run(J):
            state = tx.init(J[0, 0])
            _, draw = jax.random.split(state.inner)
            return graddrop._uniform(draw, (40,), jnp.dtype(dtype)), jax.vmap(lambda g: tx.update(g, state)[0])(J)

        uniform, got = jax.device_get(run(J.astype(dtype)))
    for matrix, direction in zip(J, got, strict=True):
        tolerance = 50 * np.finfo(dtype).eps * np.abs(matrix).sum(0).max()
        np.testing.assert_allclose(direction, reference.graddrop(matrix, uniform, leak), atol=tolerance)


def test_graddrop_draws_signs_by_their_purity():
    """Gradients 3 and −1: P = ¾, independently for every parameter (an odd number of them)."""
    size = 100_001
    tx = grads.aggregate(grads.graddrop(), num_tasks=2)
    J = np.broadcast_to(np.array([[3.0], [-1.0]], np.float32), (2, size))
    got = np.asarray(quick.jit(lambda g: tx.update(g, tx.init(g[0]))[0])(J))
    kept = got == 3.0
    assert set(np.unique(got)) == {-1.0, 3.0}
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / size)
    quarter = -(-size // 4)  # four numbers come from one block of random bits, one in each of the rows here
    starts = (0, quarter, 2 * quarter - 1, 3 * quarter - 1)
    length = size - starts[-1]
    together = np.corrcoef([kept[start : start + length] for start in starts])[np.triu_indices(4, 1)]
    assert np.abs(together).max() < 4 / np.sqrt(length)


def test_what_graddrop_draws_is_uniform():
    """Of another length, or by a key of another kind, too; and another key draws something else."""
    for size, key in ((100_001, jax.random.key(0)), (4_000, jax.random.key(1, impl="rbg"))):
        drawn, other = (np.asarray(graddrop._uniform(k, (size,), jnp.float32)) for k in jax.random.split(key))
        assert scipy.stats.kstest(drawn, "uniform").pvalue > 1e-3
        assert 0 < drawn.min() and drawn.max() < 1
        assert len(np.unique(drawn)) > 0.5 * min(size, 2**16)
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 4 / np.sqrt(size)


def test_graddrop_of_a_purity():
    """f(P) = 1 keeps the positive parts, whatever the draw."""
    tx = grads.aggregate(grads.graddrop(purity=jnp.ones_like), num_tasks=2)
    got = quick.jit(lambda g: tx.update(g, tx.init(g[0]))[0])(np.array([[1.0, -2.0], [-5.0, -4.0]], np.float32))
    np.testing.assert_allclose(got, [1.0, 0.0])


def test_random_weights_have_their_distribution():
    """RLW's weights against NumPy's draws of softmax(N(0, 1)), and the marginal Beta(1, T−1) of a flat Dirichlet."""
    methods = {kind: grads.rlw(kind) for kind in ("normal", "dirichlet")}

    @quick.jit
    @jax.vmap
    def draw(key):
        return {kind: method.update(jnp.eye(4), key)[0] for kind, method in methods.items()}

    draws = jax.device_get(draw(jax.random.split(jax.random.key(0), 4000)))
    normal = np.exp(np.random.default_rng(0).standard_normal((4000, 4)))
    normal /= normal.sum(1, keepdims=True)
    for task in range(4):
        assert scipy.stats.ks_2samp(draws["normal"][:, task], normal[:, task]).pvalue > 1e-3
        assert scipy.stats.kstest(draws["dirichlet"][:, task], scipy.stats.beta(1, 3).cdf).pvalue > 1e-3
    assert scipy.stats.ks_2samp(draws["normal"][:, 0], draws["dirichlet"][:, 0]).pvalue < 1e-6  # it tells them apart


@functools.cache
def draws(dtype: str) -> dict[tuple[str, int], list[np.ndarray]]:
    """RLW's weights, what it draws, and the keys after it: its own and the expected, of every kind and size."""

    def of(kind, num_tasks, key):
        weights, after = grads.rlw(kind).update(jnp.eye(num_tasks, dtype=dtype), key)
        kept, draw = jax.random.split(key)
        sample = jax.random.normal if kind == "normal" else jax.random.uniform
        return weights, sample(draw, (num_tasks,), dtype), jax.random.key_data(after), jax.random.key_data(kept)

    cases = [(kind, num_tasks) for kind in ("normal", "dirichlet") for num_tasks in SIZES]
    with jax.enable_x64(dtype == "float64"):
        return jax.device_get(quick.jit(lambda: {case: of(*case, jax.random.key(5)) for case in cases})())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("kind", ["normal", "dirichlet"])
def test_random_weights_are_made_of_their_draws(kind, num_tasks, dtype):
    """Softmax of normals, or exponentials over their sum, at every size."""
    weights, drawn, after, kept = draws(dtype)[kind, num_tasks]
    assert (after == kept).all()
    shares = np.exp(drawn.astype(float)) if kind == "normal" else -np.log(drawn.astype(float))
    assert weights.dtype == dtype
    np.testing.assert_allclose(weights, shares / shares.sum(), rtol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_tasks", SIZES)
def test_fixed_and_normalised(num_tasks, dtype):
    """Σ w_i g_i, and the sum of unit gradients or of those of log L, through `aggregate`; a zero gradient stays 0."""
    given, values = np.linspace(-1, 2, num_tasks), np.linspace(0.5, 2, num_tasks)
    cases = {
        grads.fixed(tuple(given)): lambda J: J.T @ given,
        grads.normalize(grads.fixed(tuple(given))): lambda J: reference.unit(J).T @ given,
        grads.normalize(grads.sum(), by="loss"): lambda J: (J / values[:, None]).sum(0),
    }
    with jax.enable_x64(dtype == "float64"):
        txs, losses = [grads.aggregate(method, num_tasks=num_tasks) for method in cases], jnp.asarray(values)
        step = quick.jit(jax.vmap(lambda g: [tx.update(g, tx.init(g[0]), losses=losses)[0] for tx in txs]))
        directions = jax.device_get(step(jacobians.batch(num_tasks, 20).astype(dtype)))
    for expected, got in zip(cases.values(), directions, strict=True):
        assert got.dtype == dtype
        for J, direction in zip(jacobians.batch(num_tasks, 20), got, strict=True):
            scale = np.linalg.norm(J, axis=1).max()
            np.testing.assert_allclose(direction, expected(J), rtol=0, atol=200 * np.finfo(dtype).eps * max(scale, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_tasks", SIZES)
def test_krum(num_tasks, dtype):
    """It averages as many as it should, and none has a larger score than one left out: ties, which are decided
    either way, included (of T ≤ 3 the nearest two tie)."""
    cases = ((1, 1), (1, 2), (3, 4))
    with jax.enable_x64(dtype == "float64"):
        solve = quick.jit(jax.vmap(lambda g: [grads.krum(*case).update(g, ())[0] for case in cases]))
        chosen_by = jax.device_get(solve(grams(num_tasks, dtype)))
    for (byzantine, selected), weights in zip(cases, chosen_by, strict=True):
        count = min(selected, num_tasks)
        for (kind, J), w in zip(jacobians_of(num_tasks), weights, strict=True):
            chosen = w > 0
            assert chosen.sum() == count, kind
            np.testing.assert_allclose(w[chosen], 1 / count, rtol=1e-6)
            scores, sizes = reference.krum_scores(J, byzantine)
            rounding = 30 * np.finfo(dtype).eps * sizes
            best_left = np.min((scores + rounding)[~chosen], initial=np.inf)
            assert (scores - rounding)[chosen].max() <= best_left, kind


@pytest.mark.parametrize("num_tasks", [2, 3, 10, 50])
def test_aligned_mtl_of_norms_that_float32_resolves(num_tasks):
    """In place of the kind `spread`, whose eigenvalues over 10⁸ a float32 Gram cannot tell from rounding."""
    J = jacobians.jacobian("iid", num_tasks, 2 * num_tasks + 20) * np.logspace(0, 1.5, num_tasks)[:, None]
    methods = {mode: grads.aligned_mtl(mode) for mode in ("min", "median", "rmse")}
    solve = quick.jit(lambda g: {mode: m.update(grads.gram_matrix(g), ())[0] for mode, m in methods.items()})
    for mode, weights in jax.device_get(solve(J.astype(np.float32))).items():
        weights = weights.astype(float)
        want = reference.aligned_mtl(J, mode)
        assert np.linalg.norm(J.T @ weights - want) <= allowed(J, weights, want, "gram", 0, "float32"), mode


@pytest.mark.parametrize("normalize", ["l2", "loss", "loss+"])
def test_mgda_normalised(normalize):
    J, losses = jacobians.jacobian("spread", 3, 8), np.array([0.5, 2.0, 1.0])
    scale = np.where("loss" in normalize, losses, 1) * (
        np.linalg.norm(J, axis=1) if normalize in ("l2", "loss+") else 1
    )
    want = reference.mgda(J / scale[:, None])
    solve = quick.jit(lambda gram, losses: grads.mgda(normalize).update(gram, (), losses=losses)[0])
    weights = solve((J @ J.T).astype(np.float32), losses.astype(np.float32))
    assert relative((J / scale[:, None]).T @ weights, want, J / scale[:, None]) < 1e-4


def test_nash_clip_and_cagrad_rescale():
    J = jacobians.jacobian("iid", 10, 40)
    methods = (grads.nash_mtl(), grads.nash_mtl(max_norm=1.0), grads.cagrad(c=0.5),
               grads.cagrad(c=0.5, rescale="1+c"), grads.cagrad(c=0.5, rescale="1+c2"))  # fmt: skip
    solve = quick.jit(lambda gram: [method.update(gram, ())[0] for method in methods])
    full, clipped, plain, one, other = jax.device_get(solve((J @ J.T).astype(np.float32)))
    assert np.linalg.norm(J.T @ full) == pytest.approx(np.sqrt(10), rel=1e-5)
    assert np.linalg.norm(J.T @ clipped) == pytest.approx(1, rel=1e-5)
    for scaled, divisor in ((one, 1.5), (other, 1.25)):
        np.testing.assert_allclose(scaled * divisor, plain, rtol=1e-5)


SOLVED = ["mgda", 'mgda("l2")', "cagrad", 'cagrad(c=0.7, rescale="1+c2")', "nash_mtl", "nash_mtl(max_norm=1.0)",
          "fairgrad(alpha=2.0)", "dualproj", "upgrad"]  # fmt: skip


@functools.cache
def residuals_of_solved() -> dict[str, tuple[np.ndarray, ...]]:
    """What each measures on five kinds of Jacobian: for its weights, for others, and for its own with a task absent."""
    J = jacobians.batch(10, 40)[[0, 1, 2, 3, 5]]
    skewed = np.linspace(0.5, 1.5, 10, dtype=np.float32)

    def measure(spec, gram):
        method = grads.get(spec)
        weights, _ = method.update(gram, ())
        other = weights * skewed / (jnp.dot(weights, skewed) / weights.sum())  # another point of the simplex
        absent = np.arange(10) != 3
        some, _ = method.update(gram, (), mask=absent)
        return (
            grads.residual(spec, gram, weights), grads.residual(spec, gram, other),
            grads.residual(spec, gram, some, mask=absent),
        )  # fmt: skip

    together = quick.jit(jax.vmap(lambda gram: quick.each(SOLVED, lambda spec: measure(spec, gram))))
    return jax.device_get(together((J @ J.swapaxes(1, 2)).astype(np.float32)))


@pytest.mark.parametrize("spec", SOLVED)
def test_residuals(spec):
    """The solvers' own measure of exactness, which users watch: rounding for their weights, large for others."""
    exact, wrong, masked = residuals_of_solved()[spec]
    near = 2  # the conflicting kind: nearly Pareto-stationary, so that Gw is small by cancellation
    assert np.delete(exact, near).max() < 5e-5 and np.delete(masked, near).max() < 5e-5
    assert exact[near] < 2e-3 and masked[near] < 2e-3
    assert wrong[[0, 2, 3]].min() > 0.1


def test_residual_of_groups():
    """Each group's weights solve the equations of its own Gram; their mean, which the state also has, solves none."""
    J = {name: jacobians.jacobian("iid", 4, 9, seed).astype(np.float32) for seed, name in enumerate("ab")}
    tx = grads.aggregate(grads.mgda(), num_tasks=4, groups="leaf")

    @quick.jit
    def measure(J):
        _, state = tx.update(J, tx.init(jax.tree.map(lambda x: x[0], J)))
        each = zip(state.group_weights, J.values(), strict=True)
        own = [grads.residual("mgda", grads.gram_matrix(g), weights) for weights, g in each]
        return own, grads.residual("mgda", state.gram, state.weights)

    own, mean = jax.device_get(measure(J))
    assert max(own) < 5e-5
    assert mean > 0.01


def test_residual_of_a_closed_form():
    with pytest.raises(ValueError, match="imtl_g has no residual.*mgda"):
        grads.residual("imtl_g", np.eye(2), np.ones(2))
