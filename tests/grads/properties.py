"""Which property each method has: the claims, how they are measured, and the table for the docs.

python tests/grads/properties.py     # writes docs/grads_properties.md
"""

import functools
import pathlib
from typing import NamedTuple

import jacobians
import jax
import jax.numpy as jnp
import numpy as np
import quick

from mtjax import grads
from mtjax.grads import registry

T, SIZE, DRAWS = 6, 30, 3000
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "grads_properties.md"
FIRST, LATER = 1, 3  # the call that is measured


class Row(NamedTuple):
    """A row of the table: a method as a specification, at how many tasks, and which tasks it must not conflict with."""

    spec: str
    tasks: int = T
    judged: tuple[int, ...] = ()  # none stands for all
    order: tuple[int, ...] = (2, 0, 3, 5, 1, 4)  # what the tasks are permuted to

    def name(self) -> str:
        return self.spec.split("(")[0]


# Every method with its defaults, but for: what it cannot do without (weights, a method to smooth), and rows beside.
ROWS = {
    name: Row({"fixed": f"fixed({tuple(range(1, T + 1))})", "cr_mogm": "cr_mogm(mgda)"}.get(name, name))
    for name in grads.names()
    if name not in ("every_k", "normalize")
} | {
    "fairgrad(alpha=2.0)": Row("fairgrad(alpha=2.0)"),  # its default is Nash-MTL's direction
    "pcgrad, two tasks": Row("pcgrad", 2, order=(1, 0)),
    "cosine_gate, its main task": Row("cosine_gate", judged=(0,), order=(0, 2, 3, 5, 1, 4)),
    "pcd, its other tasks": Row("pcd", judged=tuple(range(1, T)), order=(0, 2, 3, 5, 1, 4)),
}

PROPERTIES = (
    "permutation", "homogeneous", "balanced", "loss_scale", "linear", "non_conflicting", "stationary", "pareto"
)  # fmt: skip

# In the order of PROPERTIES: 1 at every call, 0 at none, f at the first only, l at a later one only.
CLAIMS = {
    "mean": "11001010", "sum": "11001010", "fixed": "01001000", "pcgrad": "11001000",
    "pcgrad, two tasks": "11001111", "gradvac": "11001000", "mgda": "11000111", "mgda_ub": "11000111",
    "cagrad": "11000010", "imtl_g": "11010000", "config": "11011110", "nash_mtl": "10111111",
    "fairgrad": "10111111", "fairgrad(alpha=2.0)": "10000111", "aligned_mtl": "11000010", "upgrad": "11001111",
    "dualproj": "11000111", "pcd": "01011000", "pcd, its other tasks": "11011100",
    "graddrop": "11000000", "moco": "100000f0", "sdmgrad": "10000000", "modo": "100000f0",
    "db_mtl": "11010000", "excess_mtl": "110010f0", "cr_mogm": "110000f0", "cosine_gate": "01001000",
    "cosine_gate, its main task": "11001100", "trimmed_mean": "11000000", "krum": "11000000",
    "gradnorm": "1100f0f0", "uncertainty": "110010f0", "dwa": "110010f0", "rlw": "11001000", "gls": "110110f0",
    "imtl_l": "110010f0", "stch": "110010f0", "famo": "110110f0",
}  # fmt: skip

RANDOM = {"pcgrad", "gradvac", "graddrop", "rlw"}


class Calls(NamedTuple):
    """Gradients [N, calls, T, P] of N runs, and the losses before and after each step [N, calls, T]."""

    grads: np.ndarray
    losses: np.ndarray
    after: np.ndarray

    def map(self, of_grads=lambda J: J, of_losses=lambda L: L) -> "Calls":
        return Calls(of_grads(self.grads), of_losses(self.losses), of_losses(self.after))

    def reordered(self, order) -> "Calls":
        return self.map(lambda J: J[:, :, order], lambda L: L[:, :, order])


@functools.cache
def runner(row: Row):
    """Directions [N, P] at the last call of each run, with a seed [N] for each run, compiled once for each row.

    Up to 34 runs of up to LATER calls are one program: runs are filled up, and calls that are filled up not made.
    """

    @quick.jit
    def compiled(calls, seeds, first):
        method = grads.get(row.spec)

        def one(run, seed):
            tx = grads.aggregate(method, num_tasks=row.tasks, seed=seed)

            def call(index, carry):
                item = jax.tree.map(lambda x: x[index], run)
                gram = grads.gram_matrix(item.grads) if row.spec == "mgda_ub" else None
                update, state = tx.update(item.grads, carry[0], losses=item.losses, gram=gram)
                return grads.observe(method, state, item.after), update

            start = run.grads[0, 0]
            return jax.lax.fori_loop(first, LATER, call, (tx.init(start), start))[1]

        return jax.vmap(one)(calls, seeds)

    def run(calls: Calls, seeds: np.ndarray | None = None) -> np.ndarray:
        number, made = calls.losses.shape[:2]
        seeds = np.zeros(number, int) if seeds is None else seeds
        rows = np.minimum(np.arange(max(number, 34)), number - 1)
        columns = np.maximum(np.arange(made - LATER, made), 0)
        given = jax.tree.map(lambda x: jnp.asarray(x[rows][:, columns], jnp.float32), calls)
        return np.asarray(compiled(given, jnp.asarray(seeds[rows]), LATER - made)[:number], np.float64)

    return run


def samples(tasks: int, first: int = 0) -> np.ndarray:
    """34 Jacobians [T, P]: iid, conflicting, with norms over 100, with one task against all others, and with a short
    gradient that lies nearly between two long ones."""
    kinds = ("iid", "conflicting", "spread", "correlated")
    J = np.stack([jacobians.jacobian(kind, tasks, SIZE, first + seed) for kind in kinds for seed in range(8)])
    J[16:24] /= np.linalg.norm(J[16:24], axis=2, keepdims=True) ** 0.5
    J[24:, 0] *= -1
    between = J[:2] / np.linalg.norm(J[:2], axis=2, keepdims=True)
    between[:, -1] = 0.05 * (between[:, 0] + between[:, 1] + 0.3 * between[:, -1])
    return np.concatenate([J, between])


def history(J: np.ndarray, calls: int) -> Calls:
    """Calls, the last with the gradients J [N, T, P]: it alone, with losses of 1, or after others of all sorts."""
    tasks = J.shape[1]
    before = [samples(tasks, 100 * call)[np.arange(len(J)) * 5 % 34] for call in range(1, calls)]
    losses = np.stack([jacobians.losses(tasks, calls, seed) for seed in range(len(J))])
    if calls == FIRST:
        losses = np.ones_like(losses)
    progress = 10 ** np.random.default_rng(1).uniform(-3, 0, losses.shape)  # FAMO learns slowly
    return Calls(np.stack([*before, J], axis=1), losses, losses * progress)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest relative distance over a batch."""
    return float(np.max(np.linalg.norm(got - want, axis=1) / (np.linalg.norm(want, axis=1) + 1e-9)))


def same_direction(got: np.ndarray, want: np.ndarray) -> float:
    """`error` of the directions alone."""
    return error(*(d / (np.linalg.norm(d, axis=1, keepdims=True) + 1e-9) for d in (got, want)))


def measure(key: str, calls: int) -> dict[str, bool]:
    """Each property on the samples, at a call; what is done to the tasks is done to them from the first call on."""
    row = ROWS[key]
    run, J = runner(row), samples(row.tasks)
    given = history(J, calls)
    base, order = run(given), np.array(row.order)
    scale = np.array([0.5, 2.0, 1.0, 3.0, 1.5, 0.7])[: row.tasks]
    stretched = lambda c: run(given.map(lambda J: J * c[:, None]))  # noqa: E731
    # Linear (UPGrad's): J ↦ d(diag(c) J) is linear in each c_i > 0, tested at two and their middle.
    low, high, middle = stretched(scale), stretched(scale[::-1]), stretched((scale + scale[::-1]) / 2)
    length = np.linalg.norm(base, axis=1, keepdims=True) + 1e-12
    cosines = np.einsum("ntp,np->nt", J, base) / np.linalg.norm(J, axis=2) / length
    if row.name() in RANDOM and row.tasks > 2:
        same = same_in_distribution(run, given.map(lambda J: J[::8], lambda L: L[::8]), order)
    else:
        same = error(run(given.reordered(order)), base) < 0.01
    rescaled = run(given.map(lambda J: J * scale[:, None], lambda L: L * scale))
    return {
        "permutation": same,
        "homogeneous": error(run(given.map(lambda J: 4 * J)), 4 * base) < 0.01,
        "balanced": error(low, base) < 0.01,
        "loss_scale": same_direction(rescaled, base) < 0.01,
        "linear": error((low + high) / 2, middle) < 0.01,
        "non_conflicting": bool(cosines[:, row.judged or slice(None)].min() > -0.01),
        "stationary": stationary(run, row.tasks, calls, even=True),
        "pareto": stationary(run, row.tasks, calls, even=False),
    }


def same_in_distribution(run, given: Calls, order: np.ndarray) -> bool:
    """Whether reordering the tasks leaves mean and spread of a random direction as they are, to 5 deviations."""
    for n in range(len(given.grads)):
        one = given.map(lambda J, n=n: J[n : n + 1], lambda L, n=n: L[n : n + 1])
        many = [jax.tree.map(lambda x: np.repeat(x, DRAWS, axis=0), c) for c in (one, one.reordered(order))]
        draws = [run(calls, first + np.arange(DRAWS)) for calls, first in zip(many, (0, DRAWS), strict=True)]
        for moment in (draws, [d**2 for d in draws]):
            gap = moment[0].mean(0) - moment[1].mean(0)
            deviation = np.sqrt((moment[0].var(0) + moment[1].var(0)) / DRAWS) + 1e-4 * np.abs(moment[0]).mean()
            if np.abs(gap / deviation).max() > 5:
                return False
    return True


def stationary(run, tasks: int, calls: int, even: bool) -> bool:
    """Whether the direction is 0 where a convex combination of the gradients is: the mean, or one with other weights.

    On 8 Jacobians of rank T−1.
    """
    J = np.stack([jacobians.jacobian("iid", tasks, SIZE, seed) for seed in range(8)])
    shares = np.ones(tasks) if even else np.linspace(0.6, 1.4, tasks)
    J = J - J.mean(1, keepdims=True)  # their sum is 0
    J = J / shares[:, None]
    return bool(np.max(np.linalg.norm(run(history(J, calls)), axis=1) / np.linalg.norm(J, axis=2).min(1)) < 0.01)


def claim(key: str) -> str:
    """What the measurements say, in the code of CLAIMS."""
    first, later = measure(key, FIRST), measure(key, LATER)
    return "".join({(1, 1): "1", (0, 0): "0", (1, 0): "f", (0, 1): "l"}[first[p], later[p]] for p in PROPERTIES)


def link(key: str) -> str:
    """A method's name, linked to its docstring in the reference (Sphinx resolves it; elsewhere it is just a name)."""
    factory = registry.METHODS[ROWS[key].name()]
    name, *rest = key.split(",")
    return ",".join([f"[`{name}`](#{factory.__module__}.{factory.__qualname__})", *rest])


def table() -> str:
    """The page, from the claims (which `test_properties.py` holds against the measurements)."""
    rows = [
        "# Which property each method has",
        "",
        "Generated by `python tests/grads/properties.py`; `tests/grads/test_properties.py` measures every cell",
        "on sampled Jacobians and fails if this page differs. Every method has its defaults, except that `fixed`,",
        f"which has none, is given the weights 1 to {T}, and `cr_mogm` smooths MGDA; there are {T} tasks, but for",
        "PCGrad's second row.",
        "",
        f"Each is measured twice: at the first call, with equal losses, and at the call number {LATER} of a sequence",
        "whose losses and gradients vary, when a method with memory has some. *Yes* holds at both; *first call* is",
        "what memory or unequal losses take away. What a column does to the tasks is done from the first call on.",
        "",
        "- **permutation**: reordering the tasks changes nothing (random methods: in distribution; second rows of",
        "  `cosine_gate` and `pcd`: reordering all but the main task).",
        "- **homogeneous**: the direction scales with the gradients.",
        "- **balanced**: multiplying one task's gradient by a number changes nothing.",
        "- **loss-scale**: multiplying one task's loss, and with it its gradient, by a number changes nothing but the",
        "  direction's length.",
        "- **linear**: the direction is linear in the scale of each gradient (UPGrad's *linear under scaling*).",
        "- **non-conflicting**: g_i·d ≥ 0 for every task, with linearly independent gradients (second rows: for",
        "  `cosine_gate`'s main task, for all but `pcd`'s).",
        "- **stationary**: d = 0 where the gradients sum to 0 (for the bargaining methods, by their ridge). SDMGrad",
        "  has it where `step_size` is below 2 over the Gram's largest eigenvalue, which its default is not here.",
        "- **pareto**: d = 0 at every Pareto-stationary point: where any convex combination of the gradients is 0,",
        "  here one with unequal weights.",
        "",
        "| method | " + " | ".join(p.replace("_", "-") for p in PROPERTIES) + " |",
        "|" + "---|" * (len(PROPERTIES) + 1),
    ]
    for key, claim in CLAIMS.items():
        cells = [{"1": "yes", "0": "", "f": "first call", "l": "later calls"}[c] for c in claim]
        rows.append(f"| {link(key)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
