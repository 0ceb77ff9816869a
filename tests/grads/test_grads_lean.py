"""The memory-lean path: it must give what `aggregate` gives, and hold one gradient at a time."""

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from mtjax import grads

PARAMS = {"head": {"w": jnp.ones(3)}, "trunk": {"b": jnp.ones(2), "w": jnp.ones((2, 4))}}
METHODS = sorted(
    name for name in set(grads.names()) - {"every_k", "normalize", "cr_mogm", "fixed", "mgda_ub"}
    if isinstance(grads.get(name), grads.Weighting)
)  # fmt: skip


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", ["mgda", "pcgrad", 'gradnorm(leaves="all")'])
def test_lean_equals_aggregate(name):
    loss = lambda p, x: jnp.sum(jnp.tanh(p["trunk"]["w"] @ x) ** 2) + p["head"]["w"] @ x[:3]  # noqa: E731
    batch = jax.random.normal(jax.random.key(1), (3, 4))
    shared = lambda path: path.startswith("trunk")  # noqa: E731
    small = grads.lean(grads.get(name), num_tasks=3, shared=shared)
    losses, got, state = quick.jit(lambda *a: small.direction(loss, *a))(PARAMS, batch, small.init(PARAMS))
    values, g = jax.vmap(jax.value_and_grad(loss), (None, 0))(PARAMS, batch)
    tx = grads.aggregate(grads.get(name), num_tasks=3, shared=shared)
    np.testing.assert_allclose(state.gram, grads.gram_matrix(g["trunk"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, values, rtol=1e-5)
    if name != "pcgrad":  # whose keys differ
        want, _ = tx.update(g, tx.init(PARAMS), losses=values)
        np.testing.assert_allclose(flat(got), flat(want), rtol=1e-3, atol=1e-4)


def test_lean_leaves_absent_tasks_out():
    """An absent task may hold NaN; the rest is what `aggregate` makes of the same mask."""
    loss = lambda p, x: jnp.sum(jnp.tanh(p["trunk"]["w"] @ x) ** 2) + p["head"]["w"] @ x[:3]  # noqa: E731
    batch = jax.random.normal(jax.random.key(1), (3, 4)).at[1].set(jnp.nan)
    mask = jnp.array([True, False, True])
    shared = lambda path: path.startswith("trunk")  # noqa: E731
    small = grads.lean(grads.mgda(), num_tasks=3, shared=shared)
    losses, got, state = quick.jit(lambda *a: small.direction(loss, *a))(PARAMS, batch, small.init(PARAMS), mask)
    values, g = jax.vmap(jax.value_and_grad(loss), (None, 0))(PARAMS, batch)
    tx = grads.aggregate(grads.mgda(), num_tasks=3, shared=shared)
    want, _ = tx.update(g, tx.init(PARAMS), losses=values, mask=mask)
    assert state.weights[1] == 0 and losses[1] == 0 and np.isfinite(losses).all()
    np.testing.assert_allclose(flat(got), flat(want), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gls", "famo"])
def test_lean_without_a_gram(name):
    """A method that does not look at the Gram spares it, and FAMO hears of the losses after the step here, too."""
    loss = lambda p, x: jnp.sum((p - x) ** 2)  # noqa: E731
    batch, method = jnp.array([[1.0, 2.0], [0.5, 0.0]]), grads.get(name)
    small, params = grads.lean(method, num_tasks=2), jnp.zeros(2)
    losses, got, state = small.direction(loss, params, batch, small.init(params))
    g = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    tx = grads.aggregate(method, num_tasks=2)
    want, other = tx.update(g, tx.init(params), losses=losses)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(losses, [5.0, 0.25], rtol=1e-6)
    assert not state.gram.any()
    if name == "famo":
        after = losses * jnp.array([0.9, 0.5])
        state, other = grads.observe(method, state, after), grads.observe(method, other, after)
        np.testing.assert_allclose(state.inner.logits, other.inner.logits[0], rtol=1e-5)
        assert state.inner.logits.any()


def test_lean_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="mgda_ub needs a representation"):
        grads.lean(grads.mgda_ub(), num_tasks=2)
    small = grads.lean(grads.mgda(), num_tasks=2)
    with pytest.raises(ValueError, match=r"leading task axis of 2; one has shape \(3, 2\)"):
        small.direction(lambda p, x: p @ x, jnp.ones(2), jnp.ones((3, 2)), small.init(jnp.ones(2)))
    small = grads.lean(grads.mgda(), num_tasks=2, shared=lambda path: path == "trunk")
    with pytest.raises(ValueError, match=r"no leaf is shared; the paths are \['head'\]"):
        small.direction(lambda p, x: p["head"] @ x, {"head": jnp.ones(2)}, jnp.eye(2), small.init(None))


@pytest.mark.parametrize("use", [grads.lean_gram, "direction"])
def test_lean_refuses_a_tree_that_shares_nothing(use):
    """As a predicate that holds for no leaf: the Gram would be all zeros, and any weights stationary."""
    params, nothing = {"head": jnp.ones(2), "trunk": jnp.ones(2)}, {"head": False, "trunk": False}
    loss = lambda p, x: (p["head"] + p["trunk"]) @ x  # noqa: E731
    with pytest.raises(ValueError, match=r"no leaf is shared; the paths are \['head', 'trunk'\]"):
        if use == "direction":
            small = grads.lean(grads.mgda(), num_tasks=2, shared=nothing)
            small.direction(loss, params, jnp.eye(2), small.init(params))
        else:
            use(loss, params, jnp.eye(2), shared=nothing)


@pytest.mark.parametrize("name", METHODS)
def test_lean_is_finite(name):
    """The hostile gradients of `test_no_nan_one_trace_and_seeds`: a task that blows up is left out here, too."""
    g, losses = jacobians.hostile(4, "float32")
    small = grads.lean(grads.get(name), num_tasks=4)

    @quick.jit
    @jax.vmap
    def step(rows, values):
        batch = {"row": rows, "value": values}
        loss = lambda p, task: p @ task["row"] + task["value"]  # noqa: E731
        return small.direction(loss, jnp.zeros(6), batch, small.init(None))[1:]

    for values in losses:
        update, state = step(jnp.asarray(g), jnp.broadcast_to(jnp.asarray(values), (len(g), 4)))
        assert np.isfinite(update).all() and np.isfinite(state.weights).all()


@pytest.mark.parametrize("huge", [1e19, 1e30, np.nan])
@pytest.mark.parametrize("name", ["mgda", "upgrad"])
def test_lean_treats_a_task_that_blows_up_as_aggregate_does(name, huge):
    """A norm that overflows leaves the others' direction as it is; a NaN reaches the update."""
    batch = jax.random.normal(jax.random.key(2), (3, 6)).at[1].multiply(huge)
    small, tx = grads.lean(grads.get(name), num_tasks=3), grads.aggregate(grads.get(name), num_tasks=3)
    _, got, state = quick.jit(lambda b: small.direction(jnp.dot, jnp.zeros(6), b, small.init(None)))(batch)
    want, other = quick.jit(tx.update)(batch, tx.init(jnp.zeros(6)))
    assert state.weights[1] == other.weights[1] == 0
    assert np.isfinite(got).all() == np.isfinite(huge)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_lean_holds_one_gradient_at_a_time():
    """Its whole purpose: temporaries of O(P), where the plain path has T × P numbers."""
    num_tasks, size = 16, 100_000
    loss = lambda p, speed: jnp.mean(jnp.cos(speed * p))  # noqa: E731
    params, batch = jnp.ones(size), jnp.arange(1.0, num_tasks + 1)
    small, tx = grads.lean(grads.mgda(), num_tasks=num_tasks), grads.aggregate(grads.mgda(), num_tasks=num_tasks)

    def plain(p, b, state):
        losses, g = jax.vmap(jax.value_and_grad(loss), (None, 0))(p, b)
        return tx.update(g, state, p, losses=losses)

    def lean(p, b, state):
        return small.direction(loss, p, b, state)

    def temporaries(step, state) -> int:
        return jax.jit(step).lower(params, batch, state).compile().memory_analysis().temp_size_in_bytes

    every = num_tasks * params.nbytes
    assert temporaries(plain, tx.init(params)) > 0.9 * every  # so the comparison can fail
    assert temporaries(lean, small.init(params)) < 0.4 * every


def test_lean_asks_gradnorm_for_its_layer():
    loss = lambda p, x: p["first"] @ x + p["last"] @ x  # noqa: E731
    params = {"first": jnp.ones(2), "last": jnp.ones(2)}
    small = grads.lean(grads.gradnorm(), num_tasks=2)
    with pytest.raises(ValueError, match=r"balances the gradients of one layer.*\['first', 'last'\]"):
        small.direction(loss, params, jnp.eye(2), small.init(params))
    small = grads.lean(grads.gradnorm(), num_tasks=2, shared=lambda path: path == "last")
    small.direction(loss, params, jnp.eye(2), small.init(params))
