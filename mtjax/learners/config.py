"""Hyper-parameters of the learners, free of jax so that a command line answers at once."""

from __future__ import annotations

import dataclasses

from mtjax.options import option


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of PPO. The floats marked [vmapped] are leaves of the state, one value a seed."""

    learning_rate: float = option(3e-4, "Step size of Adam. [vmapped]", above=0)
    learning_rate_schedule: str = option(
        "constant",
        "How the learning rate changes over the run.",
        choices=("constant", "linear", "cosine"),
    )
    adam_epsilon: float = option(1e-5, "Adam's epsilon.", above=0)
    max_grad_norm: float = option(
        0.5, "Updates are clipped to this global norm; 0 switches clipping off.", low=0
    )
    discount: float = option(0.99, "Discount γ of future reward. [vmapped]", low=0, high=1)
    gae_lambda: float = option(0.95, "λ of generalised advantage estimation. [vmapped]", low=0, high=1)
    rollout_length: int = option(128, "Steps of every environment between two updates.", low=1)
    num_epochs: int = option(4, "Passes over a rollout.", low=1)
    num_minibatches: int = option(8, "Minibatches of one pass; every one holds all tasks.", low=1)
    clip: float = option(0.2, "PPO's clip range ε of the probability ratio. [vmapped]", above=0)
    value_clip: float = option(0.0, "Clip range of the value's change; 0 switches it off.", low=0)
    value_cost: float = option(0.5, "Weight of the value loss.", low=0)
    entropy_cost: float = option(1e-3, "Weight of the entropy bonus. [vmapped]", low=0)
    kl_cost: float = option(0.0, "Weight of a penalty on KL(old policy, new policy).", low=0)
    target_kl: float = option(
        0.0, "Skip the rest of an update's minibatches once the KL exceeds 1.5 times this; 0 never does.", low=0
    )
    adaptive_kl: float = option(
        0.0, "Adapt the learning rate so that an update's KL stays near this value; 0 does not.", low=0
    )
    normalize_observations: bool = option(True, "Running mean and variance of observations, per task.")
    observation_clip: float = option(10.0, "Normalised observations are clipped to ± this.", above=0)
    normalize_advantages: bool = option(True, "Advantages to mean 0 and variance 1 within each task's batch.")
    return_scaling: str = option(
        "running",
        "'running' divides each task's rewards by the running deviation of its discounted return and clips them to "
        "±10; 'none' does neither.",
        choices=("running", "none"),
    )
    reward_scale: float = option(1.0, "Rewards are multiplied by this before anything else.", above=0)
    surgery: str = option(
        "separate",
        "What the gradient transform sees as one gradient: 'separate' (policy and value network each) or "
        "'joint' (both as one).",
        choices=("separate", "joint"),
    )
