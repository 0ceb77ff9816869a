"""The default run, as a newcomer starts it: seconds until it is done, and what it has learnt by then.

    python benchmarks/default_run.py

Every seed is a fresh process without a compilation cache. Returns are those of the final deterministic
evaluation; the random policy draws uniform actions on the same tasks.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from common import header, table

from mtjax import suites
from mtjax.learners.base import Learner
from mtjax.training.evaluation import Evaluator


def random_returns(suite: suites.Suite, split: str, episodes: int) -> np.ndarray:
    """Mean return [T] of uniform random actions."""

    def policy(state, observation, key, deterministic, unseen):
        shape = (*observation.shape[:2], *suite.action.shape)
        if suite.action.kind == "discrete":
            return jax.random.randint(key, shape, 0, suite.action.size)
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    learner = Learner(init=None, act=None, update=None, policy=policy)
    evaluator = Evaluator(learner, suite, episodes=episodes, num_seeds=1, seed=0)
    return np.asarray(evaluator(jax.numpy.zeros((1,)), split=split, key=jax.random.key(0))["return"])[0]


def run(seed: int, flags: list[str]) -> tuple[float, dict]:
    """Train the default run. Returns the seconds that the command took, and the summary."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "mtjax.launch.train", f"--seed={seed}", f"--run_dir={run_dir}"]
        command += ["--compilation_cache=none", "--noprogress", *flags]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start, json.loads((run_dir / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments, flags = parser.parse_known_args()
    rows = []
    for seed in range(arguments.seeds):
        seconds, summary = run(seed, flags)
        for split, results in summary["results"].items():
            measured = results["deterministic"]["return"]
            numbers = [f"{measured[name]['value']:,.0f}" for name in ("mean", "median", "worst")]
            rows.append([str(seed), split, *numbers, f"{seconds:.0f}"])
            print("\t".join(rows[-1]), flush=True)
    suite = suites.make(summary["suite"])
    for split in summary["results"]:
        returns = random_returns(suite, split, episodes=50)
        numbers = [f"{value:,.0f}" for value in (returns.mean(), np.median(returns), returns.min())]
        rows.append(["random policy", split, *numbers, ""])
    print(header())
    print(f"{summary['suite']}, {summary['step']:,} steps; suite {summary['version']['suite']}")
    print(table(["seed", "tasks", "mean return", "median", "worst task", "seconds, all included"], rows))


if __name__ == "__main__":
    main()
