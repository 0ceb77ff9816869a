"""Linear scalarisation: fixed weights. The baseline that every other method must beat."""

from collections.abc import Sequence

import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, presence, stateless, uniform


def mean() -> Weighting:
    """Mean of the task gradients: w_i = 1/T. Needs no Gram.

    Properties: permutation equivariant, linear under scaling; may conflict with a task.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.mean().update(jnp.eye(4), ())
      >>> [float(w) for w in weights]
      [0.25, 0.25, 0.25, 0.25]
    """

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        return uniform(gram.shape[-1], mask, gram.dtype), state

    return Weighting(stateless, update, needs_gram=False)


def sum_() -> Weighting:
    """Sum of the task gradients: w_i = 1. Needs no Gram. Also exported as `sum`."""

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        return presence(gram.shape[-1], mask, gram.dtype), state

    return Weighting(stateless, update, needs_gram=False)


def fixed(weights: Sequence[float] | Array) -> Weighting:
    """Constant weights w_i, used as given (no normalisation).

    Args:
      weights: [T].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.fixed((1.0, 0.5)).update(jnp.eye(2), ())
      >>> [float(w) for w in weights]
      [1.0, 0.5]
    """

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        given = jnp.asarray(weights, gram.dtype)
        if given.shape != gram.shape[-1:]:
            raise ValueError(f"fixed has weights {given.shape} for {gram.shape[-1]} tasks")
        return given * presence(gram.shape[-1], mask, gram.dtype), state

    return Weighting(stateless, update, needs_gram=False)
