"""Priority-constrained descent: the main task first, with some progress for every other task."""

from typing import NamedTuple

import jax.numpy as jnp

from mtjax.grads.base import (
    Array,
    Number,
    Weighting,
    check_number,
    check_whole,
    cosines,
    default_float,
    keep_absent,
    norms,
    presence,
    safe_divide,
)
from mtjax.grads.solvers.cone import nonnegative


class ScaleState(NamedTuple):
    """Moving averages of the squared gradient norms [T], and the number of gradients in each [T]."""

    squares: Array
    count: Array


def pcd(main_task: int = 0, tau: Number = 0.02, beta: Number = 0.999, epsilon: Number = 1e-8) -> Weighting:
    """Priority-constrained descent ("Not All Objectives Are Born Equal", TMLR 2026, arXiv 2606.29521).

    With ĝ_i = g_i/√(v_i + ε), where v_i is the bias-corrected moving average of ‖g_i‖²: the d nearest to ĝ_main from
    which every other task gains at least the fraction τ of what its own ĝ_j would give it,

        min ½‖d − ĝ_main‖² subject to ⟨ĝ_j, d⟩ ≥ τ‖ĝ_j‖² for j ≠ main,

    scaled to the length of g_main. If no d satisfies all constraints, it is g_main; if g_main is 0, it is 0.

    Properties: conflicts with no task except, if the constraints require it, the main one; invariant to the scale of
    every other task; equivariant to permutations that fix the main task. Cost: that of `dualproj`.

    Use when: one task matters, and the others must not be hurt by it.

    Args:
      main_task: index of the main task.
      tau: τ, the fraction of its own progress that every other task is guaranteed, from 0 to 1.
      beta: decay of the moving averages.
      epsilon: ε, added to the moving averages.

    Raises:
      ValueError: `main_task` is not an integer of at least 0, or a number is out of bounds; from the update,
        `main_task` is not below T.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.pcd(tau=0.0)
      >>> weights, _ = method.update(jnp.array([[1.0, -1.0], [-1.0, 2.0]]), method.init(2))
      >>> [round(float(w), 3) for w in weights]
      [1.414, 0.707]
    """
    check_whole("main_task", main_task, low=0)
    check_number("tau", tau, low=0, high=1)
    check_number("beta", beta, low=0, high=1)
    check_number("epsilon", epsilon, low=0)

    def init(num_tasks: int) -> ScaleState:
        return ScaleState(jnp.zeros(num_tasks, default_float()), jnp.zeros(num_tasks, default_float()))

    def update(gram: Array, state: ScaleState, *, losses=None, mask=None) -> tuple[Array, ScaleState]:
        num_tasks = gram.shape[-1]
        if main_task >= num_tasks:
            raise ValueError(f"main_task {main_task} is out of range for {num_tasks} tasks")
        here = presence(num_tasks, mask, gram.dtype)
        norm = norms(gram) * here
        squares = beta * state.squares + (1 - beta) * norm**2
        new = keep_absent(ScaleState(squares, state.count + 1), state, here)
        average = safe_divide(new.squares, 1 - jnp.asarray(beta, gram.dtype) ** new.count)
        scale = safe_divide(jnp.ones_like(norm), jnp.sqrt(average + epsilon))
        weights = _constrained(cosines(gram) * here[:, None] * here[None, :], norm * scale, main_task, tau)
        return weights * scale * safe_divide(norm[main_task], (scale * norm)[main_task]), new

    return Weighting(init, update)


def _constrained(cosine: Array, norm: Array, main_task: int, tau: Number) -> Array:
    """Weights [T] of the ĝ_i in the solution, scaled to ‖ĝ_main‖, from cosines C [T, T] and lengths ‖ĝ_i‖ [T].

    d = ĝ_main + Σ_j m_j ĝ_j/‖ĝ_j‖, where m ≥ 0 minimises ½mᵀCm + qᵀm, q_j = ⟨ĝ_j, ĝ_main⟩/‖ĝ_j‖ − τ‖ĝ_j‖.
    """
    num_tasks, epsilon = cosine.shape[0], float(jnp.finfo(cosine.dtype).eps)
    other = (jnp.arange(num_tasks) != main_task) & (norm > 0)
    both = other[:, None] & other[None, :]
    matrix = jnp.where(jnp.eye(num_tasks) > 0, 1, cosine * both)
    pull = cosine[main_task] * norm[main_task]
    linear = jnp.where(other, pull - tau * norm, 0)
    push = jnp.where(other, nonnegative(matrix, linear[None])[0], 0)
    # Constraints that cannot be satisfied stay violated, however far d is pushed.
    violated = jnp.max(jnp.where(other, -(matrix @ push + linear), 0))
    push = jnp.where(violated <= jnp.sqrt(epsilon) * jnp.max(jnp.abs(linear)), push, 0)
    weights = (push + norm * (jnp.arange(num_tasks) == main_task)).astype(cosine.dtype)  # of the unit gradients
    every = jnp.where(jnp.eye(num_tasks) > 0, norm > 0, cosine)
    squared = weights @ every @ weights
    length = jnp.where(squared > 10 * epsilon * jnp.sum(weights) ** 2, jnp.sqrt(jnp.maximum(squared, 0)), 0)
    return safe_divide(weights, norm) * safe_divide(norm[main_task], length)
