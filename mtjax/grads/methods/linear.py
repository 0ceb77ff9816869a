"""Linear scalarisation: fixed weights. The baseline that every other method must beat."""

from collections.abc import Sequence

import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, presence, stateless, uniform


def mean() -> Weighting:
    """Mean of the task gradients, by definition w_i = 1/T.

    Properties: permutation equivariant; linear under scaling; may conflict with a task. Cost: one
    weighted sum, no Gram.

    Use when: in doubt; it is the baseline that every other method must beat.

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
    """Sum of the task gradients, by definition w_i = 1. Also exported as `sum`.

    Properties: those of `mean`; the direction is T times as long. Cost: one weighted sum, no Gram.

    Use when: comparing with papers that sum their losses; with Adam it is equivalent to the mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.sum().update(jnp.eye(2), ())
      >>> [float(w) for w in weights]
      [1.0, 1.0]
    """

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        return presence(gram.shape[-1], mask, gram.dtype), state

    return Weighting(stateless, update, needs_gram=False)


def fixed(weights: Sequence[float] | Array) -> Weighting:
    """Linear scalarisation: the weights w_i are by definition constant, and used as given (no normalisation).

    Properties: linear under scaling; may conflict with a task. Cost: one weighted sum, no Gram.

    Use when: the tasks' relative importance is known or has been tuned.

    Args:
      weights: [T].

    Raises:
      ValueError: from the update, the number of weights is not T.

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
            raise ValueError(f"fixed has weights of shape {given.shape} for {gram.shape[-1]} tasks")
        return given * presence(gram.shape[-1], mask, gram.dtype), state

    return Weighting(stateless, update, needs_gram=False)
