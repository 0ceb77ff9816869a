"""Run by test_grads_aggregate.py in a process with four fake devices: sharded equals unsharded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtjax import grads
from mtjax.grads import gram

assert jax.device_count() == 4
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
T = 3
rng = np.random.default_rng(0)
params = {"bias": jnp.asarray(rng.standard_normal(6), jnp.float32),
          "kernel": jnp.asarray(rng.standard_normal((6, 8)), jnp.float32)}  # fmt: skip
# One Jacobian for each of two shards of the batch: [data, T, ...].
halves = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal((2, T, *p.shape)), jnp.float32), params)
whole = jax.tree.map(lambda g: g.mean(0), halves)
half_losses = jnp.asarray(rng.uniform(0.5, 2.0, (2, T)), jnp.float32)
losses = half_losses.mean(0)

# Gram methods (solvers, a random one, one with a layer of its own), elementwise ones, ones with [T, P] state.
METHODS = {
    **{
        name: grads.get(name)
        for name in ("pcgrad", "upgrad", "cagrad", "moco", "gls", "db_mtl", "excess_mtl", "trimmed_mean", "graddrop")
    },
    "gradnorm": grads.gradnorm(leaves=lambda path: path == "kernel"),
}
for name, method in METHODS.items():
    one = grads.aggregate(method, num_tasks=T, seed=1)
    want, _ = jax.jit(one.update)(whole, one.init(params), losses=losses)

    # By jit alone: the arrays carry their sharding.
    placed = {
        "bias": jax.device_put(whole["bias"], NamedSharding(mesh, P())),
        "kernel": jax.device_put(whole["kernel"], NamedSharding(mesh, P(None, None, "model"))),
    }
    got, _ = jax.jit(one.update)(placed, one.init(params), losses=losses)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), got, want)

    # By shard_map: the batch over "data", the kernel over "model", the bias replicated.
    axis = lambda path: "model" if path == "kernel" else None  # noqa: E731
    tx = grads.aggregate(method, num_tasks=T, seed=1, batch_axis="data", params_axis=axis)

    def step(g, own, p, tx=tx):
        g = jax.tree.map(lambda x: x[0], g)
        return tx.update(g, tx.init(p), losses=own[0])[0]  # the losses of this half of the batch

    spec = {"bias": P(), "kernel": P(None, "model")}
    inner = {"bias": P("data"), "kernel": P("data", None, None, "model")}
    across = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(inner, P("data"), spec), out_specs=spec))
    got = across(halves, half_losses, params)
    if name == "graddrop":
        # The shards draw for themselves; of what is not sharded, all draw the same.
        np.testing.assert_allclose(got["bias"], want["bias"], rtol=2e-4, atol=2e-4)
        twice = {**halves, "kernel": jnp.concatenate([halves["kernel"][..., :4]] * 2, axis=-1)}
        kernel = across(twice, half_losses, params)["kernel"]
        assert (kernel[:, :4] != kernel[:, 4:]).any()
        continue
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), got, want)

# The Gram of the mean is not the mean of the Grams: averaging afterwards would fail the above.
mean_of_grams = sum(grads.gram_matrix(jax.tree.map(lambda g, n=n: g[n], halves)) for n in (0, 1)) / 2
assert np.abs(mean_of_grams - grads.gram_matrix(whole)).max() > 1
# Leaves so long that a shard is worked through in slices: the Gram, the trimmed mean, the weighted sum by rows.
columns = 4 * max(gram._TOGETHER * gram._BLOCK_OF_FEW, gram._LONG)
long = jnp.asarray(rng.standard_normal((2, T, columns + 100)), jnp.float32)  # [data, T, ...]; two shards of columns
for name in ("mgda", "trimmed_mean", "sum", "moco"):
    one = grads.aggregate(grads.get(name), num_tasks=T)
    want, _ = jax.jit(one.update)(long.mean(0), one.init(long[0, 0]))
    near = functools.partial(np.testing.assert_allclose, desired=want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    placed = jax.device_put(long.mean(0), NamedSharding(mesh, P(None, "model")))
    near(jax.jit(one.update)(placed, one.init(long[0, 0]))[0])
    tx = grads.aggregate(grads.get(name), num_tasks=T, batch_axis="data", params_axis="model")
    step = lambda g, tx=tx: tx.update(g[0], tx.init(g[0, 0]))[0]  # noqa: E731
    across = jax.shard_map(step, mesh=mesh, in_specs=P("data", None, "model"), out_specs=P("model"))
    near(jax.jit(across)(long))

print("sharded ok")
