"""Which property each method has: the claims, how they are measured, and the table for the docs.

python tests/grads/properties.py     # writes docs/grads_properties.md
"""

import pathlib

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import quick

from mtjax import grads
from mtjax.grads import registry

T, SIZE, DRAWS = 6, 30, 3000
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "grads_properties.md"

# Every method with its defaults, but for: what it cannot do without (weights, a method to smooth), and FairGrad,
# whose default is Nash-MTL's direction, so that it has a second row.
SPECS = {
    name: {"fixed": f"fixed({tuple(range(1, T + 1))})", "cr_mogm": "cr_mogm(mgda)"}.get(name, name)
    for name in grads.names()
    if name not in ("every_k", "normalize")
} | {"fairgrad(alpha=2.0)": "fairgrad(alpha=2.0)"}

PROPERTIES = ("permutation", "homogeneous", "balanced", "linear", "non_conflicting", "stationary")

# permutation, homogeneous, balanced, linear, non_conflicting, stationary
CLAIMS = {
    "mean": "110101", "sum": "110101", "fixed": "010100", "pcgrad": "110100", "gradvac": "110100",
    "mgda": "110011", "mgda_ub": "110011", "cagrad": "110001", "imtl_g": "110000", "config": "110111",
    "nash_mtl": "101111", "fairgrad": "101111", "fairgrad(alpha=2.0)": "100011", "aligned_mtl": "110001",
    "upgrad": "110111", "dualproj": "110011", "graddrop": "110000", "moco": "100001", "sdmgrad": "100000",
    "modo": "100001", "db_mtl": "110000", "excess_mtl": "110101", "cr_mogm": "110001", "cosine_gate": "010100",
    "trimmed_mean": "110000", "krum": "110000", "gradnorm": "110101", "uncertainty": "110101",
    "dwa": "110101", "rlw": "110100", "gls": "110101", "imtl_l": "110101", "stch": "110101", "famo": "110101",
}  # fmt: skip

RANDOM = {"pcgrad", "gradvac", "graddrop", "rlw"}


def runner(name: str):
    """Directions [N, P] of a batch [N, T, P], with a seed [N] for each, compiled once for each method."""

    @quick.jit
    def compiled(J, seeds):
        method = grads.get(SPECS[name])

        def one(g, seed):
            tx = grads.aggregate(method, num_tasks=T, seed=seed)
            gram = grads.gram_matrix(g) if name == "mgda_ub" else None
            return tx.update(g, tx.init(g[0]), losses=jnp.ones(T), gram=gram)[0]

        return jax.vmap(one)(J, seeds)

    def run(J: np.ndarray, seeds: np.ndarray | None = None) -> np.ndarray:
        seeds = np.zeros(len(J), int) if seeds is None else seeds
        return np.asarray(compiled(jnp.asarray(J, jnp.float32), jnp.asarray(seeds)), np.float64)

    return run


def samples() -> np.ndarray:
    """34 Jacobians [T, P]: iid, conflicting, with norms over 100, with one task against all others, and with a short
    gradient that lies nearly between two long ones."""
    kinds = ("iid", "conflicting", "spread", "correlated")
    J = np.stack([jacobians.jacobian(kind, T, SIZE, seed) for kind in kinds for seed in range(8)])
    J[16:24] /= np.linalg.norm(J[16:24], axis=2, keepdims=True) ** 0.5
    J[24:, 0] *= -1
    between = J[:2] / np.linalg.norm(J[:2], axis=2, keepdims=True)
    between[:, 2] = 0.05 * (between[:, 0] + between[:, 1] + 0.3 * between[:, 2])
    return np.concatenate([J, between])


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest relative distance over a batch."""
    return float(np.max(np.linalg.norm(got - want, axis=1) / (np.linalg.norm(want, axis=1) + 1e-9)))


def measure(name: str) -> dict[str, bool]:
    """Each property, on the samples."""
    run, J = runner(name), samples()
    base = run(J)
    order = np.array([2, 0, 3, 5, 1, 4])
    scale = np.array([0.5, 2.0, 1.0, 3.0, 1.5, 0.7])[:, None]
    # Linear (UPGrad's): J ↦ d(diag(c) J) is linear in each c_i > 0, tested at two and their middle.
    low, high, middle = run(J * scale), run(J * scale[::-1]), run(J * (scale + scale[::-1]) / 2)
    length = np.linalg.norm(base, axis=1, keepdims=True)
    cosines = np.einsum("ntp,np->nt", J, base) / np.linalg.norm(J, axis=2) / length
    same = same_in_distribution(run, J[::8], order) if name in RANDOM else error(run(J[:, order]), base) < 0.01
    return {
        "permutation": same,
        "homogeneous": error(run(4 * J), 4 * base) < 0.01,
        "balanced": error(run(J * scale), base) < 0.01,
        "linear": error((low + high) / 2, middle) < 0.01,
        "non_conflicting": bool(cosines.min() > -0.01),
        "stationary": stationary(run),
    }


def same_in_distribution(run, J: np.ndarray, order: np.ndarray) -> bool:
    """Whether reordering the tasks leaves mean and spread of a random direction as they are, to 5 deviations."""
    for matrix in J:
        draws = [
            run(np.broadcast_to(matrix[rows], (DRAWS, *matrix.shape)), first + np.arange(DRAWS))
            for rows, first in ((np.arange(T), 0), (order, DRAWS))
        ]
        for moment in (draws, [d**2 for d in draws]):
            gap = moment[0].mean(0) - moment[1].mean(0)
            deviation = np.sqrt((moment[0].var(0) + moment[1].var(0)) / DRAWS) + 1e-4 * np.abs(moment[0]).mean()
            if np.abs(gap / deviation).max() > 5:
                return False
    return True


def stationary(run) -> bool:
    """Whether the direction is 0 where the mean gradient is: 8 Jacobians of rank T−1 that sum to 0."""
    J = np.stack([jacobians.jacobian("iid", T, SIZE, seed) for seed in range(8)])
    J = J - J.mean(1, keepdims=True)
    return bool(np.max(np.linalg.norm(run(J), axis=1) / np.linalg.norm(J, axis=2).min(1)) < 0.01)


def link(name: str) -> str:
    """A method's name, linked to its docstring in the reference (Sphinx resolves it; elsewhere it is just a name)."""
    factory = registry.METHODS[name.split("(")[0]]
    return f"[`{name}`](#{factory.__module__}.{factory.__qualname__})"


def table() -> str:
    """The page, from the claims (which `test_properties.py` holds against the measurements)."""
    rows = [
        "# Which property each method has",
        "",
        "Generated by `python tests/grads/properties.py`; `tests/grads/test_properties.py` measures every cell",
        "on sampled Jacobians and fails if this page differs. Every method has its defaults; all is at the first call,",
        "with equal losses.",
        "",
        "- **permutation**: reordering the tasks changes nothing (random methods: in distribution).",
        "- **homogeneous**: the direction scales with the gradients.",
        "- **balanced**: multiplying one task's gradient by a number changes nothing.",
        "- **linear**: the direction is linear in the scale of each gradient (UPGrad's *linear under scaling*).",
        "- **non-conflicting**: g_i·d ≥ 0 for every task, with linearly independent gradients.",
        "- **stationary**: d = 0 where the gradients sum to 0 (for the bargaining methods, by their ridge). SDMGrad",
        "  has it where `step_size` is below 2 over the Gram's largest eigenvalue, which its default is not here.",
        "",
        "| method | " + " | ".join(p.replace("_", "-") for p in PROPERTIES) + " |",
        "|" + "---|" * (len(PROPERTIES) + 1),
    ]
    for name, claim in CLAIMS.items():
        cells = ["yes" if c == "1" else "" for c in claim]
        rows.append(f"| {link(name)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
