"""GradDrop: one random sign per parameter, biased towards the majority."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32

from mtjax.grads.base import Array, Transform, check_number, default_float, per_task, presence
from mtjax.grads.gram import accumulator, constant_like, multiplied, over_rows, power_above

_FEW = 16  # sums over up to this many tasks are unrolled; for more, a loop is as fast


def graddrop(leak: float | tuple[float, ...] = 0.0, purity: Callable[[Array], Array] | None = None) -> Transform:
    """GradDrop (Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1, lines 10 to 15).

    For each parameter, with P = ½(1 + Σg/Σ|g|) and U uniform: if f(P) > U, the mask M keeps the positive
    parts, otherwise the negative ones; d = Σ_i (ℓ_i + (1−ℓ_i) M_i) g_i. U has 16 random bits.

    Properties: elementwise; permutation equivariant in distribution; homogeneous; may conflict;
    E[d] has the sign of Σg. Cost: O(TP), no Gram.

    Use when: T is large and the gradients cancel in the sum.

    Args:
      leak: ℓ, the fraction of each gradient that bypasses the mask: a number, or [T].
      purity: f, a monotone function from [0, 1] to [0, 1]; by default the identity.

    Raises:
      ValueError: a `leak` outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.graddrop(), num_tasks=2)
      >>> updates, _ = tx.update(jnp.array([[1.0, 2.0], [3.0, 4.0]]), tx.init(jnp.zeros(2)))
      >>> [float(u) for u in updates]
      [4.0, 6.0]
    """
    for share in () if isinstance(leak, jax.core.Tracer) else np.ravel(leak).tolist():
        check_number("leak", share, low=0, high=1)

    def init(num_tasks: int, params: list[Array]) -> Array:
        return jax.random.key(0)

    def update(task_grads, key, gram, *, losses=None, mask=None):
        num_tasks = task_grads[0].shape[0]
        key, *draws = jax.random.split(key, len(task_grads) + 1)
        axes = getattr(gram, "axes", [None] * len(task_grads))
        # The shards of a leaf must not all draw the same pattern.
        draws = [d if a is None else jax.random.fold_in(d, lax.axis_index(a)) for d, a in zip(draws, axes, strict=True)]
        here = presence(num_tasks, mask, default_float())
        count = jnp.maximum(jnp.sum(here), 1)
        kept = [_drop(g, draw, leak, purity) for g, draw in zip(task_grads, draws, strict=True)]
        # One row holds the direction divided by the number of present tasks; Σ w_i is that number.
        power = power_above(num_tasks)
        return [multiplied(row / count.astype(row.dtype), power)[None] for row in kept], here, key

    return Transform(init, update)


def _drop(g: Array, key: Array, leak: float | tuple[float, ...], purity: Callable | None) -> Array:
    """Σ_i (ℓ_i + (1−ℓ_i) M_i) g_i of one leaf [T, ...], divided by a power of two.

    Sums the positive and the negative parts, of which each parameter takes one. The sums run row by row: as
    reductions over the task axis, they took XLA's CPU backend ten times as long (10 × 1M).
    """
    dtype = accumulator(g)
    passes = jnp.broadcast_to(per_task("leak", leak, g.shape[0], dtype), g.shape[:1])

    def add(row: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        up, down, *leaked = sums
        wide = g[row].astype(dtype) * (1 / power_above(g.shape[0]))
        above = wide > 0  # False for NaN, which goes to `fall`; jnp.maximum is slower: it checks for NaN
        rise, fall = jnp.where(above, wide, 0), jnp.where(above, 0, wide)
        if leaked:
            leaked = [leaked[0] + passes[row] * rise, leaked[1] + passes[row] * fall]
        return up + rise, down + fall, *leaked

    sums = [constant_like(g[0], 0, dtype)] * (2 if isinstance(leak, float | int) and leak == 0 else 4)
    sums = over_rows(add, tuple(sums), range(g.shape[0]), straight=g.shape[0] <= _FEW)
    # The barriers give each sum a pass of its own: fused into its consumers, it would be recomputed in each.
    up, down, *leaked = map(lax.optimization_barrier, sums)
    size = up - down  # Σ|g|
    share = 0.5 * (1 + (up + down) / jnp.where(size == 0, 1, size))
    positive = (share if purity is None else purity(share)) > _uniform(key, size.shape, dtype)  # False for NaN
    leaked_up, leaked_down = leaked or (0, 0)
    return jnp.where(positive, up + leaked_down, down + leaked_up)


def _uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform numbers in (0, 1), two of 16 bits from each random word.

    Drawing a whole word per number took half of the total time (10 × 1M). Threefry makes two words at a time, which
    `jax.random.bits` would combine into one.
    """
    size = math.prod(shape)
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    words = threefry_2x32((first, second), jnp.arange((size + 1) // 2, dtype=jnp.uint32))
    halves = jnp.concatenate([words >> 16, words & 0xFFFF])[:size]
    return ((halves.astype(dtype) + 0.5) / 2**16).reshape(shape)
