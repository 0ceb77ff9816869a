"""mtjax.grads and TorchJD on the same Jacobians: float32, the same number of threads, one process at a time.

    python benchmarks/grads.py --torchjd PATH/TO/python    # of an environment with torch and torchjd[full]
    python benchmarks/grads.py --surgery                   # what a method adds to an update of mtjax's own PPO

Each cell is the median of many turns, which the two libraries take alternately, with a pause between them in which the
other's threads stop spinning. A turn repeats the call for 0.1 s and then times one more: in training, one call follows
another, and cores that have slept through the pause are slow at first. `whole` is the time from the Jacobian to the
direction, `solver` the time from the Gram to the weights (TorchJD's Nash-MTL accepts only a Jacobian: it gets the
T × T Cholesky root of the Gram). The floor is the Gram alone plus the weighted sum alone. MoDo and SDMGrad, which
TorchJD has as weightings of the Gram of two batches, get that of one batch here. What TorchJD calls scalarizers (DWA,
FAMO, IMTL-L, STCH, …) combine losses before there is a Jacobian, so that these Jacobians cannot compare them.

Both libraries run in the thread that calls them: jax_cpu_enable_async_dispatch is off (`--async_dispatch` turns it
on), since handing each call to another thread costs 0.03 to 0.05 ms, which matters in cells of 0.1 ms. OpenBLAS, which
SciPy's and CVXPY's solvers call, has one thread on both sides: its threads keep spinning after a call, and with two of
them TorchJD's FairGrad took up to twice as long. OPENBLAS_NUM_THREADS sets another number.
"""

import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

from absl import app, flags

_TORCHJD = flags.DEFINE_string("torchjd", None, "Python of an environment with torch and torchjd[full].")
_TASKS = flags.DEFINE_list("tasks", ["10", "50"], "Numbers of tasks T.")
_SIZES = flags.DEFINE_list("sizes", ["100000", "1000000"], "Numbers of parameters P.")
_KINDS = flags.DEFINE_list("kinds", ["iid", "correlated"], "Kinds of Jacobian.")
_METHODS = flags.DEFINE_list("methods", [], "Methods; default all that both have.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns that each library takes.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of each library.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the table in Markdown, e.g. docs/grads_speed.md.")
_ASYNC = flags.DEFINE_bool("async_dispatch", False, "Let jax hand each call to another thread, as by default.")
_SURGERY = flags.DEFINE_bool("surgery", False, "Measure what methods add to a PPO update instead.")

# name: (ours, TorchJD's), where WEIGHTS stands for 1/T, 2/T, …, 1; see `spelled`
METHODS = {
    "mean": ("mean", "Mean()"),
    "sum": ("sum", "Sum()"),
    "fixed": ("fixed(WEIGHTS)", "Constant(torch.tensor(WEIGHTS))"),
    "rlw": ("rlw", "Random()"),
    "pcgrad": ("pcgrad", "PCGrad()"),
    "gradvac": ("gradvac", "GradVac(beta=0.01)"),
    "mgda": ("mgda", "MGDA()"),
    "cagrad": ("cagrad(c=0.4)", "CAGrad(c=0.4)"),
    "imtl_g": ("imtl_g", "IMTLG()"),
    "config": ("config", "ConFIG()"),
    "nash_mtl": ("nash_mtl", "NashMTL(n_tasks=T)"),
    "fairgrad": ("fairgrad(alpha=1.0)", "FairGrad(alpha=1.0)"),
    "aligned_mtl": ("aligned_mtl", "AlignedMTL()"),
    "upgrad": ("upgrad", "UPGrad()"),
    "dualproj": ("dualproj", "DualProj()"),
    "pcd": ("pcd", "PCD()"),
    "cr_mogm": ("cr_mogm(upgrad)", "GramianWeightedAggregator(A.CRMOGMWeighting(A.UPGradWeighting()))"),
    "excess_mtl": ("excess_mtl", "ExcessMTL(robust_step_size=0.01)"),
    "krum": ("krum(1, 4)", "Krum(n_byzantine=1, n_selected=4)"),
    "trimmed_mean": ("trimmed_mean(1)", "TrimmedMean(trim_number=1)"),
    "graddrop": ("graddrop", "GradDrop()"),
    "modo": ("modo(rho=0.1)", "MoDoWeighting(rho=0.1)"),
    "sdmgrad": ("sdmgrad", "SDMGradWeighting()"),
}
flags.register_validator("methods", lambda names: set(names) <= set(METHODS), f"methods are {', '.join(METHODS)}")
ON_ROOT = ("nash_mtl",)  # its TorchJD class uses only the Gram of the Jacobian, but accepts only a Jacobian
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", **os.environ}  # copied before this process sets its own variables
COLUMNS = (
    "tasks", "parameters", "kind", "method", "floor", "whole", "TorchJD", "times faster", "of the floor", "solver",
    "TorchJD's", "times faster", "its solver, %", "whole, 95%", "note",
)  # fmt: skip
# Notes that a row's last column may hold.
SLOWER, SURELY, SOLVER_SLOWER, OVER_FLOOR = "slower", "surely", "solver slower", "over the floor"
WHOLE_BELOW, SOLVER_BELOW = "whole below 5 times", "solver below 5 times"
PAUSE = 0.03  # seconds between the libraries: OpenMP's threads keep spinning for a while after each call
WARM = 0.1  # seconds of calls (one at least) before the timed one, so that both threads find a core each
TORCH_PARTS = ("whole", "solver")
DOMINATED = ("nash_mtl", "fairgrad", "cagrad", "pcgrad", "upgrad")  # by the solver at T = 50, in some cells
TIMES = 5  # how many times faster than TorchJD's these methods should be
MOST = 100 - 100 / TIMES  # percent of TorchJD's call: without a solver that takes so much, it is TIMES as fast
UPDATE_MINIBATCHES = 4  # minibatches of the PPO update in which surgery is measured
SURGEONS = ("mean", "pcgrad", "mgda", "cagrad", "nash_mtl", "upgrad", 'gradnorm(surrogate="softplus")')

# TorchJD's process: reads one request per line and answers with seconds; it runs only this code.
_WORKER = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import torch, numpy as np
import torchjd.aggregation as A
import importlib.metadata
print(json.dumps(f"{importlib.metadata.version('torchjd')} with torch {torch.__version__}"), flush=True)
made, data = {}, {}
for line in sys.stdin:
    r = json.loads(line)
    torch.set_num_threads(r["threads"])
    if r["path"] not in data:
        data = {r["path"]: torch.from_numpy(np.load(r["path"]))}
        gram = data[r["path"]] @ data[r["path"]].T
        root = torch.linalg.cholesky(gram.double()).float()
    T, J = data[r["path"]].shape[0], data[r["path"]]
    make = r["make"]
    if (make, T) not in made:
        made[make, T] = eval("A." + make, {"A": A, "T": T, "torch": torch})
    f = made[make, T]
    part = f if isinstance(f, A.Weighting) else getattr(f, "gramian_weighting", None)
    if r["part"] == "solver" and part is None and not r["on_root"]:
        print("null", flush=True); continue
    whole = (lambda J: f(J @ J.T) @ J) if part is f else f
    x, call = (J, whole) if r["part"] == "whole" else (root, f) if r["on_root"] else (gram, part)
    begun = time.perf_counter()
    call(x)
    while time.perf_counter() - begun < r["warm"]:
        call(x)
    start = time.perf_counter(); call(x); end = time.perf_counter() - start
    print(json.dumps(end), flush=True)
"""


class Torch:
    """TorchJD in a process of its own, one call at a time."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**_ENVIRONMENT, "OMP_NUM_THREADS": str(_THREADS.value)},
        )  # fmt: skip
        self.version = json.loads(self.process.stdout.readline())

    def seconds(self, path: str, name: str, num_tasks: int, part: str) -> float | None:
        request = {
            "path": path, "make": spelled(name, num_tasks)[1], "part": part, "on_root": name in ON_ROOT,
            "threads": _THREADS.value, "warm": WARM,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def spelled(name: str, num_tasks: int) -> tuple[str, str]:
    """The expressions that make a method for T tasks, ours and TorchJD's."""
    weights = repr(tuple((n + 1) / num_tasks for n in range(num_tasks)))
    mine, theirs = METHODS[name]
    return mine.replace("WEIGHTS", weights), theirs.replace("WEIGHTS", weights)


def pin() -> None:
    """Pins this process and TorchJD's to as many cores as threads, by which XLA sizes its thread pool."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])


def ours(method, J, part):
    """A compiled call of our method, without arguments. Its state advances from call to call, as TorchJD's does."""
    import jax

    from mtjax import grads

    tx = grads.aggregate(method, num_tasks=J.shape[0])
    state = jax.jit(tx.init)(J[0])
    if part == "whole":
        data, step = J, jax.jit(tx.update, donate_argnums=1)  # donated, as TorchJD changes its state in place
    else:
        data, step = grads.gram_matrix(J), jax.jit(method.update)
        state = jax.tree.map(lambda x: x[0], state.inner)

    def call():
        nonlocal state
        result, state = step(data, state)
        return result, state

    return call


def clock(call) -> float:
    import jax

    begun = time.perf_counter()
    jax.block_until_ready(call())
    while time.perf_counter() - begun < WARM:
        jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def median(values) -> float | None:
    return None if None in values else 1e3 * statistics.median(values)


def compare(torch: Torch | None) -> None:
    """Prints the table: milliseconds of ours and theirs, and the ratio."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from common import interval, table

    from mtjax import grads
    from mtjax.grads.base import Transform

    rows = []
    print(" ".join(f"{name:>10}" for name in COLUMNS), flush=True)
    for tasks, size, kind in [(t, p, k) for t in _TASKS.value for p in _SIZES.value for k in _KINDS.value]:
        rng = np.random.default_rng(0)
        J = rng.standard_normal((int(tasks), int(size)), np.float32)
        if kind == "correlated":
            J += 2 * rng.standard_normal((1, int(size)), np.float32)
        path = os.path.join(tempfile.gettempdir(), f"grads_{os.getpid()}_{tasks}_{size}_{kind}.npy")
        np.save(path, J)
        J = jnp.asarray(J)
        gram, total = jax.jit(grads.gram_matrix), jax.jit(grads.weighted_sum)
        for name in _METHODS.value or METHODS:
            method = grads.get(spelled(name, int(tasks))[0])
            parts = ("whole",) if isinstance(method, Transform) else ("whole", "solver")
            calls = {part: ours(method, J, part) for part in parts}
            times = {key: [] for key in ("floor", "whole", "solver", *(f"torch {part}" for part in TORCH_PARTS))}
            weights = J[:, 0] + 0
            for turn in range(_ROUNDS.value + 1):
                time.sleep(PAUSE)
                floor = clock(partial(gram, J)) + clock(partial(total, weights, J))
                row = {"floor": floor, **{part: clock(calls[part]) for part in parts}}
                if torch:
                    time.sleep(PAUSE)
                    row |= {
                        f"torch {part}": torch.seconds(path, name, int(tasks), part)
                        for part in TORCH_PARTS
                        if part != "solver" or part in parts
                    }
                if turn:  # the first turn warms up
                    for key, value in row.items():
                        times[key].append(value)
            ratios = [a / b for a, b in zip(times["torch whole"], times["whole"], strict=False)]
            medians = {k: median(v) for k, v in times.items() if v}
            rows.append(row_of(tasks, size, kind, name, medians, interval(ratios) if ratios else None))
            print(" ".join(f"{cell:>10}" for cell in rows[-1]), flush=True)
        os.remove(path)
    text = summary(rows, torch.version if torch else "not run")
    print(text)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text + "\n\n" + table(COLUMNS, rows) + "\n")


def row_of(tasks, size, kind, name, ms, between=None) -> list[str]:
    """One row: milliseconds of both libraries, our speed-up (`between`: its interval), and the targets missed."""

    def ratio(a: str, b: str) -> float:
        return ms[a] / ms[b] if ms.get(a) and ms.get(b) else float("nan")

    def text(value: float | None, digits: int) -> str:
        return "" if value is None or value != value else f"{value:.{digits}f}"

    whole, solver = ratio("torch whole", "whole"), ratio("torch solver", "solver")
    spent = 100 * ratio("torch solver", "torch whole")
    over = ms["whole"] / ms["floor"]
    notes = [SLOWER] if whole < 1 else []
    notes += [SURELY] if between and between[1] < 1 else []
    if solver < 1:
        notes.append(SOLVER_SLOWER)
    if dominated(tasks, name):  # one target, checked for the whole call and for the solver alone
        notes += [WHOLE_BELOW] if whole < TIMES else []
        notes += [SOLVER_BELOW] if solver < TIMES else []
    if size == "1000000" and over > 1.3:
        notes.append(OVER_FLOOR)
    return [
        tasks, f"{int(size):,}", kind, name, text(ms["floor"], 2), text(ms["whole"], 2),
        text(ms.get("torch whole"), 2), text(whole, 1), text(over, 2), text(ms.get("solver"), 3),
        text(ms.get("torch solver"), 2), text(solver, 1), text(spent, 0) if dominated(tasks, name) else "",
        " to ".join(text(x, 2) for x in between or ()), ", ".join(notes),
    ]  # fmt: skip


def dominated(tasks: str, name: str) -> bool:
    return tasks == "50" and name in DOMINATED


def named(rows, note: str, ratio: int) -> list[str]:
    """The rows with a note, each with its ratio in the given column."""
    return [f"{r[3]} ({r[0]} × {r[1]}, {r[2]}: {r[ratio]})" for r in rows if note in r[-1].split(", ")]


def count(found: list[str]) -> str:
    """How many were found, and which."""
    return f"{len(found)}{': ' + '; '.join(found) if found else ''}"


def promise(rows) -> str:
    """Whether the methods in DOMINATED are 5 times as fast as TorchJD's, in the whole call and in the solver alone."""
    asked = [r for r in rows if dominated(r[0], r[3]) and r[7]]
    if not asked:
        return ""
    said = []
    for where, low, high in (
        (f"where TorchJD's solver takes {MOST:.0f}% of its call or more, the whole call in", MOST, math.inf),
        (f"where it takes 50 to {MOST:.0f}%, the whole call in", 50, MOST),
        ("where it takes less, the whole call in", 0, 50),
    ):
        some = [r for r in asked if low <= float(r[12]) < high]
        below = named(some, WHOLE_BELOW, 7)
        said.append(f"{where} {len(some) - len(below)} of {len(some)} cells (below: {count(below)})")
    below = named(asked, SOLVER_BELOW, 11)
    said.append(f"the solver alone in {len(asked) - len(below)} of {len(asked)} cells (below: {count(below)})")
    return f"{TIMES} times as fast as TorchJD, of {', '.join(DOMINATED)} with 50 tasks: {'; '.join(said)}."


def summary(rows, version: str) -> str:
    """What the table shows, machine and versions."""
    from common import header

    compared = sum(bool(r[7]) for r in rows)
    solvers = sum(bool(r[11]) for r in rows)
    return (
        "# Speed of the gradient transforms\n\n"
        f"{header()}; TorchJD {version}; {_THREADS.value} threads, {_ROUNDS.value} turns, milliseconds. Made by "
        "`benchmarks/grads.py`, which says how.\n\n"
        f"{promise(rows)}\n\n"
        f"The whole call is slower than TorchJD's in this many of {compared} cells: "
        f"{count(named(rows, SLOWER, 7))}. Surely so, by the interval of the ratios of the turns: "
        f"{count(named(rows, SURELY, 13))}.\n\n"
        f"The solver alone, from the Gram to the weights, is slower than TorchJD's in this many of {solvers} cells: "
        f"{count(named(rows, SOLVER_SLOWER, 11))}.\n\n"
        f"More than 1.3 times the floor at 1,000,000 parameters: {count(named(rows, OVER_FLOOR, 8))} "
        "(ExcessMTL reads and writes a state of the Jacobian's size, which the floor, a Gram and a weighted sum, does "
        "not).\n\n"
        f"jax ran with `jax_cpu_enable_async_dispatch={_ASYNC.value}`: by default it hands a call from Python to "
        "another thread, which costs 0.03 to 0.05 ms and shows where the work itself takes 0.07; inside a compiled "
        "update there is no such call."
    )


def experience(learner, spec, key, *, length: int, num_envs: int):
    """A learner's initial state, and random transitions [H, T, E, ...] with its actions."""
    import jax

    from mtjax.learners.base import Transitions

    keys = jax.random.split(key, 4)
    state = learner.init(keys[0])
    shape = (length, spec.num_tasks, num_envs)
    observation = jax.random.normal(keys[1], (length + 1, *shape[1:], spec.observation_size))
    _, extras = jax.vmap(learner.act, (None, 0, 0))(state, observation[:-1], jax.random.split(keys[2], length))
    none = jax.numpy.zeros(shape, bool)
    truncated = none.at[-1].set(True)
    reward = jax.random.normal(keys[3], shape)
    return state, Transitions(observation[:-1], reward, none, truncated, observation[1:], extras)


def ppo_update(name: str, num_tasks: int):
    """One update of mtjax's PPO with `--grads=NAME`, compiled: a call without arguments.

    It has Meta-World's preset and sizes, with random transitions instead of the simulator's, and four minibatches of
    the preset's size instead of 80.
    """
    import jax
    import jax.numpy as jnp

    from mtjax.envs.base import continuous
    from mtjax.launch import presets
    from mtjax.learners import registry
    from mtjax.learners.base import TaskSpec
    from mtjax.learners.descent import gradient_method

    config = presets.configure(
        "metaworld-mt10",
        grads=name,
        rollout_length=64,
        num_minibatches=UPDATE_MINIBATCHES,
        num_epochs=1,
        detour_share=0.0,
    )
    spec = TaskSpec(num_tasks, 39, continuous(4), None, jnp.zeros((num_tasks, 0)))
    method = gradient_method(config.grads, num_tasks)
    learner = registry.make(
        config.learner, config.hyper, config.network, method, spec, num_envs=config.num_envs, num_updates=100
    )
    start = partial(experience, learner, spec, length=config.hyper.rollout_length, num_envs=config.num_envs)
    state, data = jax.jit(start)(jax.random.key(0))
    return partial(jax.jit(learner.update), state, data, jax.random.key(1))


def share(seconds: float, mean: float) -> float:
    """The percentage of a method's update that exceeds an update by the mean."""
    return 100 * (seconds - mean) / seconds


def bare_grams(update):
    """Only the Grams of one minibatch of PPO, of its policy and value networks: a call without arguments."""
    import jax

    from mtjax import grads

    state = update.args[0]
    num_tasks = state.observations.mean.shape[0]
    shared = {name: p.shared for name, p in state.params.items()}
    task_grads = jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (num_tasks, *x.shape)) + 0, shared)
    return partial(jax.jit(lambda trees: [grads.gram_matrix(tree) for tree in trees.values()]), task_grads)


def surgery() -> None:
    """Prints the time of one PPO update by method, taking turns, and the share of it that is surgery.

    The learner computes the Grams for its diagnostics in any case, even with the mean. There are thus two shares: that
    of the Grams, timed separately, and what a method adds to the mean, which is T×T work.
    """
    for num_tasks in (10, 50):
        steps = {name: ppo_update(name, num_tasks) for name in SURGEONS}
        grams = bare_grams(steps["mean"])
        times = {name: [] for name in (*steps, "Grams")}
        for step in (*steps.values(), grams):
            clock(step)
        for _ in range(_ROUNDS.value):
            for name in random.sample(list(steps), len(steps)):
                times[name].append(clock(steps[name]))
            times["Grams"].append(clock(grams))
        medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        mean, alone = medians["mean"], UPDATE_MINIBATCHES * medians.pop("Grams")
        print(
            f"T={num_tasks:2} the Grams alone: {alone:.2f} ms, {100 * alone / mean:.1f}% of an update with --grads=mean"
        )
        for name, value in medians.items():
            extra = share(value, mean)
            print(
                f"T={num_tasks:2} {name:32} {value:8.2f} ms a PPO update; {extra:5.1f}% of it beyond mean", flush=True
            )


def main(argv) -> None:
    del argv
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as mtjax's commands do
    import jax

    pin()
    jax.config.update("jax_cpu_enable_async_dispatch", _ASYNC.value)
    if _SURGERY.value:
        return surgery()
    return compare(Torch(_TORCHJD.value) if _TORCHJD.value else None)


if __name__ == "__main__":
    sys.exit(app.run(main))
