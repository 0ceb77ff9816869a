"""MoCo, DB-MTL and ExcessMTL: methods with state of the Jacobian's size, [T, P]."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import (
    Array,
    Number,
    Transform,
    check_number,
    default_float,
    need_losses,
    positive,
    presence,
    restrict,
    safe_divide,
)
from mtjax.grads.explicit import zeros_per_task
from mtjax.grads.gram import accumulator, as_finite
from mtjax.grads.methods.stochastic import onto_simplex


class TrackedState(NamedTuple):
    """A running quantity [T, ...] for each leaf, task weights [T] (unused by DB-MTL), and the number of calls."""

    tracked: list[Array]
    weights: Array
    count: Array


def _zeros(num_tasks: int, params: list[Array], fill: float) -> TrackedState:
    tracked = [zeros_per_task(num_tasks, p, accumulator(p)) for p in params]
    return TrackedState(tracked, jnp.full(num_tasks, fill, default_float()), jnp.zeros((), jnp.int32))


def _rows(values: Array, like: Array) -> Array:
    """Values [T] reshaped to multiply a leaf [T, ...]."""
    return values.reshape((-1,) + (1,) * (like.ndim - 1)).astype(accumulator(like))


def _bounded(y: Array, size: int) -> Array:
    """y, clipped so that the squares of `size` numbers on each of a thousand devices have a finite sum."""
    largest = float(jnp.finfo(y.dtype).max)
    big = min(largest**0.45, (largest / 2000 / max(size, 1)) ** 0.5)
    return jnp.clip(y, -big, big)


def _approach(y: Array, g: Array, rate: Array) -> Array:
    """y + rate (g − y), computed on halves, since the difference of two numbers may overflow.

    Without the barrier, consumers would double the halves again, and XLA's CPU backend would store both.
    """
    half = 0.5 * y + rate * (0.5 * g.astype(y.dtype) - 0.5 * y)
    return lax.optimization_barrier(as_finite(2.0 * half, y, g))


def _scaled_square(g: Array, total: Array) -> Array:
    """g²/√total, 0 where g is 0; written g·(g/√total) so as not to share g² with the computation of `total`."""
    return g * (g * lax.rsqrt(total + jnp.finfo(total.dtype).tiny))  # jnp.maximum would be slower: it checks for NaN


def moco(beta: Number = 0.5, gamma: Number = 0.1, rho: Number = 0.0) -> Transform:
    """MoCo (Fernando et al., ICLR 2023, arXiv 2210.12624, Algorithm 1).

    Tracks gradients y_i ← y_i − β (y_i − g_i), from 0; takes one projected step on the simplex,
    λ ← Π(λ − γ (YYᵀ + ρI) λ); the direction is Yᵀλ with the new Y and λ, in the order of the authors' code, not
    the printed one. (That code has β = γ = ρ = 0.1. LibMTL's differs: it has a softmax in place of the projection,
    and scales gradients by L_i/‖g_i‖.)

    Properties: permutation equivariant; has memory, so that it may conflict with the current gradients.
    Cost: one Gram, and [T, P] of state.

    Use when: gradients are noisy and memory allows.

    Args:
      beta: tracking rate; 1 uses the current gradients only.
      gamma: step size of the weights.
      rho: regularisation of the weights.

    Raises:
      ValueError: `beta` outside (0, 1], or `gamma` or `rho` below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.moco(beta=1.0), num_tasks=2)
      >>> updates, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)))
      >>> [float(u) for u in updates]
      [0.5, 0.5]
    """
    check_number("beta", beta, above=0, high=1)
    check_number("gamma", gamma, low=0)
    check_number("rho", rho, low=0)

    def init(num_tasks: int, params: list[Array]) -> TrackedState:
        return _zeros(num_tasks, params, 1 / num_tasks)

    def update(task_grads, state, gram, *, losses=None, mask=None):
        here = presence(state.weights.shape[0], mask)
        tracked = [_approach(y, g, _rows(beta * here, y)) for y, g in zip(state.tracked, task_grads, strict=True)]
        start, mass = restrict(state.weights, here)
        weights = onto_simplex(start - gamma * (gram(tracked) @ start + rho * start), here)
        kept = jnp.where(here > 0, mass * weights, state.weights)
        return tracked, weights, TrackedState(tracked, kept, state.count + 1)

    return Transform(init, update)


def db_mtl(beta: Number = 0.9, beta_decay: Number = 0.0) -> Transform:
    """DB-MTL (Lin et al., 2023, arXiv 2308.12029, Algorithm 1; defaults of the authors' LibMTL).

    Balances losses by log L_i, whose gradient is g_i/L_i; tracks ĝ_i ← β_k ĝ_i + (1−β_k) g_i/L_i
    from 0, with β_k = β/k^`beta_decay`; and scales every task to the largest norm:
    d = max_j ‖ĝ_j‖ Σ_i ĝ_i/‖ĝ_i‖.

    Properties: permutation equivariant; invariant to the scale of each task's loss; may conflict.
    Cost: T norms, and [T, P] of state. Losses must be positive; others count as 1e-8.

    Use when: supervised losses have different scales.

    Args:
      beta: forgetting rate. The default is LibMTL's; the paper tunes it in steps of 0.1.
      beta_decay: exponent of its decay with the calls k = 1, 2, …; 0 keeps it constant, 0.5 is the alternative.

    Raises:
      ValueError: `beta` outside [0, 1], or `beta_decay` below 0; from the update, no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.db_mtl(beta=0.0), num_tasks=2)
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, _ = tx.update(jnp.diag(jnp.array([1.0, 5.0])), state, losses=jnp.ones(2))
      >>> [float(u) for u in updates]
      [5.0, 5.0]
    """
    check_number("beta", beta, low=0, high=1)
    check_number("beta_decay", beta_decay, low=0)

    def init(num_tasks: int, params: list[Array]) -> TrackedState:
        return _zeros(num_tasks, params, 1.0)

    def update(task_grads, state, gram, *, losses=None, mask=None):
        losses = need_losses("db_mtl", losses)
        here = presence(state.weights.shape[0], mask)
        rate = beta / (state.count + 1.0).astype(here.dtype) ** beta_decay
        keep = jnp.where(here > 0, rate, 1)
        new = (1 - keep) / positive(losses)
        size = sum(y[0].size for y in state.tracked)
        tracked = [
            _bounded(_rows(keep, y) * y + _rows(new, y) * g.astype(y.dtype), size)
            for y, g in zip(state.tracked, task_grads, strict=True)
        ]
        norm = jnp.sqrt(gram.totals([y**2 for y in tracked])).astype(here.dtype)
        weights = here * safe_divide(jnp.max(norm * here), norm)
        return tracked, weights, TrackedState(tracked, state.weights, state.count + 1)

    return Transform(init, update)


def excess_mtl(step_size: Number = 0.01, relative: bool = True) -> Transform:
    """ExcessMTL (He et al., ICML 2024, arXiv 2402.02009, equations 6, 7 and 9).

    The excess risk of task i is estimated to second order with a diagonal, Adagrad-like curvature,
    E_i = g_iᵀ diag(Σ_t g_i²)^(−½) g_i; weights are updated multiplicatively on the simplex,
    w_i ∝ w_i exp(η E_i), from 1/T; the direction is Jᵀw. (The authors' code scales the weights to sum to T.)

    Properties: permutation equivariant; may conflict. Cost: O(TP), no Gram, and [T, P] of state.

    Use when: label noise differs between tasks, so that large losses mislead.

    Args:
      step_size: η; 0.01 in the authors' code.
      relative: divide E_i by its first value, the scale processing of section 3.2.

    Raises:
      ValueError: `step_size` below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.excess_mtl(), num_tasks=2)
      >>> updates, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)))
      >>> [float(u) for u in updates]
      [0.5, 0.5]
    """
    check_number("step_size", step_size, low=0)

    def init(num_tasks: int, params: list[Array]) -> tuple[TrackedState, Array]:
        # `weights` holds logarithms here, so that a weight that underflows can recover.
        state = _zeros(num_tasks, params, -math.log(num_tasks))
        return state, jnp.zeros(num_tasks, default_float())

    def update(task_grads, state, gram, *, losses=None, mask=None):
        (sums, logs, count), first = state
        here = presence(logs.shape[0], mask)
        big = jnp.finfo(here.dtype).max ** 0.25
        wide = [g.astype(s.dtype) for g, s in zip(task_grads, sums, strict=True)]
        # The barrier makes the second pass read the new sums. Without it, the passes would share terms, which XLA's
        # CPU backend would store: another [T, P] to write and read.
        # One barrier per leaf: a joint one would make replicated leaves vary over the mesh as sharded ones do.
        sums = [lax.optimization_barrier(jnp.minimum(s + g**2, big**2)) for s, g in zip(sums, wide, strict=True)]
        excess = gram.totals([_scaled_square(g, s) for g, s in zip(wide, sums, strict=True)])
        excess = jnp.minimum(excess.astype(here.dtype), big)
        first = jnp.where((first == 0) & (here > 0), excess, first)
        level = jnp.minimum(safe_divide(excess, first), big) if relative else excess
        moved = logs + step_size * level
        present = [jnp.where(here > 0, x, -jnp.inf) for x in (logs, moved)]
        before, after = map(jax.nn.logsumexp, present)  # the present tasks keep their total share
        kept = jnp.where(here > 0, moved - after + before, logs)
        return task_grads, jax.nn.softmax(present[1]), (TrackedState(sums, kept, count + 1), first)

    return Transform(init, update)
