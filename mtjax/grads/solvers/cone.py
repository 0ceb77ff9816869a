"""Quadratic programs over s ≥ 0, and projections onto the dual cone of the gradients: PCD, UPGrad, DualProj."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from mtjax.grads.base import Array
from mtjax.grads.gram import constant_like
from mtjax.grads.solvers.steps import cholesky, inverse, longest_step

_STEPS, _ROUNDS = 200, 3  # maximum numbers of ADMM steps, and of active-set rounds


def dual_cone(cosine: Array, lower: Array) -> Array:
    """Solves min vᵀCv subject to v ≥ l, for many l at once, as `nonnegative` does for s = v − l.

    Args:
      cosine: C [T, T], positive semi-definite with unit diagonal.
      lower: l [N, T].

    Returns:
      v [N, T].
    """
    size = jnp.maximum(jnp.max(jnp.abs(lower), axis=1, keepdims=True), jnp.finfo(cosine.dtype).tiny)
    lower = lower / size
    matrix = _definite(cosine)
    return (lower + _solve(matrix, lower @ matrix)) * size


def nonnegative(cosine: Array, linear: Array) -> Array:
    """Solves min ½sᵀCs + qᵀs subject to s ≥ 0, for many q at once.

    ADMM shares one inverse, (C + ρI)⁻¹, so that a step is one matrix product for all right-hand
    sides. Then the active set is read off and the free variables are solved exactly (a few times),
    keeping solutions that lower the residual ‖min(s, Cs + q)‖∞. If the result is still inexact (nearly
    degenerate cones), an interior-point method follows, with one Cholesky factor for each q and step.

    Args:
      cosine: C [T, T], positive semi-definite with unit diagonal.
      linear: q [N, T].

    Returns:
      s [N, T]; large values if there is no minimum.
    """
    size = jnp.maximum(jnp.max(jnp.abs(linear), axis=1, keepdims=True), jnp.finfo(cosine.dtype).tiny)
    return _solve(_definite(cosine), linear / size) * size


def _definite(cosine: Array) -> Array:
    """C plus a ridge that makes up for what rounding may have taken from its diagonal."""
    return cosine + 16 * float(jnp.finfo(cosine.dtype).eps) * jnp.eye(cosine.shape[0], dtype=cosine.dtype)


def _solve(matrix: Array, linear: Array) -> Array:
    """`nonnegative` for a positive definite matrix and rows q [N, T] of moderate magnitude."""
    epsilon = float(jnp.finfo(matrix.dtype).eps)

    def residual(s: Array) -> Array:
        return jnp.max(jnp.abs(jnp.minimum(s, s @ matrix + linear)), axis=1)

    s = _admm(matrix, linear, residual, _STEPS, 64 * epsilon)
    s, worst = _polish(matrix, linear, residual, s, _ROUNDS)
    return _interior(matrix, linear, residual, s, worst, 64 * epsilon)


def _admm(matrix: Array, linear: Array, residual: Callable[[Array], Array], steps: int, tolerance: float) -> Array:
    """Over-relaxed ADMM for min ½sᵀCs + qᵀs, s ≥ 0, with result s [N, T]; checks convergence every ten steps."""
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def shifted(rho: Array) -> Array:
        return inverse(matrix + rho * eye)

    def inner(_: Array, carry: tuple) -> tuple:
        z, u, gap, rho, solve = carry
        x = (rho * (z - u) - linear) @ solve
        mixed = 1.6 * x - 0.6 * z + u
        new = jnp.maximum(mixed, 0)
        return new, mixed - new, (jnp.max(jnp.abs(x - new)), jnp.max(jnp.abs(new - z))), rho, solve

    def advance(carry: tuple) -> tuple:
        step, z, u, rho, solve, _ = carry
        zero = (jnp.zeros_like(rho), jnp.zeros_like(rho))
        z, u, (primal, dual), _, _ = lax.fori_loop(0, 10, inner, (z, u, zero, rho, solve))
        ratio = jnp.sqrt((primal + 1e-30) / (rho * dual + 1e-30))
        change = jnp.where((ratio > 3) | (ratio < 1 / 3), jnp.clip(ratio, 0.1, 10), 1)
        new = jnp.clip(rho * change, 1e-4, 1e2)
        solve = lax.cond(new != rho, shifted, lambda _: solve, new)
        return step + 10, z, u * (rho / new), new, solve, jnp.max(residual(z))

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < steps) & (carry[-1] > tolerance)

    rho = constant_like(matrix[0, 0], 0.3, matrix.dtype)
    zero = jnp.zeros_like(linear)
    start = (0, zero, zero, rho, shifted(rho), jnp.max(residual(zero)))
    return lax.while_loop(unfinished, advance, start)[1]


def _interior(
    matrix: Array, linear: Array, residual: Callable[[Array], Array], s: Array, worst: Array,
    tolerance: float,
) -> Array:  # fmt: skip
    """Primal-dual interior-point method for s ≥ 0, y = Cs + q ≥ 0, s∘y = 0; takes no step if s is exact."""

    def one(s: Array, y: Array, q: Array) -> tuple[Array, Array]:
        mu = jnp.dot(s, y) / s.shape[0]
        gap = matrix @ s + q - y
        factor = (cholesky(matrix + jnp.diag(y / s)), True)
        ds = cho_solve(factor, -gap - y)
        room = jnp.minimum(jnp.minimum(longest_step(s, ds), longest_step(y, -y - y / s * ds)), 1)
        target = jnp.maximum((1 - room) ** 2, 1e-3) * mu / s
        ds = cho_solve(factor, -gap - y + target)
        dy = target - y - y / s * ds
        size = jnp.minimum(0.98 * jnp.minimum(longest_step(s, ds), longest_step(y, dy)), 1)
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
    """Solves exactly on the free set {s > Cs + q}; keeps the solutions that lower the residual."""
    epsilon = float(jnp.finfo(matrix.dtype).eps)

    def solve_free(s: Array, q: Array) -> Array:
        free = (s > s @ matrix + q).astype(s.dtype)
        block = matrix * free[:, None] * free[None, :] + jnp.diag(1 - free)
        return jnp.maximum(-cho_solve((cholesky(block), True), free * q) * free, 0)

    def again(carry: tuple) -> tuple:
        step, s, worst, _ = carry
        new = jax.vmap(solve_free)(s, linear)
        after = residual(new)
        better = after < worst
        return step + 1, jnp.where(better[:, None], new, s), jnp.where(better, after, worst), jnp.any(better)

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < rounds) & carry[-1] & (jnp.max(carry[2]) > 64 * epsilon)

    carry = (0, s, residual(s), constant_like(matrix[0, 0], True, bool))
    return lax.while_loop(unfinished, again, carry)[1:3]
