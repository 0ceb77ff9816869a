"""Run by test_grads_aggregate.py in a process with four fake devices: explicit axes, as `jax.make_mesh` makes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mtjax import grads

assert jax.device_count() == 4
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
T = 3
rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
SPECS = {"bias": P(), "kernel": P("data", "model"), "last": P("model")}
PLACES = jax.tree.map(lambda spec: NamedSharding(mesh, P(None, *spec)), SPECS)
plain = {"bias": draw(T, 6), "kernel": draw(T, 6, 8), "last": draw(T, 8)}
g = jax.device_put(plain, PLACES)
p = jax.device_put(jax.tree.map(lambda x: x[0], plain), jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS))
losses = np.array([0.5, 1.0, 2.0], np.float32)
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)

names = sorted(set(grads.names()) - {"every_k", "normalize", "cr_mogm", "fixed", "mgda_ub", "gradnorm"})
METHODS = {name: grads.get(name) for name in (*names, "every_k(mgda, 2)", "normalize(moco)", "trimmed_mean(0)")}
METHODS["gradnorm"] = grads.gradnorm(leaves=lambda path: path == "kernel")


def shardings(tree):
    """What the types of a tree's arrays say about their placement."""
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)


def steps(methods):
    """A first step with each method, in one program, which compiles faster than one for each."""

    def step(g, p):
        txs = {name: grads.aggregate(method, num_tasks=T, seed=1) for name, method in methods.items()}
        results = {name: tx.update(g, tx.init(p), p, losses=losses) for name, tx in txs.items()}
        return {name: (update, state.weights) for name, (update, state) in results.items()}

    return jax.jit(step)


# What is refused is refused when a program is traced, of all methods; some are run.
avals = steps(METHODS).trace(g, p).jaxpr.out_avals
assert [x.sharding.spec for x in avals] == [*jax.tree.leaves(shardings(p)), P(None)] * len(METHODS)
few = {name: METHODS[name] for name in ("mgda", "pcgrad", "gradnorm", "graddrop", "trimmed_mean", "moco")}
want = jax.device_get(steps(few)(plain, jax.device_get(p)))
for name, (update, weights) in steps(few)(g, p).items():
    assert shardings(update) == shardings(p), name
    jax.tree.map(functools.partial(close, err_msg=name), (update, weights), want[name])

# The two operations by themselves, in a program and outside; and their derivatives.
for run in (jax.jit, lambda function: function):
    close(run(grads.gram_matrix)(g), grads.gram_matrix(plain))
    close(run(lambda g: grads.gram_matrix(g, jax.tree.map(lambda x: 2 * x, g)))(g), 2 * grads.gram_matrix(plain))
    total = run(grads.weighted_sum)(jnp.asarray(losses), g)
    jax.tree.map(close, total, grads.weighted_sum(losses, plain))
    assert shardings(total) == shardings(p)
with jax.set_mesh(mesh):
    slope = jax.jit(jax.grad(lambda g: grads.gram_matrix(g)[0, 1]))(g)
jax.tree.map(close, slope, jax.grad(lambda g: grads.gram_matrix(g)[0, 1])(plain))

# Without jit, and in a chain that accumulates: states stay where the parameters are.
for method in (grads.mgda(), grads.moco()):
    tx = grads.aggregate(method, num_tasks=T)
    update, state = tx.update(g, tx.init(p), p)
    jax.tree.map(close, update, tx.update(plain, tx.init(jax.device_get(p)))[0])
    assert shardings(update) == shardings(p)
assert shardings(state.inner.tracked) == [spec for _, spec in sorted(shardings(g).items())]


lean = grads.lean(grads.mgda(), num_tasks=T)
loss = lambda p, task: sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (p, task)), strict=True))  # noqa: E731
with jax.set_mesh(mesh):
    direction = jax.jit(lambda p, g: lean.direction(loss, p, g, lean.init(p))[1])(p, g)
jax.tree.map(close, direction, lean.direction(loss, jax.device_get(p), plain, lean.init(p))[1])


def train(g, p):
    tx = optax.chain(grads.aggregate(grads.moco(), num_tasks=T), optax.adam(0.1))
    tx = grads.accumulate(tx, 2, num_tasks=T)

    def body(carry, _):
        p, state = carry
        updates, state = tx.update(g, state, p, losses=losses, mask=[True, True, False])
        return (optax.apply_updates(p, updates), state), None

    return jax.lax.scan(body, (p, tx.init(p)), None, length=4)[0][0]


with jax.set_mesh(mesh):
    after = jax.jit(train)(g, p)
assert shardings(after) == shardings(p)
jax.tree.map(close, after, jax.jit(train)(plain, jax.device_get(p)))

print("sharded explicitly ok")
