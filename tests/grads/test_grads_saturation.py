"""Directions that no number holds: they end at the dtype's largest, with their sign, and never in an Inf or a NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import reference

from mtjax import grads
from mtjax.grads.gram import _LONG

DTYPES = ["float32", "float64", "bfloat16", "float16"]
SCALE = 2.0**-500  # of the references, in which nothing overflows


def largest(dtype) -> float:
    return float(jnp.finfo(jnp.dtype(dtype)).max)


def extreme(num_tasks: int, size: int, dtype: str) -> np.ndarray:
    """Gradients [T, P] near the largest number: of one sign, cancelling, and beside small ones; in `dtype`."""
    g = np.random.default_rng([num_tasks, size]).uniform(-1, 1, (num_tasks, size))
    g[:, 0], g[:, 1], g[:, 2] = 1, -1, np.resize([1, -1], num_tasks)
    g[:, 3] = np.sort(np.sign(g[:, 3]))
    g[:, 4] = np.where(np.arange(num_tasks) == 0, 1, 1e-6)
    return (g * largest(dtype)).astype(jnp.dtype(dtype))


def saturates(got, want, size, dtype) -> None:
    """`got` is `want`, both scaled, as far as the dtype's numbers reach, to rounding of terms that add up to `size`."""
    got, limit = np.asarray(got).astype(float) * SCALE, largest(dtype) * SCALE
    assert np.isfinite(got).all()
    narrow = float(jnp.finfo(jnp.dtype(dtype)).eps)
    allowed = narrow * np.abs(want) + 60 * min(narrow, 2.0**-23) * size
    assert (np.abs(got - np.clip(want, -limit, limit)) <= allowed).all()
    beyond = np.abs(want) > limit + 2 * allowed
    np.testing.assert_array_equal(got[beyond], np.sign(want[beyond]) * limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, _LONG + 9])
@pytest.mark.parametrize("num_tasks", [1, 3, 50])
def test_weighted_sum(num_tasks, size, dtype):
    """Weights of any size and sign, against float64 at a smaller scale; and long leaves, summed by rows."""
    g = extreme(num_tasks, size, dtype)
    sizes = np.array([[1.0], [1e-3], [1e6], [1e30]])
    drawn = np.random.default_rng(0).uniform(-3, 3, (4, num_tasks)) * sizes
    weights = np.concatenate([np.ones((1, num_tasks)), np.full((1, num_tasks), 1 / num_tasks), drawn])
    with jax.enable_x64(dtype == "float64"):
        weights = np.asarray(jnp.asarray(weights))
        got = quick.jit(jax.vmap(grads.weighted_sum, (0, None)))(weights, jnp.asarray(g))
        alone = quick.jit(grads.weighted_sum)(weights[0], jnp.asarray(g))
        huge = quick.jit(grads.weighted_sum)(jnp.full(num_tasks, jnp.finfo(weights.dtype).max), jnp.asarray(g))
    assert got.dtype == alone.dtype == dtype and np.isfinite(np.asarray(huge).astype(float)).all()
    rows, weights = g.astype(float) * SCALE, weights.astype(float)
    saturates(got, weights @ rows, np.abs(weights) @ np.abs(rows), dtype)
    saturates(alone, rows.sum(0), np.abs(rows).sum(0), dtype)


@pytest.mark.parametrize("size", [7, _LONG + 9])
@pytest.mark.parametrize("num_tasks", [1, 3, 10, 50])
def test_what_is_no_number_stays_none(num_tasks, size):
    """Only a sum of finite numbers is cut: an Inf that became a number would hide a bug."""
    g = jnp.ones((num_tasks, size)).at[0, 0].set(jnp.inf).at[0, 1].set(-jnp.inf).at[-1, 2].set(jnp.nan)
    got = np.asarray(quick.jit(grads.weighted_sum)(jnp.ones(num_tasks), g))
    assert got[0] == np.inf and got[1] == -np.inf and np.isnan(got[2]) and (got[3:] == num_tasks).all()


@pytest.mark.parametrize("size", [1000, _LONG + 8])
@pytest.mark.parametrize("num_tasks", [1, 2, 10, 50])
def test_ordinary_sums_are_as_they_were(num_tasks, size):
    """To divide by a power of two and to multiply again changes no bit, and rows are added in a dot's order."""
    rng = np.random.default_rng(num_tasks)
    g = jnp.asarray(rng.standard_normal((num_tasks, size)) * 10 ** rng.uniform(-8, 8, (num_tasks, size)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal(num_tasks) * 10 ** rng.uniform(-3, 3, num_tasks), jnp.float32)
    plain = jax.jit(lambda w, g: jnp.einsum("t,tp->p", w, g, precision="highest"))(weights, g)
    same = np.mean(jax.jit(grads.weighted_sum)(weights, g) == plain)
    assert same == 1 if size < _LONG else same > 0.999  # the last numbers of a vector may miss a fused multiply-add


def test_the_sum_has_a_derivative():
    g = jnp.ones((3, _LONG))
    of_weights, of_grads = jax.grad(lambda w, g: grads.weighted_sum(w, g).sum(), (0, 1))(jnp.arange(3.0), g)
    np.testing.assert_allclose(of_weights, _LONG)
    np.testing.assert_allclose(of_grads, np.broadcast_to(np.arange(3.0)[:, None], g.shape))
    tx, here = grads.aggregate(grads.trimmed_mean(1), num_tasks=3), jnp.ones(3, bool)
    for options in ({}, {"mask": here}):
        trimmed = lambda g, known=options: tx.update(g, tx.init(g[0]), **known)[0].sum()  # noqa: E731
        slope = jax.grad(trimmed)(jnp.array([[1.0, 5.0], [2.0, 4.0], [3.0, 6.0]]))
        np.testing.assert_allclose(slope, [[0, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tasks", "trim"), [(1, 0), (3, 1), (10, 3), (50, 20)])
def test_trimmed_mean(num_tasks, trim, dtype, masked):
    g = extreme(num_tasks, 20, dtype)
    with jax.enable_x64(dtype == "float64"):
        tx = grads.aggregate(grads.trimmed_mean(trim), num_tasks=num_tasks)
        options = {"mask": jnp.ones(num_tasks, bool)} if masked else {}
        got = quick.jit(jax.vmap(lambda g: tx.update(g, tx.init(g[0]), **options)[0]))(jnp.asarray(g)[None])[0]
    rows = g.astype(float) * SCALE
    saturates(got, reference.trimmed_mean(rows, trim), np.abs(rows).max(0), dtype)


@pytest.mark.parametrize(("trim", "masked"), [(1, False), (1, True), (8, False)])
def test_trimmed_mean_of_a_nan(trim, masked):
    """Not a large value that is left out, nor one that goes unseen: it reaches the update."""
    g = jax.random.normal(jax.random.key(0), (20, 3)).at[4, 1].set(jnp.nan)
    tx = grads.aggregate(grads.trimmed_mean(trim), num_tasks=20)
    options = {"mask": jnp.ones(20, bool)} if masked else {}
    got, _ = quick.jit(tx.update)(g, tx.init(g[0]), **options)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])


@pytest.mark.parametrize("leak", [0.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tasks", [1, 3, 50])
def test_graddrop(num_tasks, dtype, leak):
    """It draws a sign by P = ½(1 + Σg/Σ|g|), a ratio of sums that overflow, and keeps a sum that does."""
    g = extreme(num_tasks, 400, dtype)
    with jax.enable_x64(dtype == "float64"):
        tx = grads.aggregate(grads.graddrop(leak), num_tasks=num_tasks, seed=3)
        state = tx.init(jnp.zeros(400, dtype))
        words = np.asarray(jax.random.bits(jax.random.split(state.inner)[1], (200,), jnp.uint32))
        got = quick.jit(lambda g: tx.update(g, state)[0])(jnp.asarray(g))
    uniform = (np.concatenate([words // 2**16, words % 2**16]) + 0.5) / 2**16
    rows = g.astype(float) * SCALE
    saturates(got, reference.graddrop(rows, uniform, leak), np.abs(rows).sum(0), dtype)


SCALED = ["sum", "uncertainty", "imtl_l", "dwa", "gls", "fixed((1.0, 2.0, 3.0, 4.0))"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("spec", SCALED)
def test_methods_whose_weights_exceed_one(spec, dtype):
    """All gradients are the largest number: so is the direction, at every call, whatever the losses say."""
    top, kind = largest(dtype), jnp.dtype(dtype)
    with jax.enable_x64(dtype == "float64"):
        tx = grads.aggregate(grads.get(spec), num_tasks=4)
        g = jnp.asarray(top * np.array([1.0, -1.0]), kind) * jnp.ones((4, 1), kind)
        state, step = tx.init(g[0]), quick.jit(tx.update)
        for losses in ([1.0, 1.0, 1.0, 1e-6], [-top, top, 1.0, 1e-6], [-top, top, 1.0, 1e-6], [top] * 4):
            got, state = step(g, state, losses=jnp.asarray(losses, kind))
            weights = np.asarray(state.weights)
            assert np.isfinite(weights).all() and (weights >= 0).all()
            want = min(1.0, weights.astype(float).sum()) * top
            np.testing.assert_allclose(np.asarray(got).astype(float), [want, -want], rtol=0.01)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_moco_between_the_largest_numbers():
    """The difference of two of them overflows; what lies half-way between is 0."""
    top = largest("float32")
    for beta, want in ((0.5, [0.5, -0.25]), (1.0, [1.0, -1.0])):
        tx = grads.aggregate(grads.moco(beta), num_tasks=1)
        state = tx.init(jnp.zeros(1))
        for sign, expected in zip((1.0, -1.0), want, strict=True):
            got, state = quick.jit(tx.update)(jnp.full((1, 1), sign * top), state)
            np.testing.assert_allclose(got, expected * top, rtol=1e-6)


def test_db_mtl_of_many_large_numbers():
    """Their squares' sum overflowed from some thousand on, and ∞/∞ is NaN."""
    tx = grads.aggregate(grads.db_mtl(), num_tasks=3)
    g = jnp.full((3, 40_000), largest("float32"))
    got, state = quick.jit(tx.update)(g, tx.init(g[0]), losses=jnp.ones(3))
    assert np.isfinite(got).all() and (got > 0).all() and np.isfinite(state.weights).all()


@pytest.mark.parametrize("surrogate", ["softplus", jnp.exp])
def test_gradnorm_of_a_surrogate_that_leaves_the_numbers(surrogate):
    """log(1 + e^L) of a policy's loss is 0 below −104, and the ratio of two of them NaN; e^L is ∞ above 88."""
    method = grads.gradnorm(surrogate=surrogate)
    state = method.init(3)
    for losses in ([-200.0, 1e30, 0.0], [-1e30, 300.0, 1.0], [-200.0, 300.0, 2.0]):
        weights, state = method.update(jnp.eye(3), state, losses=jnp.array(losses))
        assert np.isfinite(weights).all() and np.isfinite(state.weights).all()
        np.testing.assert_allclose(state.weights.sum(), 3, rtol=1e-5)


def test_stch_of_a_task_without_preference():
    top = largest("float32")
    method = grads.stch(preference=(0.0, 0.5, 0.5), ideal=(-top, 0.0, 0.0))
    weights, _ = method.update(jnp.eye(3), (), losses=jnp.array([top, 1.0, 1.0]))
    np.testing.assert_allclose(weights, [0, 0.25, 0.25], atol=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [3, 10])
def test_accumulate(k, dtype):
    """A mean of the largest number is that number: tenths of it, rounded and added, exceed it."""
    top, kind = largest(dtype), jnp.dtype(dtype)
    tx = grads.accumulate(grads.aggregate(grads.mean(), num_tasks=2), k, num_tasks=2)
    g = jnp.asarray(np.array([[top, -top], [top, -top]]), kind)
    state, step, here = tx.init(g[0]), quick.jit(tx.update), jnp.ones(2, bool)
    for _ in range(k):
        got, state = step(g, state, losses=jnp.full(2, largest("float32")), mask=here)
    np.testing.assert_allclose(np.asarray(got).astype(float), [top, -top], rtol=0.01)


def test_what_was_infinite_stays_so_in_the_mean():
    """In whichever micro-batch it came: an Inf that became a number would hide a bug."""
    for gradients in ([jnp.inf, 1.0], [1.0, jnp.inf]):
        tx = grads.accumulate(grads.aggregate(grads.sum(), num_tasks=1), 2, num_tasks=1)
        state = tx.init(jnp.zeros(1))
        for g in gradients:
            got, state = tx.update(jnp.full((1, 1), g), state)
        np.testing.assert_array_equal(got, [jnp.inf])
    assert not np.isfinite(grads.weighted_sum(jnp.array([jnp.inf, 1.0]), jnp.ones((2, 3)))).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lean(dtype):
    """What is shared and what is private, summed one gradient at a time."""
    top = largest(dtype)
    rows = (jnp.array([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [1.0, -1.0, -1.0]]) * top).astype(dtype)
    small = grads.lean(grads.sum(), num_tasks=3, shared=lambda path: path == "a")
    loss = lambda p, row: p["a"] @ row + p["b"] @ row  # noqa: E731
    params = {"a": jnp.zeros(3, dtype), "b": jnp.zeros(3, dtype)}
    direction = quick.jit(functools.partial(small.direction, loss))
    _, got, _ = direction(params, rows, small.init(params))
    for name in ("a", "b"):
        assert got[name].dtype == dtype
        np.testing.assert_allclose(np.asarray(got[name]).astype(float), [top, top, -top], rtol=1e-6)
    least = 1e-30 if dtype != "float16" else float(jnp.finfo(dtype).tiny)  # which float32 holds with room to spare
    _, got, _ = direction(params, jnp.full((3, 3), least, dtype), small.init(params))
    np.testing.assert_allclose(np.asarray(got["a"]).astype(float), 3 * least, rtol=0.01)


@pytest.mark.parametrize("name", ["mean", "sum", "graddrop", "trimmed_mean", "mgda"])
def test_private_leaves(name):
    """They are summed whatever the method does with the shared ones; an optimiser follows."""
    top = largest("float32")
    tx = optax.chain(grads.aggregate(grads.get(name), num_tasks=4, shared=lambda p: p == "a"), optax.sgd(1.0))
    g = {"a": jnp.ones((4, 2)), "b": jnp.array([[1.0, -1.0]]) * jnp.full((4, 1), top)}
    params = jax.tree.map(lambda x: x[0] * 0, g)
    got, _ = quick.jit(tx.update)(g, tx.init(params), params)
    np.testing.assert_allclose(got["b"], [-top, top])
