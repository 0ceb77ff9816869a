"""Krum: the gradients closest to their neighbours."""

import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, check_whole, presence, stateless


def krum(byzantine: int = 1, selected: int = 1) -> Weighting:
    """Multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757).

    The score of i is the sum of its T − f − 2 smallest squared distances to other gradients,
    ‖g_i − g_j‖² = G_ii + G_jj − 2G_ij; the `selected` gradients of least score are averaged.
    (At least one distance counts, so that it is defined for T < f + 3.)

    Properties: permutation equivariant away from ties (with T ≤ f + 3 the two nearest gradients always
    tie); may conflict; robust to f outliers. Cost: sorting [T, T].

    Use when: a few tasks' gradients may be corrupt, and whole ones are to be left out.

    Args:
      byzantine: f, how many gradients may be arbitrary.
      selected: how many are averaged; 1 is Krum.

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
        ordered = jnp.sort(jnp.where(usable, distance, jnp.inf), axis=1)
        count = jnp.maximum(jnp.sum(here) - byzantine - 2, 1)
        counted = (jnp.arange(num_tasks) < count) & jnp.isfinite(ordered)
        scores = jnp.where(here, jnp.sum(jnp.where(counted, ordered, 0), axis=1), jnp.inf)
        rank = jnp.argsort(jnp.argsort(scores))
        chosen = (rank < selected) & here
        return chosen / jnp.maximum(jnp.sum(chosen), 1).astype(gram.dtype), state

    return Weighting(stateless, update)
