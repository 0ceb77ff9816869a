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
from mtjax.grads.methods import graddrop

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
        weights = weights.astype("float64" if dtype == "float64" else "float32")
        both = lambda rows, one, g: (jax.vmap(grads.weighted_sum, (0, None))(rows, g), grads.weighted_sum(one, g))  # noqa: E731
        sums = quick.jit(both)
        got, alone = jax.device_get(sums(weights, weights[0], g))
        _, huge = sums(weights, np.full_like(weights[0], np.finfo(weights.dtype).max), g)
    assert got.dtype == alone.dtype == dtype and np.isfinite(np.asarray(huge).astype(float)).all()
    rows, weights = g.astype(float) * SCALE, weights.astype(float)
    saturates(got, weights @ rows, np.abs(weights) @ np.abs(rows), dtype)
    saturates(alone, rows.sum(0), np.abs(rows).sum(0), dtype)


@pytest.mark.parametrize("size", [7, _LONG + 9])
@pytest.mark.parametrize("num_tasks", [1, 3, 10, 50])
def test_what_is_no_number_stays_none(num_tasks, size):
    """Only a sum of finite numbers is cut: an Inf that became a number would hide a bug."""
    g = np.ones((num_tasks, size), np.float32)
    g[0, 0], g[0, 1], g[-1, 2] = np.inf, -np.inf, np.nan
    got = np.asarray(quick.jit(grads.weighted_sum)(np.ones(num_tasks, np.float32), g))
    assert got[0] == np.inf and got[1] == -np.inf and np.isnan(got[2]) and (got[3:] == num_tasks).all()


@pytest.mark.parametrize("size", [1000, _LONG + 8])
@pytest.mark.parametrize("num_tasks", [1, 2, 10, 50])
def test_ordinary_sums_are_as_they_were(num_tasks, size):
    """To divide by a power of two and to multiply again changes no bit, and rows are added in a dot's order."""
    rng = np.random.default_rng(num_tasks)
    g = (rng.standard_normal((num_tasks, size)) * 10 ** rng.uniform(-8, 8, (num_tasks, size))).astype(np.float32)
    weights = (rng.standard_normal(num_tasks) * 10 ** rng.uniform(-3, 3, num_tasks)).astype(np.float32)
    plain = jax.jit(lambda w, g: jnp.einsum("t,tp->p", w, g, precision="highest"))(weights, g)
    same = np.mean(np.asarray(jax.jit(grads.weighted_sum)(weights, g)) == np.asarray(plain))
    assert same == 1 if size < _LONG else same > 0.999  # the last numbers of a vector may miss a fused multiply-add


def test_the_sum_has_a_derivative():
    g = np.ones((3, _LONG), np.float32)
    derivative = quick.jit(jax.grad(lambda w, g: grads.weighted_sum(w, g).sum(), (0, 1)))
    of_weights, of_grads = derivative(np.arange(3, dtype=np.float32), g)
    np.testing.assert_allclose(of_weights, _LONG)
    np.testing.assert_allclose(of_grads, np.broadcast_to(np.arange(3.0)[:, None], g.shape))
    tx, here = grads.aggregate(grads.trimmed_mean(1), num_tasks=3), np.ones(3, bool)
    for options in ({}, {"mask": here}):
        trimmed = lambda g, known=options: tx.update(g, tx.init(g[0]), **known)[0].sum()  # noqa: E731
        slope = quick.jit(jax.grad(trimmed))(np.array([[1.0, 5.0], [2.0, 4.0], [3.0, 6.0]], np.float32))
        np.testing.assert_allclose(slope, [[0, 1], [1, 0], [0, 0]])


TRIMS = [(1, 0), (3, 1), (10, 3), (50, 20)]  # (T, trim)


@functools.cache
def trimmed_means(dtype):
    """Of all sizes, with and without a mask: {(T, trim, masked): a direction}."""

    def one(num_tasks, trim, masked, g):
        tx = grads.aggregate(grads.trimmed_mean(trim), num_tasks=num_tasks)
        options = {"mask": jnp.ones(num_tasks, bool)} if masked else {}
        return jax.vmap(lambda g: tx.update(g, tx.init(g[0]), **options)[0])(g[None])[0]

    cases = [(*case, masked) for case in TRIMS for masked in (False, True)]
    with jax.enable_x64(dtype == "float64"):
        run = quick.jit(lambda given: quick.each(cases, lambda case: one(*case, given[case[0]])))
        return jax.device_get(run({num_tasks: extreme(num_tasks, 20, dtype) for num_tasks, _ in TRIMS}))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tasks", "trim"), TRIMS)
def test_trimmed_mean(num_tasks, trim, dtype, masked):
    g = extreme(num_tasks, 20, dtype)
    got = trimmed_means(dtype)[num_tasks, trim, masked]
    rows = g.astype(float) * SCALE
    saturates(got, reference.trimmed_mean(rows, trim), np.abs(rows).max(0), dtype)


@pytest.mark.parametrize(("trim", "masked"), [(1, False), (1, True), (8, False)])
def test_trimmed_mean_of_a_nan(trim, masked):
    """Not a large value that is left out, nor one that goes unseen: it reaches the update."""
    g = np.random.default_rng(0).standard_normal((20, 3), np.float32)
    g[4, 1] = np.nan
    tx = grads.aggregate(grads.trimmed_mean(trim), num_tasks=20)
    options = {"mask": np.ones(20, bool)} if masked else {}
    got = quick.jit(lambda g, options: tx.update(g, tx.init(g[0]), **options)[0])(g, options)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])


DROPS = [(num_tasks, leak) for num_tasks in (1, 3, 50) for leak in (0.0, 0.5)]


@functools.cache
def drops(dtype):
    """What GradDrop draws and its direction, of all sizes and leaks."""

    def one(num_tasks, leak, g):
        tx = grads.aggregate(grads.graddrop(leak), num_tasks=num_tasks, seed=3)
        state = tx.init(g[0])
        draw = jax.random.split(state.inner)[1]
        return graddrop._uniform(draw, (400,), jnp.promote_types(dtype, jnp.float32)), tx.update(g, state)[0]

    with jax.enable_x64(dtype == "float64"):
        run = quick.jit(lambda given: quick.each(DROPS, lambda case: one(*case, given[case[0]])))
        return jax.device_get(run({num_tasks: extreme(num_tasks, 400, dtype) for num_tasks, _ in DROPS}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tasks", "leak"), DROPS)
def test_graddrop(num_tasks, dtype, leak):
    """It draws a sign by P = ½(1 + Σg/Σ|g|), a ratio of sums that overflow, and keeps a sum that does."""
    g = extreme(num_tasks, 400, dtype)
    uniform, got = drops(dtype)[num_tasks, leak]
    rows = g.astype(float) * SCALE
    saturates(got, reference.graddrop(rows, uniform, leak), np.abs(rows).sum(0), dtype)


SCALED = ["sum", "uncertainty", "imtl_l", "dwa", "gls", "fixed((1.0, 2.0, 3.0, 4.0))"]


@functools.cache
def of_the_largest(dtype):
    """Four calls whose gradients all are the largest number: {spec: (direction, state)} of each."""
    top, kind = largest(dtype), jnp.dtype(dtype)
    with jax.enable_x64(dtype == "float64"):
        txs = {spec: grads.aggregate(grads.get(spec), num_tasks=4) for spec in SCALED}
        g = np.tile(np.array([top, -top]).astype(kind), (4, 1))
        states, results = quick.jit(lambda: {spec: tx.init(g[0]) for spec, tx in txs.items()})(), []
        step = quick.jit(lambda g, states, x: quick.each(txs, lambda s: txs[s].update(g, states[s], losses=x)))
        for losses in ([1.0, 1.0, 1.0, 1e-6], [-top, top, 1.0, 1e-6], [-top, top, 1.0, 1e-6], [top] * 4):
            results.append(step(g, states, np.array(losses).astype(kind)))
            states = {spec: state for spec, (_, state) in results[-1].items()}
        return jax.device_get(results)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("spec", SCALED)
def test_methods_whose_weights_exceed_one(spec, dtype):
    """All gradients are the largest number: so is the direction, at every call, whatever the losses say."""
    top = largest(dtype)
    for results in of_the_largest(dtype):
        got, state = results[spec]
        weights = state.weights
        assert np.isfinite(weights).all() and (weights >= 0).all()
        want = min(1.0, weights.astype(float).sum()) * top
        np.testing.assert_allclose(got.astype(float), [want, -want], rtol=0.01)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_moco_between_the_largest_numbers():
    """The difference of two of them overflows; what lies half-way between is 0."""
    top = largest("float32")
    for beta, want in ((0.5, [0.5, -0.25]), (1.0, [1.0, -1.0])):
        tx = grads.aggregate(grads.moco(beta), num_tasks=1)
        state, step = quick.jit(tx.init)(np.zeros(1, np.float32)), quick.jit(tx.update)
        for sign, expected in zip((1.0, -1.0), want, strict=True):
            got, state = step(np.full((1, 1), sign * top, np.float32), state)
            np.testing.assert_allclose(got, expected * top, rtol=1e-6)


def test_db_mtl_of_many_large_numbers():
    """Their squares' sum overflowed from some thousand on, and ∞/∞ is NaN."""
    tx = grads.aggregate(grads.db_mtl(), num_tasks=3)
    g = np.full((3, 40_000), largest("float32"), np.float32)
    got, state = jax.device_get(quick.jit(lambda g: tx.update(g, tx.init(g[0]), losses=jnp.ones(3)))(g))
    assert np.isfinite(got).all() and (got > 0).all() and np.isfinite(state.weights).all()


@pytest.mark.parametrize("surrogate", ["softplus", jnp.exp])
def test_gradnorm_of_a_surrogate_that_leaves_the_numbers(surrogate):
    """log(1 + e^L) of a policy's loss is 0 below −104, and the ratio of two of them NaN; e^L is ∞ above 88."""
    method = grads.gradnorm(surrogate=surrogate)
    state, step = quick.jit(lambda: method.init(3))(), quick.jit(method.update)
    for losses in ([-200.0, 1e30, 0.0], [-1e30, 300.0, 1.0], [-200.0, 300.0, 2.0]):
        weights, state = step(np.eye(3, dtype=np.float32), state, losses=np.array(losses, np.float32))
        assert np.isfinite(weights).all() and np.isfinite(state.weights).all()
        np.testing.assert_allclose(np.asarray(state.weights).sum(), 3, rtol=1e-5)


def test_stch_of_a_task_without_preference():
    top = largest("float32")
    method = grads.stch(preference=(0.0, 0.5, 0.5), ideal=(-top, 0.0, 0.0))
    weights, _ = quick.jit(method.update)(np.eye(3), (), losses=np.array([top, 1.0, 1.0], np.float32))
    np.testing.assert_allclose(weights, [0, 0.25, 0.25], atol=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [3, 10])
def test_accumulate(k, dtype):
    """A mean of the largest number is that number: tenths of it, rounded and added, exceed it."""
    top, kind = largest(dtype), jnp.dtype(dtype)
    tx = grads.accumulate(grads.aggregate(grads.mean(), num_tasks=2), k, num_tasks=2)
    g = np.array([[top, -top], [top, -top]]).astype(kind)
    state, step, here = quick.jit(tx.init)(g[0]), quick.jit(tx.update), np.ones(2, bool)
    for _ in range(k):
        got, state = step(g, state, losses=np.full(2, largest("float32"), np.float32), mask=here)
    np.testing.assert_allclose(np.asarray(got).astype(float), [top, -top], rtol=0.01)


def test_what_was_infinite_stays_so_in_the_mean():
    """In whichever micro-batch it came: an Inf that became a number would hide a bug."""
    tx = grads.accumulate(grads.aggregate(grads.sum(), num_tasks=1), 2, num_tasks=1)
    start, step = quick.jit(tx.init)(np.zeros(1, np.float32)), quick.jit(tx.update)
    for gradients in ([np.inf, 1.0], [1.0, np.inf]):
        state = start
        for g in gradients:
            got, state = step(np.full((1, 1), g, np.float32), state)
        np.testing.assert_array_equal(got, [np.inf])
    sums = quick.jit(grads.weighted_sum)(np.array([np.inf, 1.0], np.float32), np.ones((2, 3), np.float32))
    assert not np.isfinite(sums).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lean(dtype):
    """What is shared and what is private, summed one gradient at a time."""
    top = largest(dtype)
    rows = (np.array([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [1.0, -1.0, -1.0]]) * top).astype(jnp.dtype(dtype))
    small = grads.lean(grads.sum(), num_tasks=3, shared=lambda path: path == "a")
    loss = lambda p, row: p["a"] @ row + p["b"] @ row  # noqa: E731
    params = {"a": np.zeros(3, rows.dtype), "b": np.zeros(3, rows.dtype)}
    direction = quick.jit(lambda p, rows: small.direction(loss, p, rows, small.init(p))[1])
    got = direction(params, rows)
    for name in ("a", "b"):
        assert got[name].dtype == dtype
        np.testing.assert_allclose(np.asarray(got[name]).astype(float), [top, top, -top], rtol=1e-6)
    least = 1e-30 if dtype != "float16" else float(jnp.finfo(dtype).tiny)  # which float32 holds with room to spare
    got = direction(params, np.full((3, 3), least, rows.dtype))
    np.testing.assert_allclose(np.asarray(got["a"]).astype(float), 3 * least, rtol=0.01)


@pytest.mark.parametrize("name", ["mean", "sum", "graddrop", "trimmed_mean", "mgda"])
def test_private_leaves(name):
    """They are summed whatever the method does with the shared ones; an optimiser follows."""
    top = largest("float32")
    tx = optax.chain(grads.aggregate(grads.get(name), num_tasks=4, shared=lambda p: p == "a"), optax.sgd(1.0))
    g = {"a": np.ones((4, 2), np.float32), "b": np.tile(np.array([top, -top], np.float32), (4, 1))}
    params = jax.tree.map(lambda x: x[0] * 0, g)
    got = quick.jit(lambda g, params: tx.update(g, tx.init(params), params)[0])(g, params)
    np.testing.assert_allclose(got["b"], [-top, top])


def test_normalised_gradients_do_not_overflow():
    """Divided by a small loss, a float16 gradient is beyond its largest number."""
    tx = grads.aggregate(grads.normalize(grads.graddrop(leak=1.0), by="loss"), num_tasks=2)
    g = jnp.ones((2, 1), jnp.float16)
    got, _ = tx.update(g, tx.init(g[0]), losses=jnp.full(2, 1e-6))
    assert got == jnp.finfo(jnp.float16).max
