"""Krum: the gradients closest to their neighbours."""

import jax
import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, check_whole, presence, stateless


def krum(byzantine: int = 1, selected: int = 1) -> Weighting:
    """Multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757).

    The score of i is the sum of its T − f − 2 smallest squared distances to other gradients,
    ‖g_i − g_j‖² = G_ii + G_jj − 2G_ij; the `selected` gradients with the lowest scores are averaged.
    (At least one distance counts, so that the score is defined for T < f + 3.)

    Properties: permutation equivariant away from ties (with T ≤ f + 3 the two nearest gradients always
    tie); may conflict; robust to f outliers. Cost: finding the f + 1 largest entries of every row of [T, T].

    Use when: a few tasks' gradients may be corrupt and should be left out as a whole.

    Args:
      byzantine: f, how many gradients may be arbitrary.
      selected: how many are averaged; 1 is Krum.

    Raises:
      ValueError: `byzantine` below 0, or `selected` below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> J = jnp.array([[1.0], [1.1], [0.9], [99.0]])
      >>> weights, _ = grads.krum(byzantine=1).update(J @ J.T, ())
      >>> int(jnp.argmax(weights)) != 3
      True
    """
    check_whole("byzantine", byzantine, low=0)
    check_whole("selected", selected, low=1)

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        num_tasks = gram.shape[-1]
        here = presence(num_tasks, mask, gram.dtype) > 0
        squared = jnp.diagonal(gram)
        distance = jnp.maximum(squared[:, None] + squared[None, :] - 2 * gram, 0)
        usable = here[:, None] & here[None, :] & ~jnp.eye(num_tasks, dtype=bool)
        # However many tasks are present, all but the f + 1 largest distances count: fewer to find than the smallest.
        _, largest = jax.lax.top_k(jnp.where(usable, distance, -1), min(byzantine + 1, num_tasks))  # [T, f + 1]
        left_out = jnp.any(largest[:, :, None] == jnp.arange(num_tasks), axis=1)
        total = jnp.sum(jnp.where(usable & ~left_out, distance, 0), axis=1)
        nearest = jnp.min(distance, axis=1, where=usable, initial=jnp.inf)
        few = jnp.sum(here) < byzantine + 3
        scores = jnp.where(here, jnp.where(few, jnp.where(jnp.isfinite(nearest), nearest, 0), total), jnp.inf)
        # The rank in a stable sort, by counting.
        index = jnp.arange(num_tasks)
        before = (scores[None, :] < scores[:, None]) | (
            (scores[None, :] == scores[:, None]) & (index[None, :] < index[:, None])
        )
        rank = jnp.sum(before, axis=1)
        chosen = (rank < selected) & here
        return chosen / jnp.maximum(jnp.sum(chosen), 1).astype(gram.dtype), state

    return Weighting(stateless, update)
