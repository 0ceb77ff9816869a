"""Hyper-parameters of the learners. This module does not import jax, so that command lines respond at once."""

from __future__ import annotations

import dataclasses

from mtjax.options import option, refuse_unused

SCHEDULES = ("constant", "linear", "cosine")  # the last two decay from the full value to 0 by the end of the run


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """Hyper-parameters common to all learners."""

    learning_rate: float = option(3e-4, "Step size of Adam. [vmapped]", above=0)
    discount: float = option(0.99, "Discount γ of future reward. [vmapped]", low=0, high=1)
    reward_scale: float = option(1.0, "Rewards are multiplied by this before anything else.", above=0)
    normalize_observations: bool = option(False, "Normalise observations by each task's running mean and variance.")
    observation_clip: float = option(10.0, "Normalised observations are clipped to ± this.", above=0)
    exploration: str = option(
        "none",
        "A bonus, separate for each task, for reaching rarely seen observations: 'counts' (for observations that "
        "repeat exactly) or 'rnd' (random network distillation).",
        choices=("none", "counts", "rnd"),
    )
    exploration_bonus: float = option(
        0.1,
        "Weight of the exploration bonus, in scaled reward; the bonus is 1 for a first visit (counts), or has a root "
        "mean square near 1 (rnd).",
        low=0,
    )
    count_bins: int = option(16384, "Bins per task into which 'counts' hashes observations.", low=1)
    count_resolution: float = option(
        0.01, "Observations closer than about this count as the same for 'counts'.", above=0
    )
    rnd_sizes: tuple[int, ...] = option((64, 64), "Widths of the layers of rnd's networks.", low=1, fewest=1)
    rnd_learning_rate: float = option(1e-3, "Step size of rnd's predictors.", above=0)

    def used(self) -> dict[str, tuple[bool, str]]:
        """For ``refuse_unused``: whether anything reads each of these options, and what would. Subclasses add more."""
        counts = self.exploration == "counts", "exploration=counts"
        rnd = self.exploration == "rnd", "exploration=rnd"
        return {
            "observation_clip": (self.normalize_observations, "normalize_observations"),
            "exploration_bonus": (self.exploration != "none", "exploration=counts or rnd"),
            "count_bins": counts,
            "count_resolution": counts,
            "rnd_sizes": rnd,
            "rnd_learning_rate": rnd,
        }


@dataclasses.dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    """Hyper-parameters of PPO. The floats marked [vmapped] are leaves of the state, one value per seed."""

    learning_rate_schedule: str = option(
        "constant",
        "Learning rate over the run: constant, or decaying to 0.",
        choices=SCHEDULES,
    )
    adam_epsilon: float = option(1e-5, "Adam's epsilon.", above=0)
    max_grad_norm: float = option(
        0.5,
        "The gradients of policy and value network are each clipped to this global norm; 0 disables clipping.",
        low=0,
    )
    gae_lambda: float = option(0.95, "λ of generalised advantage estimation. [vmapped]", low=0, high=1)
    rollout_length: int = option(128, "Steps of every environment between two updates.", low=1)
    num_epochs: int = option(4, "Passes over a rollout.", low=1)
    num_minibatches: int = option(8, "Minibatches per pass; each contains all tasks.", low=1)
    clip: float = option(0.2, "PPO's clip range ε of the probability ratio. [vmapped]", above=0)
    value_clip: float = option(0.0, "Clip range of the change in predicted value; 0 disables it.", low=0)
    value_cost: float = option(0.5, "Weight of the value loss.", low=0)
    entropy_cost: float = option(1e-3, "Weight of the entropy bonus. [vmapped]", low=0)
    entropy_schedule: str = option(
        "constant",
        "Weight of the entropy bonus over the run: constant, or decaying from entropy_cost to 0.",
        choices=SCHEDULES,
    )
    bound_cost: float = option(
        0.0,
        "Weight of a penalty on the squared distance of a Gaussian's mean beyond the action bounds, where clipping "
        "removes the noise and nothing else pulls the mean back. No effect on squashed or discrete actions.",
        low=0,
    )
    kl_cost: float = option(0.0, "Weight of a penalty on KL(old policy, new policy).", low=0)
    target_kl: float = option(
        0.0, "Skip the rest of an update's minibatches once the KL exceeds 1.5 times this; 0 never skips.", low=0
    )
    adaptive_kl: float = option(
        0.0, "Adapt the learning rate so that an update's KL stays near this value; 0 disables this.", low=0
    )
    normalize_observations: bool = option(True, "Normalise observations by each task's running mean and variance.")
    normalize_advantages: bool = option(True, "Normalise advantages to mean 0 and variance 1 within each task's batch.")
    return_scaling: str = option(
        "running",
        "'running' divides each task's rewards by the running standard deviation of its discounted return and "
        "clips them to ±10; 'popart' leaves rewards as they are and normalises each task's value targets by their "
        "running mean and standard deviation; 'none' does neither.",
        choices=("running", "popart", "none"),
    )
    popart_step: float = option(0.05, "Weight of a new rollout in PopArt's running moments.", above=0, high=1)
    detour_share: float = option(
        0.0,
        "Share of training steps spent on detours: one random action held for a while (temporally extended ε-greedy); "
        "the policy learns from the states reached, not from the detour's actions.",
        low=0,
        high=0.9,
    )
    detour_schedule: str = option(
        "constant",
        "Share of detours over the part of the run that has them: constant, or decaying from detour_share to 0.",
        choices=SCHEDULES,
    )
    detour_part: float = option(
        1.0,
        "Fraction of the run, from its start, that has detours. They reach states that noise does not, but disrupt "
        "delicate behaviour (e.g. a grasp).",
        above=0,
        high=1,
    )
    detour_steps: int = option(40, "Steps of the longest detour; lengths are uniform from 1 to this.", low=1)
    surgery: str = option(
        "separate",
        "Whether the gradient transform sees the gradients of policy and value network as two ('separate') or as one "
        "('joint').",
        choices=("separate", "joint"),
    )

    def check(self) -> None:
        """Reject options without effect. Raises ValueError with a one-line message."""
        detours = self.detour_share, "detour_share above 0"
        entropy = self.entropy_cost, "entropy_cost above 0"
        refuse_unused(
            self,
            {
                **self.used(),
                "entropy_schedule": entropy,
                "detour_schedule": detours,
                "detour_steps": detours,
                "detour_part": detours,
                "popart_step": (self.return_scaling == "popart", "return_scaling=popart"),
            },
        )


@dataclasses.dataclass(frozen=True)
class DistralConfig(PPOConfig):
    """Hyper-parameters of Distral. Those of PPO, and the costs that tie the tasks' policies to the distilled one."""

    entropy_cost: float = option(0.0, "Weight of PPO's entropy bonus, added to distral_entropy_cost. [vmapped]", low=0)
    distral_kl_cost: float = option(
        0.02, "c_KL: cost of a task's policy for diverging from the distilled one, in (scaled) reward per nat.", low=0
    )
    distral_entropy_cost: float = option(
        0.01, "c_Ent: cost of a task's policy for low entropy, in (scaled) reward per nat.", low=0
    )
    columns: int = option(
        2,
        "2: a task's policy is the product of the distilled one and a column of its own; 1: it is a separate network.",
        low=1,
        high=2,
    )

    @property
    def alpha(self) -> float:
        """α = c_KL / (c_KL + c_Ent), the exponent of the distilled policy in a task's policy π₀^α exp(β f)."""
        return self.distral_kl_cost / (self.distral_kl_cost + self.distral_entropy_cost)

    @property
    def beta(self) -> float:
        """β = 1 / (c_KL + c_Ent), the weight of a task's own column f."""
        return 1.0 / (self.distral_kl_cost + self.distral_entropy_cost)

    def check(self) -> None:
        """As PPO's check; also reject two costs of 0. Raises ValueError with a one-line message."""
        super().check()
        if not self.distral_kl_cost + self.distral_entropy_cost:
            raise ValueError("distral_kl_cost: 0.0 needs distral_entropy_cost above 0; they cannot both be 0")


@dataclasses.dataclass(frozen=True)
class SACConfig(LearnerConfig):
    """Hyper-parameters of SAC. The floats marked [vmapped] are leaves of the state, one value per seed."""

    critic_learning_rate: float = option(0.0, "Step size of the critics' Adam; 0 means learning_rate. [vmapped]", low=0)
    temperature_learning_rate: float = option(
        0.0, "Step size of the temperatures' Adam; 0 means learning_rate. [vmapped]", low=0
    )
    adam_epsilon: float = option(1e-8, "Adam's epsilon.", above=0)
    weight_decay: float = option(
        0.0, "Decoupled weight decay (AdamW) of policy and critics, per unit of learning rate.", low=0
    )
    max_grad_norm: float = option(
        0.0,
        "The gradients of the policy and of the critics are each clipped to this global norm, and each task's private "
        "parameters separately; 0 disables clipping.",
        low=0,
    )
    polyak: float = option(
        0.005, "Polyak step τ of the target critics towards the critics at every gradient step. [vmapped]",
        above=0, high=1,
    )  # fmt: skip
    rollout_length: int = option(8, "Steps of every environment between two updates.", low=1)
    update_to_data: float = option(
        0.25,
        "Gradient steps per environment step of one task; an update makes rollout_length × num_envs times this many, "
        "rounded, at least one.",
        above=0,
    )
    batch_size: int = option(128, "Transitions of each task per gradient step.", low=1)
    replay_capacity: int = option(100_000, "Transitions kept per task, rounded up to whole rollouts.", low=1)
    replay_limit: float = option(
        0.0,
        "Refuse to start if the replay of all seeds takes more than this many gigabytes; 0 means the device's "
        "free memory.",
        low=0,
    )
    checkpoint_replay: bool = option(
        True,
        "Save the replay in checkpoints. Otherwise checkpoints are small, but a resumed run starts with an empty "
        "replay and is not bit-for-bit identical.",
    )
    warm_start: int = option(
        1000,
        "Transitions per task collected with uniformly random actions before learning starts; at most a full replay.",
        low=0,
    )
    num_critics: int = option(2, "Number of critics in the ensemble.", low=1)
    critic_reduction: str = option(
        "min", "How the ensemble's outputs are reduced: 'min' (pessimistic) or 'mean'.", choices=("min", "mean")
    )
    critic_head: str = option(
        "scalar",
        "What a critic predicts about a return: 'scalar' (its mean, by squared error) or 'categorical' (a distribution "
        "over atoms, by cross-entropy).",
        choices=("scalar", "categorical"),
    )
    num_atoms: int = option(101, "Atoms of a categorical critic.", low=2)
    value_range: float = option(
        10.0,
        "Atoms of a categorical critic lie between ± this; return_scaling=range scales returns to this range.",
        above=0,
    )
    initial_temperature: float = option(1.0, "Initial temperature α of every task.", above=0)
    learn_temperature: bool = option(True, "Adapt each task's temperature to its target entropy.")
    target_entropy_scale: float = option(
        1.0, "Target entropy of continuous actions: minus this per action dimension. [vmapped]", low=0
    )
    discrete_entropy_scale: float = option(
        0.5,
        "Target entropy of discrete actions: this times log(number of choices); the paper (arXiv 1910.07207) uses "
        "0.98. [vmapped]",
        low=0,
        high=1,
    )
    paco_threshold: float = option(
        0.0,
        "With arrangement paco: a task whose critics' loss exceeds this is left out of the gradient step (unless all "
        "do), and its weights become a random mixture of the others'; 0: never. The authors use 3000, for twice "
        "this loss.",
        low=0,
    )
    paco_weights: str = option(
        "own",
        "With arrangement paco: policy and critics learn separate task weights ('own'), or common ones trained by all "
        "losses ('shared', as in the authors' code).",
        choices=("own", "shared"),
    )
    task_weights: str = option(
        "equal",
        "Weights of the tasks' losses: 'equal', or by temperature α: 'exponential' (exp(−α) over its mean) or "
        "'inverse' (1/α over its mean). A task with a low temperature is nearly solved.",
        choices=("equal", "exponential", "inverse"),
    )
    critic_grads: str = option(
        "", "Like --grads, for the gradients of the critics, e.g. famo; empty means the method of --grads."
    )
    return_scaling: str = option(
        "none",
        "'running' divides each task's rewards by the running standard deviation of its discounted return and "
        "clips them to ±10; 'range' scales them so that the task's largest discounted return, plus the entropy bonus, "
        "fits value_range; 'none' does neither.",
        choices=("running", "range", "none"),
    )

    def check(self) -> None:
        """Reject meaningless combinations and options without effect. Raises ValueError with a one-line message."""
        if self.return_scaling == "range" and self.discount >= 1:
            raise ValueError(f"return_scaling: 'range' needs a discount below 1, not {self.discount}")
        categorical = self.critic_head == "categorical"
        if self.exploration != "none" and (categorical or self.return_scaling == "range") and self.discount < 1:
            worth = self.exploration_bonus / (1 - self.discount)
            if worth > 0.9 * self.value_range:
                raise ValueError(
                    f"exploration_bonus: {self.exploration_bonus} at every step is worth {worth:.3g} at discount "
                    f"{self.discount}, which leaves too little of value_range {self.value_range}; make it smaller"
                )
        refuse_unused(
            self,
            {
                **self.used(),
                "num_atoms": (categorical, "critic_head=categorical"),
                "value_range": (
                    categorical or self.return_scaling == "range",
                    "critic_head=categorical or return_scaling=range",
                ),
                "critic_reduction": (self.num_critics > 1, "num_critics above 1"),
                "temperature_learning_rate": (self.learn_temperature, "learn_temperature"),
            },
        )


@dataclasses.dataclass(frozen=True)
class HiPBMDPConfig(SACConfig):
    """Hyper-parameters of HiP-BMDP. Those of SAC, and those of the models that shape its critics' inputs."""

    state_encoder: str = option(
        "mlp",
        "The state encoder: 'mlp' (convolutional if image_shape is given), or 'identity' (latent states are the "
        "observations).",
        choices=("mlp", "identity"),
    )
    state_encoder_sizes: tuple[int, ...] = option((128,), "Widths of the state encoder's hidden layers.", low=1)
    latent_size: int = option(32, "Size of a latent state; its normalisation needs at least 3.", low=3)
    theta_size: int = option(
        8, "Size of the embedding θ of a task's dynamics; 0 means no task conditioning (DeepMDP, SAC-AE).", low=0
    )
    theta_hidden_sizes: tuple[int, ...] = option(
        (64,),
        "Widths of layers between a task's row in the table and its embedding; empty: the row is the embedding.",
        low=1,
    )
    transition_model: str = option(
        "gaussian",
        "The model of the next latent state: 'deterministic', 'gaussian', or an 'ensemble' of Gaussians.",
        choices=("deterministic", "gaussian", "ensemble"),
    )
    transition_members: int = option(5, "Number of ensemble members.", low=1)
    model_sizes: tuple[int, ...] = option((128,), "Widths of the models' hidden layers; empty: linear.", low=1)
    transition_cost: float = option(1.0, "Weight of the transition model's loss; 0 disables it.", low=0)
    reward_cost: float = option(1.0, "Weight of the reward model's loss; 0 disables it.", low=0)
    theta_cost: float = option(
        1.0, "Weight of the θ-learning error (embedding distance vs. distance of predicted dynamics).", low=0
    )
    reconstruction_cost: float = option(0.0, "Weight of the observations' reconstruction loss; 0 disables it.", low=0)
    latent_cost: float = option(0.0, "Weight of the latent states' squared norm, added to the reconstruction.", low=0)
    auxiliary_gate: str = option(
        "none",
        "Which of these losses train the state encoder, task by task: all ('none'), those whose gradient does not "
        "oppose the critics' ('unweighted'), or each times its cosine with the critics', if positive ('weighted').",
        choices=("none", "unweighted", "weighted"),
    )

    def check(self) -> None:
        """As SAC's check; also reject options without effect, except sizes, which presets set. Raises ValueError."""
        super().check()
        if self.theta_size and not self.transition_cost:
            raise ValueError(
                f"theta_size: {self.theta_size} needs transition_cost above 0 to train the embeddings; or set it to 0"
            )
        learns = self.transition_cost or self.reward_cost or self.reconstruction_cost
        used = {
            "reconstruction_cost": (self.state_encoder != "identity", "state_encoder=mlp"),
            "latent_cost": (self.reconstruction_cost, "reconstruction_cost above 0"),
            "theta_cost": (self.theta_size or not self.theta_cost, "theta_size above 0"),
            "transition_model": (self.transition_cost, "transition_cost above 0"),
            "transition_members": (
                self.transition_model == "ensemble" and self.transition_cost,
                "transition_model=ensemble" if self.transition_cost else "transition_cost above 0",
            ),
            "auxiliary_gate": (self.state_encoder != "identity" and learns, "state_encoder=mlp and an auxiliary loss"),
        }
        refuse_unused(self, used)
