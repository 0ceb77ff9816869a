"""What it is worth that rollouts keep their small sums, which XLA's CPU hands to a library: with it, and without.

    python benchmarks/small_sums.py
    python benchmarks/small_sums.py --suites hidden-walker

Both programs take turns, PPO with the presets' settings. The interval is that of the median of the turns' ratios, with
95% confidence (by the signs).
"""

from __future__ import annotations

import argparse
import statistics
from unittest import mock

from common import Loop, header, interval, seconds, table

from mtjax import suites
from mtjax.launch import presets
from mtjax.training import trainer
from mtjax.training.rollout import compiler_options

SUITES = ("hidden-hopper", "goals-cheetah-velocity", "bodies-mjx", "control-pendulum", "gridworld-mazes")
COLUMNS = ("suite", "a rollout, ms", "as XLA would", "times faster", "95%", "the whole loop", "95%")


def loop(name: str, options: object) -> Loop:
    """Training, with rollouts compiled so."""
    with mock.patch.object(trainer, "compiler_options", lambda: options):
        return Loop(trainer.Trainer(presets.configure(name), suites.make(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=SUITES)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.suites:
        ours, plain = loop(name, compiler_options()), loop(name, None)
        row = [name]
        for works in ((ours.rollout, plain.rollout), (ours, plain)):
            turns = [[seconds(work) for work in works] for _ in range(arguments.rounds + 1)][1:]  # the first warms up
            ratios = [theirs / mine for mine, theirs in turns]
            if len(row) == 1:
                row += [f"{1e3 * statistics.median(times):.0f}" for times in zip(*turns, strict=True)]
            low, high = interval(ratios)
            row += [f"{statistics.median(ratios):.2f}", f"{low:.2f} to {high:.2f}"]
        rows.append(row)
        print(" | ".join(row), flush=True)
    print(f"\n{header()}; {arguments.rounds} turns\n\n{table(COLUMNS, rows)}")


if __name__ == "__main__":
    main()
