"""SAC with an arrangement that reads descriptions: in policy and critics, and for unseen tasks."""

import jax
import jax.numpy as jnp
import numpy as np

from mtjax import grads
from mtjax.envs.base import continuous
from mtjax.learners import sac
from mtjax.learners.base import TaskSpec, Transitions, Unseen
from mtjax.learners.config import SACConfig
from mtjax.networks.config import NetworkConfig

T, E, H, OBS, D = 2, 2, 4, 3, 5


def test_care_in_policy_and_critics():
    """Everything stays finite and moves; attention is among the metrics; a description decides for an unseen task."""
    network = NetworkConfig(
        arrangement="care", hidden_sizes=(4,), encoder_sizes=(3,), context_sizes=(3,), num_experts=2
    )
    draw = np.random.default_rng(0)
    contexts = jnp.asarray(draw.normal(size=(T, D)), jnp.float32)
    config = SACConfig(rollout_length=H, replay_capacity=16, batch_size=4, warm_start=1)
    spec = TaskSpec(T, OBS, continuous(2), contexts=contexts)
    agent = sac.make_sac(config, network, grads.mean(), spec, num_envs=E, num_updates=2)
    observation, final = (jnp.asarray(draw.normal(size=(H, T, E, OBS)), jnp.float32) for _ in range(2))
    over = jnp.zeros((H, T, E), bool)
    action = jnp.asarray(draw.uniform(-1, 1, size=(H, T, E, 2)), jnp.float32)
    reward = jnp.asarray(draw.normal(size=(H, T, E)), jnp.float32)
    unseen = Unseen(contexts, jnp.ones((T, 2)))
    rollout = Transitions(observation, reward, over, over, final, {"action": action})

    @jax.jit
    def run(key):
        state = agent.init(key)
        after, metrics = agent.update(state, rollout, key)
        same = jnp.broadcast_to(observation[0][:1], observation[0].shape)
        return state, after, metrics, agent.policy(after, same, key, jnp.asarray(True), unseen)

    before, after, metrics, acted = run(jax.random.key(0))
    for part in ("policy", "critic"):
        a, b = (jax.tree.leaves(state.params[part].shared["encoders"]) for state in (before, after))
        assert all(np.isfinite(y).all() and np.abs(x - y).max() > 0 for x, y in zip(a, b, strict=True))
    assert metrics["routing/policy"].shape == (T, 2)
    np.testing.assert_allclose(metrics["routing/policy"].sum(axis=1), 1.0, rtol=1e-4)
    assert np.abs(acted[0] - acted[1]).max() > 0
