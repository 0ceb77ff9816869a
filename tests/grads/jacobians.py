"""Sampled Jacobians [T, P], float64, of the kinds that break implementations."""

import jax.numpy as jnp
import numpy as np

KINDS = ("iid", "correlated", "conflicting", "spread", "deficient", "duplicates", "zero_row")


def jacobian(kind: str, num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """One Jacobian of a kind."""
    rng = np.random.default_rng([KINDS.index(kind), num_tasks, size, seed])
    J = rng.standard_normal((num_tasks, size))
    if kind == "correlated":
        J = J + 2 * rng.standard_normal((1, size))
    elif kind == "conflicting":
        J = J - J.mean(0) * (0.9 if num_tasks > 1 else 0)
    elif kind == "spread":
        J = J * np.logspace(0, 4, num_tasks)[rng.permutation(num_tasks), None]
    elif kind == "deficient":  # all have a common positive part, so that 0 is not in their hull
        rank = max(num_tasks // 3, 1)
        J = (0.3 + np.abs(rng.standard_normal((num_tasks, rank)))) @ rng.standard_normal((rank, size))
    elif kind == "duplicates":
        J[-1] = J[0]
    elif kind == "zero_row":
        J[0] = 0
    return J


def batch(num_tasks: int, size: int, seed: int = 0) -> np.ndarray:
    """All kinds, [kinds, T, P]."""
    return np.stack([jacobian(kind, num_tasks, size, seed) for kind in KINDS])


def hostile(num_tasks: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Gradients [18, T, 6] of scales up to where squares under- and overflow, all tasks or one, with a duplicate and
    an opposite, and with the largest numbers that there are; and losses [5, T] with some that are negative, 0, huge or
    the largest. In `dtype`."""
    scales = [0, 1e-250, 1e-150, 1, 1e70, 1e150, 1e250] if dtype == "float64" else [0, 1e-30, 1e-18, 1, 1e9, 1e18, 1e30]
    dtype = jnp.dtype(dtype)
    largest = float(jnp.finfo(dtype).max)
    g = np.random.default_rng(0).standard_normal((18, num_tasks, 6))
    g[:7] *= np.reshape(scales, (7, 1, 1))
    g[7:14, 0] *= np.reshape(scales, (7, 1))
    g[10, 1], g[11, 1] = g[10, 0], -g[11, 0]
    g[14], g[15], g[16, 0] = largest * np.sign(g[14]), largest, largest
    g[17] = largest * np.tanh(g[17])
    given = [[1, 2, 0.5, 3], [-1, 0, 1e20, 1e-20], [-1e30, 1e30, -1e-30, 0],
             [largest, -largest, largest, 1], [largest] * 4]  # fmt: skip
    return g.astype(dtype), np.stack([np.resize(values, num_tasks) for values in given]).astype(dtype)


def losses(num_tasks: int, calls: int, seed: int = 0) -> np.ndarray:
    """Positive losses [calls, T]."""
    return np.random.default_rng([7, seed]).uniform(0.2, 3.0, (calls, num_tasks))
