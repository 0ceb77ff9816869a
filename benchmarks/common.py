"""What every benchmark prints around its table, and how it takes turns."""

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
    """Which of x86's vectors the processor has, " with AVX2" say: its name may not tell, and products depend on it."""
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
    """Wall-clock seconds of one call, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


class Loop:
    """Training as a run does it: its program, and where it is.

    Attributes:
        trainer: whose program it is.
        state: of training.
        compile_seconds: that compiling took.
        program: compiled.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.state = trainer, trainer.init()
        start = time.perf_counter()
        self.program = Program(trainer, self.state)
        self.compile_seconds = time.perf_counter() - start

    def __call__(self, updates: int = 1) -> object:
        """So many updates, in one call if the program loops. Returns the last one's metrics."""
        calls, each = (1, updates) if self.program.loops else (updates, 1)
        for _ in range(calls):
            self.state, metrics = self.program(self.state, each)
        return metrics

    def rollout(self) -> object:
        """A rollout without an update. Returns its rewards."""
        self.state = self.program.collect(self.state)
        return self.program.rollout.reward


def take_turns(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, run in turn round by round, so that a busy machine slows all of them alike.

    Everything is called once before, to compile.
    """
    for call in work.values():
        jax.block_until_ready(call())
    measured: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            measured[name].append(seconds(call))
    return {name: statistics.median(times) for name, times in measured.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which two of the values their median lies, with 95% confidence (by the signs); of five or fewer, all."""
    ordered, count = sorted(values), len(values)
    below = [sum(math.comb(count, n) for n in range(rank + 1)) / 2**count for rank in range(count // 2)]
    outside = sum(chance <= 0.025 for chance in below)  # values at either end that may be left out
    return ordered[max(outside - 1, 0)], ordered[min(count - outside, count - 1)]
