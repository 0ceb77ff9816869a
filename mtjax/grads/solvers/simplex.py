"""Convex problems over the simplex (MGDA, CAGrad), and the projection onto it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from mtjax.grads.base import Array
from mtjax.grads.gram import constant_like
from mtjax.grads.solvers.steps import cholesky, longest_step


def simplex_newton(
    derivatives: Callable[[Array, Array], tuple[Array, Array]],
    start: Array,
    *,
    steps: int = 40,
    tolerance: float | None = None,
) -> Array:
    """Minimises a smooth convex F over the simplex {w ≥ 0, Σw = 1} with a primal-dual interior-point method.

    The optimality conditions are ∇F(w) − z − ν1 = 0 and w∘z = μ, with μ → 0. Eliminating z leaves
    (∇²F + diag(z/w)) dw = −∇F + σμ/w + ν1, with ν such that Σ dw = 0. A first solve with σ = 0
    (Mehrotra's predictor) sets σ; the second solve reuses its factor.

    Args:
      derivatives: (w [T], μ []) -> (gradient [T], Hessian [T, T]); μ lets F be smoothed.
      start: a positive point of the simplex [T]; F should be scaled so that F(start) is about 1.
      steps: maximum number of steps.
      tolerance: on the gap zᵀw, relative to |wᵀ∇F|, or to 0.02 if that is larger, so that the
        iteration also ends at a minimum of 0.

    Returns:
      The minimiser [T], positive, with sum 1.
    """
    num_tasks = start.shape[0]
    tiny = jnp.finfo(start.dtype).tiny
    tolerance = 4 * float(jnp.finfo(start.dtype).eps) if tolerance is None else tolerance

    def unfinished(carry: tuple) -> Array:
        step, w, z, gradient = carry
        size = jnp.maximum(jnp.abs(jnp.dot(w, gradient)), 0.02)
        return (step < steps) & (jnp.dot(w, z) > tolerance * size)

    def advance(carry: tuple) -> tuple:
        step, w, z, _ = carry
        mu = jnp.dot(w, z) / num_tasks
        gradient, hessian = derivatives(w, mu)
        # As Σ dw = 0, adding 11ᵀ and shifting the gradient change nothing in exact arithmetic; in float32
        # they keep the matrix regular where F has no curvature along w (a norm has none).
        ridge = 2 * jnp.finfo(w.dtype).eps * jnp.diagonal(hessian)
        factor = (cholesky(hessian + 1 + jnp.diag(z / w + ridge)), True)
        ones = cho_solve(factor, jnp.ones_like(w))
        gradient = gradient - jnp.dot(w, gradient)

        def direction(right: Array) -> tuple[Array, Array]:
            dw = cho_solve(factor, right / w - gradient)
            dw = dw + (1 - jnp.sum(w) - jnp.sum(dw)) / jnp.sum(ones) * ones
            return dw, (right - z * dw) / w - z

        dw, dz = direction(jnp.zeros_like(w))
        room = jnp.minimum(longest_step(w, dw), longest_step(z, dz))
        sigma = (1 - jnp.minimum(room, 1)) ** 2
        second = jnp.clip(dw * dz, -mu, mu) * jnp.minimum(room, 1)
        dw, dz = direction(jnp.maximum(sigma, 1e-3) * mu - second)
        room = 0.99 * jnp.minimum(longest_step(w, dw), longest_step(z, dz))
        size = jnp.minimum(room, 1)
        new = jnp.maximum(w + size * dw, tiny)
        new = new / jnp.sum(new)
        sound = jnp.all(jnp.isfinite(new) & jnp.isfinite(dz))  # if not, the factorisation broke down: stop
        w = jnp.where(sound, new, w)
        z = jnp.where(sound, jnp.maximum(z + size * dz, tiny), 0)
        return step + 1, w, z, derivatives(w, mu)[0]

    gradient, _ = derivatives(start, jnp.ones((), start.dtype) / num_tasks)
    scale = jnp.maximum(jnp.abs(jnp.dot(start, gradient)), 1e-8)
    z = jnp.maximum(gradient - jnp.min(gradient), 0) + scale / num_tasks / start
    carry = (0, start, jnp.minimum(z, scale / num_tasks / start * 10), gradient)
    return lax.while_loop(unfinished, advance, carry)[1]


def barrier_newton(
    objective: Callable[[Array, Array], Array],
    derivatives: Callable[[Array, Array], tuple[Array, Array]],
    start: Array,
    *,
    steps: int = 90,
) -> Array:
    """Minimises a convex F over the simplex by following min F_μ(w) − μ Σ log w as μ → 0.

    For an F with a kink, such as a norm, across which `simplex_newton` may jump. F_μ is F smoothed
    by its own barrier, so that the sum is self-concordant and damped Newton is safe. Far from the
    central path (decrement δ ≥ 0.7), the best of four step lengths is taken, one of which is
    1/(1+δ); near the path, μ is reduced.

    Args:
      objective: (w [T], μ []) -> F_μ(w) [].
      derivatives: (w [T], μ []) -> (gradient [T], Hessian [T, T]) of F_μ.
      start: a positive point of the simplex [T]; F should be scaled so that F(start) is about 1.
      steps: maximum number of steps.

    Returns:
      The minimiser [T], positive, with sum 1.
    """
    num_tasks = start.shape[0]
    epsilon, tiny = jnp.finfo(start.dtype).eps, jnp.finfo(start.dtype).tiny
    last = jnp.asarray(0.08 * epsilon, start.dtype)

    def merit(w: Array, mu: Array) -> Array:
        return objective(w, mu) - mu * jnp.sum(jnp.log(w))

    def advance(carry: tuple) -> tuple:
        step, w, mu, _ = carry
        gradient, hessian = derivatives(w, mu)
        ridge = 2 * epsilon * jnp.diagonal(hessian)
        factor = (cholesky(hessian + 1 + jnp.diag(mu / w**2 + ridge)), True)
        right = mu / w - (gradient - jnp.dot(w, gradient))
        dw, ones = cho_solve(factor, jnp.stack([right, jnp.ones_like(w)], axis=1)).T
        dw = dw - jnp.sum(dw) / jnp.sum(ones) * ones
        decrement = jnp.sqrt(jnp.maximum(jnp.dot(dw, right) / mu, 0))
        longest = jnp.minimum(0.95 * longest_step(w, dw), 1)
        sizes = jnp.stack([longest, longest / 3, longest / 10, jnp.minimum(1 / (1 + decrement), longest)])
        values = jax.vmap(lambda size: merit(jnp.maximum(w + size * dw, tiny), mu))(sizes)
        size = jnp.where(decrement < 0.7, longest, sizes[jnp.argmin(values)])
        new = jnp.maximum(w + size * dw, tiny)
        new = new / jnp.sum(new)
        sound = jnp.all(jnp.isfinite(new))
        lower = jnp.where(decrement < 0.7, 0.15 * mu, mu)
        done = ~sound | ((mu <= last / num_tasks) & (decrement < 0.7))
        return step + 1, jnp.where(sound, new, w), lower, done

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < steps) & ~carry[3]

    mu, done = constant_like(start[0], 1 / num_tasks, start.dtype), constant_like(start[0], False, bool)
    return lax.while_loop(unfinished, advance, (0, start, mu, done))[1]


def project_simplex(v: Array) -> Array:
    """Euclidean projection of v [T] onto the simplex, by sorting; entries of −inf (or NaN) become 0."""
    v = jnp.minimum(jnp.where(jnp.isnan(v), -jnp.inf, v), jnp.finfo(v.dtype).max)
    v = v - jnp.maximum(jnp.max(v), jnp.finfo(v.dtype).min)
    v = jnp.maximum(v, -1e6)  # such entries become 0 anyway, as do all that are 1 or more below the largest
    ordered = jnp.sort(v, descending=True)
    rank = jnp.arange(1, v.shape[0] + 1, dtype=v.dtype)
    shift = (jnp.cumsum(ordered) - 1) / rank
    count = jnp.sum(ordered > shift)
    return jnp.maximum(v - shift[count - 1], 0)
