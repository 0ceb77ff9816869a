"""Gradient-similarity gating of auxiliary tasks."""

import jax.numpy as jnp

from mtjax.grads.base import Array, State, Weighting, check_whole, cosines, norms, presence, stateless


def cosine_gate(main_task: int = 0, weighted: bool = True) -> Weighting:
    """Gating by gradient similarity (Du et al., 2018, arXiv 1812.02224, section 4).

    d = g_main + Σ_aux max(0, cos(g_main, g_aux)) g_aux; unweighted, each g_aux is kept whole if its
    cosine is not negative. If the main task is absent or its gradient is zero, no auxiliary gradient is kept.

    Properties: never conflicts with the main task; may conflict with the others; homogeneous;
    equivariant to permutations that fix the main task. Cost: O(T).

    Use when: one task matters, and the others are there to help it.

    Args:
      main_task: index of the main task.
      weighted: weight the auxiliary gradients by their cosine; otherwise keep or drop them whole.

    Raises:
      ValueError: `main_task` is not an integer of at least 0; from the update, it is not below T.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> gram = jnp.array([[1.0, 0.5, -0.5], [0.5, 1.0, 0.0], [-0.5, 0.0, 1.0]])
      >>> weights, _ = grads.cosine_gate(main_task=0).update(gram, ())
      >>> [float(w) for w in weights]
      [1.0, 0.5, 0.0]
    """
    check_whole("main_task", main_task, low=0)

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        num_tasks = gram.shape[-1]
        if main_task >= num_tasks:
            raise ValueError(f"main_task {main_task} is out of range for {num_tasks} tasks")
        cosine = cosines(gram)[main_task]
        here = presence(num_tasks, mask, gram.dtype)
        led = (here[main_task] > 0) & (norms(gram)[main_task] > 0)
        kept = jnp.maximum(cosine, 0) if weighted else ((cosine >= 0) & led).astype(gram.dtype)
        return kept.at[main_task].set(1) * here, state

    return Weighting(stateless, update)
