"""Speed gained by keeping the small sums of rollouts out of the library to which XLA's CPU backend hands sums.

    python benchmarks/small_sums.py
    python benchmarks/small_sums.py --suites hidden-walker

Programs with and without this change take turns, with PPO and the presets' settings. The interval is a 95% confidence
interval for the median of the turns' ratios (sign test).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from unittest import mock

from common import Loop, header, interval, seconds, table

from mtjax import suites
from mtjax.launch import presets
from mtjax.training import trainer
from mtjax.training.rollout import compiler_options

SUITES = ("hidden-hopper", "goals-cheetah-velocity", "control-pendulum", "gridworld-mazes")
COLUMNS = ("suite", "a rollout, ms", "XLA's default, ms", "times faster", "95%", "whole loop, times faster", "95%")


def loop(name: str, options: object) -> Loop:
    """A training loop with rollouts compiled with these options."""
    with mock.patch.object(trainer, "compiler_options", lambda: options):
        return Loop(trainer.Trainer(presets.configure(name), suites.make(name)))


def compare(ours: Callable[[], object], plain: Callable[[], object], rounds: int) -> tuple[list[str], list[str]]:
    """Median milliseconds of both, our speed-up and its interval. An extra turn warms up."""
    turns = [(seconds(ours), seconds(plain)) for _ in range(rounds + 1)][1:]
    ratios = [theirs / mine for mine, theirs in turns]
    low, high = interval(ratios)
    medians = [f"{1e3 * statistics.median(times):.0f}" for times in zip(*turns, strict=True)]
    return medians, [f"{statistics.median(ratios):.2f}", f"{low:.2f} to {high:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=SUITES)
    parser.add_argument("--rounds", type=int, default=13)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.suites:
        ours, plain = loop(name, compiler_options()), loop(name, None)
        rollout, faster = compare(ours.rollout, plain.rollout, arguments.rounds)
        _, loop_faster = compare(ours, plain, arguments.rounds)
        rows.append([name, *rollout, *faster, *loop_faster])
        print(" | ".join(rows[-1]), flush=True)
    print(f"\n{header()}; {arguments.rounds} turns\n\n{table(COLUMNS, rows)}")


if __name__ == "__main__":
    main()
