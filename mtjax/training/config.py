"""The configuration of a run: frozen dataclasses without absl, from which launch.flags generates the flags."""

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
from mtjax.training import files

# In a run's folder; FLAGFILE repeats CONFIG as flags.
CONFIG, FLAGFILE, SUITE = "config.json", "flags.txt", "suite.json"
METRICS, SUMMARY, CHECKPOINTS = "metrics.jsonl", "summary.json", "checkpoints"
SPLITS = ("train", "interpolation", "extrapolation")  # as in suites.base, whose import would load jax
MODES = ("deterministic", "stochastic")

# What two results of a suite must share to be comparable, besides the tasks: names in suites.base.Version.
PROTOCOL = ("suite", "reward", "horizon", "goals", "success")

PER_ROW = ("seed", "num_seeds")  # may always differ between packed trials: every row has its own key

# Options that may change when a run is resumed: they affect what is logged, evaluated and saved, not what is learnt.
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
    """One training run. Its options, including the seed and those of its parts, determine the result."""

    suite: str = option("hidden-hopper", "The set of tasks; see --list_suites.")
    learner: str = option("ppo", "The learning algorithm. Each has its own options.", choices=tuple(LEARNERS))
    grads: str = option(
        "pcgrad",
        "How the tasks' gradients are combined into one update: a method of mtjax.grads with its arguments, e.g. "
        "mean, pcgrad, 'cagrad(c=0.4)', 'gradnorm(alpha=1.5, surrogate=\"softplus\")'.",
    )
    total_steps: int = option(
        10_000_000, "Environment steps of one seed, summed over its tasks and environments.", low=1
    )
    num_envs: int = option(32, "Parallel environments of each task.", low=1)
    training_horizon: int = option(
        0,
        "Steps after which a training episode is truncated (values bootstrap beyond it); 0 means the suite's own "
        "horizon. Evaluations play whole episodes. Shorter episodes give more resets for the same number of steps.",
        low=0,
    )
    num_seeds: int = option(1, "Agents trained in one program, each from its own seed.", low=1)
    seed: int = option(
        0, "Random seed of the first agent; the others use the following numbers.", low=0, high=2**31 - 1
    )
    log_every: int = option(0, "Updates between two lines of metrics; 0 means about 200 lines per run.", low=0)
    evaluate_every: int = option(
        0, "Environment steps between two evaluations; 0 means ten evaluations per run.", low=0
    )
    evaluation_splits: tuple[str, ...] = option(
        ("train",),
        "Splits in evaluations during the run, comma-separated; held-out ones zero-shot, if the learner has a policy "
        "for unseen tasks. The last evaluation covers all splits.",
        choices=SPLITS,
    )
    evaluation_modes: tuple[str, ...] = option(
        ("deterministic",),
        "Policies in evaluations during the run, comma-separated: the mode of the action distribution, or samples from "
        "it. The last evaluation uses both on the training tasks and only the former on the others.",
        choices=MODES,
    )
    evaluation_episodes: int = option(10, "Episodes per task in an evaluation.", low=1)
    final_evaluation_episodes: int = option(
        50, "Episodes per task in the last evaluation, rounded up to whole rounds of evaluation_episodes.", low=1
    )
    checkpoint_every: int = option(
        0, "Environment steps between two checkpoints; 0 means one after every evaluation.", low=0
    )
    keep_checkpoints: int = option(3, "Number of newest checkpoints to keep.", low=1)
    hyper: Any = options.part("learner", {name: kind.config for name, kind in LEARNERS.items()})
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        options.fill(self)

    def check(self) -> None:
        """Raise ValueError if a seed exceeds 2³¹ − 1, or if splits or modes are empty or contain duplicates."""
        for name, known in (("evaluation_splits", SPLITS), ("evaluation_modes", MODES)):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen):
                text = ",".join(chosen) or "empty"
                raise ValueError(f"{name}: {text}; expected one or more of {', '.join(known)}, each once")
        if self.seed + self.num_seeds > 2**31:
            raise ValueError(f"seed: {self.num_seeds} seeds from {self.seed} on exceed the largest seed, {2**31 - 1}")

    def steps_per_update(self, num_tasks: int) -> int:
        """Environment steps of one seed in one update."""
        return num_tasks * self.num_envs * self.hyper.rollout_length

    def num_updates(self, num_tasks: int) -> int:
        """Updates of the whole run: ``total_steps``, rounded up."""
        return max(1, -(-self.total_steps // self.steps_per_update(num_tasks)))

    def validate(self) -> None:
        """Check every option. Raises ValueError with one line: the option, its value and what was expected."""
        for part in (self, self.hyper, self.network):
            validate(part)


def settle(values: Mapping[str, Any], said: Collection[str]) -> RunConfig:
    """Build and validate the configuration with these values.

    Args:
        values: options that differ from their defaults, by name.
        said: names of the options in ``values`` that were set explicitly for this run. They are refused if nothing
            reads them. Any other unused option (of a preset, a saved run, or a sweep's other trials) is reset to its
            default, so that equal runs have equal configurations.

    Raises:
        ValueError: an option is unknown, out of bounds or without effect.
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


def save_config(config: RunConfig, run_dir: str | os.PathLike) -> None:
    """Write the configuration into a run's folder, which need not exist, as JSON and as a flagfile."""
    files.write_json(Path(run_dir) / CONFIG, dataclasses.asdict(config))
    files.write_atomically(Path(run_dir) / FLAGFILE, flagfile(config).encode())


def flagfile(config: RunConfig) -> str:
    """A flagfile that reproduces this configuration: every option, and no preset."""
    lines = [f"# This run's configuration: mtjax-train --flagfile={FLAGFILE}", "--preset=none"]
    lines += [f"--{name}={options.as_text(value)}" for name, value in options.flatten(config).items()]
    return "\n".join(lines) + "\n"


def load_config(run_dir: str | os.PathLike) -> RunConfig:
    """Load the configuration in a run's folder.

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
        saved: the configuration with which the run was started.
        asked: options named on the command line. They may repeat the run's values, increase ``total_steps``, and
            change the options in ``OPERATIONAL``.
        run_dir: the run's folder, for error messages.

    Raises:
        ValueError: an option is unknown, ``total_steps`` is smaller than the run's, or another option differs; the
            message then lists the differences.
    """
    # Raises for an option that the run does not have.
    options.replace(saved, {name: value for name, value in asked.items() if name != "learner"})
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
    """The options that the saved run lacks or has other values for, in the order of ``asked``."""
    have = options.flatten(saved)
    return {name: value for name, value in asked.items() if name not in have or value != have[name]}


def refuse_changes(
    saved: RunConfig, asked: Mapping[str, Any], why: str, *, free: Collection[str] = OPERATIONAL
) -> None:
    """Refuse options that differ from a saved run's, except those in ``free``.

    Raises:
        ValueError: an option differs; the message is ``why`` and a list of the differences.
    """
    have, text = options.flatten(saved), options.as_text
    rows = [
        f"\n  --{name}: {text(have[name]) if name in have else 'no such option'} in the run, {text(value)} asked"
        for name, value in changed(saved, asked).items()
        if name not in free
    ]
    if rows:
        raise ValueError(f"{why}:{''.join(rows)}")
