"""Arrangements that learners are tested with: tiny, and all of them, but for those of the learners' own tests."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs.base import continuous
from mtjax.learners.base import TaskSpec, Transitions
from mtjax.networks.config import NetworkConfig

T, E, H, OBS, D, A = 2, 2, 4, 3, 5, 2
DRAW = np.random.default_rng(0)
CONTEXTS = jnp.asarray(DRAW.normal(size=(T, D)), jnp.float32)
SPEC = TaskSpec(T, OBS, continuous(A), contexts=CONTEXTS)
PLAIN = ("one_hot", "embedding", "none", "multi_head", "independent")  # everywhere else in the tests
CASES = {
    "task_encoders": {},
    "encoders_and_heads": {},
    "context": {"context_sizes": (3,)},
    "film": {},
    "experts_gate": {"selection": "gate", "num_experts": 3},
    "experts_attention": {"selection": "attention", "head": "private"},
    "experts_ensemble": {"selection": "ensemble", "num_experts": 3},
    "experts_cluster": {"selection": "cluster", "num_experts": 2, "clusters": (1, 0)},
    "experts_identity": {"selection": "identity"},
    "soft_modular": {"modules": "3x2x4"},
    "care": {"encoder_sizes": (3,), "context_sizes": (3,), "num_experts": 2},
    "moore": {"num_experts": 2},
    "paco": {"num_experts": 2},
    "hypernetwork": {"hyper_size": 2},
}
ROUTING = {  # probabilities of one task
    "experts_gate": 3,
    "experts_attention": 4,
    "experts_ensemble": 3,
    "experts_cluster": 2,
    "soft_modular": 10,
    "care": 2,
}
WEIGHTS = {"moore": 2, "paco": 2, "hypernetwork": 2}


@pytest.fixture(autouse=True)
def quick_initialisation(monkeypatch):
    """Orthogonal matrices take longer to compile than all the rest of these programs, and normal ones half as long."""

    def spread(gain):
        def start(key, shape, dtype=jnp.float32):
            phase = jax.random.key_data(key)[..., 0] % 997
            return 0.4 * gain * jnp.sin(0.7 * jnp.arange(np.prod(shape), dtype=dtype) ** 2 + phase).reshape(shape)

        return start

    monkeypatch.setattr(nn.initializers, "orthogonal", spread)


def network_of(case):
    """The configuration of a case, checked."""
    arrangement = "experts" if case.startswith("experts_") else case
    network = NetworkConfig(arrangement=arrangement, hidden_sizes=(4,), **CASES[case])
    network.check()
    return network


def rollout_of(extras):
    """Random experience [H, T, E] in which nothing ends."""
    draw = np.random.default_rng(0)
    observation, final = (jnp.asarray(draw.normal(size=(H, T, E, OBS)), jnp.float32) for _ in range(2))
    never = jnp.asarray(np.zeros((H, T, E), bool))
    reward = jnp.asarray(draw.normal(size=(H, T, E)), jnp.float32)
    return Transitions(observation, reward, never, never, final, extras)


def check_metrics(case, metrics, part, leading=()):
    """What the updates say, in NumPy, of routing and mixing."""
    if case in ROUTING:
        rows, entropy = metrics[f"routing/{part}"], metrics[f"routing_entropy/{part}"]
        assert rows.shape == (*leading, T, ROUTING[case]) and entropy.shape == (*leading, T)
        assert (0 <= entropy).all() and (entropy <= 1 + 1e-5).all()
    if case in WEIGHTS:
        assert metrics[f"weights/{part}"].shape == (*leading, T, WEIGHTS[case])
