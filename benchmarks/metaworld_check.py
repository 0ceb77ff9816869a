"""Does EnvPool's Meta-World behave like Meta-World? Scripted policies play both, task by task.

    python benchmarks/metaworld_check.py --metaworld_python=PATH/bin/python --episodes=10
    python benchmarks/metaworld_check.py --metaworld_python=PATH/bin/python --tasks=soccer,sweep --episodes=20 --update

Prints a table of success (at any step) and return (over 500 steps) in the two simulators and, for the tasks in which
they disagree, the lines to put into ``KNOWN_FAULTS`` of `mtjax/suites/metaworld.py`. With --update, the rows of the
tasks that were played are replaced in `docs/metaworld_check.md`, and no others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import pathlib
import re
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import jax
import numpy as np
from metaworld_reference import Reference

from mtjax import options, suites
from mtjax.suites.metaworld_tasks import MT50

ROUNDS = 2  # episodes per environment
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "metaworld_check.md"


class Result(NamedTuple):
    """Episodes of one task in both simulators, {"return": [n], "success": [n]} each."""

    task: str
    ours: dict[str, list[float]]
    theirs: dict[str, list[float]]

    @property
    def verdict(self) -> str:
        """ "off" if success differs by 0.4, or return by over 10% of the larger one and over three standard errors."""
        ours, theirs = np.array(self.ours["return"]), np.array(self.theirs["return"])
        gap = abs(ours.mean() - theirs.mean())
        error = np.sqrt(ours.var(ddof=1) / ours.size + theirs.var(ddof=1) / theirs.size)
        success = abs(np.mean(self.ours["success"]) - np.mean(self.theirs["success"]))
        far = gap > max(3 * error, 0.1 * max(ours.mean(), theirs.mean()))
        return "**off**" if success >= 0.4 or far else "agrees"

    @property
    def cells(self) -> str:
        """The first cells of a table row: the task, and its success and return in both simulators."""
        means = (np.mean(part[key]) for key in ("success", "return") for part in (self.ours, self.theirs))
        success, their_success, total, their_total = means
        return f"| {self.task} | {success:.2f} | {their_success:.2f} | {total:,.0f} | {their_total:,.0f} |"

    @property
    def fault(self) -> str:
        """The disagreement, worded as in ``KNOWN_FAULTS``."""
        success, theirs = np.mean(self.ours["success"]), np.mean(self.theirs["success"])
        if abs(success - theirs) >= 0.4:
            return f"succeeds in {success:.0%} of the episodes, Meta-World's in {theirs:.0%}"
        ratio = np.mean(self.ours["return"]) / np.mean(self.theirs["return"]) - 1
        return f"returns are {abs(ratio):.0%} {'above' if ratio > 0 else 'below'} Meta-World's"


def updated(page: str, results: Sequence[Result], how: str) -> str:
    """The page with the rows of these results replaced.

    Args:
        page: text of the page, with one table row per task, which begins with the task's name.
        results: results of some tasks.
        how: last cell of these rows, which gives the number of episodes.

    Raises:
        ValueError: a task has no row.
    """
    for result in results:
        row = re.compile(rf"^\| {re.escape(result.task)} \|.*$", re.MULTILINE)
        page, found = row.subn(f"{result.cells} {how} |", page)
        if found != 1:
            raise ValueError(f"{result.task}: expected one row of it, found {found}")
    return page


def task_list(text: str) -> tuple[str, ...]:
    """The tasks of a comma-separated flag. Raises ArgumentTypeError for one that Meta-World lacks."""
    tasks = tuple(task.strip() for task in text.split(",") if task.strip())
    for task in tasks:
        if task not in MT50:
            raise argparse.ArgumentTypeError(options.unknown("task", task, MT50))
    return tasks


def play(task: str, reference: Reference, episodes: int, seed: int) -> dict[str, list[float]]:
    """Let the scripted policies, which live in the reference process, play mtjax's suite of that task.

    Every environment plays ``ROUNDS`` episodes in a row: a simulator may be correct only until its first reset.
    """
    suite, num_envs = suites.make(f"metaworld-mt1-{task}"), math.ceil(episodes / ROUNDS)
    env = suite.vector_env(num_envs, seed=seed)
    key, advance = jax.random.key(0), jax.jit(env.step)
    state, observation = env.reset(key)
    returns, successes = [], []
    for _ in range(ROUNDS):
        reference("start", task=task, count=num_envs)
        total, success = np.zeros(num_envs), np.zeros(num_envs)
        for _ in range(suite.horizon):
            actions = reference("act", observations=np.asarray(observation[0], float).tolist())
            state, step = advance(state, np.asarray([actions], np.float32), key)
            total += np.asarray(step.reward[0])
            success = np.maximum(success, np.asarray(step.info["success"][0]))
            observation = step.observation
        returns += total.tolist()
        successes += success.tolist()
    env.close()
    return {"return": returns, "success": successes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--metaworld_python", required=True, help="interpreter that has metaworld installed")
    parser.add_argument("--episodes", type=int, default=10, help="episodes a task in each simulator")
    parser.add_argument("--tasks", type=task_list, default=MT50, metavar="TASK,…", help="default: all 50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="file for the episodes' numbers (JSON)")
    parser.add_argument("--update", action="store_true", help=f"replace the rows of these tasks in {PAGE.name}")
    flags = parser.parse_args()
    installed, page = f"EnvPool {metadata.version('envpool')}", PAGE.read_text() if flags.update else ""
    if flags.update and installed not in page:
        parser.error(f"--update: {PAGE} is not about {installed}, which is installed here")

    policies, simulator = Reference(flags.metaworld_python), Reference(flags.metaworld_python)
    stamp = suites.make("metaworld-mt50").version
    versions = ", ".join(f"{name} {version}" for name, version in simulator("versions").items())
    print(f"{stamp.simulator} against {versions}; {flags.episodes} episodes; {datetime.date.today()}\n")
    print("| task | success | Meta-World's | return | Meta-World's | |\n|---|---|---|---|---|---|")
    results = []
    for task in flags.tasks:
        simulator.send("episodes", task=task, count=flags.episodes, seed=flags.seed)  # both simulators run at once
        ours = play(task, policies, flags.episodes, flags.seed)
        results.append(Result(task, ours, simulator.receive()))
        print(results[-1].cells, results[-1].verdict, "|", flush=True)
    off = [result for result in results if result.verdict != "agrees"]
    print(f"\n{len(off)} of {len(results)} tasks are off: {', '.join(result.task for result in off) or 'none'}")
    for result in off:
        print(f'        "{result.task}": "{result.fault}",')
    if flags.update:
        how = f"{flags.episodes} ({datetime.date.today()})"
        PAGE.write_text(updated(page, results, how))
    if flags.output:
        flags.output.write_text(json.dumps([result._asdict() for result in results]))
    policies.close()
    simulator.close()


if __name__ == "__main__":
    main()
