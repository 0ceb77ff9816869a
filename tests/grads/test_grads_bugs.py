"""The mistakes that other implementations make: each is made here too, and the check that ours passes fails on it.

A check raises AssertionError; `fails(check, faulty)` asserts that it does so for the faulty implementation.
"""

import functools

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import reference
from faults import fails, gram_of

from mtjax import grads
from mtjax.grads.methods import graddrop, nash_mtl, trimmed_mean
from mtjax.grads.methods.gradvac import vaccinate
from mtjax.grads.methods.pcgrad import project

# --- PCGrad ---------------------------------------------------------------------------------------------------------

TRIANGLE = np.array([[1.0, 0.1, 0.0], [-0.6, 1.0, 0.2], [-0.5, -0.7, 1.0]])  # all three pairs conflict


def check_orders(sample) -> None:
    """Each of the 2³ ways in which three tasks can meet the other two is drawn, one time in eight."""
    others = [[1, 2], [0, 2], [0, 1]]
    ways = [[o if s == 0 else o[::-1] for o, s in zip(others, signs, strict=True)] for signs in np.ndindex(2, 2, 2)]
    outcomes = np.stack([reference.pcgrad(TRIANGLE, way) for way in ways])
    apart = np.linalg.norm(outcomes[:, None] - outcomes[None], axis=-1) + 9 * np.eye(8)
    assert apart.min() > 0.01  # so an outcome tells the way
    drawn = np.asarray(sample(jax.random.split(jax.random.key(0), 800)), float) @ TRIANGLE  # [800, 3]
    distance = np.linalg.norm(drawn[:, None] - outcomes[None], axis=-1)
    np.testing.assert_allclose(distance.min(1), 0, atol=1e-4)
    counts = np.bincount(distance.argmin(1), minlength=8)
    assert (np.abs(counts - 100) < 45).all(), counts  # five standard deviations


def one_order_for_all(keys):
    def draw(key):
        order = jax.random.permutation(key, 3)
        return project(jnp.asarray(gram_of(TRIANGLE)), jnp.repeat(order[:, None], 3, axis=1), jnp.ones(3))

    return jax.vmap(draw)(keys)


def test_pcgrad_draws_an_order_for_each_task():
    """One permutation shared by all tasks never draws the two cyclic ways; a fixed order draws one."""
    check_orders(quick.jit(jax.vmap(lambda key: grads.pcgrad().update(jnp.asarray(gram_of(TRIANGLE)), key)[0])))
    fails(check_orders, quick.jit(one_order_for_all))
    fails(check_orders, quick.jit(lambda keys: one_order_for_all(jnp.repeat(keys[:1], len(keys)))))


def pcgrad_with(J, orders, skip=True, original=True):
    """PCGrad in NumPy, with the mistakes of projecting a task on itself or on gradients already projected."""
    cleaned = J.copy()
    for i, order in enumerate(orders):
        for j in order:
            other = J[j] if original else cleaned[j]
            if (j != i or not skip) and cleaned[i] @ other < 0:
                cleaned[i] = cleaned[i] - (cleaned[i] @ other) / (other @ other) * other
    return cleaned.sum(0)


def test_pcgrad_skips_itself_and_takes_the_original_gradients():
    """After a projection g_i·g_iᴾᶜ may be negative, so j = i is no no-op by itself."""
    caught, project_five = np.zeros(2, int), quick.jit(lambda gram, orders: project(gram, orders, jnp.ones(5)))
    for seed in range(8):
        J = jacobians.jacobian("conflicting", 5, 4, seed)
        orders = np.stack([np.roll(np.arange(5), -i - 1) for i in range(5)])  # each meets itself last
        ours = J.T @ np.asarray(project_five(gram_of(J), orders.T), float)

        def check(direction, ours=ours):
            np.testing.assert_allclose(ours, direction, atol=2e-3)

        check(reference.pcgrad(J, orders))
        check(pcgrad_with(J, orders))
        for n, mistake in enumerate(({"skip": False}, {"original": False})):
            caught[n] += not np.allclose(ours, pcgrad_with(J, orders, **mistake), atol=2e-3)
    assert (caught >= [1, 6]).all(), caught


def test_pcgrad_reductions_differ_by_tasks():
    gram, default, reduced = gram_of(jacobians.jacobian("iid", 4, 8)), grads.pcgrad(), grads.pcgrad(reduction="mean")
    both = quick.jit(lambda gram, key: [method.update(gram, key)[0] for method in (default, reduced)])
    total, mean = jax.device_get(both(gram, jax.random.key(1)))
    np.testing.assert_allclose(mean * 4, total, rtol=1e-6)
    total, _ = both(np.eye(4, dtype=np.float32), jax.random.key(1))
    np.testing.assert_allclose(total, 1.0)  # the default is the paper's sum


# --- compilation ----------------------------------------------------------------------------------------------------


def operations(step, num_tasks: int) -> int:
    """How many operations the program of `step` on gradients [T, 6] has."""

    def is_jaxpr(x) -> bool:
        return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")

    def count(jaxpr) -> int:
        inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)]
        return len(jaxpr.eqns) + sum(count(getattr(x, "jaxpr", x)) for x in inner if is_jaxpr(x))

    return count(jax.make_jaxpr(step)(jax.ShapeDtypeStruct((num_tasks, 6), jnp.float32)).jaxpr)


@pytest.mark.parametrize("name", sorted(set(grads.names()) - {"every_k", "normalize", "cr_mogm", "fixed"}))
def test_no_unrolling(name):
    """The program has as many operations for 32 tasks more than 8: compile time is flat in T.

    For two that take a bounded number of rows in a straight line, 32 more than these; and the line is not long.
    """

    def step(g):
        tx = grads.aggregate(grads.get(name), num_tasks=len(g))
        return tx.update(g, tx.init(g[0]), losses=jnp.ones(len(g)), gram=jnp.eye(len(g)) if name == "mgda_ub" else None)

    straight = {"graddrop": graddrop._FEW, "trimmed_mean": trimmed_mean._STRAIGHT // 3}.get(name, 7)
    assert operations(step, straight + 1) == operations(step, straight + 33)
    assert operations(step, straight) <= 3000


def test_the_unrolling_check_catches_a_loop():
    def looped(g):
        for j in range(len(g)):
            g = g - jnp.minimum(g @ g[j], 0)[:, None] * g[j] / (g[j] @ g[j])
        return g

    assert operations(looped, 40) > operations(looped, 8)


def test_one_program_for_every_rank():
    """Aligned-MTL's number of eigenvalues depends on the data; under jit a shape may not."""
    step = quick.jit(lambda gram: grads.aligned_mtl().update(gram, ())[0])
    for kind in jacobians.KINDS:
        assert np.isfinite(step(gram_of(jacobians.jacobian(kind, 10, 4)))).all()
    assert step._cache_size() == 1


# --- GradVac --------------------------------------------------------------------------------------------------------


def check_targets(update) -> None:
    """Two agreeing tasks change nothing, but φ̂ must learn that they agree."""
    target = quick.jit(update)(np.array([[1.0, 0.8], [0.8, 1.0]], np.float32), np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(target, [[0, 0.4], [0.4, 0]], rtol=1e-5)


def test_gradvac_moves_its_targets_on_every_call():
    orders = np.array([[0, 1], [1, 0]])
    ours = lambda gram, target: vaccinate(gram, target, jnp.asarray(orders), jnp.ones(2), 0.5)[1]  # noqa: E731

    def only_where_they_conflict(gram, target):
        cosine = gram / jnp.sqrt(jnp.outer(jnp.diagonal(gram), jnp.diagonal(gram)))
        return jnp.where(cosine < target, 0.5 * (target + cosine), target)

    check_targets(ours)
    fails(check_targets, only_where_they_conflict)


def test_gradvac_has_targets_for_each_group():
    tx = grads.aggregate(grads.gradvac(), num_tasks=2, groups="leaf")
    state = jax.eval_shape(tx.init, {"a": np.ones(2), "b": np.ones(3)})
    assert state.inner.target.shape == (2, 2, 2)


# --- MGDA, CAGrad, IMTL-G, Nash-MTL ---------------------------------------------------------------------------------


def frank_wolfe(gram, tolerance=1e-2):
    """MGDA's usual solver, with a usual stop."""
    w = np.full(len(gram), 1 / len(gram))
    for n in range(250):
        step = 2 / (n + 2) * (np.eye(len(gram))[np.argmin(gram @ w)] - w)
        w = w + step
        if np.abs(step).sum() < tolerance:
            break
    return w


def check_two_tasks(weights) -> None:
    for seed in range(5):
        G = np.asarray(gram_of(jacobians.jacobian("correlated", 2, 5, seed)), np.float64)
        first = np.clip((G[1, 1] - G[0, 1]) / (G[0, 0] + G[1, 1] - 2 * G[0, 1]), 0, 1)
        assert abs(float(weights(G)[0]) - first) < 1e-3


def test_mgda_closed_form_of_two_tasks():
    check_two_tasks(quick.jit(lambda G: grads.mgda().update(jnp.asarray(G, jnp.float32), ())[0]))
    fails(check_two_tasks, frank_wolfe)


def test_cagrad_is_not_rescaled():
    """d lies on the ball of radius c‖g₀‖ about g₀; codebases that divide by 1 + c or 1 + c² leave it."""
    J = jacobians.jacobian("iid", 5, 10)
    mean = J.mean(0)

    def check(weights):
        d = J.T @ np.asarray(weights, float)
        assert np.linalg.norm(d - mean) == pytest.approx(0.4 * np.linalg.norm(mean), rel=1e-4)

    methods = [grads.cagrad(), grads.cagrad(rescale="1+c"), grads.cagrad(rescale="1+c2")]
    ours, *rescaled = quick.jit(lambda gram: [method.update(gram, ())[0] for method in methods])(gram_of(J))
    check(ours)
    for weights in rescaled:
        fails(check, weights)


def test_imtl_g_is_regular_where_task_0_has_a_duplicate():
    J = jacobians.jacobian("duplicates", 4, 8)

    def check(weights):
        projections = reference.unit(J) @ (J.T @ np.asarray(weights, float))
        assert np.isfinite(projections).all()
        np.testing.assert_allclose(projections, projections[0], rtol=1e-3)

    def anchored_on_task_0(J):
        """The paper's α = g₁ Uᵀ (D Uᵀ)⁻¹, in float32 as codebases have it."""
        J = J.astype(np.float32)
        U, D = reference.unit(J)[:1] - reference.unit(J)[1:], J[:1] - J[1:]
        try:
            rest = J[0] @ U.T @ np.linalg.inv(D @ U.T)
        except np.linalg.LinAlgError:
            return np.full(len(J), np.nan)
        return np.r_[1 - rest.sum(), rest]

    check(quick.jit(grads.imtl_g().update)(gram_of(J), ())[0])
    fails(check, anchored_on_task_0(J))


def test_nash_at_a_pareto_stationary_point():
    """No solution exists there: without a ridge the weights run away, and multiply the gradients' rounding."""
    J = jacobians.jacobian("iid", 4, 8)
    J = J - J.mean(0)

    def check(weights):
        weights = np.asarray(weights, float)
        assert np.isfinite(weights).all() and weights.max() < 1e5 and np.linalg.norm(J.T @ weights) <= 1.01

    def newton_without_a_ridge(gram):
        w = np.ones(4)
        with np.errstate(all="ignore"):
            for _ in range(60):
                w = w - np.linalg.pinv(gram + np.diag(1 / w**2)) @ (gram @ w - 1 / w)
        return w

    check(quick.jit(grads.nash_mtl(max_norm=1.0).update)(gram_of(J), ())[0])
    fails(check, newton_without_a_ridge(J @ J.T))


DIVIDERS = ("pcgrad", "gradvac", "imtl_g", "config", "nash_mtl", "db_mtl", "cosine_gate", "upgrad")


ONE_IS_ZERO = np.array([[1.0, 0.2], [0.0, 0.0], [0.1, 1.0]], np.float32)


@functools.cache
def of_a_zero_gradient():
    """Each method's update."""

    def of(name, J):
        tx = grads.aggregate(grads.get(name), num_tasks=3)
        return tx.update(J, tx.init(J[0]), losses=jnp.ones(3))[0]

    return jax.device_get(quick.jit(lambda J: quick.each(DIVIDERS, lambda name: of(name, J)))(ONE_IS_ZERO))


@pytest.mark.parametrize("name", DIVIDERS)
def test_a_zero_gradient_divides_nothing(name):
    """1/‖g‖ of a zero gradient is infinite, and 0·∞ is NaN: one finished task must not stop the others."""
    update = of_a_zero_gradient()[name]
    assert np.isfinite(update).all() and (ONE_IS_ZERO @ update > 0)[[0, 2]].all()


# --- the Gram -------------------------------------------------------------------------------------------------------


def check_precision(gram, num_tasks=3) -> None:
    """Every product in the program is asked for at the highest precision."""
    text = str(jax.make_jaxpr(gram)(jax.ShapeDtypeStruct((num_tasks, 200_000), jnp.float32)))
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 0


def test_products_have_the_highest_precision():
    """An accelerator's default matmul would round to bfloat16 or tf32."""
    check_precision(grads.gram_matrix)
    check_precision(lambda g: grads.weighted_sum(g[:, 0], g), num_tasks=20)  # of fewer it has no product
    fails(check_precision, lambda g: g @ g.T)


def test_bfloat16_gradients_have_a_float32_gram():
    """256 + 1 is 256 in bfloat16: a bfloat16 accumulation would stop there."""
    g = np.ones((2, 300_000), jnp.bfloat16)

    def check(gram):
        assert gram(g).dtype == jnp.float32
        np.testing.assert_allclose(gram(g), 300_000.0)

    check(quick.jit(grads.gram_matrix))
    fails(check, lambda g: (jnp.asarray(g) @ jnp.asarray(g).T).astype(jnp.float32))  # jit might keep more digits
    tx = grads.aggregate(grads.mgda(), num_tasks=2)
    assert jax.eval_shape(lambda g: tx.update(g, tx.init(g[0]))[0], g).dtype == jnp.bfloat16
    summed = quick.jit(grads.weighted_sum)(np.array([1.0, 2.0], np.float32), g)
    np.testing.assert_array_equal(np.asarray(summed), 3.0)


# --- constants at their ends ----------------------------------------------------------------------------------------


def test_fairgrad_tends_to_the_sum():
    """α → 0 is the sum. A solver that keeps d^(1/α − 1) within bounds solves another equation where norms differ."""

    def check(solve):
        for alpha, norms in ((0.1, [1.0, 1e3]), (0.01, [1.0, 4.0]), (0.01, [1e-3, 1e3])):
            gram = np.diag(np.square(norms)).astype(np.float32)
            want = np.float64(norms) ** (-2 * alpha / (1 + alpha))  # G_ii w_i = w_i^(−1/α)
            np.testing.assert_allclose(solve(gram, alpha), want, rtol=2e-4)

    check(lambda gram, alpha: grads.fairgrad(alpha).update(gram, ())[0])
    draw = np.random.default_rng(0)
    for alpha in (0.1, 0.02):  # gradients that conflict, of like norms: the equation itself
        J = draw.standard_normal((6, 40)) * np.linspace(1, 3, 6)[:, None]
        gram = (J @ J.T).astype(np.float32)
        weights = grads.fairgrad(alpha).update(gram, ())[0]
        assert (gram < 0).any() and grads.residual(f"fairgrad(alpha={alpha})", gram, weights) < 1e-4

    def bounded(gram, alpha):
        norm = np.sqrt(np.diagonal(gram))
        relative = norm / np.exp(np.log(norm).mean())
        u = np.clip(np.float64(relative) ** (1 / alpha - 1), 1e-12, 1e12) ** (alpha / (1 + alpha))
        return u / relative * np.exp(-2 * np.log(norm).mean() * alpha / (1 + alpha))

    fails(check, bounded)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_fairgrad_of_small_alpha(alpha, monkeypatch):
    """G w = w^(−1/α) to rounding where a rate is below 1e-30 and norms differ by 10⁴: forty steps fall short of it."""
    J = np.random.default_rng(0).standard_normal((6, 40))
    J[0] -= 4.5 * J[1:].mean(axis=0)
    J *= 10.0 ** np.linspace(2, -2, 6)[:, None]
    gram = (J @ J.T).astype(np.float32)
    name = f"fairgrad({alpha})"

    def check(solve):
        weights = solve(gram, ())[0]
        w = np.float64(weights)
        rates = w ** (-1 / alpha)
        assert (w > 0).all()
        assert (np.abs(gram @ w - rates) < 3e-6 * (np.abs(gram) @ w)).all()
        assert rates.min() < 1e-30
        assert grads.residual(name, gram, weights) < 1e-4

    check(grads.fairgrad(alpha).update)
    short = functools.partial(nash_mtl.power_newton, cut_steps=40)
    monkeypatch.setattr(nash_mtl, "power_newton", short)
    fails(check, grads.fairgrad(alpha).update)
    assert grads.residual(name, gram, grads.fairgrad(alpha).update(gram, ())[0]) > 0.1
