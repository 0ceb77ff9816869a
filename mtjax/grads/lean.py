"""The memory-lean path: a Gram and a weighted sum with O(P) gradient memory.

`aggregate` takes all T gradients at once, T × P numbers. Here only one gradient is in memory at a time:

* row i of the Gram is J g_i: one backward pass for g_i, then one forward-mode pass (a JVP) of all T
  losses in the direction g_i;
* the direction is one backward pass through Σ_i w_i L_i.

The price is T JVPs of T losses, that is O(T²) forward passes instead of O(T), and every loss is
differentiated twice. It is worth paying only when T × P numbers do not fit in memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import (
    Array,
    State,
    Weighting,
    check_gram_method,
    check_whole,
    checked,
    continued,
    default_float,
    drop_overflow,
    presence,
    seeded,
    weigh,
)
from mtjax.grads.gram import accumulator, divided, multiplied, saturated
from mtjax.grads.layout import check_one_layer, shared_leaves

Loss = Callable[[Any, Any], Array]


class LeanState(NamedTuple):
    """The method's state, and the last Gram [T, T] and weights [T]."""

    inner: State
    gram: Array
    weights: Array


class Lean(NamedTuple):
    """`init(params) -> state`; `direction(loss, params, batch, state, mask=None) -> (losses, updates, state)`."""

    init: Callable[[Any], LeanState]
    direction: Callable[..., tuple[Array, Any, LeanState]]


def lean_gram(loss: Loss, params: Any, batch: Any, shared: Any = None) -> tuple[Array, Array]:
    """Losses [T] and their gradients' Gram matrix [T, T], with one gradient in memory at a time.

    Args:
      loss: (params, one task's batch) -> scalar.
      params: tree.
      batch: tree with a leading task axis [T, ...].
      shared: the leaves to include: a tree of bools like params, or a predicate over leaf paths; None for all.

    Raises:
      ValueError: `shared` selects no leaf.
    """
    flags = _flags(params, shared)

    def all_losses(p: Any) -> Array:
        return lax.map(lambda task: loss(p, task), batch)

    def row(task: Any) -> tuple[Array, Array]:
        value, g = jax.value_and_grad(loss)(params, task)
        g = jax.tree.map(lambda x, flag: x if flag else jnp.zeros_like(x), g, flags)
        return value, jax.jvp(all_losses, (params,), (g,))[1].astype(default_float())

    losses, gram = lax.map(row, batch)
    return losses, 0.5 * (gram + gram.T)


def _only_losses(loss: Loss, params: Any, batch: Any) -> tuple[Array, Array]:
    """The losses [T], and zeros [T, T] in place of the Gram, for a method that ignores it."""
    losses = lax.map(lambda task: loss(params, task), batch)
    return losses, jnp.zeros((*losses.shape, *losses.shape), default_float())


def lean(method: Weighting, *, num_tasks: int, shared: Any = None, seed: int | Array = 0) -> Lean:
    """`aggregate` for gradients that do not all fit in memory at once.

    `direction` also takes a `mask` [T], true for the tasks present in the batch; the data of absent tasks may hold
    anything. As in `aggregate`, a task whose squared norm overflows is left out, and a NaN reaches the update.

    Args:
      method: a `Weighting`; a `Transform` needs all gradients at once.
      num_tasks: T.
      shared: as in `aggregate`; the gradients of the other leaves are summed over the tasks.
      seed: as in `aggregate`.

    Raises:
      ValueError: a method that the lean path does not support; from `direction`, a batch that is not of T
        tasks, no shared leaf, several shared leaves for `gradnorm()`, or losses that the method rejects.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mtjax import grads
      >>> lean = grads.lean(grads.mgda(), num_tasks=2)
      >>> loss = lambda w, target: jnp.sum((w - target) ** 2)
      >>> params, targets = jnp.zeros(2), jnp.eye(2)
      >>> losses, direction, state = lean.direction(loss, params, targets, lean.init(params))
      >>> [float(d) for d in direction]
      [-1.0, -1.0]
    """
    check_gram_method("lean", method)
    check_whole("num_tasks", num_tasks, low=1)
    if method.on_representation:
        raise ValueError(
            "the lean path computes the Gram matrix of the parameters' gradients; mgda_ub needs a representation's"
        )
    if method.leaves is not None or method.every != 1:
        raise ValueError("the lean path supports neither `leaves` nor every_k")

    def init(params: Any) -> LeanState:
        del params
        gram = jnp.zeros((num_tasks, num_tasks), default_float())
        return LeanState(seeded(method.init(num_tasks), seed), gram, gram[0])

    def direction(
        loss: Loss, params: Any, batch: Any, state: LeanState, mask: Array | None = None
    ) -> tuple[Array, Any, LeanState]:
        for leaf in jax.tree.leaves(batch):
            if jnp.shape(leaf)[:1] != (num_tasks,):
                raise ValueError(
                    f"every leaf of the batch needs a leading task axis of {num_tasks}; one has shape {jnp.shape(leaf)}"
                )
        flags = _flags(params, shared)
        paths, use = shared_leaves(params, flags)
        check_one_layer(method, [path for path, flag in zip(paths, use, strict=True) if flag])
        if method.needs_gram:
            losses, gram = lean_gram(loss, params, batch, flags)
        else:
            losses, gram = _only_losses(loss, params, batch)
        here = presence(num_tasks, mask) > 0
        losses = jnp.where(here, losses, 0)
        gram = jnp.where(here[:, None] & here[None, :], gram, 0)
        gram, left = drop_overflow(gram, None if mask is None else here)
        weights, inner = weigh(method, gram, state.inner, losses.astype(gram.dtype), mask, left)
        weights = jnp.where(left, checked(method, weights, num_tasks), 0)
        updates = _weighted(loss, params, batch, weights, here, flags)
        return losses, updates, LeanState(continued(method, inner, state.inner), gram, weights.astype(gram.dtype))

    return Lean(init, direction)


def _flags(params: Any, shared: Any) -> Any:
    """A tree of bools that marks the shared leaves. Raises ValueError if there is none."""
    return jax.tree.unflatten(jax.tree.structure(params), shared_leaves(params, shared)[1])


def _weighted(loss: Loss, params: Any, batch: Any, weights: Array, here: Array, flags: Any) -> Any:
    """Σ_i w_i g_i on the shared leaves and Σ_i g_i on the others, over the present tasks; one gradient in memory.

    Terms are divided by a power of two, so that no partial sum overflows.
    """
    (small, power), (one, number) = divided(weights), divided(jnp.ones_like(weights))

    def add(total: Any, item: tuple[Any, Array, Array, Array]) -> tuple[Any, None]:
        task, weight, unit, present = item
        g = jax.grad(loss)(params, task)
        wide = jax.tree.map(lambda x: x.astype(accumulator(x)), g)
        share = lambda x, flag: jnp.where(present, (weight if flag else unit).astype(x.dtype) * x, 0)  # noqa: E731
        term = jax.tree.map(share, wide, flags)
        return jax.tree.map(jnp.add, total, term), None

    zero = jax.tree.map(lambda p: jnp.zeros_like(p, accumulator(p)), params)  # sharded as p, if its axes are explicit
    total = lax.scan(add, zero, (batch, small, one, here))[0]
    whole = lambda x, p, flag: saturated(multiplied(x, (power if flag else number).astype(x.dtype)), p.dtype)  # noqa: E731
    return jax.tree.map(whole, total, params, flags)
