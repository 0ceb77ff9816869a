"""Critics: what their outputs mean, and what they are told to say."""

import chex
import jax
import numpy as np
import pytest

from mtjax.envs.base import continuous, discrete
from mtjax.learners import critics
from mtjax.learners.critics import Candidates
from mtjax.networks.arrangements import make_network
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task

N, B, C, K = 2, 5, 3, 11
RANGE = 4.0
ATOMS = np.linspace(-RANGE, RANGE, K)


def _project(positions, mass):
    """C51's projection as its paper's algorithm 1 does it, atom by atom."""
    out, spacing = np.zeros(K), ATOMS[1] - ATOMS[0]
    for z, p in zip(positions, mass, strict=True):
        b = round((min(max(z, -RANGE), RANGE) + RANGE) / spacing, 9)  # an atom is where it is
        lower, upper = int(np.floor(b)), int(np.ceil(b))
        if lower == upper:
            out[lower] += p
        else:
            out[lower] += p * (upper - b)
            out[upper] += p * (b - lower)
    return out


def test_projection_against_numpy():
    """Mass beyond the range, on an atom and between two; none is lost, and the mean stays within the range."""
    draw = np.random.default_rng(0)
    positions = draw.uniform(-6, 6, (B, 7))
    positions[0] = [-9.0, -RANGE, ATOMS[3], 0.0, RANGE, 9.0, 0.1]
    mass = draw.dirichlet(np.ones(7), B)
    found = np.asarray(jax.jit(critics.project)(*(x.astype(np.float32) for x in (positions, mass, ATOMS))))
    np.testing.assert_allclose(found, [_project(*row) for row in zip(positions, mass, strict=True)], atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)


def test_projection_takes_no_atoms_times_atoms():
    """50 tasks once took 260 MB a seed for it in every gradient step; a NaN still shows."""
    rows, number = 128, 101
    atoms = np.linspace(-10.0, 10.0, number, dtype=np.float32)
    positions = 12.0 * np.linspace(-1.0, 1.0, rows * number, dtype=np.float32).reshape(rows, number)
    compiled = jax.jit(critics.project).lower(positions, np.ones_like(positions), atoms).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * positions.nbytes
    positions[1, 2] = np.nan
    found = np.asarray(compiled(positions, np.ones_like(positions), atoms))
    np.testing.assert_array_equal(np.isfinite(found).all(axis=1), np.arange(rows) != 1)
    np.testing.assert_allclose(np.delete(found, 1, axis=0).sum(axis=1), number, rtol=1e-5)


def _case(head, candidates=C, seed=0):
    """Outputs of N critics, a policy, and transitions of which the second is terminal."""
    draw = np.random.default_rng(seed)
    outputs = draw.normal(size=(N, B, candidates, head.size)).astype(np.float32)
    probability = draw.dirichlet(np.ones(candidates), B).astype(np.float32)
    reward, discount = draw.uniform(-1, 1, B), np.where(np.arange(B) == 1, 0.0, 0.9)
    return outputs, Candidates(None, probability, np.log(probability)), *np.float32([reward, discount])


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_scalar_target_by_hand(reduction):
    """r + γ Σ π (min Q − α log π), and r alone at a terminal step."""
    head = critics.scalar(reduction)
    outputs, candidates, reward, discount = _case(head)
    found = np.asarray(jax.jit(head.target)(outputs, candidates, np.float32(0.5), reward, discount))
    for b in range(B):
        q = outputs[:, b, :, 0]
        q = q.min(axis=0) if reduction == "min" else q.mean(axis=0)
        p = candidates.probability[b]
        expected = reward[b] + discount[b] * sum(p * (q - 0.5 * np.log(p)))
        np.testing.assert_allclose(found[b, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1, 0], reward[1])
    loss = jax.jit(head.loss)(outputs[:, :, 0], found)
    np.testing.assert_allclose(loss, 0.5 * (outputs[:, :, 0, 0] - found[:, 0]) ** 2, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_categorical_target_by_hand(reduction):
    """Atoms are moved by reward, discount and entropy, weighed by the policy; its mean is the scalar target's."""
    head = critics.categorical(reduction, K, RANGE)
    outputs, candidates, reward, discount = _case(head)
    found = np.asarray(jax.jit(head.target)(outputs, candidates, np.float32(0.2), reward, discount))
    p = np.exp(outputs) / np.exp(outputs).sum(axis=-1, keepdims=True)  # [N, B, C, K]
    for b in range(B):
        expected = np.zeros(K)
        for c in range(C):
            of_critics = p[:, b, c]
            one = of_critics.mean(axis=0) if reduction == "mean" else of_critics[np.argmin(of_critics @ ATOMS)]
            chance = float(candidates.probability[b, c])
            moved = float(reward[b]) + float(discount[b]) * (ATOMS - 0.2 * np.log(chance))
            expected += chance * _project(moved, one)
        np.testing.assert_allclose(found[b], expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(head.value)(np.log(p)), p @ ATOMS, atol=1e-5)
    loss = np.asarray(jax.jit(head.loss)(outputs[:, :, 0], found))
    np.testing.assert_allclose(loss[0, 0], -(found[0] * np.log(p[0, 0, 0])).sum(), rtol=1e-4)


def test_heads_agree_in_the_mean():
    """Where no atom leaves the range, the categorical target is a distribution around the scalar one."""
    head = critics.categorical("mean", K, RANGE)
    outputs, candidates, reward, discount = _case(head)
    wide = critics.categorical("mean", K, RANGE)

    @jax.jit
    def targets(outputs, candidates, *rest):
        mean = head.value(outputs)[..., None]
        return critics.scalar("mean").target(mean, candidates, *rest), wide.target(outputs, candidates, *rest)

    scalar, whole = jax.device_get(targets(outputs, candidates, np.float32(0.2), 0.1 * reward, 0.5 * discount))
    np.testing.assert_allclose(whole @ ATOMS, scalar[:, 0], atol=1e-5)


@pytest.mark.parametrize("arrangement", ["one_hot", "embedding", "multi_head", "independent"])
@pytest.mark.parametrize("action", [continuous(2), discrete(C)], ids=["continuous", "discrete"])
def test_an_ensemble_is_its_members(action, arrangement):
    """N critics in one call are N networks, each with its own parameters; private ones lead with the task axis."""
    head, tasks = critics.categorical("min", K, RANGE), 3
    inputs, outputs = critics.inputs_and_outputs(4, action, head)
    config = NetworkConfig(arrangement=arrangement, embedding_size=2)
    network = make_network(config, inputs=inputs, outputs=outputs, num_tasks=tasks, sizes=(6,), gain=1.0)
    critic = critics.ensemble(network, N, action, head)
    draw, shapes = np.random.default_rng(0), jax.eval_shape(critic.init, jax.random.key(0))
    parameters = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)  # any will do
    chex.assert_tree_shape_prefix(parameters.shared, (N,))
    chex.assert_tree_shape_prefix(parameters.private, (tasks, N))
    x, taken = np.ones((B, 4), np.float32), np.full((B, 2), 0.5, np.float32)
    private = jax.tree.map(lambda leaf: leaf[1], parameters.private)
    task = Task(np.eye(tasks, dtype=np.float32)[1], np.zeros(0, np.float32))
    taken = taken if action.kind == "continuous" else None
    found = np.asarray(jax.jit(critic.apply)(parameters.shared, private, task, x, taken))
    candidates = 1 if action.kind == "continuous" else C
    assert found.shape == (N, B, candidates, K)
    member = jax.tree.map(lambda leaf: leaf[1], (parameters.shared, private))
    alone = jax.jit(network.apply)(*member, task, x if taken is None else np.concatenate([x, taken], axis=1))
    np.testing.assert_allclose(found[1].reshape(B, -1), alone, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[0], found[1])


def test_the_action_that_was_taken():
    outputs = np.arange(N * B * C * 2).reshape(N, B, C, 2)
    taken = np.asarray([0, 2, 1, 1, 0])
    found = np.asarray(jax.jit(critics.of_action, static_argnums=1)(outputs, discrete(C), taken))
    for b in range(B):
        np.testing.assert_array_equal(found[:, b], outputs[:, b, taken[b]])
