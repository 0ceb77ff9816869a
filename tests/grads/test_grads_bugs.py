"""The mistakes that other implementations make: each test fails on an implementation that makes one."""

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from mtjax import grads
from mtjax.grads.methods.pcgrad import project


def gram_of(J) -> jax.Array:
    return jnp.asarray(np.asarray(J) @ np.asarray(J).T, jnp.float32)


def test_pcgrad_draws_an_order_for_each_task():
    """With one permutation shared by all rows, rows 0 and 1 would always meet 2 and 3 in one order."""
    J = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1], [-1, -1, 0.5, 0.2], [-0.3, -0.3, -1, -1]])
    orders = np.array([[2, 3, 0, 1], [3, 2, 0, 1]])
    rest = [[0, 1, 2, 3]] * 2
    outcomes = {(a, b): reference.pcgrad(J, [orders[a], orders[b], *rest]) for a in (0, 1) for b in (0, 1)}
    method = grads.pcgrad()
    keys = jax.random.split(jax.random.key(0), 400)
    weights = jax.jit(jax.vmap(lambda k: method.update(gram_of(J), k)[0]))(keys)
    seen = {tuple(np.round(w, 3)) for w in np.asarray(weights)}
    mixed = {
        key for key in outcomes
        if any(np.allclose(np.asarray(s) @ J, outcomes[key], atol=5e-3) for s in seen)
    }  # fmt: skip
    shared_only = {(0, 0), (1, 1)}
    assert len(seen) > 4 and (mixed - shared_only or len(seen) > 24)


def test_pcgrad_skips_itself():
    """After a projection g_i·g_iᴾᶜ may be negative in the coefficients; j = i must stay a no-op."""
    J = jacobians.jacobian("conflicting", 5, 4)
    orders = np.stack([np.roll(np.arange(5), -i - 1) for i in range(5)])  # each meets itself last
    weights = project(gram_of(J), jnp.asarray(orders.T), jnp.ones(5))
    np.testing.assert_allclose(J.T @ weights, reference.pcgrad(J, orders), atol=1e-3)


def test_pcgrad_reductions_differ_by_tasks():
    gram = gram_of(jacobians.jacobian("iid", 4, 8))
    key = jax.random.key(1)
    total, _ = grads.pcgrad().update(gram, key)
    mean, _ = grads.pcgrad(reduction="mean").update(gram, key)
    np.testing.assert_allclose(mean * 4, total, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(grads.names()) - {"every_k", "normalize", "cr_mogm", "fixed"}))
def test_no_unrolling(name):
    """The program has the same number of operations at T = 8 and T = 40: compile time is flat in T."""

    def operations(num_tasks: int) -> int:
        tx = grads.aggregate(grads.get(name), num_tasks=num_tasks)
        step = lambda g: tx.update(  # noqa: E731
            g, tx.init(g[0]), losses=jnp.ones(num_tasks), gram=jnp.eye(num_tasks) if name == "mgda_ub" else None
        )
        return count(jax.make_jaxpr(step)(jnp.ones((num_tasks, 6))).jaxpr)

    def count(jaxpr) -> int:
        inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)]
        return len(jaxpr.eqns) + sum(count(getattr(x, "jaxpr", x)) for x in inner if is_jaxpr(x))

    def is_jaxpr(x) -> bool:
        return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")

    assert operations(8) == operations(40)


def test_gradvac_moves_its_targets_on_every_call():
    """Two agreeing tasks change nothing, but φ̂ must learn that they agree."""
    method = grads.gradvac(beta=0.5)
    gram = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    weights, state = method.update(gram, method.init(2))
    np.testing.assert_allclose(weights, 1)
    np.testing.assert_allclose(state.target, [[0, 0.4], [0.4, 0]], rtol=1e-5)
    assert grads.aggregate(method, num_tasks=2, groups="leaf").init(
        {"a": jnp.ones(2), "b": jnp.ones(3)}
    ).inner.target.shape == (2, 2, 2)


def test_mgda_closed_form_of_two_tasks():
    """Frank-Wolfe with the usual tolerance misses this by 0.4% or more."""
    for seed in range(5):
        G = np.asarray(gram_of(jacobians.jacobian("correlated", 2, 5, seed)), np.float64)
        first = np.clip((G[1, 1] - G[0, 1]) / (G[0, 0] + G[1, 1] - 2 * G[0, 1]), 0, 1)
        weights, _ = grads.mgda().update(jnp.asarray(G, jnp.float32), ())
        assert abs(float(weights[0]) - first) < 1e-3


def test_imtl_g_is_regular_where_task_0_has_a_duplicate():
    J = jacobians.jacobian("duplicates", 4, 8)
    weights, _ = grads.imtl_g().update(gram_of(J), ())
    projections = reference.unit(J) @ (J.T @ weights)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-3)


def test_nash_at_a_pareto_stationary_point():
    """No solution exists there; the weights stay finite and the clip bounds the step."""
    J = jacobians.jacobian("iid", 4, 8)
    J = J - J.mean(0)
    weights, _ = grads.nash_mtl(max_norm=1.0).update(gram_of(J), ())
    assert np.isfinite(weights).all() and np.linalg.norm(J.T @ weights) <= 1.01


def train_gradnorm(method, norms, losses):
    """GradNorm's weights after one call for each row of `losses`, with constant norms."""
    state = method.init(len(norms))
    for row in losses:
        weights, state = method.update(jnp.diag(jnp.asarray(norms) ** 2), state, losses=jnp.asarray(row))
    return np.asarray(weights), state


def test_gradnorm_target_is_constant_and_the_state_is_renormalised():
    """Against the loss by finite differences, its target held still; Σw = T must be in the state."""
    norms, losses, alpha, rate = np.array([1.0, 3.0, 0.5]), np.array([[1.0, 2, 3], [0.9, 1, 3]]), 1.5, 0.1
    got, _ = train_gradnorm(grads.gradnorm(alpha, optax.sgd(rate)), norms, [*losses, losses[1]])
    w, first = np.ones(3), losses[0]
    for row in losses:
        ratio = row / first
        target = (w * norms).mean() * (ratio / ratio.mean()) ** alpha
        value = lambda v, target=target: np.abs(v * norms - target).sum()  # noqa: E731
        slope = [(value(w + 1e-6 * e) - value(w - 1e-6 * e)) / 2e-6 for e in np.eye(3)]
        w = np.maximum(w - rate * np.array(slope), 1e-4)
        w = w * 3 / w.sum()
    np.testing.assert_allclose(got, w, rtol=1e-4)


def test_gradnorm_keeps_the_first_losses():
    _, state = train_gradnorm(grads.gradnorm(), np.ones(2), [[4.0, 2.0], [1.0, 1.0], [0.1, 0.3]])
    np.testing.assert_allclose(state.initial_losses, [4.0, 2.0])
    given = grads.gradnorm(initial_losses=jnp.array([5.0, 6.0]))
    _, state = train_gradnorm(given, np.ones(2), [[4.0, 2.0]])
    np.testing.assert_allclose(state.initial_losses, [5.0, 6.0])


def test_gradnorm_sees_the_last_shared_layer_only():
    """A huge gradient in another layer must not move the weights."""
    method = grads.gradnorm(optimizer=optax.sgd(0.1), leaves=lambda path: path == "last")
    tx = grads.aggregate(method, num_tasks=2)
    params = {"first": jnp.ones(2), "last": jnp.ones(2)}

    def weights(first):
        g = {"first": jnp.asarray(first), "last": jnp.array([[1.0, 0], [0, 3.0]])}
        _, state = tx.update(g, tx.init(params), losses=jnp.ones(2))
        return tx.update(g, state, losses=jnp.ones(2))[1].weights

    np.testing.assert_allclose(weights([[1e3, 0.0], [0, 0]]), weights([[0.0, 0], [0, 1.0]]))
    assert weights([[1e3, 0.0], [0, 0]])[0] > 1


@pytest.mark.parametrize("surrogate", [None, "softplus", jnp.exp])
def test_gradnorm_of_negative_losses(surrogate):
    """An RL actor's losses: a negative number to the power α is NaN."""
    losses = [[-1.0, 0.0, 2.0], [-3.0, 0.5, -1.0], [0.0, 0.0, 0.0]]
    weights, state = train_gradnorm(grads.gradnorm(surrogate=surrogate), np.ones(3), losses)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(state.weights.sum(), 3, rtol=1e-5)


def test_gram_has_the_highest_precision():
    """An accelerator's default matmul would round the Gram to bfloat16 or tf32."""
    text = str(jax.make_jaxpr(grads.gram_matrix)(jnp.ones((3, 40000))))
    assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST") or (
        "HIGHEST" in text and "precision=None" not in text
    )


def test_bfloat16_gradients_have_a_float32_gram():
    """256 + 1 is 256 in bfloat16: a bfloat16 accumulation would stop there."""
    g = jnp.ones((2, 70000), jnp.bfloat16)
    assert grads.gram_matrix(g).dtype == jnp.float32
    np.testing.assert_allclose(grads.gram_matrix(g), 70000.0)
    tx = grads.aggregate(grads.mgda(), num_tasks=2)
    assert tx.update(g, tx.init(g[0]))[0].dtype == jnp.bfloat16


def test_famo_observes():
    method = grads.famo(optax.sgd(1.0), gamma=0.0)
    tx = optax.chain(grads.aggregate(method, num_tasks=2), optax.sgd(0.1))
    state = tx.init(jnp.zeros(2))
    _, state = tx.update(jnp.eye(2), state, losses=jnp.array([1.0, 2.0]))
    state = grads.observe(method, state, jnp.array([0.5, 2.0]))
    z = np.array([0.5, 0.5])
    progress = np.log([1 / 0.5, 2 / 2])
    np.testing.assert_allclose(grads.find_state(state).inner.logits[0], -(z * (progress - z @ progress)), rtol=1e-5)
    _, state = tx.update(jnp.eye(2), state, losses=jnp.array([1.0, 2.0]))
    logits = -(z * (progress - z @ progress))
    expected = np.exp(logits) / np.array([1.0, 2.0])
    np.testing.assert_allclose(grads.find_state(state).weights, expected / expected.sum(), rtol=1e-5)
