"""Settings for families of suites. A preset replaces defaults; ``--config_from`` and flags override it."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from mtjax import options
from mtjax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Preset:
    """Options for the suites whose name matches a pattern.

    Attributes:
        pattern: of suite names, with * and ?.
        reason: why these values.
        options: option name to value, flat over all parts of the configuration.
    """

    pattern: str
    reason: str
    options: Mapping[str, Any]


PRESETS = (
    Preset(
        "gridworld-*",
        "small discrete problems, rewards far away: much entropy, and a head a task",
        {
            "num_envs": 64,
            "total_steps": 3_000_000,
            "rollout_length": 32,
            "num_epochs": 4,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "entropy_cost": 1e-1,
            "hidden_sizes": (64, 64),
            "activation": "relu",
            "arrangement": "multi_head",
            "normalize_observations": False,
        },
    ),
    Preset(
        "control-*",
        "classic control: cheap steps and short horizons",
        {
            "num_envs": 32,
            "total_steps": 3_000_000,
            "rollout_length": 64,
            "num_epochs": 4,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "entropy_cost": 5e-3,
            "hidden_sizes": (64, 64),
        },
    ),
    Preset(
        "hidden-*",
        "one MJX body with hidden parameters",
        {
            "num_envs": 32,
            "total_steps": 5_000_000,
            "rollout_length": 64,
            "num_epochs": 4,
            "num_minibatches": 8,
            "learning_rate": 5e-4,
            "entropy_cost": 1e-3,
            "hidden_sizes": (128, 128),
        },
    ),
    Preset(
        "hidden-hopper",
        "the default run: a small network and a high learning rate, for five minutes on two cores",
        {
            "num_envs": 32,
            "total_steps": 4_000_000,
            "rollout_length": 64,
            "num_epochs": 4,
            "num_minibatches": 8,
            "learning_rate": 1e-3,
            "entropy_cost": 1e-3,
            "hidden_sizes": (64, 64),
            "final_evaluation_episodes": 20,
        },
    ),
    Preset(
        "goals-*",
        "one MJX body with rewards that differ: gradients conflict, so a wider network",
        {
            "num_envs": 32,
            "total_steps": 10_000_000,
            "rollout_length": 64,
            "num_epochs": 4,
            "num_minibatches": 8,
            "learning_rate": 5e-4,
            "entropy_cost": 1e-3,
            "hidden_sizes": (256, 256),
        },
    ),
    Preset(
        "bodies-*",
        "bodies with different spaces: nothing but the padding is common, so one head a task",
        {
            "num_envs": 32,
            "total_steps": 10_000_000,
            "rollout_length": 64,
            "learning_rate": 5e-4,
            "arrangement": "multi_head",
            "hidden_sizes": (256, 256),
        },
    ),
    Preset(
        "metaworld-*",
        "Meta-World by PPO: rollouts of half an episode, one head and one scale a task",
        {
            "num_envs": 16,
            "total_steps": 20_000_000,
            "rollout_length": 250,
            "num_epochs": 5,
            "num_minibatches": 16,
            "learning_rate": 5e-4,
            "entropy_cost": 5e-3,
            "arrangement": "multi_head",
            "hidden_sizes": (256, 256),
            "activation": "tanh",
            "initial_log_scale": -0.3,
            "return_scaling": "none",
            "reward_scale": 0.1,
        },
    ),
)

CHOICES = ("auto", "none", *(preset.pattern for preset in PRESETS))


def find(suite: str, choice: str = "auto") -> Preset | None:
    """The preset of a suite: the longest pattern that matches its name.

    Args:
        suite: the suite's name.
        choice: "auto", "none", or the pattern of a preset to take whatever the suite.

    Raises:
        ValueError: no such preset.
    """
    if choice == "none":
        return None
    if choice == "auto":
        matching = [preset for preset in PRESETS if fnmatch.fnmatchcase(suite, preset.pattern)]
        return max(matching, key=lambda preset: len(preset.pattern), default=None)
    for preset in PRESETS:
        if preset.pattern == choice:
            return preset
    raise ValueError(options.unknown("preset", choice, CHOICES))


def configure(suite: str, *, preset: str = "auto", **changes: Any) -> RunConfig:
    """The configuration that ``mtjax-train --suite=SUITE`` runs with these options.

    Args:
        suite: the suite's name.
        preset: as in ``find``.
        changes: options that override the preset, e.g. ``learning_rate=1e-3``.

    Raises:
        ValueError: no such preset or option, or a value out of bounds.
    """
    chosen = find(suite, preset)
    settings = {**(chosen.options if chosen else {}), **changes, "suite": suite}
    config = options.replace(RunConfig(), settings)
    config.validate()
    return config
