"""Shared by the benchmarks: the header, tables, a training loop, and timing in turns."""

from __future__ import annotations

import datetime
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from mtjax.training.program import Program
from mtjax.training.trainer import Trainer
from mtjax.training.versions import versions


def header() -> str:
    """Machine, versions and date, in one line."""
    have = versions()
    packages = have["packages"]
    shown = [f"{name} {packages[name]}" for name in ("jax", "mujoco_mjx", "envpool") if packages[name]]
    return (
        f"{have['processor']}{vectors()}, {have['processor_count']} cores, {have['device']['kind']}; "
        f"Python {have['python']}, {', '.join(shown)}; {datetime.date.today()}"
    )


def vectors() -> str:
    """The processor's vector extension, e.g. " with AVX2": products depend on it, and the name may not show it."""
    try:
        words = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return ""
    return next((f" with {name}" for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in words), "")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, until its result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


class Loop:
    """Training as in a run: the compiled program and the current state.

    Attributes:
        trainer: the trainer.
        state: the current training state.
        compile_seconds: compile time.
        program: the compiled program.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.state = trainer, trainer.init()
        start = time.perf_counter()
        self.program = Program(trainer, self.state)
        self.compile_seconds = time.perf_counter() - start

    def __call__(self, updates: int = 1) -> object:
        """Run updates, in a single call if the program loops. Returns the metrics of the last update."""
        calls, each = (1, updates) if self.program.loops else (updates, 1)
        for _ in range(calls):
            self.state, metrics = self.program(self.state, each)
        return metrics

    def rollout(self) -> object:
        """Run a rollout without an update. Returns its rewards."""
        self.state = self.program.collect(self.state)
        return self.program.rollout.reward


def take_turns(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function; in every round they take turns, so that a busy machine slows all of them alike.

    Each function is called once beforehand, to compile.
    """
    for call in work.values():
        jax.block_until_ready(call())
    measured: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            measured[name].append(seconds(call))
    return {name: statistics.median(times) for name, times in measured.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95% confidence interval for the median of the values (sign test); for five or fewer, their full range."""
    ordered, count = sorted(values), len(values)
    below = [sum(math.comb(count, n) for n in range(rank + 1)) / 2**count for rank in range(count // 2)]
    outside = sum(chance <= 0.025 for chance in below)  # rank of the interval's ends, counted from either side
    return ordered[max(outside - 1, 0)], ordered[min(count - outside, count - 1)]
