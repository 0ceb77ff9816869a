"""Environment steps per second of MT10: mtjax's jitted loop against Meta-World's own vector environments.

    python benchmarks/metaworld_throughput.py --metaworld_python=PATH/bin/python

mtjax steps E environments per task within ``lax.scan``, with actions sampled from a policy network;
Meta-World's Sync and Async vector environments (one environment per task, as its constructor makes them) get
random actions, which cost nothing. All take turns for several rounds, so that a busy machine slows all of them
alike; the ratio is that of medians. The target is 4 times the faster of Meta-World's two on 2 cores.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from metaworld_reference import Reference

from mtjax import suites

HIDDEN = 256


def jitted_loop(benchmark: str, num_envs: int, rollout: int) -> Callable[[float], float]:
    """Compile rollouts of a random policy network. Returns a function: seconds to run -> steps/s."""
    suite = suites.make(f"metaworld-{benchmark.lower()}")
    env = suite.vector_env(num_envs, seed=0)
    sizes = [suite.observation_size, HIDDEN, HIDDEN, suite.action.size]
    keys = jax.random.split(jax.random.key(0), 3)
    layers = [jax.random.normal(k, (m, n)) / m**0.5 for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def act(observation, key):
        hidden = jnp.tanh(jnp.tanh(observation @ layers[0]) @ layers[1])
        return hidden @ layers[2] + jax.random.normal(key, (*observation.shape[:-1], suite.action.size))

    def advance(carry, key):
        state, observation = carry
        state, step = env.step(state, act(observation, key), key)
        return (state, step.observation), step.reward.mean()

    loop = jax.jit(lambda carry, key: jax.lax.scan(advance, carry, jax.random.split(key, rollout)))
    carry = jax.block_until_ready(loop(jax.jit(env.reset)(keys[0]), keys[1]))[0]  # compile

    def run(seconds: float) -> float:
        nonlocal carry
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            carry, _ = jax.block_until_ready(loop(carry, keys[2]))
            count += rollout * env.num_tasks * num_envs
        return count / (time.perf_counter() - start)

    return run


def resident() -> int:
    """Resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--metaworld_python", required=True, help="interpreter that has metaworld installed")
    parser.add_argument("--benchmark", default="MT10", choices=["MT10", "MT25", "MT50"])
    parser.add_argument("--num_envs", type=int, default=16, help="environments a task in mtjax")
    parser.add_argument("--rollout", type=int, default=125, help="steps in one call of the jitted loop")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contender gets")
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of one turn")
    flags = parser.parse_args()

    reference = Reference(flags.metaworld_python)
    versions = reference("versions")
    contenders = {}
    for strategy in ("sync", "async"):
        count = reference("vector", benchmark=flags.benchmark, strategy=strategy, seed=0)
        contenders[f"Meta-World {strategy}, {count} environments"] = lambda seconds, name=strategy: reference(
            "steps", strategy=name, seconds=seconds
        )
    ours = f"mtjax, {flags.num_envs} environments a task"
    before = resident()
    contenders[ours] = jitted_loop(flags.benchmark, flags.num_envs, flags.rollout)
    simulators = flags.num_envs * suites.make(f"metaworld-{flags.benchmark.lower()}").num_tasks
    each = (resident() - before) / simulators

    rates = {name: [] for name in contenders}
    for _ in range(flags.rounds):
        for name, run in contenders.items():
            rates[name].append(run(flags.seconds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    fastest = max(rate for name, rate in medians.items() if name != ours)

    stamp = suites.make(f"metaworld-{flags.benchmark.lower()}").version
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{flags.benchmark}: {stamp.simulator}, jax {jax.__version__}; reference: {names}")
    load = f"load average {os.getloadavg()[0]:.1f}, " if hasattr(os, "getloadavg") else ""
    print(f"{os.cpu_count()} cores, {load}Python {platform.python_version()}, {datetime.date.today()}\n")
    print("| | steps/s, median | lowest | highest | times the faster reference |\n|---|---|---|---|---|")
    for name, values in rates.items():
        low, high, ratio = min(values), max(values), medians[name] / fastest
        print(f"| {name} | {medians[name]:,.0f} | {low:,.0f} | {high:,.0f} | {ratio:.2f} |")
    if each:
        print(f"\n{simulators} simulators, and the compiled loop, take {each / 1e6:.0f} MB each.")
    reference.close()


if __name__ == "__main__":
    main()
