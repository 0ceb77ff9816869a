"""The configuration of a run: frozen dataclasses, free of absl. Flags are generated from them (launch.flags)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mtjax import options
from mtjax.learners.registry import LEARNERS
from mtjax.networks.config import NetworkConfig
from mtjax.options import option, validate

CONFIG, SUITE, METRICS, SUMMARY = "config.json", "suite.json", "metrics.jsonl", "summary.json"  # in a run's folder
SPLITS = ("train", "interpolation", "extrapolation")  # as in suites.base, which imports jax
MODES = ("deterministic", "stochastic")

PER_ROW = ("seed", "num_seeds")  # may always differ between the trials of a program: each row has its own key

# May change when a run is resumed: they decide what is looked at, not what is learnt.
OPERATIONAL = (
    "log_every",
    "evaluate_every",
    "evaluation_splits",
    "evaluation_modes",
    "evaluation_episodes",
    "final_evaluation_episodes",
    "checkpoint_every",
    "keep_checkpoints",
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run. Everything here and below, with the seed, determines its result."""

    suite: str = option("hidden-hopper", "The set of tasks; see --list_suites.")
    learner: str = option("ppo", "The learning algorithm. It has options of its own.", choices=tuple(LEARNERS))
    grads: str = option(
        "pcgrad",
        "How the tasks' gradients become one update: a method of mtjax.grads with its arguments, e.g. "
        "mean, pcgrad, 'cagrad(c=0.4)', 'gradnorm(alpha=1.5, surrogate=\"softplus\")'.",
    )
    total_steps: int = option(
        10_000_000, "Environment steps of one seed, summed over its tasks and environments.", low=1
    )
    num_envs: int = option(32, "Parallel environments of each task.", low=1)
    training_horizon: int = option(
        0,
        "Steps after which an episode of training is cut short (as a truncation: values reach beyond it); 0 means the "
        "suite's own horizon. Evaluations play whole episodes. Shorter ones are more new starts for the same steps.",
        low=0,
    )
    num_seeds: int = option(1, "Agents trained in one program, each from its own seed.", low=1)
    seed: int = option(
        0, "What everything random is derived from; seeds are numbered from here.", low=0, high=2**31 - 1
    )
    log_every: int = option(0, "Updates between two lines of metrics; 0 means about 200 lines a run.", low=0)
    evaluate_every: int = option(0, "Environment steps between two evaluations; 0 means ten evaluations a run.", low=0)
    evaluation_splits: tuple[str, ...] = option(
        ("train",),
        "Splits that these evaluations measure, comma-separated; held-out ones zero-shot, as long as the learner has a "
        "policy for unseen tasks. The last evaluation is of all splits.",
        choices=SPLITS,
    )
    evaluation_modes: tuple[str, ...] = option(
        ("deterministic",),
        "Policies that these evaluations measure, comma-separated: that which takes the mode of its distribution, and "
        "that which draws. The last evaluation is of both on the training tasks, of the former on the others.",
        choices=MODES,
    )
    evaluation_episodes: int = option(10, "Episodes of each task in an evaluation.", low=1)
    final_evaluation_episodes: int = option(
        50, "Episodes of each task in the last evaluation, rounded up to whole rounds of evaluation_episodes.", low=1
    )
    checkpoint_every: int = option(
        0, "Environment steps between two checkpoints; 0 means one after every evaluation.", low=0
    )
    keep_checkpoints: int = option(3, "How many of the newest checkpoints are kept.", low=1)
    hyper: Any = options.part("learner", {name: kind.config for name, kind in LEARNERS.items()})
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        options.fill(self)

    def check(self) -> None:
        """Refuse seeds beyond the greatest, and splits or modes that repeat or are none: ValueError."""
        for name, known in (("evaluation_splits", SPLITS), ("evaluation_modes", MODES)):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen):
                text = ",".join(chosen) or "empty"
                raise ValueError(f"{name}: {text}; expected one or more of {', '.join(known)}, each once")
        if self.seed + self.num_seeds > 2**31:
            raise ValueError(f"seed: {self.num_seeds} seeds from {self.seed} on go beyond the greatest, {2**31 - 1}")

    def validate(self) -> None:
        """Check every option. Raises ValueError with one line that names option, value and expectation."""
        for part in (self, self.hyper, self.network):
            validate(part)


def settle(values: Mapping[str, Any], said: Collection[str]) -> RunConfig:
    """The configuration with these values, validated.

    Args:
        values: options that differ from their defaults, by name.
        said: those of them that this run was given by name. One of them that nothing reads is refused; any other
            (a preset's, a saved run's, a sweep's for its other trials) takes its default, so that the same run is
            the same configuration.

    Raises:
        ValueError: an unknown option, a value out of bounds, an option without effect.
    """
    values = dict(values)
    while True:
        config = options.replace(RunConfig(), values)
        try:
            config.validate()
            return config
        except options.Unused as unused:
            if unused.option in said or unused.option not in values:
                raise
            del values[unused.option]


def load_config(run_dir: str | os.PathLike) -> RunConfig:
    """The configuration that a run's folder holds.

    Raises:
        ValueError: the folder is not a run, or its configuration cannot be read.
    """
    path = Path(run_dir) / CONFIG
    if not Path(run_dir).is_dir():
        raise ValueError(f"{run_dir} is not a run: there is no such folder")
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run: it has no {CONFIG}")
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
        if values.get("learner", "ppo") == "ppo" and "ppo" in values:  # saved when PPO was the only learner
            values["hyper"] = values.pop("ppo")
        config = options.from_dict(RunConfig(), values)
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return config


def resumed(saved: RunConfig, asked: Mapping[str, Any], run_dir: str | Path) -> RunConfig:
    """The configuration with which a saved run continues.

    Args:
        saved: what the run was started with.
        asked: options that the command line names; they may repeat the run's, extend ``total_steps``, and
            change how often is logged, evaluated and saved.
        run_dir: for the message.

    Raises:
        ValueError: another option differs; the message holds a table of the differences.
    """
    options.replace(saved, {name: value for name, value in asked.items() if name != "learner"})  # are they its own?
    different = changed(saved, asked)
    steps = different.get("total_steps", saved.total_steps)
    if steps < saved.total_steps:
        raise ValueError(
            f"{run_dir} was started with --total_steps={saved.total_steps}; a run can be extended, "
            f"not shortened to {steps}"
        )
    refuse_changes(
        saved,
        {name: value for name, value in asked.items() if name != "total_steps"},
        f"{run_dir} cannot be resumed with other options; leave them out, or start a new run in another --run_dir",
    )
    config = options.replace(saved, different)
    config.validate()
    return config


def changed(saved: RunConfig, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are asked to be other than a saved run has them, in the order asked."""
    have = options.flatten(saved)
    return {name: value for name, value in asked.items() if name not in have or value != have[name]}


def refuse_changes(
    saved: RunConfig, asked: Mapping[str, Any], why: str, *, free: Collection[str] = OPERATIONAL
) -> None:
    """Refuse other options than a saved run's, but for those that are ``free``.

    Raises:
        ValueError: ``why``, and a table of the differences.
    """
    have, text = options.flatten(saved), options.as_text
    rows = [
        f"\n  --{name}: {text(have[name]) if name in have else 'no such option'} in the run, {text(value)} asked"
        for name, value in changed(saved, asked).items()
        if name not in free
    ]
    if rows:
        raise ValueError(f"{why}:{''.join(rows)}")
