"""How much of a simulator's own throughput is left when PPO or SAC trains.

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --learner=sac --suites=metaworld-mt10

Three loops over the same environments, taking turns: the simulator alone (random actions), the rollout (the
policy acts and everything is recorded), and the whole loop (rollout, then update). The settings are the presets'; SAC
learns from the first rollout on. A gradient step is one minibatch of all tasks.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
from common import Loop, header, table, take_turns

from mtjax import suites
from mtjax.launch import presets
from mtjax.training.config import RunConfig
from mtjax.training.rollout import compiler_options, over_seeds
from mtjax.training.trainer import Trainer

SUITES = ("gridworld-two-rooms", "hidden-hopper", "metaworld-mt10")


def simulator(trainer: Trainer, length: int):
    """Steps with random actions, without a policy or a record. Returns a function that runs a rollout's length."""
    suite, config = trainer.suite, trainer.config
    reset, step = over_seeds(trainer.env)
    shape = (1, suite.num_tasks, config.num_envs, *suite.action.shape)

    def advance(state, key):
        if suite.action.kind == "discrete":
            actions = jax.random.randint(key, shape, 0, suite.action.size, jnp.int32)
        else:
            actions = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        state, result = step(state, actions, jax.random.split(key, 1))
        return state, (result.reward.mean(), result.observation.mean())  # XLA does not compute unused results

    run = jax.jit(
        lambda state, key: jax.lax.scan(advance, state, jax.random.split(key, length)),
        compiler_options=compiler_options(),
    )
    state = jax.jit(reset)(jax.random.split(jax.random.key(0), 1))[0]

    def work():
        nonlocal state
        state, seen = run(state, jax.random.key(1))
        return seen

    return work


def settings(name: str, learner: str) -> RunConfig:
    """The preset's settings, but without SAC's warm start, during which nothing is trained."""
    return presets.configure(name, learner=learner, **({"warm_start": 1} if learner == "sac" else {}))


def gradient_steps(config: RunConfig) -> int:
    """Gradient steps of one update."""
    hyper = config.hyper
    if config.learner == "sac":
        return max(1, round(hyper.update_to_data * hyper.rollout_length * config.num_envs))
    return hyper.num_epochs * hyper.num_minibatches


def measure(name: str, learner: str, rounds: int) -> list[str]:
    """One row of the table."""
    config = settings(name, learner)
    trainer = Trainer(config, suites.make(name))
    alone = Trainer(config, suites.make(name))  # separate trainers, because a host simulator has only one state
    rollout, loop = Loop(alone).rollout, Loop(trainer)
    only = Trainer(config, suites.make(name))
    work = {"simulator": simulator(only, config.hyper.rollout_length), "rollout": rollout, "loop": loop}
    times = take_turns(work, rounds)
    rates = {key: trainer.steps_per_update / value for key, value in times.items()}
    shares = [f"{rates[key] / rates['simulator']:.0%}" for key in ("rollout", "loop")]
    descents = gradient_steps(config) / times["loop"]
    return [name, *(f"{rates[key]:,.0f}" for key in ("simulator", "rollout", "loop")), *shares, f"{descents:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--learner", default="ppo", choices=["ppo", "sac"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.learner, arguments.rounds) for name in arguments.suites.split(",")]
    print(header())
    columns = [
        "suite", "simulator alone, steps/s", "rollout", "whole loop", "rollout keeps", "whole loop keeps",
        "gradient steps/s",
    ]  # fmt: skip
    print(table(columns, rows))


if __name__ == "__main__":
    main()
