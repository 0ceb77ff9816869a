"""PPO with every arrangement: a few updates of a tiny problem, and what the updates say of routing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import grads
from mtjax.envs.base import continuous
from mtjax.learners import ppo
from mtjax.learners.base import TaskSpec, Transitions, Unseen
from mtjax.learners.config import PPOConfig
from mtjax.networks.config import NetworkConfig

T, E, H, OBS, D = 2, 2, 4, 3, 5
CONFIG = PPOConfig(rollout_length=H, num_epochs=1, num_minibatches=1, learning_rate=1e-2, surgery="joint")
CASES = {
    "task_encoders": {},
    "film": {},
    "experts": {"selection": "attention", "head": "private"},
    "soft_modular": {"modules": "3x2x4"},
    "care": {"encoder_sizes": (3,), "context_sizes": (3,), "num_experts": 2},
    "moore": {"num_experts": 2},
    "paco": {"num_experts": 2},
    "hypernetwork": {"hyper_size": 2},
}
ROUTING = {"experts": 4, "soft_modular": 10, "care": 2}  # probabilities of one task
WEIGHTS = {"moore": 2, "paco": 2, "hypernetwork": 2}


@pytest.fixture(autouse=True)
def quick_initialisation(monkeypatch):
    """Orthogonal matrices take longer to compile than all the rest of these programs."""
    monkeypatch.setattr(nn.initializers, "orthogonal", lambda gain: nn.initializers.normal(0.3 * gain))


@pytest.mark.parametrize("arrangement", CASES)
def test_two_updates(arrangement):
    """Everything stays finite and float32, shared and private parameters both move, and unseen tasks are acted for."""
    network = NetworkConfig(arrangement=arrangement, hidden_sizes=(4,), **CASES[arrangement])
    network.check()
    draw = np.random.default_rng(0)
    contexts = jnp.asarray(draw.normal(size=(T, D)), jnp.float32)
    spec = TaskSpec(T, OBS, continuous(2), contexts=contexts)
    agent = ppo._PPO(CONFIG, network, grads.mean(), spec, num_envs=E, num_updates=2)
    rollout = Transitions(
        observation=jnp.asarray(draw.normal(size=(H, T, E, OBS)), jnp.float32),
        reward=jnp.asarray(draw.normal(size=(H, T, E)), jnp.float32),
        terminated=jnp.zeros((H, T, E), bool),
        truncated=jnp.zeros((H, T, E), bool),
        final_observation=jnp.asarray(draw.normal(size=(H, T, E, OBS)), jnp.float32),
        extras={},
    )

    @jax.jit
    def run(key):
        start = state = agent.init(key)
        _, extras = jax.vmap(agent.act, in_axes=(None, 0, None))(state, rollout.observation, key)

        def update(state, key):
            return agent.update(state, rollout._replace(extras=extras), key)

        state, metrics = jax.lax.scan(update, state, jax.random.split(key))
        others = Unseen(contexts, agent.masks)
        unseen = agent.evaluation_policy(state, rollout.observation[0], key, jnp.asarray(True), others)
        return start, state, metrics, unseen

    start, state, metrics, unseen = run(jax.random.key(0))
    for leaf in jax.tree.leaves((state.params, metrics, unseen)):
        assert np.isfinite(leaf).all()
    for part in ("policy", "value"):
        for side in ("shared", "private"):
            before, after = (jax.tree.leaves(getattr(s.params[part], side)) for s in (start, state))
            assert not before or any(np.abs(a - b).max() > 0 for a, b in zip(after, before, strict=True))
        if arrangement in ROUTING:
            rows = np.asarray(metrics[f"routing/{part}"])
            assert rows.shape == (2, T, ROUTING[arrangement])
            entropy = np.asarray(metrics[f"routing_entropy/{part}"])
            assert entropy.shape == (2, T) and (0 <= entropy).all() and (entropy <= 1 + 1e-5).all()
        if arrangement in WEIGHTS:
            assert metrics[f"weights/{part}"].shape == (2, T, WEIGHTS[arrangement])
    assert unseen.shape == (T, E, 2)
