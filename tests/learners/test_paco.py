"""What PaCo asks of SAC: weights that policy and critics have in common, and a rule for tasks whose loss explodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrangement_cases import OBS, A, E, H, quick_initialisation

from mtjax import grads
from mtjax.envs.base import continuous
from mtjax.learners import paco, sac
from mtjax.learners.base import TaskSpec, Transitions
from mtjax.learners.config import SACConfig
from mtjax.networks.arrangements import make_network
from mtjax.networks.base import Parameters
from mtjax.networks.config import NetworkConfig

__all__ = ["quick_initialisation"]  # of every test here
T, BAD, THRESHOLD = 4, 2, 100.0
WELL = [t for t in range(T) if t != BAD]
COMBINATIONS = jax.jit(paco.combinations)


def test_rows_are_uniform_on_the_simplex_of_the_tasks_that_are_well():
    exploded = np.asarray([False, True, False, True, False])

    @jax.jit
    def draw(key):
        return jax.vmap(paco.combinations, (0, None))(jax.random.split(key, 4000), exploded)

    rows = np.asarray(draw(jax.random.key(0)))
    np.testing.assert_allclose(rows.sum(-1), 1.0, rtol=1e-6)
    for well in (0, 2, 4):
        np.testing.assert_array_equal(rows[:, well], np.broadcast_to(np.eye(5)[well], (4000, 5)))
    drawn = rows[:, [1, 3]]
    assert (drawn[..., [1, 3]] == 0).all() and (drawn >= 0).all()
    shares = drawn[..., [0, 2, 4]]  # Dirichlet(1, 1, 1): mean 1/3, variance 1/18, each task's own draw
    np.testing.assert_allclose(shares.mean((0, 1)), 1 / 3, atol=0.01)
    np.testing.assert_allclose(shares.var((0, 1)), 1 / 18, atol=0.003)
    assert np.abs(shares[:, 0] - shares[:, 1]).max() > 0.1


@pytest.mark.parametrize("flag", [False, True])
def test_where_none_or_all_explode_nothing_is_drawn(flag):
    rows = COMBINATIONS(jax.random.key(0), np.full((3,), flag))
    np.testing.assert_array_equal(rows, np.eye(3))


def test_redrawn():
    rows = np.float32([[1.0, 0.0], [0.25, 0.75]])
    mix = np.float32([[[4.0, 0.0]], [[0.0, 8.0]]])  # [T, N, K]
    sets = {"sets": np.ones(3, np.float32)}
    found = paco.redrawn(Parameters(sets, {"mix": mix, "other": np.zeros(2, np.float32)}), rows)
    np.testing.assert_allclose(found.private["mix"], [[[4.0, 0.0]], [[1.0, 6.0]]])
    assert found.shared is sets and "other" in found.private
    of_none = np.float32([[[4.0, 0.0]], [[np.nan, np.nan]]])
    ill = paco.redrawn(Parameters(sets, {"mix": of_none}), np.float32([[1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_array_equal(ill.private["mix"], [mix[0], mix[0]])
    plain = Parameters(sets, {})
    assert paco.redrawn(plain, rows) is plain


def _agent(threshold=THRESHOLD, method="mean", weights="own", **network):
    return _made(threshold, method, weights, **network)  # the same one, however its options are spelt


@functools.cache
def _made(threshold, method, weights, **network):
    config = SACConfig(
        paco_weights=weights,
        max_grad_norm=0.0,
        adam_epsilon=0.01,  # so large that the size of a gradient shows in Adam's first step
        rollout_length=H,
        replay_capacity=16,
        batch_size=8,
        warm_start=1,
        update_to_data=0.125,  # one gradient step
        paco_threshold=threshold,
    )
    network = NetworkConfig(
        **{"arrangement": "paco", "num_experts": 3, "hidden_sizes": (4,), "scale": "state", **network}
    )
    network.check()
    return sac.SAC(config, network, grads.get(method), TaskSpec(T, OBS, continuous(A)), num_envs=E)


@functools.cache
def _update(agent):
    """One gradient step, compiled: rewards [H, T, E] -> state at the start, after it, and metrics, in NumPy."""
    draw = np.random.default_rng(0)
    observation, final = (jnp.asarray(draw.normal(size=(H, T, E, OBS)), jnp.float32) for _ in range(2))
    action = jnp.asarray(draw.uniform(-1, 1, size=(H, T, E, A)), jnp.float32)
    never = np.zeros((H, T, E), bool)
    assert agent.num_steps == 1

    @jax.jit
    def update(rewards):
        key = jax.random.key(3)
        start = agent.init(key)
        rollout = Transitions(observation, rewards, never, never, final, {"action": action})
        return start, *agent.update(start, rollout, key)

    return lambda rewards: jax.device_get(update(rewards))


def _updated(agent, reward):
    """State and metrics after one gradient step, where task ``BAD`` has these rewards and the others small ones."""
    rewards = np.random.default_rng(1).normal(size=(H, T, E)).astype(np.float32)
    rewards[:, BAD] = reward
    return _update(agent)(rewards)[1:]


@pytest.mark.parametrize("method", ["mean", "pcgrad"])
def test_an_exploded_task_moves_nobody(method):
    """However large its loss: what the tasks share is moved as if the task were not there, to the last bit."""
    agent = _agent(method=method)
    (large, seen), (larger, _), (small, unseen) = (_updated(agent, reward) for reward in (1e3, 1e5, 0.1))
    np.testing.assert_array_equal(seen["left_out"], np.eye(T)[BAD])
    np.testing.assert_array_equal(unseen["left_out"], np.zeros(T))
    for weights in (seen["grads/weight"], seen["grads/weight/value"]):  # the method is told who is absent
        assert weights[BAD] == 0 and (np.asarray(weights)[WELL] > 0).all()
        if method == "mean":
            np.testing.assert_allclose(np.asarray(weights)[WELL], 1 / len(WELL), rtol=1e-6)
    for part in ("policy", "critic"):
        for one, other in zip(*(jax.tree.leaves(s.params[part].shared) for s in (large, larger)), strict=True):
            np.testing.assert_array_equal(one, other)
    start = _update(agent)(np.zeros((H, T, E), np.float32))[0].params["critic"].shared
    assert all(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (start, large.params["critic"].shared)), strict=True)
    )
    np.testing.assert_array_equal(large.log_temperature[BAD], 0.0)  # as at the start
    assert (np.asarray(large.log_temperature)[WELL] != 0.0).all() and small.log_temperature[BAD] != 0.0


def test_its_weights_are_one_combination_of_the_others_everywhere():
    state, _ = _updated(_agent(), 1e3)
    networks = [state.params["policy"], state.params["critic"], state.targets]
    weights = [np.asarray(network.private["mix"], np.float64).reshape(T, -1) for network in networks]
    together = np.concatenate(weights, axis=1)  # [T, of policy, two critics and two targets]
    row, _, rank, _ = np.linalg.lstsq(together[WELL].T, together[BAD], rcond=None)
    assert rank == len(WELL) and (row > 0).all()
    np.testing.assert_allclose(row.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(row @ together[WELL], together[BAD], atol=1e-6)


# ------------------------------------------------------------------------------------------ weights in common


def _mix(network):
    return np.asarray(network.private["mix"])


def test_weights_in_common_are_moved_by_all_losses():
    """By the sum of the gradients of both critics' loss and the policy's, and by nothing else."""
    agent, key = _agent(weights="shared"), jax.random.key(1)
    draw = np.random.default_rng(0)
    sizes = {"observation": OBS, "action": A, "next_observation": OBS, "view": OBS, "next_view": OBS}
    arrays = {name: draw.uniform(-1, 1, (T, 8, size)).astype(np.float32) for name, size in sizes.items()}
    arrays["view"], arrays["next_view"] = arrays["observation"], arrays["next_observation"]
    reward = draw.normal(size=(T, 8)).astype(np.float32)
    batch = sac.Batch(**arrays, reward=reward, discount=np.full((T, 8), 0.9, np.float32))
    of_task = sac.OF_TASK

    @jax.jit
    def step(start_key):
        state = agent.init(start_key)
        return state, agent._step(state, batch, key)[0]

    state, after = jax.device_get(step(jax.random.key(0)))
    policy, critic = state.params["policy"], state.params["critic"]

    def both(weights):
        known = agent._known(state, key)
        mine = Parameters(policy.shared, {"mix": weights})
        theirs = Parameters(critic.shared, {"mix": jnp.stack([weights, weights], axis=1)})
        moved = Parameters(after.params["critic"].shared, critic.private)  # what the policy's loss sees
        target = jax.vmap(agent.task_target, (of_task, of_task, 0, 0))(policy, state.targets, known, batch)
        value, _ = jax.vmap(agent.critic_loss, (of_task, 0, 0, 0))(theirs, known, batch, target)
        actor, _ = jax.vmap(agent.policy_loss, (of_task, of_task, 0, 0))(mine, moved, known, batch)
        return (value + actor).sum()

    start = _mix(policy)
    gradient = np.asarray(jax.jit(jax.grad(both))(start), np.float64)
    want = start - agent.config.learning_rate * gradient / (np.abs(gradient) + 0.01)
    np.testing.assert_allclose(_mix(after.params["policy"]), want, rtol=1e-5, atol=1e-8)
    assert (np.abs(want - start) > 1e-6).all()


@pytest.mark.parametrize("reward", [1.0, 1e3])
def test_weights_in_common_stay_the_same_to_the_last_bit(reward):
    """At the start, after a step, and where a task's are drawn anew; the targets' follow."""
    agent = _agent(weights="shared", method="pcgrad")
    start = _update(agent)(np.zeros((H, T, E), np.float32))[0]
    state, metrics = _updated(agent, reward)
    assert metrics["left_out"].sum() == (reward > THRESHOLD)
    for one in (start, state):
        policy, critics = _mix(one.params["policy"]), _mix(one.params["critic"])
        np.testing.assert_array_equal(critics, np.stack([policy, policy], axis=1))
    assert (_mix(state.params["policy"]) != _mix(start.params["policy"])).any(axis=1).all()
    for part in ("policy", "critic"):
        pairs = zip(*(jax.tree.leaves(one.params[part].shared) for one in (start, state)), strict=True)
        assert all((a != b).any() for a, b in pairs)


@pytest.mark.parametrize(
    "network",
    [{"arrangement": "one_hot", "num_experts": 4}, {"task_input": "one_hot"}, {"value_arrangement": "one_hot"}],
)
def test_without_weights_of_both_there_is_nothing_in_common(network):
    with pytest.raises(ValueError, match=r"^paco_weights: 'shared' has no effect"):
        _agent(threshold=0.0, weights="shared", **network)


# ---------------------------------------------------------------------------------------------- explosions


def test_only_weights_of_parameter_sets_are_drawn():
    """MOORE's weights mix experts, each under a head of the task's own: another task's would be nobody's."""
    config = NetworkConfig(arrangement="moore", num_experts=2, hidden_sizes=(8,))
    parameters = make_network(config, inputs=3, outputs=1, num_tasks=T, sizes=(8,), gain=1.0).init(jax.random.key(0))
    assert parameters.private and "mix" not in parameters.private
    rows = COMBINATIONS(jax.random.key(1), np.arange(T) == BAD)
    assert paco.redrawn(parameters, rows) is parameters


def test_below_the_threshold_nothing_differs():
    (with_rule, _), (without, metrics) = (_updated(_agent(threshold), 1.0) for threshold in (THRESHOLD, 0.0))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(with_rule.params), jax.tree.leaves(without.params))
    assert "left_out" not in metrics


@pytest.mark.parametrize("reward", [np.inf, np.nan])
def test_a_loss_that_is_no_number_is_left_out(reward):
    """It stops no run, and nobody else has it."""
    state, metrics = _updated(_agent(), reward)
    np.testing.assert_array_equal(metrics["left_out"], np.eye(T)[BAD])
    networks = (state.params["policy"], state.params["critic"], state.targets)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(networks))


def test_where_all_are_above_the_threshold_all_learn():
    (with_rule, metrics), (without, _) = (_updated(_agent(threshold), 1.0) for threshold in (1e-6, 0.0))
    np.testing.assert_array_equal(metrics["left_out"], np.zeros(T))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(with_rule.params), jax.tree.leaves(without.params))


@pytest.mark.parametrize("network", [{"arrangement": "one_hot", "num_experts": 4}, {"task_input": "one_hot"}])
def test_without_weights_of_the_tasks_own_there_is_nothing_to_draw(network):
    with pytest.raises(ValueError, match=r"^paco_threshold: 100\.0 has no effect"):
        _agent(**network)
