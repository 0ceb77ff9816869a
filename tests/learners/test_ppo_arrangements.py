"""PPO with every arrangement: a few updates of a tiny problem, and what the updates say of routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrangement_cases import (
    CASES,
    CONTEXTS,
    PLAIN,
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
from mtjax.learners import ppo
from mtjax.learners.base import Unseen
from mtjax.learners.config import PPOConfig
from mtjax.networks.config import ARRANGEMENTS

CONFIG = PPOConfig(rollout_length=H, num_epochs=1, num_minibatches=1, learning_rate=1e-2, surgery="joint")
__all__ = ["quick_initialisation"]  # of every test here


def test_no_arrangement_is_left_out():
    assert {network_of(case).arrangement for case in CASES} | {*PLAIN} == {*ARRANGEMENTS}


@pytest.mark.parametrize("case", CASES)
def test_two_updates(case):
    """Everything stays finite and float32, shared and private parameters both move, and unseen tasks are acted for."""
    agent = ppo.PPO(CONFIG, network_of(case), grads.mean(), SPEC, num_envs=E, num_updates=2)
    rollout = rollout_of({})

    @jax.jit
    def run(key):
        start = state = agent.init(key)
        _, extras = jax.vmap(agent.act, in_axes=(None, 0, None))(state, rollout.observation, key)

        def update(state, key):
            return agent.update(state, rollout._replace(extras=extras), key)

        state, metrics = jax.lax.scan(update, state, jax.random.split(key))
        others = Unseen(CONTEXTS, agent.masks)
        observation, yes = rollout.observation[0], jnp.asarray(True)
        unseen = agent.evaluation_policy(state, observation, key, yes, others)
        known = agent.evaluation_policy(state, observation, key, yes)
        alike = agent.evaluation_policy(
            state, observation, key, yes, Unseen(agent.tasks.context, agent.masks, jnp.eye(T))
        )
        return start, state, metrics, unseen, known, alike

    start, state, metrics, unseen, known, alike = jax.device_get(run(jax.random.key(0)))
    np.testing.assert_allclose(alike, known, atol=1e-6)  # related to one training task alone: that task
    for leaf in jax.tree.leaves((state.params, metrics, unseen)):
        assert np.isfinite(leaf).all()
    for part in ("policy", "value"):
        for side in ("shared", "private"):
            before, after = (jax.tree.leaves(getattr(s.params[part], side)) for s in (start, state))
            assert not before or any(np.abs(a - b).max() > 0 for a, b in zip(after, before, strict=True))
        check_metrics(case, metrics, part, leading=(2,))
    assert unseen.shape == (T, E, A)
