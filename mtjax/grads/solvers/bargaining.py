"""Solver of C u = κ u^(−p), for Nash-MTL and FairGrad."""

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from mtjax.grads.base import Array, Number
from mtjax.grads.gram import constant_like
from mtjax.grads.solvers.steps import cholesky, longest_step


def power_newton(cosine: Array, log_scale: Array, power: Number, *, steps: int = 40, cut_steps: int = 200) -> Array:
    """Solves C u = κ u^(−p) for u > 0 [T], the stationarity condition of ½uᵀCu − Σ κ ∫u^(−p).

    A primal-dual Newton method: C u − z = 0 and log z + p log u = log κ are linearised together, so
    that a step factors C + p diag(z/u). A ridge near the dtype's precision keeps the result finite at
    Pareto-stationary points, where there is no solution.

    Args:
      cosine: C [T, T], positive semi-definite with unit diagonal.
      log_scale: log κ [T]; κ itself may over- or underflow.
      power: p > 0; 1 for Nash-MTL, 1/α for FairGrad.
      steps: maximum number of full steps; about 10 are needed.
      cut_steps: maximum number of shortened steps; each reduces a z to a tenth, and p = 10 may need a z of 1e-27.
    """
    epsilon, tiny = float(jnp.finfo(cosine.dtype).eps), float(jnp.finfo(cosine.dtype).tiny)
    matrix = cosine + 16 * epsilon * jnp.eye(cosine.shape[0], dtype=cosine.dtype)

    def residuals(u: Array, z: Array) -> tuple[Array, Array]:
        product = jnp.log(z) + power * jnp.log(u) - log_scale
        return matrix @ u - z, jnp.where(z > tiny, product, jnp.minimum(product, 0))  # a smaller z counts as 0

    def unfinished(carry: tuple) -> Array:
        spent, u, z = carry
        linear, product = residuals(u, z)
        sums = 32 * z + jnp.abs(matrix) @ u  # scale of the rounding errors of `linear`
        terms = 32 * jnp.maximum(jnp.maximum(power * jnp.abs(jnp.log(u)), jnp.abs(log_scale)), 1)  # and of `product`
        worst = jnp.maximum(jnp.max(jnp.abs(linear) / sums), jnp.max(jnp.abs(product) / terms))
        return (spent < 1) & (worst > epsilon)

    def advance(carry: tuple) -> tuple:
        spent, u, z = carry
        linear, product = residuals(u, z)
        factor = (cholesky(matrix + jnp.diag(power * z / u)), True)
        du = cho_solve(factor, -linear - z * product)
        dz = -z * product - power * z / u * du
        dz = jnp.where(z > tiny, dz, jnp.maximum(dz, 0))
        size = jnp.minimum(0.9 * jnp.minimum(longest_step(u, du), longest_step(z, dz)), 1)
        new_u, new_z = u + size * du, jnp.maximum(z + size * dz, tiny)
        sound = jnp.all(jnp.isfinite(new_u) & jnp.isfinite(new_z) & (new_u > 0))
        spent += jnp.where(size < 1, 1 / cut_steps, 1 / steps)
        return jnp.where(sound, spent, 1), jnp.where(sound, new_u, u), jnp.where(sound, new_z, z)

    # The start, u = (κ / mean row sum)^(1/(1+p)), is exact if all cosines are equal and κ is the same for all tasks.
    rows = jnp.maximum(jnp.mean(jnp.sum(cosine, axis=1)), 0.1)
    log_u = (log_scale - jnp.log(rows)) / (1 + power)
    start = constant_like(rows, 0, rows.dtype), jnp.exp(log_u), jnp.exp(log_scale - power * log_u)
    return lax.while_loop(unfinished, advance, start)[1]
