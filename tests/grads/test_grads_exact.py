"""Every method against the references: a wrong equation or an early-stopped solver fails here."""

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from mtjax import grads
from mtjax.grads.methods.gradvac import vaccinate
from mtjax.grads.methods.pcgrad import project

SHAPES = [(1, 4), (2, 8), (3, 8), (10, 40), (10, 4), (50, 80)]
OPTIONS = {"cagrad_wide", "aligned_median", "aligned_rmse", "cosine_keep"}  # at one shape only

# name: (method, reference, float32 tolerance, float64 tolerance, kinds that are not compared, and why)
#   The tolerances are of ‖d − d_ref‖ relative to ‖d_ref‖ plus half the least gradient norm: where d_ref is
#   0, a Gram in float32, known to 1e-7, gives lengths to its root, 3e-4. Frank-Wolfe's usual stop is off by
#   4e-3 to 0.3, ten ADMM steps by 1e-2 to 1e-1.
CASES = {
    "mean": (grads.mean(), lambda J: J.mean(0), 1e-5, 1e-12),
    "sum": (grads.sum(), lambda J: J.sum(0), 1e-5, 1e-12),
    "mgda": (grads.mgda(), reference.mgda, 2e-3, 1e-6),
    "cagrad": (grads.cagrad(c=0.4), lambda J: reference.cagrad(J, 0.4), 2e-3, 2e-4),
    "cagrad_wide": (grads.cagrad(c=0.9), lambda J: reference.cagrad(J, 0.9), 2e-3, 2e-4),
    "imtl_g": (grads.imtl_g(), reference.imtl_g, 2e-3, 1e-8),
    "config": (grads.config(), reference.config, 2e-3, 1e-8),
    "nash_mtl": (grads.nash_mtl(), lambda J: reference.alpha_fair(J, 1.0), 2e-3, 1e-8),
    "fairgrad": (grads.fairgrad(alpha=2.0), lambda J: reference.alpha_fair(J, 2.0), 2e-3, 1e-8),
    "aligned_mtl": (grads.aligned_mtl(), reference.aligned_mtl, 2e-3, 1e-8),
    "aligned_median": (
        grads.aligned_mtl("median"), lambda J: reference.aligned_mtl(J, "median"), 2e-3, 1e-8),
    "aligned_rmse": (grads.aligned_mtl("rmse"), lambda J: reference.aligned_mtl(J, "rmse"), 2e-3, 1e-8),
    "upgrad": (grads.upgrad(), reference.upgrad, 5e-3, 1e-7),
    "dualproj": (grads.dualproj(), reference.dualproj, 5e-3, 1e-7),
    "krum": (grads.krum(1, 2), lambda J: reference.krum(J, 1, 2), 1e-5, 1e-12),
    "cosine_gate": (
        grads.cosine_gate(0), lambda J: reference.cosine_gate(J, 0, True), 1e-5, 1e-12),
    "cosine_keep": (
        grads.cosine_gate(0, weighted=False), lambda J: reference.cosine_gate(J, 0, False), 1e-5, 1e-12),
}  # fmt: skip

# Where float32 cannot tell the answer: the eigenvalues that decide are below 1e-7 of the largest.
UNRESOLVED = {
    "aligned_mtl": {"spread"}, "aligned_median": {"spread"}, "aligned_rmse": {"spread"},
    "krum": {"zero_row", "duplicates"},  # ties
}  # fmt: skip


def directions(method, J: np.ndarray, dtype) -> np.ndarray:
    """The method's directions on a batch [N, T, P], through `aggregate`."""
    tx = grads.aggregate(method, num_tasks=J.shape[1])
    one = lambda g: tx.update(g, tx.init(g[0]))[0]  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(J, dtype)), np.float64)


def check(name: str, num_tasks: int, size: int, dtype) -> None:
    method, expected, single, double = CASES[name]
    tolerance = single if dtype == jnp.float32 else double
    J = jacobians.batch(num_tasks, size)
    got = directions(method, J, dtype)
    assert np.isfinite(got).all(), name
    for kind, matrix, direction in zip(jacobians.KINDS, J, got, strict=True):
        if dtype == jnp.float32 and kind in UNRESOLVED.get(name, ()):
            continue
        want = expected(matrix)
        if want is None:
            continue
        norm = np.linalg.norm(matrix, axis=1)
        scale = np.linalg.norm(want) + 0.5 * min(norm[norm > 0], default=1.0)
        assert np.linalg.norm(direction - want) <= tolerance * scale, (name, kind)


@pytest.mark.parametrize(
    ("name", "num_tasks", "size"),
    [(name, *shape) for name in CASES for shape in ([(10, 40)] if name in OPTIONS else SHAPES)],
)
def test_float32(name, num_tasks, size):
    check(name, num_tasks, size, jnp.float32)


@pytest.mark.parametrize("name", CASES)
def test_float64(name):
    with jax.enable_x64(True):
        check(name, 10, 40, jnp.float64)


@pytest.mark.parametrize(("num_tasks", "size"), [(3, 8), (10, 40), (10, 4)])
def test_random_orders(num_tasks, size):
    """PCGrad and GradVac in given orders; the latter twice, so that its moving targets count."""
    rng = np.random.default_rng(0)
    orders = np.argsort(rng.uniform(size=(num_tasks, num_tasks)), axis=1)
    here = jnp.ones(num_tasks)
    step = jax.jit(lambda g, t: vaccinate(g, t, jnp.asarray(orders.T), here, 0.3))
    for kind, J in zip(jacobians.KINDS, jacobians.batch(num_tasks, size), strict=True):
        gram = jnp.asarray(J @ J.T, jnp.float32)
        weights = np.asarray(project(gram, jnp.asarray(orders.T), here), np.float64)
        assert relative(J.T @ weights, reference.pcgrad(J, orders), J) < 1e-4, kind
        target, wanted = jnp.zeros_like(gram), np.zeros_like(J @ J.T)
        for _ in range(2):
            weights, target = step(gram, target)
            expected = reference.gradvac(J, orders, wanted, 0.3)
        assert relative(J.T @ np.asarray(weights, np.float64), expected, J) < 1e-3, kind
        np.testing.assert_allclose(target, wanted, atol=1e-4)


def relative(got, want, J) -> float:
    return np.linalg.norm(got - want) / (np.linalg.norm(want) + 0.01 * np.linalg.norm(J, axis=1).mean())


@pytest.mark.parametrize("trim", [0, 1, 3])
def test_trimmed_mean(trim):
    J = jacobians.batch(10, 40)
    J[0, 3] = 1e30  # adding and subtracting an outlier would lose everything else
    got = directions(grads.trimmed_mean(trim), J[:, :], jnp.float32)
    for matrix, direction in zip(J[0 if trim else 1 :], got[0 if trim else 1 :], strict=True):
        assert relative(direction, reference.trimmed_mean(matrix, trim), matrix / 1e30) < 1e-5


def test_graddrop():
    J = jacobians.jacobian("iid", 10, 40)
    tx = grads.aggregate(grads.graddrop(leak=0.25), num_tasks=10, seed=3)
    state = tx.init(jnp.zeros(40))
    _, draw = jax.random.split(state.inner)
    uniform = np.asarray(jax.random.uniform(draw, (40,)), np.float64)
    got = tx.update(jnp.asarray(J, jnp.float32), state)[0]
    np.testing.assert_allclose(got, reference.graddrop(J, uniform, 0.25), rtol=1e-4, atol=1e-4)


def test_fixed_and_normalised():
    J = jacobians.jacobian("spread", 3, 8)
    got = directions(grads.fixed((1.0, 2.0, 3.0)), J[None], jnp.float32)[0]
    assert relative(got, np.array([1, 2, 3]) @ J, J) < 1e-5
    got = directions(grads.normalize(grads.sum()), J[None], jnp.float32)[0]
    assert relative(got, reference.unit(J).sum(0), reference.unit(J)) < 1e-5


@pytest.mark.parametrize("normalize", ["l2", "loss", "loss+"])
def test_mgda_normalised(normalize):
    J, losses = jacobians.jacobian("spread", 3, 8), np.array([0.5, 2.0, 1.0])
    scale = np.where("loss" in normalize, losses, 1) * (
        np.linalg.norm(J, axis=1) if normalize in ("l2", "loss+") else 1
    )
    want = reference.mgda(J / scale[:, None])
    gram = jnp.asarray(J @ J.T, jnp.float32)
    weights, _ = grads.mgda(normalize).update(gram, (), losses=jnp.asarray(losses, jnp.float32))
    assert relative((J / scale[:, None]).T @ weights, want, J / scale[:, None]) < 1e-3


def test_nash_clip_and_rescale():
    J = jacobians.jacobian("iid", 10, 40)
    gram = jnp.asarray(J @ J.T, jnp.float32)
    full, _ = grads.nash_mtl().update(gram, ())
    assert np.linalg.norm(J.T @ full) == pytest.approx(np.sqrt(10), rel=1e-3)
    clipped, _ = grads.nash_mtl(max_norm=1.0).update(gram, ())
    assert np.linalg.norm(J.T @ clipped) == pytest.approx(1, rel=1e-3)
    plain, _ = grads.cagrad(c=0.5).update(gram, ())
    for rescale, divisor in (("1+c", 1.5), ("1+c2", 1.25)):
        scaled, _ = grads.cagrad(c=0.5, rescale=rescale).update(gram, ())
        np.testing.assert_allclose(scaled * divisor, plain, rtol=1e-5)


def test_residuals_are_rounding():
    """The solvers' own measure of exactness, which users watch."""
    J = jacobians.batch(10, 40)[[0, 1, 2, 3, 5]]
    gram = jnp.asarray(J @ J.swapaxes(1, 2), jnp.float32)
    for name, limit in (("mgda", 1e-4), ("nash_mtl", 1e-3), ("upgrad", 1e-3)):
        method = grads.get(name)
        one = lambda g, m=method, n=name: grads.residual(n, g, m.update(g, ())[0])  # noqa: E731
        assert np.max(jax.jit(jax.vmap(one))(gram)) < limit, name
