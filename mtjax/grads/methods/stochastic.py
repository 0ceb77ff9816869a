"""SDMGrad and MoDo: MGDA's weights, tracked by projected gradient steps; double sampling makes them unbiased."""

import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import (
    Array,
    Number,
    Weighting,
    check_number,
    check_whole,
    default_float,
    presence,
    restrict,
    uniform,
)
from mtjax.grads.solvers.simplex import project_simplex


def _start(num_tasks: int) -> Array:
    return jnp.full(num_tasks, 1 / num_tasks, default_float())


def onto_simplex(w: Array, here: Array) -> Array:
    """Projection onto the simplex of the present tasks."""
    return project_simplex(jnp.where(here > 0, w, -jnp.inf)) * here


def sdmgrad(lam: Number = 0.3, step_size: Number = 0.1, steps: int = 20) -> Weighting:
    """SDMGrad (Xiao, Ban and Ji, NeurIPS 2023, arXiv 2305.18409, Algorithm 1).

    Takes steps w ← Π(w − β (Gw + λ G w₀)) on the simplex, with w₀ = 1/T, warm-started from the last call.
    The direction Jᵀ(w + λ w₀) lies between MGDA (λ = 0) and the mean (λ → ∞). The paper's estimate is
    unbiased with three independent samples: pass the third one's gradients and the cross Gram of the
    other two, `tx.update(task_grads, state, gram=gram_matrix(grads_1, grads_2))`. (The authors' code
    divides the Gram by the square of the mean gradient norm, takes β = 10 with momentum 0.5 and divides
    the direction by 1 + λ; here the algorithm is as printed. `normalize` scales the gradients first, with
    one batch's Gram.)

    Properties: permutation equivariant; not homogeneous (the step size has a scale). Cost:
    `steps` products [T, T]·[T].

    Use when: gradients are noisy, and MGDA's exact minimum would follow the noise.

    Args:
      lam: λ, the pull towards the mean; 0.3 in the authors' experiments.
      step_size: β; convergence requires it to be below 2 over the largest eigenvalue of G.
      steps: S, inner steps per call; 20 in the authors' code.

    Raises:
      ValueError: `lam` below 0, `step_size` not above 0, or `steps` below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.sdmgrad(lam=1.0)
      >>> weights, state = method.update(jnp.eye(2), method.init(2))
      >>> [float(w) for w in weights]
      [1.0, 1.0]
    """
    check_number("lam", lam, low=0)
    check_number("step_size", step_size, above=0)
    check_whole("steps", steps, low=1)

    def update(gram: Array, state: Array, *, losses=None, mask=None) -> tuple[Array, Array]:
        here = presence(gram.shape[-1], mask, gram.dtype)
        goal = lam * uniform(gram.shape[-1], mask, gram.dtype)
        start, mass = restrict(state, here)
        step = lambda _, w: onto_simplex(w - step_size * (gram @ (w + goal)), here)  # noqa: E731
        w = lax.fori_loop(0, steps, step, start)
        return w + goal, jnp.where(here > 0, mass * w, state)

    return Weighting(_start, update)


def modo(step_size: Number = 0.1, rho: Number = 0.0) -> Weighting:
    """MoDo (Chen, Fernando, Ying and Chen, "Three-way trade-off in multi-objective learning", NeurIPS
    2023 and JMLR 25, 2024, equations 2.9a and 2.9b of the latter).

    Each call takes one step λ ← Π(λ − γ (J₁J₂ᵀ λ + ρλ)) on the simplex, with two independent samples
    (pass their cross Gram as `gram=gram_matrix(grads_1, grads_2)`); the direction is Jᵀλ with the
    updated λ.

    Properties: permutation equivariant; not homogeneous. Cost: one product [T, T]·[T].

    Use when: as for `sdmgrad`, at the lowest cost.

    Args:
      step_size: γ; convergence requires it to be below 2 over the largest eigenvalue of G.
      rho: ρ, regularisation; 0 as in the NeurIPS paper, 0.1 in the authors' code.

    Raises:
      ValueError: `step_size` not above 0, or `rho` below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.modo()
      >>> weights, state = method.update(jnp.diag(jnp.array([1.0, 4.0])), method.init(2))
      >>> bool(weights[0] > weights[1])
      True
    """
    check_number("step_size", step_size, above=0)
    check_number("rho", rho, low=0)

    def update(gram: Array, state: Array, *, losses=None, mask=None) -> tuple[Array, Array]:
        here = presence(gram.shape[-1], mask, gram.dtype)
        start, mass = restrict(state, here)
        w = onto_simplex(start - step_size * (gram @ start + rho * start), here)
        return w, jnp.where(here > 0, mass * w, state)

    return Weighting(_start, update)
