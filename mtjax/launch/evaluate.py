"""``mtjax-evaluate``: evaluate a saved run task by task, on the training tasks and on held-out ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from mtjax import options
from mtjax.launch import adapt, command, environment, flags, resolve, show
from mtjax.options import option
from mtjax.training.config import MODES, SPLITS, RunConfig

LESS_MEMORY = "lower --episodes"

USAGE = """
    mtjax-evaluate evaluates the policy of a saved run, with new environments and random keys.

      mtjax-evaluate --run_dir=runs/hopper
      mtjax-evaluate --run_dir=runs/hopper --splits=extrapolation --modes=deterministic --episodes=200

    The results are printed and appended to the run's metrics.jsonl.

      mtjax-evaluate --run_dir=runs/pendulum --adapt=all --adapt_episodes=0,1,5,20

    measures the policy after 0, 1, 5 and 20 episodes of adaptation to each held-out task, by inferring the task's
    embedding and by fine-tuning; the results are printed and written to the run's adaptation.json and
    plots/adaptation.png.

    Exit codes: 0 done, 1 bad input or out of memory, 5 a simulator failed.
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """The evaluation."""

    run_dir: str = option("", "The run's folder. Required.")
    splits: str = option(
        "all", "Comma-separated: train, interpolation, extrapolation; 'all' means all that the suite has."
    )
    modes: str = option("deterministic,stochastic", "Policies, comma-separated: deterministic, stochastic.")
    episodes: int = option(50, "Episodes per task.", low=1)
    seed: int = option(0, "Seed of the evaluation's episodes.", low=0, high=2**31 - 1)
    checkpoint: int = option(-1, "Step of the checkpoint; -1 means the newest intact one.", low=-1)
    adapt: str = option(
        "none",
        "How to adapt to held-out tasks: 'embedding' infers θ from the episodes seen, 'finetune' continues training; "
        "both comma-separated; 'all' means all that the run's learner supports; 'none' evaluates zero-shot.",
    )
    adapt_episodes: tuple[int, ...] = option(
        (0, 1, 5, 20), "With --adapt: numbers of episodes seen in each task, ascending from 0.", low=0
    )
    video: bool = option(False, "Also record a video of every task.")
    platform: str = option("auto", "Kind of device to run on.", choices=environment.PLATFORMS)
    mesh: str = option("", "Devices along the axes seed and env, e.g. seed:4; may differ from training.")
    matmul_precision: str = option(
        "auto", "Precision of matrix products, as for mtjax-train.", choices=environment.PRECISIONS
    )
    compilation_cache: str = option(
        "auto",
        "Folder for compiled programs: 'auto' is mtjax in the user's cache folder, 'none' disables the cache.",
    )


def define(values: command.FlagValues) -> None:
    """Define the command's flags."""
    flags.define_options(values, Command())
    flags.define_help(values, USAGE)


def run(values: command.FlagValues) -> int:
    """Run the command. Returns the exit code; bad input raises ValueError."""
    asked = Command(**flags.given(values, Command()))
    if not asked.run_dir:
        raise ValueError("--run_dir is required: the folder of a run")
    asked = dataclasses.replace(asked, run_dir=os.path.expanduser(asked.run_dir))
    config = resolve.load_config(asked.run_dir)
    splits = None if asked.splits == "all" else chosen("splits", asked.splits, SPLITS)
    modes = chosen("modes", asked.modes, MODES)
    adapting = () if asked.adapt in ("none", "all") else chosen("adapt", asked.adapt, tuple(adapt.METHODS))
    adapt.check_flags(asked, Command())
    environment.prepare()
    environment.choose_platform(asked.platform)
    environment.keep_compiled_programs(asked.compilation_cache)
    environment.set_precision(asked.matmul_precision)

    from mtjax.training import run as training

    command.stop_if_interrupted()
    named = splits is not None
    suite, splits = check(asked.run_dir, config, splits)
    if asked.adapt != "none":
        with command.within_memory(LESS_MEMORY):
            adapt.run(asked, config, suite, adapt.held_out(suite, splits, named=named), adapting)
        return command.OK
    print(show.evaluated(asked.run_dir, suite), flush=True)
    with command.within_memory(LESS_MEMORY):
        results = training.evaluate(
            asked.run_dir,
            splits=splits,
            modes=modes,
            episodes=asked.episodes,
            seed=asked.seed,
            checkpoint=None if asked.checkpoint < 0 else asked.checkpoint,
            video=asked.video,
            mesh=asked.mesh,
        )
    print(show.evaluation(results), flush=True)
    if asked.video:
        print(f"  videos: {os.path.join(asked.run_dir, 'videos')}", flush=True)
    return command.OK


def chosen(what: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split a comma-separated flag into its names.

    Raises:
        ValueError: an unknown name (the message suggests the nearest), a repeated name, or no name.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise ValueError(f"--{what}={text}: {options.unknown(what.rstrip('s'), name, known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--{what}={text}: expected one or more of {', '.join(known)}, each once")
    return names


def check(run_dir: str, config: RunConfig, splits: Sequence[str] | None) -> tuple[Any, tuple[str, ...]]:
    """Build the run's suite and choose the splits: the requested ones, or all that the suite has.

    Raises:
        ValueError: the suite is not registered, or lacks a requested split.
    """
    from mtjax import suites
    from mtjax.training import saved

    saved.require_suite(run_dir, config)
    suite = suites.make(config.suite)
    for name in splits or ():
        suite.split(name)
    return suite, tuple(splits or (name for name, split in suite.splits.items() if split))


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    command.launch(define, run, argv, exits=command.exits_of_runs)


if __name__ == "__main__":
    main()
