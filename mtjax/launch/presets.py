"""Settings for families of suites: presets replace defaults and yield to flags; ``--config_from`` disables them."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from mtjax import options
from mtjax.training.config import RunConfig, settle


@dataclasses.dataclass(frozen=True)
class Preset:
    """Options for one learner on the suites whose name matches a pattern.

    Attributes:
        pattern: glob of suite names, with * and ?; or a name in ``NAMED``, whose presets apply only on request, on top
            of the suite's own preset.
        reason: why these values were chosen.
        options: option name to value, flat over all parts of the configuration.
        learner: the learner that the options belong to.
    """

    pattern: str
    reason: str
    options: Mapping[str, Any]
    learner: str = "ppo"


# Rollout settings for classic control, whose steps cost almost nothing.
CONTROL = {
    "num_envs": 32,
    "total_steps": 3_000_000,
    "rollout_length": 64,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 1e-3,
    "hidden_sizes": (64, 64),
}

# What the SAC papers use, apart from the number and width of layers.
SAC = {"activation": "relu", "scale": "state"}

# SAC on small discrete problems.
GRID_SAC = {
    "num_envs": 16,
    "total_steps": 1_000_000,
    "rollout_length": 16,
    "update_to_data": 0.125,
    "batch_size": 64,
    "replay_capacity": 50_000,
    "warm_start": 5000,
    "polyak": 0.02,
    "learning_rate": 1e-3,
    "initial_temperature": 0.005,
    "discrete_entropy_scale": 0.1,
    "hidden_sizes": (64, 64),
}

# HiP-BMDP's policy and critics learn which task it is only from the task's embedding.
HIP = {**SAC, "arrangement": "none"}

# Presets that match no suite name and apply only on request (--preset).
NAMED = ("brc", "popart", "deepmdp", "sac_ae", "metaworld-quick")

PRESETS = (
    Preset(
        "gridworld-*",
        "small discrete problems with distant rewards: a large entropy bonus, and one head per task",
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
        {**CONTROL, "entropy_cost": 5e-3},
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
        "the default run: a small network and a high learning rate, to train in five minutes on two cores",
        {
            "num_envs": 32,
            "total_steps": 3_000_000,
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
        "one MJX body with different rewards: gradients conflict, so a wider network",
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
        "bodies with different spaces: only the padding is shared, so one head per task",
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
        "Meta-World with PPO: episodes cut at 200 steps, large batches; one head and one policy scale per task",
        {
            "num_envs": 16,
            "total_steps": 20_000_000,
            "training_horizon": 200,
            "rollout_length": 256,
            "num_epochs": 5,
            "num_minibatches": 16,
            "learning_rate": 5e-4,
            "learning_rate_schedule": "linear",
            "entropy_cost": 5e-3,
            "arrangement": "multi_head",
            "hidden_sizes": (256, 256),
            "activation": "tanh",
            "initial_log_scale": -0.3,
            "return_scaling": "none",
            "reward_scale": 0.1,
            "max_grad_norm": 0.0,  # as in the one-hour run of docs/results.md
            # bound_cost and detours help to open the drawer; to grasp, detours must end (experiments/exploration.py).
            "bound_cost": 0.1,
            "detour_share": 0.2,
            "detour_part": 0.2,
        },
    ),
    Preset(
        "*",
        "one policy and one value network per task, as in the paper; observations not normalised, to share one scale",
        {
            "num_envs": 32,
            "total_steps": 5_000_000,
            "rollout_length": 64,
            "learning_rate": 5e-4,
            "hidden_sizes": (128, 128),
            "arrangement": "independent",
            "normalize_observations": False,
        },
        "distral",
    ),
    Preset(
        "gridworld-*",
        "small discrete problems with distant rewards: an entropy bonus, not counted in the return, for exploration",
        {
            "num_envs": 64,
            "total_steps": 3_000_000,
            "rollout_length": 32,
            "num_epochs": 4,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "hidden_sizes": (64, 64),
            "activation": "relu",
            "arrangement": "independent",
            "normalize_observations": False,
            "return_scaling": "none",
            # The entropy bonus, at most log 4 times distral_entropy_cost, must stay below a step's cost of 0.01:
            # otherwise wandering would pay.
            "distral_kl_cost": 0.02,
            "distral_entropy_cost": 0.005,
            "entropy_cost": 0.1,
        },
        "distral",
    ),
    Preset(
        "control-*",
        "classic control: PPO's values, one network per task; observations not normalised, to share one scale",
        {**CONTROL, "arrangement": "independent", "normalize_observations": False},
        "distral",
    ),
    Preset(
        "*",
        "the usual choices for SAC: relu, and a scale that depends on the state",
        {**SAC, "total_steps": 1_000_000, "num_envs": 16, "hidden_sizes": (256, 256)},
        "sac",
    ),
    Preset(
        "gridworld-*",
        "small discrete problems: discrete SAC, one head per task; temperature below the step cost of 0.01",
        {
            **GRID_SAC,
            "activation": "relu",
            "arrangement": "multi_head",
        },
        "sac",
    ),
    Preset(
        "control-*",
        "classic control: small networks learn in few steps",
        {
            **SAC,
            "num_envs": 8,
            "total_steps": 1_000_000,
            "update_to_data": 0.25,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "hidden_sizes": (64, 64),
        },
        "sac",
    ),
    Preset(
        "hidden-*",
        "one MJX body with hidden parameters: off-policy learning needs fewer steps than PPO",
        {
            **SAC,
            "num_envs": 16,
            "total_steps": 1_500_000,
            "update_to_data": 0.25,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "hidden_sizes": (128, 128),
        },
        "sac",
    ),
    Preset(
        "goals-*",
        "one MJX body with different rewards: a wider network",
        {
            **SAC,
            "num_envs": 16,
            "total_steps": 2_000_000,
            "update_to_data": 0.25,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "hidden_sizes": (256, 256),
        },
        "sac",
    ),
    Preset(
        "bodies-*",
        "bodies with different spaces: only the padding is shared, so one head per task",
        {
            **SAC,
            "num_envs": 16,
            "total_steps": 2_000_000,
            "batch_size": 64,
            "arrangement": "multi_head",
            "hidden_sizes": (256, 256),
        },
        "sac",
    ),
    Preset(
        "metaworld-*",
        "Meta-World with MTSAC: 128 transitions and one head per task, few gradient steps to suit two cores",
        {
            **SAC,
            "num_envs": 8,
            "total_steps": 20_000_000,
            "rollout_length": 10,
            "update_to_data": 0.1,
            "batch_size": 128,
            "warm_start": 4000,
            "arrangement": "multi_head",
            "hidden_sizes": (256, 256),
        },
        "sac",
    ),
    Preset(
        "*",
        "SAC's values; policy and critics see the task only through the embedding of its dynamics",
        {**HIP, "total_steps": 1_000_000, "num_envs": 16, "hidden_sizes": (256, 256), "grads": "mean"},
        "hipbmdp",
    ),
    Preset(
        "gridworld-*",
        "small discrete problems: as for SAC, with a linear encoder of the cell",
        {
            **HIP,
            **GRID_SAC,
            "state_encoder_sizes": (),
            "model_sizes": (64,),
            "grads": "mean",
        },
        "hipbmdp",
    ),
    *(
        Preset(
            "gridworld-two-rooms-pixels",
            "images of 7 x 17 cells in three colours: convolutional encoders",
            {**GRID_SAC, **own, "replay_capacity": 20_000, "image_shape": (7, 17, 3)},
            learner,
        )
        for learner, own in (
            ("sac", {"activation": "relu", "arrangement": "multi_head"}),
            ("hipbmdp", {**HIP, "state_encoder_sizes": (64,), "model_sizes": (64,), "grads": "mean"}),
        )
    ),
    Preset(
        "control-*",
        "classic control: small networks learn in few steps",
        {
            **HIP,
            "num_envs": 8,
            "total_steps": 1_000_000,
            "update_to_data": 0.25,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "hidden_sizes": (64, 64),
            "state_encoder_sizes": (64,),
            "model_sizes": (64,),
            "latent_size": 16,
            "theta_size": 4,
            "theta_hidden_sizes": (),
            "grads": "mean",
        },
        "hipbmdp",
    ),
    Preset(
        "hidden-*",
        "one MJX body with hidden parameters: as for SAC",
        {
            **HIP,
            "num_envs": 16,
            "total_steps": 1_500_000,
            "update_to_data": 0.25,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "hidden_sizes": (128, 128),
            "grads": "mean",
        },
        "hipbmdp",
    ),
    Preset(
        "deepmdp",
        "one model of transitions and rewards for all tasks (arXiv 1906.02736), on top of the suite's preset",
        {"theta_size": 0},
        "hipbmdp",
    ),
    Preset(
        "sac_ae",
        "reconstruction instead of transition and reward models (arXiv 1910.01741), on top of the suite's preset",
        {
            "theta_size": 0,
            "transition_cost": 0.0,
            "reward_cost": 0.0,
            "reconstruction_cost": 1.0,
            "latent_cost": 1e-6,
        },
        "hipbmdp",
    ),
    Preset(
        "popart",
        "residual critics, 256 wide, with layer normalisation, and values normalised per task by PopArt "
        "(arXiv 1809.04474), on top of the suite's preset",
        {"value_trunk": "residual", "value_hidden_sizes": (256, 256), "return_scaling": "popart", "reward_scale": 1.0},
    ),
    Preset(
        "metaworld-quick",
        "Meta-World in minutes: batches a quarter as large and twice the learning rate learn most tasks sooner, but "
        "not to grasp; on top of the suite's preset",
        {
            "total_steps": 2_000_000,
            "rollout_length": 64,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "detour_share": 0.2,
            "detour_part": 0.4,
        },
    ),
    Preset(
        "brc",
        "wide residual critics, categorical returns, rewards scaled per task, a learned embedding of unit norm "
        "(arXiv 2505.23150), on top of the suite's preset",
        {
            "value_trunk": "residual",
            "value_hidden_sizes": (512, 512),
            "critic_head": "categorical",
            "critic_reduction": "mean",
            "return_scaling": "range",
            "arrangement": "embedding",
            "embedding_size": 32,
            "unit_norm_embedding": True,
            "weight_decay": 1e-4,
            "initial_temperature": 0.1,
            "target_entropy_scale": 0.5,
        },
        "sac",
    ),
)

CHOICES = ("auto", "none", *dict.fromkeys(preset.pattern for preset in PRESETS))


def find(suite: str, learner: str = "ppo", choice: str = "auto") -> Preset | None:
    """The preset for a suite and a learner: the one with the longest matching pattern of the learner's presets.

    Args:
        suite: the suite's name.
        learner: the learner's name.
        choice: "auto", "none", or the pattern of a preset to use for any suite.

    Raises:
        ValueError: the learner has no such preset.
    """
    if choice == "none":
        return None
    mine = [preset for preset in PRESETS if preset.learner == learner]
    matching = [preset for preset in mine if fnmatch.fnmatchcase(suite, preset.pattern)]
    suited = max(matching, key=lambda preset: len(preset.pattern), default=None)
    if choice == "auto":
        return suited
    for preset in mine:
        if preset.pattern == choice:
            return _on_top(preset, suited) if choice in NAMED else preset
    if choice in CHOICES:
        others = ", ".join(preset.learner for preset in PRESETS if preset.pattern == choice)
        raise ValueError(f"preset {choice!r} is for --learner={others}; the learner here is {learner}")
    raise ValueError(options.unknown("preset", choice, CHOICES))


def _on_top(preset: Preset, suited: Preset | None) -> Preset:
    """Merge a preset requested by name over the suite's own preset."""
    if suited is None:
        return preset
    return dataclasses.replace(preset, options={**suited.options, **preset.options})


def configure(suite: str, *, preset: str = "auto", **changes: Any) -> RunConfig:
    """The configuration that ``mtjax-train --suite=SUITE`` runs with these options.

    Args:
        suite: the suite's name.
        preset: the ``choice`` of ``find``.
        changes: options that override the preset, e.g. ``learner="sac"``, ``learning_rate=1e-3``.

    Raises:
        ValueError: an unknown preset or option, or a value out of bounds.
    """
    learner = changes.get("learner", RunConfig().learner)
    chosen = find(suite, learner, preset)
    settings = {**(chosen.options if chosen else {}), **changes, "suite": suite}
    return settle(settings, changes)
