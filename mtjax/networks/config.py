"""What the tasks share, as a value: the arrangement and its components' sizes."""

from __future__ import annotations

import dataclasses

from mtjax.options import option


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Policy and value networks. Both have the same arrangement and separate parameters."""

    arrangement: str = option(
        "one_hot",
        "How the tasks share networks: 'one_hot' (fully shared, task index appended to the observation), "
        "'embedding' (fully shared, learned task embedding appended), 'multi_head' (shared trunk on the "
        "one-hot task, one output head a task), 'none' (fully shared and blind to the task) or "
        "'independent' (one agent per task, nothing shared).",
        choices=("one_hot", "embedding", "multi_head", "none", "independent"),
    )
    hidden_sizes: tuple[int, ...] = option(
        (256, 256), "Widths of the policy's hidden layers, comma-separated.", low=1
    )
    value_hidden_sizes: tuple[int, ...] = option(
        (), "Widths of the value network's hidden layers; empty means those of the policy.", low=1
    )
    activation: str = option(
        "tanh", "Non-linearity of the hidden layers.", choices=("tanh", "relu", "silu", "elu", "gelu")
    )
    layer_norm: bool = option(False, "Layer normalisation before every non-linearity.")
    embedding_size: int = option(16, "Size of a learned task embedding.", low=1)
    unit_norm_embedding: bool = option(False, "Scale every task embedding to length one.")
    scale: str = option(
        "free",
        "Scale of the Gaussian policy: 'free' (a parameter per action and task, the same in every state) or "
        "'state' (computed from the observation).",
        choices=("free", "state"),
    )
    initial_log_scale: float = option(
        -0.5, "Logarithm of the Gaussian policy's scale at the start.", low=-5, high=2
    )
    squash: bool = option(False, "Squash continuous actions with tanh (log-probabilities corrected).")
