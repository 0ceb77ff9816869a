"""The memory-lean path: it must give what `aggregate` gives, and hold one gradient at a time."""

import functools

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from mtjax import grads

PARAMS = jax.tree.map(np.float32, {"head": {"w": np.ones(3)}, "trunk": {"b": np.ones(2), "w": np.ones((2, 4))}})
METHODS = sorted(
    name for name in set(grads.names()) - {"every_k", "normalize", "cr_mogm", "fixed", "mgda_ub"}
    if isinstance(grads.get(name), grads.Weighting)
)  # fmt: skip


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def both_ways(method, mask=None):
    """A batch [3, 4] -> the lean path and the plain one, whose trunk is shared, as one program.

    (losses, direction, state), (losses, Gram, direction).
    """
    loss = lambda p, x: jnp.sum(jnp.tanh(p["trunk"]["w"] @ x) ** 2) + p["head"]["w"] @ x[:3]  # noqa: E731
    shared = lambda path: path.startswith("trunk")  # noqa: E731
    small = grads.lean(method, num_tasks=3, shared=shared)
    tx = grads.aggregate(method, num_tasks=3, shared=shared)

    @quick.jit
    def run(p, batch):
        values, g = jax.vmap(jax.value_and_grad(loss), (None, 0))(p, batch)
        plain = values, grads.gram_matrix(g["trunk"]), tx.update(g, tx.init(p), losses=values, mask=mask)[0]
        return small.direction(loss, p, batch, small.init(p), *([] if mask is None else [mask])), plain

    return lambda batch: jax.device_get(run(PARAMS, batch))


@pytest.mark.parametrize("name", ["mgda", "pcgrad", 'gradnorm(leaves="all")'])
def test_lean_equals_aggregate(name):
    batch = np.random.default_rng(1).standard_normal((3, 4), np.float32)
    (losses, got, state), (values, gram, want) = both_ways(grads.get(name))(batch)
    np.testing.assert_allclose(state.gram, gram, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, values, rtol=1e-5)
    if name != "pcgrad":  # whose keys differ
        np.testing.assert_allclose(flat(got), flat(want), rtol=1e-3, atol=1e-4)


def test_lean_leaves_absent_tasks_out():
    """An absent task may hold NaN; the rest is what `aggregate` makes of the same mask."""
    batch = np.random.default_rng(1).standard_normal((3, 4), np.float32)
    batch[1] = np.nan
    (losses, got, state), (_, _, want) = both_ways(grads.mgda(), np.array([True, False, True]))(batch)
    assert state.weights[1] == 0 and losses[1] == 0 and np.isfinite(losses).all()
    np.testing.assert_allclose(flat(got), flat(want), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gls", "famo"])
def test_lean_without_a_gram(name):
    """A method that does not look at the Gram spares it, and FAMO hears of the losses after the step here, too."""
    loss = lambda p, x: jnp.sum((p - x) ** 2)  # noqa: E731
    batch, method = np.array([[1.0, 2.0], [0.5, 0.0]], np.float32), grads.get(name)
    small, params = grads.lean(method, num_tasks=2), np.zeros(2, np.float32)
    tx = grads.aggregate(method, num_tasks=2)

    @quick.jit
    def run(params, batch):
        losses, got, state = small.direction(loss, params, batch, small.init(params))
        g = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
        want, other = tx.update(g, tx.init(params), losses=losses)
        after = losses * jnp.array([0.9, 0.5])
        told = [grads.observe(method, x, after) for x in (state, other)]
        return losses, got, want, state.gram, told

    losses, got, want, gram, (state, other) = jax.device_get(run(params, batch))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(losses, [5.0, 0.25], rtol=1e-6)
    assert not gram.any()
    if name == "famo":
        np.testing.assert_allclose(state.inner.logits, other.inner.logits[0], rtol=1e-5)
        assert state.inner.logits.any()


def test_lean_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="mgda_ub needs a representation"):
        grads.lean(grads.mgda_ub(), num_tasks=2)
    small = grads.lean(grads.mgda(), num_tasks=2)
    with pytest.raises(ValueError, match=r"leading task axis of 2; one has shape \(3, 2\)"):
        small.direction(lambda p, x: p @ x, np.ones(2), np.ones((3, 2)), small.init(np.ones(2)))
    small = grads.lean(grads.mgda(), num_tasks=2, shared=lambda path: path == "trunk")
    with pytest.raises(ValueError, match=r"no leaf is shared; the paths are \['head'\]"):
        small.direction(lambda p, x: p["head"] @ x, {"head": np.ones(2)}, np.eye(2), small.init(None))


@pytest.mark.parametrize("use", [grads.lean_gram, "direction"])
def test_lean_refuses_a_tree_that_shares_nothing(use):
    """As a predicate that holds for no leaf: the Gram would be all zeros, and any weights stationary."""
    params, nothing = {"head": np.ones(2), "trunk": np.ones(2)}, {"head": False, "trunk": False}
    loss = lambda p, x: (p["head"] + p["trunk"]) @ x  # noqa: E731
    with pytest.raises(ValueError, match=r"no leaf is shared; the paths are \['head', 'trunk'\]"):
        if use == "direction":
            small = grads.lean(grads.mgda(), num_tasks=2, shared=nothing)
            small.direction(loss, params, np.eye(2), small.init(params))
        else:
            use(loss, params, np.eye(2), shared=nothing)


@functools.cache
def of_hostile_gradients():
    """{method: (update, state)} for each of the losses."""
    g, losses = jacobians.hostile(4, "float32")

    @quick.jit
    @jax.vmap
    def step(rows, values):
        def of(name):
            small, batch = grads.lean(grads.get(name), num_tasks=4), {"row": rows, "value": values}
            loss = lambda p, task: p @ task["row"] + task["value"]  # noqa: E731
            return small.direction(loss, jnp.zeros(6), batch, small.init(None))[1:]

        return quick.each(METHODS, of)

    return jax.device_get([step(g, np.broadcast_to(values, (len(g), 4))) for values in losses])


@pytest.mark.parametrize("name", METHODS)
def test_lean_is_finite(name):
    """The hostile gradients of `test_no_nan_one_trace_and_seeds`: a task that blows up is left out here, too."""
    for results in of_hostile_gradients():
        update, state = results[name]
        assert np.isfinite(update).all() and np.isfinite(state.weights).all()


@functools.cache
def blown_up(name):
    """A batch -> what `lean` and `aggregate` make of it: (direction, weights) of each."""
    small, tx = grads.lean(grads.get(name), num_tasks=3), grads.aggregate(grads.get(name), num_tasks=3)

    @quick.jit
    def run(batch):
        _, got, state = small.direction(jnp.dot, jnp.zeros(6), batch, small.init(None))
        want, other = tx.update(batch, tx.init(jnp.zeros(6)))
        return (got, state.weights), (want, other.weights)

    return run


@pytest.mark.parametrize("huge", [1e19, 1e30, np.nan])
@pytest.mark.parametrize("name", ["mgda", "upgrad"])
def test_lean_treats_a_task_that_blows_up_as_aggregate_does(name, huge):
    """A norm that overflows leaves the others' direction as it is; a NaN reaches the update."""
    batch = np.random.default_rng(2).standard_normal((3, 6), np.float32)
    batch[1] *= huge
    (got, weights), (want, others) = jax.device_get(blown_up(name)(batch))
    assert weights[1] == others[1] == 0
    assert np.isfinite(got).all() == np.isfinite(huge)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_lean_holds_one_gradient_at_a_time():
    """Its whole purpose: temporaries of O(P), where the plain path has T × P numbers."""
    num_tasks, size = 16, 100_000
    loss = lambda p, speed: jnp.mean(jnp.cos(speed * p))  # noqa: E731
    params, batch = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in (size, num_tasks)]
    small, tx = grads.lean(grads.mgda(), num_tasks=num_tasks), grads.aggregate(grads.mgda(), num_tasks=num_tasks)

    def plain(p, b, state):
        losses, g = jax.vmap(jax.value_and_grad(loss), (None, 0))(p, b)
        return tx.update(g, state, p, losses=losses)

    def lean(p, b, state):
        return small.direction(loss, p, b, state)

    def temporaries(step, start) -> int:
        state = jax.eval_shape(start, params)
        return jax.jit(step).lower(params, batch, state).compile().memory_analysis().temp_size_in_bytes

    every = num_tasks * size * params.dtype.itemsize
    assert temporaries(plain, tx.init) > 0.9 * every  # so the comparison can fail
    assert temporaries(lean, small.init) < 0.4 * every


def test_lean_asks_gradnorm_for_its_layer():
    loss = lambda p, x: p["first"] @ x + p["last"] @ x  # noqa: E731
    params = {"first": np.ones(2), "last": np.ones(2)}
    small = grads.lean(grads.gradnorm(), num_tasks=2)
    with pytest.raises(ValueError, match=r"balances the gradients of one layer.*\['first', 'last'\]"):
        jax.eval_shape(lambda p: small.direction(loss, p, jnp.eye(2), small.init(p)), params)
    small = grads.lean(grads.gradnorm(), num_tasks=2, shared=lambda path: path == "last")
    quick.jit(lambda p: small.direction(loss, p, jnp.eye(2), small.init(p)))(params)
