"""PopArt: units change, values do not; and tasks of any size of reward are learnt by one network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_probes
from learner_loop import optimal_of

from mtjax.envs import probe
from mtjax.learners import popart
from mtjax.networks.arrangements import make_network
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import training_tasks

T, B, OBS = 3, 50, 4
RENEWED = jax.jit(popart.renewed)


@pytest.fixture(scope="module")
def network():
    plain = make_network(NetworkConfig(), inputs=OBS, outputs=1, num_tasks=T, sizes=(8,), gain=1.0)
    return popart.with_unit(plain, T)


@pytest.fixture(scope="module")
def fresh(network):
    return jax.device_get(jax.jit(network.init)(jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=0)
def _values(network, parameters, x):
    apply = jax.vmap(network.apply, in_axes=(None, 0, 0, None))
    return apply(*parameters, training_tasks(T), x)[..., 0]


def test_values_keep_their_meaning_when_the_unit_changes(network, fresh):
    """Whatever the new targets are, and as often as they come."""
    draw = np.random.default_rng(0)
    parameters, x = fresh, draw.normal(size=(B, OBS)).astype(np.float32)
    before = _values(network, parameters, x)
    for scale in (1.0, 300.0, 0.01):
        target = scale * draw.normal(1.0, 2.0, (T, B)) * np.asarray([[1.0], [10.0], [0.1]])
        parameters = jax.device_get(RENEWED(parameters, target.astype(np.float32), 0.3))
        np.testing.assert_allclose(_values(network, parameters, x), before, rtol=1e-3, atol=2e-3)
    unit = parameters.private[popart.UNIT]
    assert unit.deviation[1] > 5 * unit.deviation[0] > 25 * unit.deviation[2]


def test_moments_by_hand(fresh):
    """The first targets count alike; later ones by their step: an exponential mean of the mixture's moments."""
    draw = np.random.default_rng(1)
    parameters, batches = fresh, 5 + 3 * draw.normal(size=(6, T, B))
    weights = np.zeros(6)
    for n, target in enumerate(batches):
        parameters = jax.device_get(RENEWED(parameters, target.astype(np.float32), 0.25))
        share = max(0.25, 1 / (n + 1))
        weights = weights * (1 - share)
        weights[n] = share
        mean = np.einsum("n,ntb->t", weights, batches) / B
        second = np.einsum("n,ntb->t", weights, batches**2) / B
        unit = parameters.private[popart.UNIT]
        np.testing.assert_allclose(unit.mean, mean, rtol=1e-4)
        np.testing.assert_allclose(unit.deviation, np.sqrt(second - mean**2), rtol=1e-3)


def test_targets_without_weight_do_not_count(fresh):
    """As if they were not there; a task with none that counts keeps its unit and its number of renewals."""
    target = np.random.default_rng(2).normal(3, 2, (T, B)).astype(np.float32)
    weight = np.ones((T, B), np.float32)
    weight[:, ::2], weight[2] = 0, 0
    target[:, ::2] = 1e6
    found = jax.device_get(RENEWED(fresh, target, 0.1, weight)).private[popart.UNIT]
    want = jax.device_get(RENEWED(fresh, target[:, 1::2], 0.1)).private[popart.UNIT]
    for name in popart.Unit._fields:
        np.testing.assert_allclose(getattr(found, name)[:2], getattr(want, name)[:2], rtol=1e-4)
        assert getattr(found, name)[2] == getattr(fresh.private[popart.UNIT], name)[2]


def test_no_gradient_moves_the_unit_itself(network, fresh):
    """A learnt mean would chase its own targets."""
    parameters = RENEWED(fresh, np.ones((T, B), np.float32) * np.arange(B, dtype=np.float32), 1.0)
    gradients = jax.jit(jax.grad(lambda p: _values(network, p, jnp.ones((B, OBS))).sum()))(parameters)
    gradient = jax.device_get(gradients.private[popart.UNIT])
    assert (gradient.mean == 0).all() and (gradient.deviation == 0).all() and (gradient.count == 0).all()
    assert (gradient.scale != 0).all() and (gradient.shift != 0).all()
    assert popart.deviation({}) == 1.0


def test_rewards_of_any_size():
    """Rewards differ a thousandfold; one shared network has every task's values right, in the rewards' own unit."""
    env, tasks = probe.TwoStep(), probe.tasks([0.05, 5.0, 50.0])
    config = test_probes.dataclasses.replace(test_probes.CONFIG, return_scaling="popart", value_clip=0.5)
    agent, state = test_probes._learn(env, tasks, config, updates=2 * test_probes.UPDATES)
    optimal = optimal_of(env, tasks, test_probes.DISCOUNT)
    values, _ = test_probes._answers(agent, state, optimal.observations)
    np.testing.assert_allclose(values / optimal.values, 1.0, atol=0.03)  # 0.01, and 0.05 after half as many updates
