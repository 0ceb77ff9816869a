"""Compile time and steps/s against the number of tasks and of seeds.

    python benchmarks/scaling.py

Tasks: the same family with T = 1, 10 and 50 tasks and a fixed total number of environments, so that constant
speed is ideal. Seeds: S agents vmapped in one program against S successive runs of one agent, with and without
compile time. All loops of a group take turns.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax
from common import Loop, header, table, take_turns

from mtjax import options, suites
from mtjax.launch import presets
from mtjax.suites.base import Split, Suite
from mtjax.training.trainer import Trainer


def with_tasks(suite: Suite, number: int) -> Suite:
    """The suite with ``number`` training tasks: its own, repeated as often as needed."""
    split = suite.splits["train"]
    index = [i % len(split) for i in range(number)]
    tasks = jax.tree.map(lambda leaf: leaf[jax.numpy.asarray(index)], split.tasks)
    infos = tuple(dataclasses.replace(split.infos[i], name=f"{n}") for n, i in enumerate(index))
    return dataclasses.replace(suite, splits={"train": Split(infos, tasks)})


def tasks(name: str, counts: list[int], environments: int, rounds: int) -> str:
    """The table over T."""
    loops = {}
    for count in counts:
        config = options.replace(presets.configure(name), {"num_envs": environments // count})
        loops[count] = Loop(Trainer(config, with_tasks(suites.make(name), count)))
    times = take_turns(loops, rounds)
    base = loops[counts[0]].trainer.steps_per_update / times[counts[0]]
    rows = []
    for count, loop in loops.items():
        rate = loop.trainer.steps_per_update / times[count]
        envs = loop.trainer.config.num_envs
        rows.append([str(count), str(envs), f"{loop.compile_seconds:.1f}", f"{rate:,.0f}", f"{rate / base:.2f}"])
    columns = ["tasks", "environments each", "compile, s", "steps/s", f"against T = {counts[0]}"]
    return f"{name}, {environments} environments in all\n\n{table(columns, rows)}"


def seeds(name: str, counts: list[int], rounds: int) -> str:
    """The table over S."""
    small = {"num_envs": 4, "rollout_length": 32}
    suite = suites.make(name)
    loops = {
        count: Loop(Trainer(options.replace(presets.configure(name), {**small, "num_seeds": count}), suite))
        for count in counts
    }
    times = take_turns(loops, rounds)
    rows = []
    for count, loop in loops.items():
        ratio = count * times[counts[0]] / times[count]
        compiled = count * loops[counts[0]].compile_seconds / loop.compile_seconds
        rows.append(
            [str(count), f"{loop.compile_seconds:.1f}", f"{times[count] * 1e3:.1f}", f"{ratio:.2f}", f"{compiled:.1f}"]
        )
    columns = ["seeds", "compile, s", "ms an update", "faster than one after another", "compile saved, times"]
    return f"{name}, 4 environments a task, rollouts of 32\n\n{table(columns, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task_suite", default="hidden-hopper")
    parser.add_argument("--seed_suite", default="gridworld-two-rooms")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(header())
    print()
    print(tasks(arguments.task_suite, [1, 10, 50], 400, arguments.rounds))
    print()
    print(seeds(arguments.seed_suite, [1, 4, 16], arguments.rounds))


if __name__ == "__main__":
    main()
