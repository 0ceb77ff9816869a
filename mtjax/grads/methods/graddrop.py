"""GradDrop: one sign for each parameter, drawn by majority."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import Array, Transform, default_float, presence
from mtjax.grads.gram import accumulator


def graddrop(leak: float | tuple[float, ...] = 0.0, purity: Callable[[Array], Array] | None = None) -> Transform:
    """GradDrop (Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1, lines 10 to 15).

    For each parameter, with P = ½(1 + Σg/Σ|g|) and U uniform: if f(P) > U the positive parts are
    kept, otherwise the negative ones; d = Σ_i (ℓ_i + (1−ℓ_i) M_i) g_i.

    Properties: elementwise; permutation equivariant in distribution; homogeneous; may conflict;
    E[d] has the sign of Σg. Cost: O(TP), no Gram.

    Use when: T is large and the sum cancels itself.

    Args:
      leak: ℓ, the share of every gradient that passes: a number, or [T].
      purity: f, monotone, from [0, 1] to [0, 1]; default the identity.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.graddrop(), num_tasks=2)
      >>> updates, _ = tx.update(jnp.array([[1.0, 2.0], [3.0, 4.0]]), tx.init(jnp.zeros(2)))
      >>> [float(u) for u in updates]
      [4.0, 6.0]
    """

    def init(num_tasks: int, params: list[Array]) -> Array:
        return jax.random.key(0)

    def update(task_grads, key, gram, *, losses=None, mask=None):
        num_tasks = task_grads[0].shape[0]
        key, *draws = jax.random.split(key, len(task_grads) + 1)
        axes = getattr(gram, "axes", [None] * len(task_grads))
        # The shards of a leaf must not repeat one pattern.
        draws = [d if a is None else jax.random.fold_in(d, lax.axis_index(a)) for d, a in zip(draws, axes, strict=True)]
        kept = [_drop(g, draw, leak, purity) for g, draw in zip(task_grads, draws, strict=True)]
        return kept, presence(num_tasks, mask, default_float()), key

    return Transform(init, update)


def _drop(g: Array, key: Array, leak: float | tuple[float, ...], purity: Callable | None) -> Array:
    dtype = accumulator(g)
    wide = g.astype(dtype)
    size = jnp.sum(jnp.abs(wide), axis=0)
    share = jnp.where(size > 0, jnp.sum(wide, axis=0) / jnp.where(size > 0, size, 1), 0)
    share = 0.5 * (1 + share)
    positive = (share if purity is None else purity(share)) > jax.random.uniform(key, size.shape, dtype)
    passes = jnp.asarray(leak, dtype)
    passes = passes.reshape((-1,) + (1,) * (g.ndim - 1)) if passes.ndim else passes
    match = jnp.where(positive, wide > 0, wide < 0)
    return jnp.where(match, wide, passes * wide).astype(g.dtype)
