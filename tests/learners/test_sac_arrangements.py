"""SAC with every arrangement: in policy and critics, what is said of routing, and for unseen tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrangement_cases import (
    CASES,
    CONTEXTS,
    SPEC,
    A,
    E,
    H,
    T,
    check_metrics,
    network_of,
    quick_initialisation,
    rollout_of,
)

from mtjax import grads
from mtjax.learners import sac
from mtjax.learners.base import Unseen
from mtjax.learners.config import SACConfig

CONFIG = SACConfig(rollout_length=H, replay_capacity=16, batch_size=4, warm_start=1, learning_rate=1e-2)
__all__ = ["quick_initialisation"]  # of every test here


@pytest.mark.parametrize("case", CASES)
def test_two_gradient_steps(case):
    """Everything stays finite, all of the policy and the critics moves, and unseen tasks are acted for."""
    agent = sac.SAC(CONFIG, network_of(case), grads.mean(), SPEC, num_envs=E)
    action = np.random.default_rng(1).uniform(-1, 1, size=(H, T, E, A)).astype(np.float32)
    rollout = rollout_of({"action": action})

    @jax.jit
    def run(key):
        state = agent.init(key)
        after, metrics = agent.update(state, rollout, key)
        same = jnp.broadcast_to(rollout.observation[0][:1], rollout.observation[0].shape)
        others = Unseen(CONTEXTS, agent.masks)
        alone = Unseen(agent.tasks.context, agent.masks, jnp.eye(T))  # each related to one training task alone
        acted = [agent.evaluation_policy(after, same, key, jnp.asarray(True), who) for who in (others, None, alone)]
        return state, after, metrics, *acted

    before, after, metrics, unseen, known, alike = jax.device_get(run(jax.random.key(0)))
    np.testing.assert_allclose(alike, known, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, metrics, unseen)))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, before.params)
    still = [path for path, flag in jax.tree_util.tree_leaves_with_path(moved) if not flag]
    assert not still
    for part in ("policy", "value"):
        check_metrics(case, metrics, part)
    assert unseen.shape == (T, E, A)
    described = agent.spec.contexts is not None and network_of(case).told == "context"
    assert (np.abs(unseen[0] - unseen[1]).max() > 0) == described  # a description tells unseen tasks apart
