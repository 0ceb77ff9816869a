"""SAC for ONE task: mtjax against rejax in speed, and against stable-baselines3 in return.

    python benchmarks/sac_peer.py --rejax_python=PATH/bin/python
    python benchmarks/sac_peer.py --sb3_python=PATH/bin/python --steps=20000 --seeds=5

Each peer has a virtual environment of its own (rejax 0.1.3 with this checkout on its path; stable-baselines3 2.9 with
gymnasium). Speed: mtjax and rejax take turns with the same environment, networks, batch and number of gradient steps;
the ratio is that of medians. mtjax pays for its generality: a task axis of length one, a Gram matrix, target networks
that are updated at every step. Return: gymnasium's pendulum, one environment, one gradient step per environment step,
equal hyper-parameters, 20 deterministic episodes at the end, and 95% intervals over seeds. The seeds of
stable-baselines3 train one after another, those of mtjax in one program.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

HIDDEN, BATCH, ENVS, CAPACITY = (256, 256), 256, 8, 100_000
ITERATIONS = 50  # iterations per timing; each has ENVS environment steps and as many gradient steps
NAME = "control-pendulum"  # its first task is gymnasium's Pendulum-v1
EPISODES = 20


# ---------------------------------------------------------------------------------------- the peers' side


def serve_rejax() -> None:
    """In rejax's environment: for every line read, train ITERATIONS iterations and print the seconds it took."""
    import jax
    import jax.numpy as jnp
    from gymnax_env import as_gymnax
    from rejax import SAC

    algorithm = SAC.create(
        env=as_gymnax(NAME),
        env_params=None,
        num_envs=ENVS,
        num_epochs=ENVS,
        batch_size=BATCH,
        buffer_size=CAPACITY,
        fill_buffer=ENVS,
        hidden_layer_sizes=HIDDEN,
        agent_kwargs={"activation": "relu"},
    )
    state = algorithm.init_state(jax.random.key(0))
    train = jax.jit(
        lambda state: jax.lax.fori_loop(0, ITERATIONS, lambda _, s: algorithm.train_iteration(s), state),
        donate_argnums=0,
    )
    state = jax.block_until_ready(train(jax.tree.map(jnp.copy, state)))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        state = jax.block_until_ready(train(state))
        print(time.perf_counter() - start, flush=True)


def serve_sb3(steps: int, seeds: int) -> None:
    """In stable-baselines3's environment: train each seed and print its mean return as one line of JSON."""
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.evaluation import evaluate_policy

    for seed in range(seeds):
        start = time.perf_counter()
        model = SAC("MlpPolicy", gymnasium.make("Pendulum-v1"), seed=seed, buffer_size=CAPACITY, batch_size=BATCH)
        model.learn(steps)
        seconds = time.perf_counter() - start
        mean, _ = evaluate_policy(model, gymnasium.make("Pendulum-v1"), EPISODES, warn=False)
        print(json.dumps({"return": float(mean), "seconds": seconds}), flush=True)


# ---------------------------------------------------------------------------------------- mtjax's side


def trainer_of(**settings):
    """A SAC trainer for only the first task of the suite, with the settings that the peers use."""
    import jax

    from mtjax import options, suites
    from mtjax.suites.base import Split
    from mtjax.training.config import RunConfig
    from mtjax.training.trainer import Trainer

    suite = suites.make(NAME)
    split = suite.splits["train"]
    one = Split(split.infos[:1], jax.tree.map(lambda leaf: leaf[:1], split.tasks))
    common = {
        "suite": NAME,
        "learner": "sac",
        "grads": "mean",
        "hidden_sizes": HIDDEN,
        "activation": "relu",
        "scale": "state",
        "initial_log_scale": 0.0,
        "rollout_length": 1,
        "update_to_data": 1.0,
        "batch_size": BATCH,
        "replay_capacity": CAPACITY,
    }
    config = options.replace(RunConfig(), {**common, **settings})
    return Trainer(config, dataclasses.replace(suite, splits={"train": one}))


def speed(python: str, rounds: int) -> str:
    """A table of the gradient steps per second of mtjax and rejax."""
    from common import Loop, table, take_turns

    ours = Loop(trainer_of(num_envs=ENVS, warm_start=ENVS))
    root = pathlib.Path(__file__).resolve().parent.parent
    command = [python, __file__, "--serve=rejax"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as peer:
        if peer.stdout.readline().strip() != "ready":
            raise SystemExit("rejax did not start")

        def theirs():
            peer.stdin.write("go\n")
            peer.stdin.flush()
            return float(peer.stdout.readline())

        times = take_turns({"mtjax": lambda: ours(ITERATIONS), "rejax": theirs}, rounds)
        peer.stdin.close()
    steps = ITERATIONS * ENVS
    rates = [steps / times[name] for name in ("mtjax", "rejax")]
    row = [NAME, f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[0] / rates[1]:.2f}"]
    return table(["environment", "mtjax, gradient steps/s", "rejax, gradient steps/s", "mtjax / rejax"], [row])


def returns(python: str, steps: int, seeds: int) -> str:
    """A table of the returns of mtjax and stable-baselines3 after equal steps."""
    import jax
    import numpy as np
    from common import Loop, seconds, table

    from mtjax.training.evaluation import Evaluator

    trainer = trainer_of(num_envs=1, num_seeds=seeds, warm_start=100, total_steps=steps)
    loop = Loop(trainer)
    trained = loop.compile_seconds + seconds(lambda: loop(trainer.num_updates))
    evaluator = Evaluator(trainer.learner, trainer.suite, episodes=EPISODES, num_seeds=seeds, seed=0)
    found = {
        "mtjax": (np.asarray(evaluator(loop.state.learner, key=jax.random.key(1))["return"])[:, 0], [trained / seeds])
    }

    command = [python, __file__, "--serve=sb3", f"--steps={steps}", f"--seeds={seeds}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    theirs = np.asarray([line["return"] for line in lines]), [line["seconds"] for line in lines]
    found["stable-baselines3"] = theirs
    rows = [[name, *interval(values), f"{np.mean(times):.0f}"] for name, (values, times) in found.items()]
    return table(["learner", f"return after {steps:,} steps", "95% interval", "seeds", "seconds a seed"], rows)


def interval(values) -> list[str]:
    """Mean, t-interval and number of seeds, as text."""
    import numpy as np
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    mean = np.mean(values)
    return [f"{mean:.0f}", f"{mean - half:.0f} to {mean + half:.0f}", str(len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rejax_python", help="Python of a virtual environment with rejax")
    parser.add_argument("--sb3_python", help="Python of a virtual environment with stable-baselines3")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--serve", choices=("rejax", "sb3"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve_rejax() if arguments.serve == "rejax" else serve_sb3(arguments.steps, arguments.seeds)
    if not (arguments.rejax_python or arguments.sb3_python):
        parser.error("name a peer: --rejax_python or --sb3_python")
    from common import header

    print(header())
    if arguments.rejax_python:
        print(f"\n{speed(arguments.rejax_python, arguments.rounds)}")
    if arguments.sb3_python:
        print(f"\n{returns(arguments.sb3_python, arguments.steps, arguments.seeds)}")


if __name__ == "__main__":
    main()
