"""Arrangements: what is said to be shared must be shared, and what is private must never leak."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs.base import continuous, discrete
from mtjax.networks.arrangements import Parameters, make_network, of_unseen_task
from mtjax.networks.config import NetworkConfig
from mtjax.networks.distributions import Normal
from mtjax.networks.policy import make_policy
from mtjax.networks.task import training_tasks

T, B, IN, OUT = 3, 5, 4, 2
ARRANGEMENTS = ("one_hot", "embedding", "multi_head", "none", "independent")
TASKS = training_tasks(T)
X = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, IN)), jnp.float32)


def _network(arrangement, **options):
    config = NetworkConfig(arrangement=arrangement, hidden_sizes=(6, 7), embedding_size=5, **options)
    network = make_network(config, inputs=IN, outputs=OUT, num_tasks=T, sizes=(6, 7), gain=1.0)
    return network, network.init(jax.random.key(1))


def _forward(network, p, x=X):
    return jax.vmap(network.apply, in_axes=(None, 0, 0, 0))(p.shared, p.private, TASKS, x)


def _task(tree, t):
    return jax.tree.map(lambda leaf: np.asarray(leaf[t]), tree)


def _by_hand(trunk, head, x):
    """A tanh multi-layer perceptron in NumPy."""
    for name in sorted(trunk["params"]):
        x = np.tanh(
            x @ np.asarray(trunk["params"][name]["kernel"]) + np.asarray(trunk["params"][name]["bias"])
        )
    (layer,) = head["params"].values()
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_forward_by_hand(arrangement):
    """Every arrangement, in NumPy from its parameters: what the network is said to compute, it computes."""
    network, p = _network(arrangement)
    out = _forward(network, p)
    assert out.shape == (T, B, OUT)
    for t in range(T):
        private, x = _task(p.private, t), np.asarray(X[t])
        if arrangement in ("one_hot", "multi_head"):
            x = np.concatenate([x, np.tile(np.eye(T)[t], (B, 1))], axis=1)
        if arrangement == "embedding":
            x = np.concatenate([x, np.tile(private["embedding"], (B, 1))], axis=1)
        trunk = p.shared["trunk"] if "trunk" in p.shared else private["trunk"]
        head = p.shared["head"] if "head" in p.shared else private["head"]
        np.testing.assert_allclose(out[t], _by_hand(trunk, head, x), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_what_is_shared_and_what_is_private(arrangement):
    """Surgery works on the shared leaves: a head that lands there by mistake changes every result."""
    _, p = _network(arrangement)
    expected = {
        "one_hot": ({"trunk", "head"}, set()),
        "none": ({"trunk", "head"}, set()),
        "embedding": ({"trunk", "head"}, {"embedding"}),
        "multi_head": ({"trunk"}, {"head"}),
        "independent": (set(), {"trunk", "head"}),
    }[arrangement]
    assert (set(p.shared), set(p.private)) == expected
    if p.private:
        chex.assert_tree_shape_prefix(p.private, (T,))
        first, second = (jax.tree.leaves(_task(p.private, t)) for t in (0, 1))
        assert any((a != b).any() for a, b in zip(first, second, strict=True))  # drawn for each task


@pytest.mark.parametrize("arrangement", ("embedding", "multi_head", "independent"))
def test_private_gradients_are_of_the_own_task_alone(arrangement):
    """Task 1's loss must not move what belongs to tasks 0 and 2."""
    network, p = _network(arrangement)
    gradient = jax.grad(
        lambda private: jnp.square(_forward(network, Parameters(p.shared, private))[1]).sum()
    )(p.private)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf[jnp.asarray([0, 2])], 0.0)
        assert np.abs(leaf[1]).max() > 0


def test_blind_networks_treat_tasks_alike_and_the_others_do_not():
    """'none' is the control experiment: knowing the task by accident would spoil it."""
    same = jnp.broadcast_to(X[:1], X.shape)
    for arrangement in ARRANGEMENTS:
        network, p = _network(arrangement)
        out = _forward(network, p, same)
        assert bool((out[0] == out[1]).all()) == (arrangement == "none")


def test_unit_norm_embedding_only_sees_the_direction():
    network, p = _network("embedding", unit_norm_embedding=True)
    longer = Parameters(p.shared, {"embedding": p.private["embedding"] * 7.0})
    np.testing.assert_allclose(_forward(network, p), _forward(network, longer), rtol=1e-4, atol=1e-5)
    unit = p.private["embedding"] / jnp.linalg.norm(p.private["embedding"], axis=1, keepdims=True)
    plain, _ = _network("embedding")
    np.testing.assert_allclose(
        _forward(network, p), _forward(plain, Parameters(p.shared, {"embedding": unit})), rtol=1e-4, atol=1e-5
    )


def test_unseen_tasks_get_the_mean_of_what_is_private():
    _, p = _network("multi_head")
    chex.assert_trees_all_close(
        of_unseen_task(p), jax.tree.map(lambda leaf: np.mean(leaf, axis=0), p.private)
    )


@pytest.mark.parametrize("activation", ("tanh", "relu", "silu", "elu", "gelu"))
def test_every_activation_with_layer_norm(activation):
    network, p = _network("one_hot", activation=activation, layer_norm=True)
    assert np.isfinite(_forward(network, p)).all()


def test_no_hidden_layers_is_a_linear_policy():
    network = make_network(NetworkConfig(), inputs=IN, outputs=OUT, num_tasks=T, sizes=(), gain=1.0)
    assert _forward(network, network.init(jax.random.key(0))).shape == (T, B, OUT)


def test_policy_scales():
    """A free scale belongs to a task and ignores the state; a state's scale starts where it was told."""
    free = make_policy(NetworkConfig(hidden_sizes=(6,)), inputs=IN, action=continuous(2), num_tasks=T)
    p = free.init(jax.random.key(0))
    out = _forward(free, p)
    assert isinstance(out, Normal) and out.mean.shape == (T, B, 2) and out.log_scale.shape == (T, 2)
    np.testing.assert_allclose(p.private["log_scale"], -0.5)

    config = NetworkConfig(hidden_sizes=(6,), scale="state", initial_log_scale=-1.0)
    state = make_policy(config, inputs=IN, action=continuous(2), num_tasks=T)
    p = state.init(jax.random.key(0))
    out = _forward(state, p)
    assert out.log_scale.shape == (T, B, 2) and "log_scale" not in p.private
    np.testing.assert_allclose(out.log_scale, -1.0, atol=0.1)
    assert np.std(out.log_scale) > 0

    choice = make_policy(NetworkConfig(hidden_sizes=(6,)), inputs=IN, action=discrete(4), num_tasks=T)
    p = choice.init(jax.random.key(0))
    assert not p.private
    logits = _forward(choice, p)
    assert logits.shape == (T, B, 4)
    np.testing.assert_allclose(logits, 0.0, atol=0.1)  # every choice is tried at the start
