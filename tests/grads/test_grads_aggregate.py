"""`aggregate`, the combinators and the other paths: what a user composes must keep its promises."""

import functools
import os
import pathlib
import subprocess
import sys

import chex
import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import reference
from optax.experimental import aggregating

from mtjax import grads
from mtjax.grads import gram, registry

ALL = sorted(set(grads.names()) - {"every_k", "normalize", "cr_mogm", "fixed", "mgda_ub"})
COMPOSED = (
    "cr_mogm(mgda)", "every_k(mgda, 2)", "normalize(mgda)", 'normalize(moco, by="loss")', "fixed", "mgda_ub",
    'mgda("loss")', 'mgda("loss+")', 'gradnorm(surrogate="softplus")', "graddrop(0.5)", "trimmed_mean(0)",
    "dwa(window=2)", "moco(beta=1.0)", "db_mtl(beta=0.0)", 'uncertainty(likelihood="softmax")',
)  # fmt: skip
PARAMS = jax.tree.map(np.float32, {"head": {"w": np.ones(3)}, "trunk": {"b": np.ones(2), "w": np.ones((2, 4))}})
ROWS_APART = ("excess_mtl", "moco", "db_mtl", "graddrop", "trimmed_mean")  # they work on the gradients themselves


def sample(num_tasks: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.standard_normal((num_tasks, *p.shape), np.float32), PARAMS)


def from_the_start(tx):
    """Updates and state of a first step, of gradients and what else it is given."""
    return lambda g, given: tx.update(g, tx.init(jax.tree.map(lambda x: x[0], g)), **given)


def first_step(tx, g, **given):
    return quick.jit(from_the_start(tx))(g, given)


def try_step(tx, g, **given) -> None:
    """For what is refused, which it is before anything compiles."""
    jax.eval_shape(from_the_start(tx), g, given)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@functools.cache
def run_all(num_tasks: int, dtype: str) -> tuple[dict, list[tuple[dict, dict]], dict[str, Exception]]:
    """Every method's states; states and updates after three steps, for each of the losses; and what methods raise.

    Hostile gradients, batched over seeds as a scan's carry. One program for all methods, since that compiles faster.
    """
    chex.clear_trace_counter()
    methods = {name: grads.get(name) for name in (*ALL, *COMPOSED) if name != "fixed"}
    methods["fixed"] = grads.fixed(tuple(range(num_tasks)))
    g, rows_of_losses = jacobians.hostile(num_tasks, dtype)
    errors = {}

    def start(seed):
        txs = {name: grads.aggregate(method, num_tasks=num_tasks, seed=seed) for name, method in methods.items()}
        return {name: tx.init(g[0, 0]) for name, tx in txs.items()}

    def three_steps(name, g, losses, states):
        tx = grads.aggregate(methods[name], num_tasks=num_tasks)

        def once(g, losses, state):
            gram = grads.gram_matrix(g) if name == "mgda_ub" else None
            return tx.update(g, state, losses=losses, gram=gram)[::-1]

        return jax.lax.scan(lambda s, _: jax.vmap(once)(g, losses, s), states, None, length=3)

    @quick.jit
    @chex.assert_max_traces(1)
    def run(g, losses, states):
        results = {}
        for name in methods:
            try:
                results[name] = three_steps(name, g, losses, states[name])
            except Exception as error:  # is that method's
                errors[name] = error
        return results

    with jax.enable_x64(dtype == "float64"):
        states = quick.jit(jax.vmap(start))(np.arange(len(g)))
        return states, [run(g, np.broadcast_to(row, (len(g), num_tasks)), states) for row in rows_of_losses], errors


@pytest.mark.parametrize(("num_tasks", "dtype"), [(4, "float32"), (10, "float32"), (4, "float64"), (4, "bfloat16")])
@pytest.mark.parametrize("name", [*ALL, *COMPOSED])
def test_no_nan_one_trace_and_seeds(name, num_tasks, dtype):
    """Hostile gradients, batched over seeds as a scan's carry: finite, traced once, dtypes fixed."""
    states, results, errors = run_all(num_tasks, dtype)
    if name in errors:
        raise errors[name]
    for result in results:
        after, updates = result[name]
        assert updates.dtype == dtype and np.isfinite(np.asarray(updates).astype(float)).all()
        chex.assert_trees_all_equal_shapes_and_dtypes(after, states[name])


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_gradients(name):
    """The update has the gradients' dtype; what a method sees and remembers has float32."""
    tx = grads.aggregate(grads.get(name), num_tasks=4)
    g = jax.ShapeDtypeStruct((4, 6), jnp.bfloat16)
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((6,), jnp.bfloat16))
    update, after = jax.eval_shape(lambda g, s: tx.update(g, s, losses=jnp.ones(4)), g, state)
    assert update.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(state):
        assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@functools.cache
def in_both() -> tuple[dict, dict]:
    """The updates of bfloat16 gradients, and of the same ones in float32."""
    g = np.random.default_rng(0).standard_normal((10, 300)).astype(jnp.bfloat16)
    txs = {name: grads.aggregate(grads.get(name), num_tasks=10) for name in ROWS_APART}
    step = lambda g: {name: tx.update(g, tx.init(g[0]), losses=jnp.ones(10))[0] for name, tx in txs.items()}  # noqa: E731
    return jax.device_get(quick.jit(lambda *both: tuple(map(step, both)))(g, g.astype(np.float32)))


@pytest.mark.parametrize("name", ROWS_APART)
def test_bfloat16_is_rounded_once(name):
    """The methods that work on the gradients themselves compute in float32: they round the result and no more."""
    got, want = [updates[name] for updates in in_both()]
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=0.01, atol=0.003 * np.abs(want).max())


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="XLA's CPU stores what long sums are of until jaxlib 0.11")
@pytest.mark.parametrize("name", ROWS_APART)
def test_nothing_of_the_jacobians_size_is_stored_twice(name):
    """Temporaries of [T, P] made ExcessMTL four times slower (10 × 1M): their pages are new at every call."""
    num_tasks, size = 16, 100_000
    tx = grads.aggregate(grads.get(name), num_tasks=num_tasks)
    g = jax.ShapeDtypeStruct((num_tasks, size), jnp.float32)
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((size,), jnp.float32))
    step = jax.jit(lambda g, state: tx.update(g, state, losses=np.ones(num_tasks)), donate_argnums=1)
    memory = step.lower(g, state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * num_tasks * size * 4


def test_is_an_optax_transform_and_an_aggregator():
    tx = grads.aggregate(grads.mgda(), num_tasks=2)
    assert isinstance(tx, optax.GradientTransformationExtraArgs) and isinstance(tx, aggregating.Aggregator)


@pytest.mark.parametrize("shared", [lambda path: path.startswith("trunk"), "tree"])
def test_private_leaves_are_summed(shared):
    if shared == "tree":
        shared = {"head": {"w": False}, "trunk": {"b": True, "w": True}}
    g = sample(3)
    tx = grads.aggregate(grads.mgda(), num_tasks=3, shared=shared)
    updates, state = jax.device_get(first_step(tx, g))
    np.testing.assert_allclose(updates["head"]["w"], g["head"]["w"].sum(0), rtol=1e-5)
    J = np.concatenate([np.reshape(x, (3, -1)) for x in jax.tree.leaves(g["trunk"])], 1)
    np.testing.assert_allclose(flat(updates["trunk"]), reference.mgda(J.astype(float)), atol=1e-3)
    np.testing.assert_allclose(state.gram, J @ J.T, rtol=1e-4)
    np.testing.assert_allclose(state.weights @ J, flat(updates["trunk"]), atol=1e-5)


@pytest.mark.parametrize("groups", ["leaf", lambda path: path.split("/")[0]])
def test_groups_are_solved_apart(groups):
    g = sample(3)
    tx = grads.aggregate(grads.mgda(), num_tasks=3, groups=groups)
    updates, state = jax.device_get(first_step(tx, g))
    assert state.group_weights.shape == (3 if groups == "leaf" else 2, 3)
    want = reference.mgda(np.asarray(g["head"]["w"], float))
    np.testing.assert_allclose(updates["head"]["w"], want, atol=1e-3)


def test_every_k():
    tx = grads.aggregate(grads.every_k(grads.mgda(), 3), num_tasks=3)
    step = quick.jit(tx.update)
    state, weights = quick.jit(tx.init)(np.ones(8)), []
    for seed in range(4):
        J = jacobians.jacobian("iid", 3, 8, seed).astype(np.float32)
        updates, state = step(J, state)
        weights.append(np.asarray(state.weights))
        np.testing.assert_allclose(updates, weights[-1] @ J, rtol=1e-5)
    np.testing.assert_array_equal(weights[0], weights[2])
    assert np.abs(weights[3] - weights[0]).max() > 1e-3


def test_accumulate_keeps_the_task_axis():
    """Four micro-batches make the step that their mean Jacobian makes."""
    chain = optax.chain(grads.aggregate(grads.mgda(), num_tasks=3), optax.adam(0.1))
    tx = grads.accumulate(chain, 4, num_tasks=3)
    J = np.stack([jacobians.jacobian("iid", 3, 8, seed) for seed in range(4)]).astype(np.float32)
    state, step = quick.jit(tx.init)(np.ones(8)), quick.jit(tx.update)
    for n, g in enumerate(J):
        updates, state = step(g, state, np.ones(8), losses=np.ones(3))
        assert (np.abs(updates).max() > 0) == (n == 3)
    want, _ = first_step(chain, J.mean(0), losses=np.ones(3))
    np.testing.assert_allclose(updates, want, rtol=1e-4)


def test_accumulate_leaves_absent_tasks_out():
    """Each task is averaged over the micro-batches that it is in; NaN elsewhere; one that is in none is absent."""
    chain = grads.aggregate(grads.gls(), num_tasks=3)
    tx = grads.accumulate(chain, 3, num_tasks=3)
    here = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], bool)
    J = np.stack([jacobians.jacobian("iid", 3, 8, seed) for seed in range(3)])
    losses = np.array([[1.0, 4.0, 1.0], [2.0, 1.0, 1.0], [3.0, 6.0, 1.0]])
    state, step = quick.jit(tx.init)(np.ones(8)), quick.jit(tx.update)
    for g, loss, mask in zip(J, losses, here, strict=True):
        g, loss = np.where(mask[:, None], g, np.nan), np.where(mask, loss, np.nan)
        updates, state = step(g.astype(np.float32), state, losses=loss, mask=mask)
    rows = np.stack([J[:, 0].mean(0), J[[0, 2], 1].mean(0), J[0, 2]])
    given = {"losses": np.array([2.0, 5.0, 1.0]), "mask": np.array([True, True, False])}
    want, _ = first_step(chain, rows.astype(np.float32), **given)
    np.testing.assert_allclose(updates, want, rtol=1e-5)
    assert np.asarray(state.count) == 0 and not np.asarray(state.present).any()


def test_accumulate_refuses_what_it_cannot_average():
    tx = grads.accumulate(grads.aggregate(grads.modo(), num_tasks=2), 2, num_tasks=2)
    with pytest.raises(ValueError, match="accumulate takes no gram"):
        try_step(tx, np.eye(2), gram=np.eye(2))
    with pytest.raises(ValueError, match="leading task axis of 2"):
        try_step(tx, np.ones((1, 2)))
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got 0"):
        grads.accumulate(tx, 0, num_tasks=2)


def test_normalise():
    J = jacobians.jacobian("spread", 3, 8)
    tx = grads.aggregate(grads.normalize(grads.mgda()), num_tasks=3)
    got, _ = first_step(tx, J.astype(np.float32))
    np.testing.assert_allclose(got, reference.mgda(reference.unit(J)), atol=1e-3)


def test_cross_gram_and_representation():
    """A Gram given by the user is the one that the method sees."""
    J = jacobians.jacobian("iid", 3, 8).astype(np.float32)
    tx = grads.aggregate(grads.mgda_ub(), num_tasks=3)
    with pytest.raises(ValueError, match="representation"):
        try_step(tx, J)
    updates, _ = first_step(tx, J, gram=np.eye(3))
    np.testing.assert_allclose(updates, J.mean(0), atol=1e-3)
    np.testing.assert_allclose(quick.jit(grads.gram_matrix)(J, 2 * J), 2 * J @ J.T, rtol=1e-5)


@pytest.mark.parametrize("spec", ROWS_APART)
def test_a_gram_for_a_method_that_does_not_look_at_one(spec):
    """It was dropped without a word, and with it the double sample or the representation that it stood for."""
    tx = grads.aggregate(grads.get(spec), num_tasks=3)
    with pytest.raises(ValueError, match=rf"gram is only for methods that use the Gram matrix; {spec} works on"):
        try_step(tx, np.eye(3), losses=np.ones(3), gram=np.eye(3))


@pytest.mark.parametrize("num_tasks", [1, 10, 16, 18, 33, 50, 57, 81, 165])
@pytest.mark.parametrize(("times", "more"), [(1, 0), (1, 1), (5, 33)], ids=["product", "pieces", "steps"])
def test_gram_of_long_gradients(num_tasks, times, more):
    """In pieces on the CPU: their sum, the columns and rows left over, blocks that mirror the right ones."""
    size = times * (gram._SMALL // num_tasks) + more
    left, right = np.random.default_rng(0).standard_normal((2, num_tasks, size))
    scale = {"rtol": 0, "atol": 2e-6 * size}
    both = quick.jit(lambda a, b: (grads.gram_matrix(a), grads.gram_matrix(a, b)))
    alone, cross = jax.device_get(both(left.astype(np.float32), right.astype(np.float32)))
    np.testing.assert_allclose(alone, left @ left.T, **scale)
    np.testing.assert_array_equal(alone, alone.T)
    np.testing.assert_allclose(cross, left @ right.T, **scale)


@pytest.mark.parametrize(
    "wrap", [lambda m: grads.aggregate(m, num_tasks=2), lambda m: grads.lean(m, num_tasks=2),
             lambda m: grads.every_k(m, 2), grads.cr_mogm, grads.normalize],
)  # fmt: skip
def test_what_is_no_method(wrap):
    """A factory that was not called, or a name: said where it was given, not by an AttributeError later."""
    with pytest.raises(ValueError, match=r"takes a method, not the function that makes it: call it, grads.pcgrad\(\)"):
        wrap(grads.pcgrad)
    with pytest.raises(ValueError, match=r"takes a method such as grads.pcgrad\(\), not 'pcgrad'; grads.get"):
        wrap("pcgrad")


def test_what_is_no_text():
    """`get` takes a method as it is; a factory, and a method where only its text will do, are said to be that."""
    assert isinstance(grads.get(grads.pcgrad()), grads.Weighting)
    with pytest.raises(ValueError, match=r"get takes a method, not the function that makes it: call it, grads.pcgrad"):
        grads.get(grads.pcgrad)
    with pytest.raises(ValueError, match="get takes a method such as"):
        grads.residual(3, jnp.eye(2), jnp.ones(2))
    with pytest.raises(ValueError, match="expected a method as a string, such as .*, not a Weighting"):
        grads.tunable(grads.cagrad())


def buffers(tree):
    return [
        x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]


@pytest.mark.parametrize("name", [*ALL, "cr_mogm(famo)"])
def test_a_new_state_can_be_donated(name):
    """No array stands in two of its leaves."""
    method = grads.get(name)
    states = [grads.accumulate(grads.aggregate(method, num_tasks=4), 2, num_tasks=4).init({"w": jnp.ones(3)})]
    states += [grads.lean(method, num_tasks=4).init(None)] if isinstance(method, grads.Weighting) else []
    for state in states:
        found = buffers(state)
        assert len(set(found)) == len(found)


def test_an_overflow_stays_out_of_the_state():
    """A task whose squared norm overflows counts as absent: for the method, and for who looks at the Gram later."""
    for name in ("mgda", "mean", "graddrop"):
        tx = grads.aggregate(grads.get(name), num_tasks=2, track_gram=True)
        _, state = tx.update(jnp.array([[1e20, 0.0], [0.0, 2.0]]), tx.init(jnp.zeros(2)))
        np.testing.assert_array_equal(state.gram, [[0, 0], [0, 4]])
        measures = grads.conflict(state.gram)
        assert all(jnp.isfinite(x).all() for x in (*measures.values(), grads.pareto_distance(state.gram)))


def test_observing_between_the_calls_of_every_k():
    """FAMO compares losses before and after one step; where it was not told of the former, it learns nothing."""
    method = grads.every_k(grads.famo(gamma=0.0), 2)
    tx = grads.aggregate(method, num_tasks=2)
    state, task_grads = tx.init(jnp.zeros(2)), jnp.eye(2)
    for before, after in (([1.0, 1.0], [1.0, 1.0]), ([10.0, 1.0], [10.0, 1.0])):  # no step changes any loss
        _, state = tx.update(task_grads, state, losses=jnp.array(before))
        state = grads.observe(method, state, jnp.array(after))
    np.testing.assert_array_equal(state.inner.logits, 0)
    _, state = tx.update(task_grads, state, losses=jnp.array([1.0, 1.0]))
    state = grads.observe(method, state, jnp.array([0.5, 1.0]))
    assert state.inner.logits[0, 0] < state.inner.logits[0, 1]


def test_observing_a_state_of_something_else():
    with pytest.raises(ValueError, match="holds no AggregateState"):
        grads.observe(grads.famo(), optax.adam(1e-3).init(jnp.ones(2)), jnp.ones(2))


def test_missing_losses_and_bad_shapes():
    for name in ("gradnorm", "famo", "dwa", "gls", "stch", "imtl_l", "uncertainty", "db_mtl"):
        tx = grads.aggregate(grads.get(name), num_tasks=2)
        with pytest.raises(ValueError, match=f"{name} needs the losses.*losses=losses"):
            try_step(tx, np.eye(2))
    for spec in ('mgda("loss")', 'mgda("loss+")', 'normalize(mgda, by="loss")', "cr_mogm(gls)", "every_k(dwa, 2)"):
        tx = grads.aggregate(grads.get(spec), num_tasks=2)
        with pytest.raises(ValueError, match="needs the losses.*losses=losses"):
            try_step(tx, np.eye(2))
    tx = grads.aggregate(grads.mgda(), num_tasks=3)
    with pytest.raises(ValueError, match="leading task axis of 3"):
        try_step(tx, np.eye(2))
    for given, message in (
        ({"losses": np.ones(2)}, r"losses must have shape \(3,\), not \(2,\)"),
        ({"mask": np.ones((3, 1))}, r"mask must have shape \(3,\), not \(3, 1\)"),
        ({"gram": np.eye(2)}, r"gram must have shape \(3, 3\), not \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            try_step(tx, np.eye(3), **given)


def test_specifications():
    assert grads.get("cagrad(c=0.2)") and grads.get("every_k(nash_mtl(max_norm=1.0), 5)").every == 5
    for spec, hint in (
        ("pcgrd", r"did you mean pcgrad\(reduction='sum'\)"), ("cagrad(x=1)", "c=0.4, rescale=None"),
        ("__import__('os')", "no method"), ("mgda(open('x'))", "no method"), ("1 + 1", "not a method"),
        ("PCGrad", r"did you mean pcgrad\("), ("IMTL-G", r"did you mean imtl_g\("), ("pcgrad(", "not a method"),
        # A shell takes the quotes away.
        ("rlw(dirichlet)", "quote strings: 'dirichlet'"), ("pcgrad(mean)", "quote strings: reduction='mean'"),
        ("cagrad(c={[]: 1})", "not a literal"), ("cagrad(c='a')", "c must be a number, got 'a'"),
        ("cagrad(c=True)", "c must be a number"), ("cagrad(c=1e999)", "c must be finite"),
        ("dwa(0)", "temperature must be greater than 0"), ("dwa(window=0)", "window must be an integer"),
        ("nash_mtl(-1.0)", "max_norm must be greater than 0"), ("moco(beta=5.0)", "beta must be at most 1"),
        ("trimmed_mean(1.5)", "trim must be an integer"), ("every_k(mgda, 2.5)", "k must be an integer"),
        ("krum(1.5)", "byzantine must be"), ("graddrop(2.0)", "leak must be at most 1"),
        ("cr_mogm(mgda, 1.5)", "alpha must be at most 1"), ("sdmgrad(steps=0)", "steps must be"),
        ("uncertainty('adam')", "optimizer must be an optax transform"), ("cosine_gate(-1)", "main_task must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=hint):
            grads.get(spec)


@pytest.mark.parametrize("spec", [name for name in ALL if name != "krum"] + ["cr_mogm(mgda)", "mgda_ub"])
def test_every_method_can_be_tried_out(spec):
    registry.try_out(spec, 3)


@pytest.mark.parametrize(
    "spec, message",
    [("fixed((1, 2))", r"shape \(2,\) for 3 tasks"), ("cosine_gate(3)", "main_task 3 is out of range for 3 tasks"),
     ("upgrad((1, 2))", "preference has 2 numbers for 3 tasks"), ("aligned_mtl(preference=(1,))", "preference has 1"),
     ("stch(ideal=(1, 2))", "ideal has 2"), ("graddrop((0.5, 0.5))", "leak has 2"), ("fixed('abc')", "'abc'"),
     ("gradnorm(initial_losses=(1, 2))", "initial_losses has 2"), ("trimmed_mean(2)", "leaves none of 3 tasks")],
)  # fmt: skip
def test_what_does_not_fit_the_tasks_is_said_before_anything_compiles(spec, message):
    with pytest.raises(ValueError, match=message):
        registry.try_out(spec, 3)


def of_ones_own(start=(), change=lambda state: state, weigh=lambda gram: jnp.ones(len(gram))):
    """A method that a user wrote: its state, what an update makes of that, and its weights."""

    def update(gram, state, *, losses=None, mask=None):
        return weigh(gram), change(state)

    return grads.Weighting(lambda num_tasks: start, update)


def steps_of(method):
    """The two ways in which a method is called, of 3 tasks; nothing is compiled."""
    lean = grads.lean(method, num_tasks=3)

    def leanly():
        loss = lambda w, target: jnp.sum((w - target) ** 2)  # noqa: E731
        params = jnp.zeros(3)
        return lean.direction(loss, params, jnp.eye(3), lean.init(params))

    yield lambda: try_step(grads.aggregate(method, num_tasks=3), jnp.eye(3))
    yield lambda: jax.eval_shape(leanly)


@pytest.mark.parametrize(
    "start, change, message",
    [(np.int32(0), lambda n: n + 0.5, r"state is int32\[\] at first and float32\[\] after"),
     ({"n": np.zeros(3, np.float32)}, lambda s: {"n": s["n"][:2]}, r"\['n'\] is float32\[3\] at first and .*\[2\]"),
     (np.bool_(True), lambda flag: flag + 1, r"state is bool\[\] at first and int32"),
     ((), lambda nothing: (jnp.zeros(3),), "the structure of its state")],
)  # fmt: skip
def test_a_state_that_an_update_would_change_for_good(start, change, message):
    """A mean that is kept in an integer would be cut off at every step, and nobody told."""
    for step in steps_of(of_ones_own(jax.tree.map(jnp.asarray, start), change)):
        with pytest.raises(ValueError, match=f"^of_ones_own must keep .*{message}"):
            step()


def test_a_state_keeps_its_dtypes():
    """Of several precisions, and of a number that is not an array yet."""
    start = {"a": jnp.zeros(2, jnp.bfloat16), "b": 0, "c": 1.0, "d": jnp.zeros((), jnp.uint32)}
    tx = grads.aggregate(
        of_ones_own(start, lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s)), num_tasks=3
    )
    state = tx.init(jnp.zeros(3))
    after = jax.eval_shape(from_the_start(tx), jnp.eye(3), {})[1]
    assert jax.tree.map(lambda x: x.dtype, state.inner) == jax.tree.map(lambda x: x.dtype, after.inner)
    assert after.inner["a"].dtype == jnp.bfloat16 and after.inner["d"].dtype == jnp.uint32
    for step in steps_of(of_ones_own(jnp.zeros(()), lambda x: (x + 1).astype(jnp.float16))):
        step()


@pytest.mark.parametrize(
    "weigh, shape", [(jnp.sum, r"\(\)"), (lambda g: g[:1, 0], r"\(1,\)"), (lambda g: g, r"\(3, 3\)")]
)
def test_weights_that_would_broadcast(weigh, shape):
    for step in steps_of(of_ones_own(weigh=weigh)):
        with pytest.raises(ValueError, match=rf"^of_ones_own must return weights of shape \(3,\), not {shape}"):
            step()


def test_a_fault_in_a_method_of_ones_own_is_located(monkeypatch):
    """A flag is told in one line; without the place, a user would not know where to look."""
    monkeypatch.setitem(registry.METHODS, "mine", lambda: of_ones_own(weigh=lambda gram: gram.no_such_thing))
    with pytest.raises(ValueError, match=r"'mine': .*no_such_thing.* \(.*test_grads_aggregate.py, line \d+\); the"):
        registry.try_out("mine", 3)
    with pytest.raises(ValueError, match=r"cosine_gate\(3\)': main_task 3 is out of range for 3 tasks; the method is"):
        registry.try_out("cosine_gate(3)", 3)  # not in the user's code


@pytest.mark.parametrize("name", ["mean", "sum", "rlw", "uncertainty", "dwa", "famo", "stch"])
def test_no_gram_where_none_is_needed(name):
    """Methods that look at no gradient cost one weighted sum: a Gram is computed for the diagnostics only."""

    def products(track_gram: bool) -> int:
        tx = grads.aggregate(grads.get(name), num_tasks=3, track_gram=track_gram)
        step = lambda g: tx.update(g, tx.init(g[0]), losses=jnp.ones(3))  # noqa: E731
        return str(jax.make_jaxpr(step)(jnp.ones((3, 8)))).count("dot_general[")

    assert products(track_gram=False) == 1
    tx = grads.aggregate(grads.get(name), num_tasks=3)
    kept = tx.init(jnp.ones(8))._replace(gram=jnp.eye(3))
    after = quick.jit(lambda: tx.update(jnp.ones((3, 8)), kept, losses=jnp.ones(3))[1].gram)()
    assert (np.asarray(after) == np.eye(3)).all()  # passed on, untouched
    assert products(track_gram=True) == 2


def test_import_loads_nothing_else():
    """The part that others import costs jax and optax only: it must not bring a simulator or flax."""
    code = """
import sys, mtjax.grads
heavy = {"flax", "mujoco", "brax", "orbax", "matplotlib", "scipy.stats", "gymnasium", "envpool"}
ours = {name for name in sys.modules if name.startswith("mtjax.") and not name.startswith("mtjax.grads")}
print(sorted(heavy & set(sys.modules) | ours))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("script", ["sharded.py", "sharded_explicitly.py"])
def test_sharded(script):
    """On four fake devices: parameters sharded, batch sharded, both by jit alone, and by types with explicit axes."""
    more = ["--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0"]
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), *more])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    path = pathlib.Path(__file__).with_name(script)
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
    assert f"{path.stem.replace('_', ' ')} ok" in done.stdout, done.stderr[-3000:]
