"""C u = κ u^(−p): Nash-MTL and FairGrad."""

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from mtjax.grads.base import Array, Number
from mtjax.grads.gram import constant_like
from mtjax.grads.solvers.steps import cholesky, longest_step


def power_newton(cosine: Array, log_scale: Array, power: Number, *, steps: int = 40) -> Array:
    """Solves C u = κ u^(−p) for u > 0 [T], the stationarity of ½uᵀCu − Σ κ ∫u^(−p).

    Primal-dual: C u − z = 0 and log z + p log u = log κ, linearised together, so a step factors
    C + p diag(z/u). A ridge near the dtype's precision keeps Pareto-stationary points (where there
    is no solution) finite.

    Args:
      cosine: C [T, T], positive semi-definite with unit diagonal.
      log_scale: log κ [T]; κ itself may be beyond what a number can hold.
      power: p > 0; 1 for Nash-MTL, 1/α for FairGrad.
    """
    epsilon = float(jnp.finfo(cosine.dtype).eps)
    matrix = cosine + 16 * epsilon * jnp.eye(cosine.shape[0], dtype=cosine.dtype)

    def residuals(u: Array, z: Array) -> tuple[Array, Array]:
        return matrix @ u - z, jnp.log(z) + power * jnp.log(u) - log_scale

    def unfinished(carry: tuple) -> Array:
        step, u, z = carry
        linear, product = residuals(u, z)
        terms = jnp.maximum(jnp.maximum(power * jnp.abs(jnp.log(u)), jnp.abs(log_scale)), 1)  # their sum's rounding
        worst = jnp.maximum(jnp.max(jnp.abs(linear / z)), jnp.max(jnp.abs(product) / terms))
        return (step < steps) & (worst > 32 * epsilon)

    def advance(carry: tuple) -> tuple:
        step, u, z = carry
        linear, product = residuals(u, z)
        factor = (cholesky(matrix + jnp.diag(power * z / u)), True)
        du = cho_solve(factor, -linear - z * product)
        dz = -z * product - power * z / u * du
        size = jnp.minimum(0.9 * jnp.minimum(longest_step(u, du), longest_step(z, dz)), 1)
        new_u, new_z = u + size * du, z + size * dz
        sound = jnp.all(jnp.isfinite(new_u) & jnp.isfinite(new_z) & (new_u > 0) & (new_z > 0))
        return jnp.where(sound, step + 1, steps), jnp.where(sound, new_u, u), jnp.where(sound, new_z, z)

    # Exact when all cosines are equal: u = (κ / mean row sum)^(1/(1+p)).
    rows = jnp.maximum(jnp.mean(jnp.sum(cosine, axis=1)), 0.1)
    log_u = (log_scale - jnp.log(rows)) / (1 + power)
    first = constant_like(rows, 0, jnp.int32)
    return lax.while_loop(unfinished, advance, (first, jnp.exp(log_u), jnp.exp(log_scale - power * log_u)))[1]
