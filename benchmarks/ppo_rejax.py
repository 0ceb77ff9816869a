"""PPO for ONE task: mtjax against rejax on the same environment, network, batch, epochs and minibatches.

    python benchmarks/ppo_rejax.py --rejax_python=PATH/bin/python

rejax (0.1.3 was tested) has a virtual environment of its own, with this checkout on its path so that it
steps the same environment. Both take turns, several updates at a time; the ratio is that of medians.
mtjax pays for its generality here: a task axis of length one, a Gram matrix, per-task statistics.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

SETTINGS = {"num_envs": 64, "rollout_length": 128, "num_epochs": 4, "num_minibatches": 8}
HIDDEN = (64, 64)
UPDATES = 20  # updates per timing
SUITES = ("control-cartpole", "control-pendulum")


# --------------------------------------------------------------------------------------------- rejax's side


def serve(name: str) -> None:
    """In rejax's environment: for every line read, train UPDATES updates and print the seconds it took."""
    import jax
    from gymnax_env import as_gymnax
    from rejax import PPO

    algorithm = PPO.create(
        env=as_gymnax(name),
        env_params=None,
        num_envs=SETTINGS["num_envs"],
        num_steps=SETTINGS["rollout_length"],
        num_epochs=SETTINGS["num_epochs"],
        num_minibatches=SETTINGS["num_minibatches"],
        agent_kwargs={"hidden_layer_sizes": HIDDEN, "activation": "tanh"},
        normalize_observations=True,
        normalize_rewards=True,
        max_grad_norm=0.5,
    )
    state = algorithm.init_state(jax.random.key(0))
    train = jax.jit(lambda state: jax.lax.fori_loop(0, UPDATES, lambda _, s: algorithm.train_iteration(s), state))
    state = jax.block_until_ready(train(state))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        state = jax.block_until_ready(train(state))
        print(time.perf_counter() - start, flush=True)


# --------------------------------------------------------------------------------------------- mtjax's side


def ours(name: str):
    """A function that trains UPDATES updates and returns the seconds it took."""
    import dataclasses

    import jax
    from common import Loop, seconds

    from mtjax import options, suites
    from mtjax.suites.base import Split
    from mtjax.training.config import RunConfig
    from mtjax.training.trainer import Trainer

    suite = suites.make(name)
    split = suite.splits["train"]
    one = Split(split.infos[:1], jax.tree.map(lambda leaf: leaf[:1], split.tasks))
    suite = dataclasses.replace(suite, splits={"train": one})
    settings = {"suite": name, "grads": "mean", "hidden_sizes": HIDDEN, "value_clip": 0.2, **SETTINGS}
    loop = Loop(Trainer(options.replace(RunConfig(), settings), suite))

    def train() -> float:
        return seconds(lambda: loop(UPDATES))

    train()
    return train


def compare(name: str, python: str, rounds: int) -> list[str]:
    """One row of the table."""
    root = pathlib.Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [python, __file__, f"--serve={name}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as peer:
        if peer.stdout.readline().strip() != "ready":
            raise SystemExit(f"rejax did not start for {name}")
        train = ours(name)
        mine, theirs = [], []
        for _ in range(rounds):
            mine.append(train())
            peer.stdin.write("go\n")
            peer.stdin.flush()
            theirs.append(float(peer.stdout.readline()))
        peer.stdin.close()
    steps = UPDATES * SETTINGS["num_envs"] * SETTINGS["rollout_length"]
    rates = [steps / statistics.median(times) for times in (mine, theirs)]
    return [name, f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[0] / rates[1]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rejax_python", help="Python of a virtual environment with rejax")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    if not arguments.rejax_python:
        parser.error("--rejax_python is missing: a Python with `pip install rejax`")
    from common import header, table

    rows = [compare(name, arguments.rejax_python, arguments.rounds) for name in SUITES]
    print(header())
    print(table(["environment", "mtjax, steps/s", "rejax, steps/s", "mtjax / rejax"], rows))


if __name__ == "__main__":
    main()
