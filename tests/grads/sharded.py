"""Run by test_grads_aggregate.py in a process with four fake devices: sharded equals unsharded."""

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtjax import grads
from mtjax.grads import gram

assert jax.device_count() == 4
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
T = 3
rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
params = {"bias": draw(6), "kernel": draw(6, 8)}
# One Jacobian for each of two shards of the batch: [data, T, ...].
halves = jax.tree.map(lambda p: draw(2, T, *p.shape), params)
whole = jax.tree.map(lambda g: g.mean(0), halves)
half_losses = rng.uniform(0.5, 2.0, (2, T)).astype(np.float32)
losses = half_losses.mean(0)

# Gram methods (solvers, a random one, one with a layer of its own), elementwise ones, ones with [T, P] state.
METHODS = {
    **{
        name: grads.get(name)
        for name in ("pcgrad", "upgrad", "cagrad", "moco", "gls", "db_mtl", "excess_mtl", "trimmed_mean", "graddrop")
    },
    "gradnorm": grads.gradnorm(leaves=lambda path: path == "kernel"),
}


def steps(methods, **axes):
    """All of them in one program, which compiles faster than one for each."""

    def step(g, p, **given):
        txs = {name: grads.aggregate(method, num_tasks=T, seed=1, **axes) for name, method in methods.items()}
        return {name: tx.update(g, tx.init(p), **given)[0] for name, tx in txs.items()}

    return step


def near(got, want):
    for name in METHODS:
        close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4, err_msg=name)
        jax.tree.map(close, got[name], want[name])


one = jax.jit(steps(METHODS))
want = jax.device_get(one(whole, params, losses=losses))

# By jit alone: the arrays carry their sharding.
placed = {
    "bias": jax.device_put(whole["bias"], NamedSharding(mesh, P())),
    "kernel": jax.device_put(whole["kernel"], NamedSharding(mesh, P(None, None, "model"))),
}
near(jax.device_get(one(placed, params, losses=losses)), want)

# By shard_map: the batch over "data", the kernel over "model", the bias replicated.
by_axes = steps(METHODS, batch_axis="data", params_axis=lambda path: "model" if path == "kernel" else None)


def step(g, own, p):
    return by_axes(jax.tree.map(lambda x: x[0], g), p, losses=own[0])  # the losses of this half of the batch


spec = {"bias": P(), "kernel": P(None, "model")}
inner = {"bias": P("data"), "kernel": P("data", None, None, "model")}
across = jax.jit(
    jax.shard_map(step, mesh=mesh, in_specs=(inner, P("data"), spec), out_specs=dict.fromkeys(METHODS, spec))
)
got = jax.device_get(across(halves, half_losses, params))
# GradDrop's shards draw for themselves; of what is not sharded, all draw the same.
twice = {**halves, "kernel": np.concatenate([halves["kernel"][..., :4]] * 2, axis=-1)}
kernel = jax.device_get(across(twice, half_losses, params))["graddrop"]["kernel"]
assert (kernel[:, :4] != kernel[:, 4:]).any()
del got["graddrop"]["kernel"], want["graddrop"]["kernel"]
near(got, want)

# The Gram of the mean is not the mean of the Grams: averaging afterwards would fail the above.
grams = jax.jit(lambda halves, whole: (jax.vmap(grads.gram_matrix)(halves).mean(0), grads.gram_matrix(whole)))
mean_of_grams, gram_of_mean = jax.device_get(grams(halves, whole))
assert np.abs(mean_of_grams - gram_of_mean).max() > 1
# Leaves so long that a shard is worked through in slices: the Gram, the masked trimmed mean, the weighted sum by rows.
here = np.ones(T, bool)
columns = 4 * max(gram._SMALL // T, gram._LONG)
long = draw(2, T, columns + 100)  # [data, T, ...]; two shards of columns
SLICED = {name: grads.get(name) for name in ("mgda", "trimmed_mean", "sum", "moco")}
one = jax.jit(steps(SLICED))
mean = long.mean(0)
want = jax.device_get(one(mean, mean[0], mask=here))
placed = jax.device_put(mean, NamedSharding(mesh, P(None, "model")))
by_axes = steps(SLICED, batch_axis="data", params_axis="model")
across = jax.shard_map(
    lambda g: by_axes(g[0], g[0, 0], mask=here), mesh=mesh, in_specs=P("data", None, "model"), out_specs=P("model")
)
for got in (one(placed, mean[0], mask=here), jax.jit(across)(long)):
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=name)

# Every device with gradients of its own, nothing averaged: loops must carry what varies over the mesh. Traced only.
for name in sorted(set(grads.names()) - {"every_k", "normalize", "cr_mogm", "fixed", "mgda_ub", "gradnorm"}):
    tx = grads.aggregate(grads.get(name), num_tasks=T)
    alone = lambda g, tx=tx: tx.update(g[0], tx.init(g[0, 0]), losses=losses)[0][None]  # noqa: E731
    jax.eval_shape(jax.shard_map(alone, mesh=mesh, in_specs=P("data"), out_specs=P("data")), draw(2, T, 5))
tx = grads.accumulate(grads.aggregate(grads.mgda(), num_tasks=T, params_axis="model"), 2, num_tasks=T)
parts = lambda g: tx.update(g, tx.init(g[0]))[0]  # noqa: E731
jax.eval_shape(jax.shard_map(parts, mesh=mesh, in_specs=P(None, "model"), out_specs=P("model")), draw(T, 6))

print("sharded ok")
