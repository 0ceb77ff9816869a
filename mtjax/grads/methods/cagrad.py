"""CAGrad: the best worst-case improvement near the mean gradient."""

import jax.numpy as jnp

from mtjax.grads.base import (
    Array,
    Number,
    State,
    Weighting,
    check_number,
    cosines,
    norms,
    safe_divide,
    stateless,
    uniform,
)
from mtjax.grads.solvers.simplex import barrier_newton


def cagrad(c: Number = 0.4, rescale: str | None = None) -> Weighting:
    """CAGrad (Liu et al., NeurIPS 2021, arXiv 2110.14048, Algorithm 1, which takes c in [0, 1)).

    With g₀ the mean gradient: maximise min_i ⟨g_i, d⟩ over ‖d − g₀‖ ≤ c‖g₀‖. The dual is
    min over the simplex of wᵀG1/T + c‖g₀‖√(wᵀGw), and d = g₀ + c‖g₀‖ g_w/‖g_w‖, so the weights
    are 1/T + (c‖g₀‖/‖g_w‖) w. An interior-point method solves the dual, its root smoothed by the barrier.

    Properties: permutation equivariant; homogeneous; converges to a minimum of the mean loss for
    c < 1; c = 0 is the mean. Conflicts less than the mean; with c ≥ 1 it does not conflict.
    Cost: about 40 T×T Cholesky factors.

    Use when: the mean is the goal, and no task may be left behind.

    Args:
      c: radius, relative to ‖g₀‖; 0.4 in the paper's NYUv2 and Cityscapes runs, 0.5 in its toy.
      rescale: None as printed; "1+c" divides the direction by 1+c, as the authors' toy code does; "1+c2" by
        1+c², as their code for networks does.

    Raises:
      ValueError: `c` below 0, or an unknown `rescale`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.cagrad(c=0.5).update(jnp.eye(2), ())
      >>> [round(float(w), 3) for w in weights]
      [0.75, 0.75]
    """
    if rescale not in (None, "1+c", "1+c2"):
        raise ValueError(f'rescale must be None, "1+c" or "1+c2", not {rescale!r}')
    check_number("c", c, low=0)
    divisor = {None: 1.0, "1+c": 1.0 + c, "1+c2": 1.0 + c**2}[rescale]

    def update(gram: Array, state: State, *, losses=None, mask=None) -> tuple[Array, State]:
        average = uniform(gram.shape[-1], mask, gram.dtype)
        return cagrad_weights(gram, average, c) / divisor, state

    def residual(gram: Array, weights: Array, *, losses=None, mask=None) -> Array:
        return duality_gap(gram, weights * divisor, uniform(gram.shape[-1], mask, gram.dtype))

    return Weighting(stateless, update, residual=residual)


def cagrad_weights(gram: Array, average: Array, c: Number) -> Array:
    """The weights 1/T + (c‖g₀‖/‖g_w‖) w [T]; `average` [T] is 1/T for present tasks and 0 for absent ones."""
    here = (average > 0).astype(gram.dtype)
    gram = gram * here[:, None] * here[None, :]
    top = jnp.max(jnp.diagonal(gram))
    gram = gram / jnp.where(top > 0, top, 1)
    along = gram @ average
    length = jnp.sqrt(jnp.maximum(jnp.dot(average, along), 0))
    radius = c * length
    # Below the floor, g₀ is only rounding error, and improvements relative to its length do not matter.
    scale = jnp.maximum(length * jnp.sqrt(jnp.dot(average, jnp.diagonal(gram))), 1e-12)
    # An absent task gets a cost above all others, so that its weight vanishes.
    linear = jnp.where(here > 0, along, 4 * (jnp.max(jnp.abs(along)) + radius)) / scale
    radius = radius / scale

    safe = gram + 32 * jnp.finfo(gram.dtype).eps * jnp.diag(jnp.diagonal(gram))

    def objective(w: Array, mu: Array) -> Array:
        barrier = mu / jnp.maximum(radius, 1e-12)
        length = jnp.sqrt(jnp.maximum(jnp.dot(w, gram @ w), 0) + barrier**2)
        total = jnp.maximum(barrier + length, 1e-20)
        return jnp.dot(linear, w) + radius * total - mu * jnp.log(total)

    def derivatives(w: Array, mu: Array) -> tuple[Array, Array]:
        image = gram @ w
        barrier = mu / jnp.maximum(radius, 1e-12)
        root = jnp.sqrt(jnp.maximum(jnp.dot(w, image), 0) + barrier**2)
        total = jnp.maximum(barrier + root, 1e-20)
        slope = radius / total
        curved = slope / (total * jnp.maximum(root, 1e-20))
        # The two terms nearly cancel away from the kink; `safe` keeps the difference positive.
        return linear + slope * image, slope * safe - curved * jnp.outer(image, image)

    w = barrier_newton(objective, derivatives, jnp.full_like(average, 1 / average.shape[0])) * here
    norm = jnp.sqrt(jnp.maximum(jnp.dot(w, gram @ w), 0))
    return average + jnp.where(norm > 0, c * length / jnp.where(norm > 0, norm, 1), 0) * w


def duality_gap(gram: Array, weights: Array, average: Array) -> Array:
    """wᵀJd − min_i ⟨g_i, d⟩ for the simplex point w in `weights`, relative to ‖d‖ Σ w_i‖g_i‖ [].

    Dual minus primal: the gradient of the dual at w is Jd, and every w gives a feasible d.
    """
    here = average > 0
    norm = norms(gram) * here
    along = cosines(gram) @ (weights * norm)  # ⟨g_i, d⟩ / ‖g_i‖
    length = jnp.sqrt(jnp.maximum(jnp.dot(weights * norm, along), 0))
    w = safe_divide(weights - average, jnp.sum(weights) - 1)
    gap = jnp.dot(w, norm * along) - jnp.min(jnp.where(here, norm * along, jnp.inf))
    return safe_divide(jnp.maximum(gap, 0), length * jnp.dot(jnp.abs(w), norm))
