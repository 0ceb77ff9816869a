"""Gradient Vaccine: pulling pairs of gradients up to a running target cosine."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import Array, Number, Weighting, check_number, default_float, presence


class GradVacState(NamedTuple):
    """Target cosines [T, T] and the PRNG key for the random orders."""

    target: Array
    key: Array


def gradvac(beta: Number = 0.01) -> Weighting:
    """GradVac (Wang et al., ICLR 2021, arXiv 2010.05874, Algorithm 1).

    For each task i, and each j ≠ i in random order: φ_ij is the cosine of the current g'_i with
    g_j; if φ_ij < φ̂_ij, g'_i += ‖g'_i‖(φ̂√(1−φ²) − φ√(1−φ̂²)) / (‖g_j‖√(1−φ̂²)) · g_j, which gives
    them the cosine φ̂. On every call, whether φ_ij < φ̂_ij or not, φ̂_ij ← (1−β)φ̂_ij + β φ_ij. Returns
    Σ_i g'_i.

    The paper keeps one target per group of parameters: `aggregate(..., groups=...)` adds the group
    axis to the state.

    Properties: permutation equivariant in distribution; homogeneous; may conflict. Cost: T steps of O(T²).

    Use when: tasks are related (the paper: multilingual models), so a positive cosine is normal.

    Args:
      beta: the rate of the moving average; the paper uses 0.01.

    Raises:
      ValueError: `beta` outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.gradvac()
      >>> weights, state = method.update(jnp.eye(2), method.init(2))
      >>> [float(w) for w in weights]
      [1.0, 1.0]
    """
    check_number("beta", beta, low=0, high=1)

    def init(num_tasks: int) -> GradVacState:
        return GradVacState(jnp.zeros((num_tasks, num_tasks), default_float()), jax.random.key(0))

    def update(gram: Array, state: GradVacState, *, losses=None, mask=None) -> tuple[Array, GradVacState]:
        num_tasks = gram.shape[-1]
        key, draw = jax.random.split(state.key)
        here = presence(num_tasks, mask, gram.dtype)
        orders = jnp.argsort(jax.random.uniform(draw, (num_tasks, num_tasks)), axis=0)
        weights, target = vaccinate(gram, state.target.astype(gram.dtype), orders, here, beta)
        return weights, GradVacState(target, key)

    return Weighting(init, update)


def vaccinate(gram: Array, target: Array, orders: Array, here: Array, beta: Number) -> tuple[Array, Array]:
    """Weights [T] and new targets [T, T] for the given orders [T steps, T rows]."""
    gram = gram * here[:, None] * here[None, :]
    norm = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    scale = jnp.max(norm)
    scale = jnp.where(scale > 0, scale, 1)
    gram, norm = gram / scale / scale, norm / scale
    rows = jnp.arange(gram.shape[-1])

    def meet(carry: tuple, others: Array) -> tuple[tuple, Array]:
        products, squared, target = carry  # ⟨g'_i, g_j⟩ [T, T], ‖g'_i‖² [T], φ̂ [T, T]
        along = jnp.take_along_axis(products, others[:, None], axis=1)[:, 0]
        wanted = jnp.take_along_axis(target, others[:, None], axis=1)[:, 0]
        length, other = jnp.sqrt(squared), norm[others]
        usable = (length * other > 0) & (others != rows)
        phi = jnp.where(usable, along / jnp.where(usable, length * other, 1), 0)
        phi = jnp.clip(phi, -1, 1)
        sine = jnp.sqrt(jnp.maximum(1 - wanted**2, 1e-6))
        pull = length * (wanted * jnp.sqrt(1 - phi**2) - phi * sine)
        step = jnp.where(usable & (phi < wanted), pull / jnp.where(usable, other * sine, 1), 0)
        squared = jnp.maximum(squared + 2 * step * along + step**2 * other**2, 0)
        moved = jnp.where(usable, (1 - beta) * wanted + beta * phi, wanted)
        return (products + step[:, None] * gram[others], squared, target.at[rows, others].set(moved)), step

    start = (
        gram,
        jnp.diagonal(gram),
        target + jnp.zeros_like(gram),  # takes on the mesh axes over which `gram` varies
    )
    (_, _, target), steps = lax.scan(meet, start, orders)
    return here + jnp.zeros_like(here).at[orders].add(steps), target
