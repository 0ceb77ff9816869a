"""Sampled Jacobians [T, P], float64, of the kinds that break implementations."""

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


def losses(num_tasks: int, calls: int, seed: int = 0) -> np.ndarray:
    """Positive losses [calls, T]."""
    return np.random.default_rng([7, seed]).uniform(0.2, 3.0, (calls, num_tasks))
