"""Solvers of T×T problems: jit- and vmap-safe, one Cholesky of a T×T matrix per step.

All stop early by a tolerance near the dtype's precision, and after a fixed number of steps in any
case. Under `vmap` a batch runs until its slowest member stops.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from mtjax.grads.base import Array


def simplex_newton(
    derivatives: Callable[[Array, Array], tuple[Array, Array]],
    start: Array,
    *,
    steps: int = 40,
    tolerance: float | None = None,
) -> Array:
    """Minimises a smooth convex F over the simplex {w ≥ 0, Σw = 1} by a primal-dual interior point.

    The conditions are ∇F(w) − z − ν1 = 0 and w∘z = μ, with μ → 0. Eliminating z leaves
    (∇²F + diag(z/w)) dw = −∇F + σμ/w + ν1, with ν such that Σ dw = 0. A first solve with σ = 0
    (Mehrotra's predictor) sets σ; the second shares its factor.

    Args:
      derivatives: (w [T], μ []) -> (gradient [T], Hessian [T, T]); μ lets F be smoothed.
      start: a positive point of the simplex [T]; F should be scaled so that F(start) is about 1.
      steps: the most steps to take.
      tolerance: of the gap zᵀw, relative to wᵀ∇F (absolute below 0.02, so that minima of 0 end).

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
        # Σ dw = 0 makes 11ᵀ and a shift of the gradient no-ops in exact arithmetic; in float32 they
        # keep the matrix regular where F has no curvature along w (a norm has none).
        ridge = 2 * jnp.finfo(w.dtype).eps * jnp.diagonal(hessian)
        factor = (_cholesky(hessian + 1 + jnp.diag(z / w + ridge)), True)
        ones = cho_solve(factor, jnp.ones_like(w))
        gradient = gradient - jnp.dot(w, gradient)

        def direction(right: Array) -> tuple[Array, Array]:
            dw = cho_solve(factor, right / w - gradient)
            dw = dw + (1 - jnp.sum(w) - jnp.sum(dw)) / jnp.sum(ones) * ones
            return dw, (right - z * dw) / w - z

        dw, dz = direction(jnp.zeros_like(w))
        room = jnp.minimum(_room(w, dw), _room(z, dz))
        sigma = (1 - jnp.minimum(room, 1)) ** 2
        second = jnp.clip(dw * dz, -mu, mu) * jnp.minimum(room, 1)
        dw, dz = direction(jnp.maximum(sigma, 1e-3) * mu - second)
        room = 0.99 * jnp.minimum(_room(w, dw), _room(z, dz))
        size = jnp.minimum(room, 1)
        new = jnp.maximum(w + size * dw, tiny)
        new = new / jnp.sum(new)
        sound = jnp.all(jnp.isfinite(new) & jnp.isfinite(dz))  # else the factor broke down: stop
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

    For an F with a kink, such as a norm, which `simplex_newton` may jump across. F_μ is F smoothed
    by its own barrier, so that the sum is self-concordant and damped Newton is safe: far from the
    path (decrement δ ≥ 0.7) the best of four step lengths is taken, 1/(1+δ) among them; near it μ
    falls.

    Args:
      objective: (w [T], μ []) -> F_μ(w) [].
      derivatives: (w [T], μ []) -> (gradient [T], Hessian [T, T]) of F_μ.
      start: a positive point of the simplex [T]; F should be scaled so that F(start) is about 1.
      steps: the most steps to take.

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
        factor = (_cholesky(hessian + 1 + jnp.diag(mu / w**2 + ridge)), True)
        right = mu / w - (gradient - jnp.dot(w, gradient))
        dw, ones = cho_solve(factor, jnp.stack([right, jnp.ones_like(w)], axis=1)).T
        dw = dw - jnp.sum(dw) / jnp.sum(ones) * ones
        decrement = jnp.sqrt(jnp.maximum(jnp.dot(dw, right) / mu, 0))
        longest = jnp.minimum(0.95 * _room(w, dw), 1)
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

    mu = jnp.full((), 1 / num_tasks, start.dtype)
    return lax.while_loop(unfinished, advance, (0, start, mu, jnp.array(False)))[1]


def power_newton(cosine: Array, scale: Array, power: float, *, steps: int = 40) -> Array:
    """Solves C u = κ u^(−p) for u > 0 [T], the stationarity of ½uᵀCu − Σ κ ∫u^(−p).

    Primal-dual: C u − z = 0 and log z + p log u = log κ, linearised together, so a step factors
    C + p diag(z/u). A ridge near the dtype's precision keeps Pareto-stationary points (where there
    is no solution) finite.

    Args:
      cosine: C [T, T], positive semi-definite with unit diagonal.
      scale: κ [T], positive.
      power: p > 0; 1 for Nash-MTL, 1/α for FairGrad.
    """
    epsilon = float(jnp.finfo(cosine.dtype).eps)
    matrix = cosine + 16 * epsilon * jnp.eye(cosine.shape[0], dtype=cosine.dtype)

    def residuals(u: Array, z: Array) -> tuple[Array, Array]:
        return matrix @ u - z, jnp.log(z) + power * jnp.log(u) - jnp.log(scale)

    def unfinished(carry: tuple) -> Array:
        step, u, z = carry
        linear, product = residuals(u, z)
        worst = jnp.maximum(jnp.max(jnp.abs(linear / z)), jnp.max(jnp.abs(product)))
        return (step < steps) & (worst > 32 * epsilon)

    def advance(carry: tuple) -> tuple:
        step, u, z = carry
        linear, product = residuals(u, z)
        factor = (_cholesky(matrix + jnp.diag(power * z / u)), True)
        du = cho_solve(factor, -linear - z * product)
        dz = -z * product - power * z / u * du
        size = jnp.minimum(0.9 * jnp.minimum(_room(u, du), _room(z, dz)), 1)
        new_u, new_z = u + size * du, z + size * dz
        sound = jnp.all(jnp.isfinite(new_u) & jnp.isfinite(new_z) & (new_u > 0) & (new_z > 0))
        return jnp.where(sound, step + 1, steps), jnp.where(sound, new_u, u), jnp.where(sound, new_z, z)

    # Exact when all cosines are equal: u = (κ / mean row sum)^(1/(1+p)).
    rows = jnp.maximum(jnp.mean(jnp.sum(cosine, axis=1)), 0.1)
    u = (scale / rows) ** (1 / (1 + power))
    return lax.while_loop(unfinished, advance, (0, u, scale * u**-power))[1]


def dual_cone(cosine: Array, lower: Array, *, steps: int = 200, rounds: int = 3) -> Array:
    """Solves min vᵀCv subject to v ≥ l, for many l at once.

    ADMM on s = v − l ≥ 0 with one shared inverse, (C + ρ)⁻¹, so a step is one matrix product for
    all right-hand sides; then the active set is read off and solved exactly (`rounds` times),
    which is kept where it lowers the residual ‖min(s, Cv)‖∞. What is still inexact (nearly
    degenerate cones) goes to an interior point, one Cholesky for each l and step.

    Args:
      cosine: C [T, T], positive semi-definite with unit diagonal.
      lower: l [N, T].

    Returns:
      v [N, T].
    """
    num_tasks = cosine.shape[0]
    eye = jnp.eye(num_tasks, dtype=cosine.dtype)
    epsilon = float(jnp.finfo(cosine.dtype).eps)
    matrix = cosine + 16 * epsilon * eye
    size = jnp.maximum(jnp.max(jnp.abs(lower), axis=1, keepdims=True), jnp.finfo(cosine.dtype).tiny)
    lower = lower / size
    linear = lower @ matrix

    def residual(s: Array) -> Array:
        return jnp.max(jnp.abs(jnp.minimum(s, s @ matrix + linear)), axis=1)

    s = _admm(matrix, linear, residual, steps, 64 * epsilon)
    s, worst = _polish(matrix, linear, residual, s, rounds)
    s = _interior(matrix, linear, residual, s, worst, 64 * epsilon)
    return (lower + s) * size


def _admm(matrix: Array, linear: Array, residual: Callable[[Array], Array], steps: int, tolerance: float) -> Array:
    """Over-relaxed ADMM for min ½sᵀCs + qᵀs, s ≥ 0: rows of s [N, T]; ten steps per check."""
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def inverse(rho: Array) -> Array:
        return cho_solve((_cholesky(matrix + rho * eye), True), eye)

    def inner(_: Array, carry: tuple) -> tuple:
        z, u, gap, rho, solve = carry
        x = (rho * (z - u) - linear) @ solve
        mixed = 1.6 * x - 0.6 * z + u
        new = jnp.maximum(mixed, 0)
        return new, mixed - new, (jnp.max(jnp.abs(x - new)), jnp.max(jnp.abs(new - z))), rho, solve

    def advance(carry: tuple) -> tuple:
        step, z, u, rho, solve, _ = carry
        zero = (jnp.zeros((), z.dtype), jnp.zeros((), z.dtype))
        z, u, (primal, dual), _, _ = lax.fori_loop(0, 10, inner, (z, u, zero, rho, solve))
        ratio = jnp.sqrt((primal + 1e-30) / (rho * dual + 1e-30))
        change = jnp.where((ratio > 3) | (ratio < 1 / 3), jnp.clip(ratio, 0.1, 10), 1)
        new = jnp.clip(rho * change, 1e-4, 1e2)
        solve = lax.cond(new != rho, inverse, lambda _: solve, new)
        return step + 10, z, u * (rho / new), new, solve, jnp.max(residual(z))

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < steps) & (carry[-1] > tolerance)

    rho = jnp.full((), 0.3, matrix.dtype)
    zero = jnp.zeros_like(linear)
    start = (0, zero, zero, rho, inverse(rho), jnp.max(residual(zero)))
    return lax.while_loop(unfinished, advance, start)[1]


def _interior(
    matrix: Array, linear: Array, residual: Callable[[Array], Array], s: Array, worst: Array,
    tolerance: float,
) -> Array:  # fmt: skip
    """Primal-dual interior point for s ≥ 0, y = Cs + q ≥ 0, s∘y = 0; takes no step when s is exact."""

    def one(s: Array, y: Array, q: Array) -> tuple[Array, Array]:
        mu = jnp.dot(s, y) / s.shape[0]
        gap = matrix @ s + q - y
        factor = (_cholesky(matrix + jnp.diag(y / s)), True)
        ds = cho_solve(factor, -gap - y)
        room = jnp.minimum(jnp.minimum(_room(s, ds), _room(y, -y - y / s * ds)), 1)
        target = jnp.maximum((1 - room) ** 2, 1e-3) * mu / s
        ds = cho_solve(factor, -gap - y + target)
        dy = target - y - y / s * ds
        size = jnp.minimum(0.98 * jnp.minimum(_room(s, ds), _room(y, dy)), 1)
        tiny = jnp.finfo(s.dtype).tiny
        return jnp.maximum(s + size * ds, tiny), jnp.maximum(y + size * dy, tiny)

    def advance(carry: tuple) -> tuple:
        step, inner, y, best, worst = carry
        inner, y = jax.vmap(one)(inner, y, linear)
        after = residual(inner)
        better = after < worst
        best = jnp.where(better[:, None], inner, best)
        return step + 1, inner, y, best, jnp.where(better, after, worst)

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < 30) & (jnp.max(carry[-1]) > tolerance)

    ones = jnp.ones_like(linear)
    start = (0, ones, jnp.maximum(ones @ matrix + linear, 1), s, worst)
    return lax.while_loop(unfinished, advance, start)[3]


def _polish(
    matrix: Array, linear: Array, residual: Callable[[Array], Array], s: Array, rounds: int
) -> tuple[Array, Array]:
    """Solves on the free set {s > Cs + q} exactly; keeps what lowers the residual."""
    epsilon = float(jnp.finfo(matrix.dtype).eps)

    def solve_free(s: Array, q: Array) -> Array:
        free = (s > s @ matrix + q).astype(s.dtype)
        block = matrix * free[:, None] * free[None, :] + jnp.diag(1 - free)
        return jnp.maximum(-cho_solve((_cholesky(block), True), free * q) * free, 0)

    def again(carry: tuple) -> tuple:
        step, s, worst, _ = carry
        new = jax.vmap(solve_free)(s, linear)
        after = residual(new)
        better = after < worst
        return step + 1, jnp.where(better[:, None], new, s), jnp.where(better, after, worst), jnp.any(better)

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < rounds) & carry[-1] & (jnp.max(carry[2]) > 64 * epsilon)

    carry = (0, s, residual(s), jnp.array(True))
    return lax.while_loop(unfinished, again, carry)[1:3]


def project_simplex(v: Array) -> Array:
    """Euclidean projection of v [T] on the simplex, by sorting; −inf is left out, NaN counts as −inf."""
    v = jnp.where(jnp.isnan(v), -jnp.inf, v)
    v = v - jnp.clip(jnp.max(v), jnp.finfo(v.dtype).min, jnp.finfo(v.dtype).max)
    v = jnp.maximum(v, -1e6)  # 0 on the simplex in any case: no entry may be 1 below the largest
    ordered = jnp.sort(v, descending=True)
    rank = jnp.arange(1, v.shape[0] + 1, dtype=v.dtype)
    shift = (jnp.cumsum(ordered) - 1) / rank
    count = jnp.sum(ordered > shift)
    return jnp.maximum(v - shift[count - 1], 0)


def _room(x: Array, dx: Array) -> Array:
    """The largest step that keeps x + step·dx ≥ 0."""
    return jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), 1e6))


def _cholesky(matrix: Array) -> Array:
    return lax.linalg.cholesky(matrix, symmetrize_input=False)
