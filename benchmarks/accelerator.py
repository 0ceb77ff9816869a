"""mtjax on this machine's accelerator, in about ten minutes: speed over environments, gradients, the default run.

    sh benchmarks/accelerator.sh                     # on a machine with an NVIDIA GPU: installs what is missing
    PYTHON=python sh benchmarks/accelerator.sh --quick   # tiny sizes, anywhere, to see that it works

Prints Markdown. Measurements for which no time is left are skipped, and the table says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from common import Loop, header, table, take_turns
from default_run import run

from mtjax import grads, options, suites
from mtjax.launch import environment, presets
from mtjax.training import memory
from mtjax.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        minutes: minutes after which no new measurement starts.
        envs: numbers of environments of each task, by suite.
        sizes: numbers of tasks and parameters of the Jacobians.
        methods: names of methods of mtjax.grads.
        rounds: turns that each measurement takes.
        default_run: whether the default run is trained.
        changes: options of the throughput runs that differ from the presets.
    """

    minutes: float
    envs: dict[str, Sequence[int]]
    sizes: Sequence[tuple[int, int]]
    methods: Sequence[str]
    rounds: int
    default_run: bool
    changes: dict[str, object]


FULL = Plan(
    minutes=10,
    envs={
        "gridworld-two-rooms": (64, 512, 4096),
        "hidden-hopper": (32, 256, 2048),
        "goals-reacher": (32, 256, 2048),
    },
    sizes=((10, 100_000), (50, 1_000_000)),
    methods=("mean", "pcgrad", "cagrad(c=0.4)", "upgrad", "nash_mtl"),
    rounds=5,
    default_run=True,
    changes={},
)
QUICK = Plan(
    minutes=1,
    envs={"gridworld-two-rooms": (2,)},
    sizes=((3, 100),),
    methods=("mean", "pcgrad"),
    rounds=1,
    default_run=False,
    changes={"rollout_length": 8, "num_minibatches": 2, "num_epochs": 1, "hidden_sizes": (8,)},
)
LATE = "no time"


class Clock:
    """Counts down the time that is left."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self.end - time.monotonic()


def machine(precision: str) -> str:
    """Devices, precision, memory and driver in one line, for below the versions."""
    devices = jax.devices()
    free = memory.free_memory()
    parts = [f"{len(devices)} × {devices[0].device_kind}", f"matrix products in precision {precision}"]
    if free is not None:
        parts.append(f"{memory.size_text(free)} free")
    return "; ".join([*parts, *driver()])


def driver() -> list[str]:
    """NVIDIA's driver, where there is one."""
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"driver {found[0]}"] if found else []


# ------------------------------------------------------------------------------------------- the tables


def throughput(plan: Plan, clock: Clock) -> str:
    """Steps per second of the rollout and of the whole loop, by number of environments of each task."""
    rows = []
    for name, numbers in plan.envs.items():
        suite = suites.make(name)
        for number in numbers:
            late = clock.left() <= 0
            cells = [LATE] * 4 if late else training(name, suite, number, plan)
            rows.append([name, f"{suite.num_tasks}", f"{number:,}", *cells])
            print("\t".join(rows[-1]), file=sys.stderr, flush=True)
    columns = ["suite", "tasks", "environments each", "compile, s", "memory", "rollout, steps/s", "whole loop, steps/s"]
    return table(columns, rows)


def training(name: str, suite: suites.Suite, num_envs: int, plan: Plan) -> list[str]:
    """One row: seconds of compiling, memory, and both speeds."""
    config = options.replace(presets.configure(name), {**plan.changes, "num_envs": num_envs})
    trainer = Trainer(config, suite)
    loop = Loop(trainer)
    known = loop.program.memory
    times = take_turns({"rollout": loop.rollout, "loop": loop}, plan.rounds)
    speeds = [f"{trainer.steps_per_update / times[what]:,.0f}" for what in ("rollout", "loop")]
    return [f"{loop.compile_seconds:.1f}", memory.size_text(known.total) if known else "–", *speeds]


def gradients(plan: Plan, clock: Clock) -> str:
    """Milliseconds that each method takes to combine the tasks' gradients into one direction."""
    rows = []
    for tasks, size in plan.sizes:
        jacobian = jax.random.normal(jax.random.key(0), (tasks, size))
        work = {}
        for name in plan.methods if clock.left() > 0 else ():
            transform = grads.aggregate(grads.get(name), num_tasks=tasks)
            state = jax.jit(transform.init)(jacobian[0])
            step = jax.jit(transform.update)
            work[name] = functools.partial(step, jacobian, state, losses=jnp.ones(tasks))
        times = take_turns(work, 4 * plan.rounds)
        cells = [f"{1e3 * times[name]:.2f}" if name in times else LATE for name in plan.methods]
        rows.append([str(tasks), f"{size:,}", *cells])
    return table(["tasks", "parameters", *(f"{name}, ms" for name in plan.methods)], rows)


def default_run(plan: Plan, platform: str, precision: str) -> str:
    """Seconds and final returns of one seed of the default run, as a newcomer starts it."""
    if not plan.default_run:
        return "not run"
    try:
        seconds, summary = run(0, [f"--platform={platform}", f"--matmul_precision={precision}"])
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the default run failed with exit code {error.returncode}") from None
    rows = []
    for split, results in summary["results"].items():
        measured = results["deterministic"]["return"]
        numbers = [f"{measured[name]['value']:,.0f}" for name in ("mean", "median", "worst")]
        rows.append([split, *numbers, f"{seconds:.0f}", f"{summary['steps_per_second']:,.0f}"])
    return table(["tasks", "mean return", "median", "worst task", "seconds, all included", "steps/s"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--minutes", type=float, help="after which nothing new is begun")
    parser.add_argument("--platform", default="auto", choices=environment.PLATFORMS)
    parser.add_argument("--matmul_precision", default="auto", choices=environment.PRECISIONS)
    asked = parser.parse_args(argv)
    plan = QUICK if asked.quick else FULL
    clock = Clock(plan.minutes if asked.minutes is None else asked.minutes)
    environment.prepare()
    # First, before this process takes most of the device's memory: the default run is another process.
    trained = default_run(plan, asked.platform, asked.matmul_precision)
    environment.choose_platform(asked.platform)
    precision = environment.set_precision(asked.matmul_precision)
    print(f"{header()}\n{machine(precision)}")
    print(f"\n**The default run**\n\n{trained}", flush=True)
    print(f"\n**Speed over environments**\n\n{throughput(plan, clock)}", flush=True)
    print(f"\n**Combining gradients**\n\n{gradients(plan, clock)}", flush=True)


if __name__ == "__main__":
    main()
