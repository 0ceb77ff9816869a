"""PPO's update, piece by piece and as a whole, against references and against itself."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrangement_cases import quick_initialisation
from jax.flatten_util import ravel_pytree

from mtjax import grads
from mtjax.envs.base import continuous, discrete
from mtjax.learners import minibatches, normalization, ppo
from mtjax.learners.base import TaskSpec, Transitions, Unseen
from mtjax.learners.config import PPOConfig
from mtjax.learners.descent import gradient_method
from mtjax.networks.config import NetworkConfig

__all__ = ["quick_initialisation"]  # of every test here
T, E, H, OBS = 3, 4, 8, 3
SMALL = {"rollout_length": H, "num_epochs": 2, "num_minibatches": 2, "learning_rate": 1e-2}
KEY = jax.random.key(5)


def _make(
    *,
    action=None,
    arrangement="one_hot",
    method=None,
    tasks=T,
    sizes=None,
    network=None,
    updates=100,
    **options,
):
    """The pure functions of a small PPO; its methods are what make_ppo returns."""
    config = PPOConfig(**{**SMALL, **options})
    network = NetworkConfig(arrangement=arrangement, hidden_sizes=(8,), embedding_size=4, **(network or {}))
    spec = TaskSpec(tasks, OBS, action or continuous(2), sizes)
    return ppo.PPO(config, network, method or grads.mean(), spec, num_envs=E, num_updates=updates)


def _rollout(agent, state, seed=0):
    """Random experience, acted for by the agent itself; tasks of very different reward."""
    draw = np.random.default_rng(seed)
    shape = (H, agent.spec.num_tasks, E)
    observation, final = (jnp.asarray(draw.normal(size=(*shape, OBS)), jnp.float32) for _ in range(2))
    scale = 10.0 ** np.arange(shape[1])[:, None]
    _, extras = jax.vmap(agent.act, in_axes=(None, 0, 0))(state, observation, jax.random.split(KEY, H))
    reward = jnp.asarray(draw.normal(size=shape) * scale, jnp.float32)
    terminated, truncated = (jnp.asarray(draw.random(shape) < 0.1) for _ in range(2))
    within = ~(terminated | truncated)[:-1, :, :, None]  # what such a step reaches is what is seen next
    return Transitions(
        observation=observation,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        final_observation=final.at[:-1].set(jnp.where(within, observation[1:], final[:-1])),
        extras=extras,
    )


def _start(agent, seed=0):
    """A fresh state and a rollout, in one small program."""

    @jax.jit
    def start(key):
        state = agent.init(key)
        return state, _rollout(agent, state, seed)

    return start(jax.random.key(seed))


def _begin(agent, seed=0):
    """The same in NumPy, for tests that change or compare what is in it: jax would compile every such operation."""
    return jax.device_get(_start(agent, seed))


@functools.cache
def _compiled(**options):
    """(agent, a fresh state, a rollout, the compiled update) of an agent that several tests ask for.

    State and rollout are also those of agents that differ in their updates alone.
    """
    agent = _make(**options)
    return agent, *_begin(agent), jax.jit(agent.update)


def _batch(agent, state, rollout):
    """The minibatch of everything, with old values and log-probabilities moved so that clips bite."""
    batch, _, _ = jax.device_get(jax.jit(agent._targets)(state, rollout))
    draw = np.random.default_rng(1)
    noise = draw.normal(size=batch.log_prob.shape).astype(np.float32)
    return batch._replace(log_prob=batch.log_prob + 0.3 * noise, value=batch.value + 0.3 * noise)


def _task(tree, t):
    return jax.tree.map(lambda leaf: leaf[t], tree)


def _close(a, b, rtol=2e-4, atol=2e-6):
    """Equal within rounding, keys aside."""
    plain = functools.partial(jax.tree.map, lambda x: None if grads.base.is_key(x) else np.asarray(x))
    chex.assert_trees_all_close(plain(a), plain(b), rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------------ the loss


def _mlp(parameters, x):
    p = parameters["trunk"]["params"]["Dense_0"], parameters["head"]["params"]["Dense_0"]
    hidden = np.tanh(x @ np.asarray(p[0]["kernel"]) + np.asarray(p[0]["bias"]))
    return hidden @ np.asarray(p[1]["kernel"]) + np.asarray(p[1]["bias"])


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_loss_against_numpy(kind):
    """Clipping, value clip, entropy bonus and KL penalty with the right signs and weights."""
    agent = _make(
        action=discrete(3) if kind == "discrete" else continuous(2),
        value_clip=0.2,
        kl_cost=0.7,
        entropy_cost=0.3,
    )
    state, rollout = _begin(agent)
    batch = _batch(agent, state, rollout)
    old = jax.tree.map(lambda x: x + 0.1 * np.arange(x.shape[-1], dtype=np.float32), batch.distribution)
    batch, task_loss = batch._replace(distribution=old), jax.jit(agent.task_loss)
    shared, private = ppo.split(state.params)
    tasks, masks = jax.device_get((agent.tasks, agent.masks))
    for t in range(T):
        b, mask = _task(batch, t), np.ones(masks.shape[1])
        loss, parts = task_loss(shared, _task(private, t), _task(tasks, t), masks[t], b, state.hyper, KEY)
        x = np.concatenate([b.observation, np.tile(np.eye(T)[t], (H * E, 1))], axis=1)
        out, value = _mlp(shared["policy"], x), _mlp(shared["value"], x)[:, 0]
        if kind == "discrete":
            logs = out - np.log(np.exp(out).sum(1, keepdims=True))
            log_prob = logs[np.arange(H * E), b.raw_action]
            entropy = -(np.exp(logs) * logs).sum(1).mean()
            before = b.distribution - np.log(np.exp(b.distribution).sum(1, keepdims=True))
            kl = (np.exp(before) * (before - logs)).sum(1).mean()
        else:
            scale = np.exp(np.asarray(private["policy"]["log_scale"][t]))
            z = (np.asarray(b.raw_action) - out) / scale
            log_prob = (-0.5 * z**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(1)
            entropy = (0.5 * np.log(2 * np.pi * np.e * scale**2) * mask).sum()
            mean, width = np.asarray(b.distribution.mean), np.exp(np.asarray(b.distribution.log_scale))
            kl = (np.log(scale / width) + (width**2 + (mean - out) ** 2) / (2 * scale**2) - 0.5).sum(1).mean()
        ratio, advantage = np.exp(log_prob - b.log_prob), np.asarray(b.advantage)
        surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage).mean()
        near = b.value + np.clip(value - b.value, -0.2, 0.2)
        value_loss = 0.5 * np.maximum((value - b.target) ** 2, (near - b.target) ** 2).mean()
        policy_loss = -surrogate - 0.3 * entropy + 0.7 * kl
        expected = {
            "loss": policy_loss + 0.5 * value_loss,
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "entropy": entropy,
            "kl": (ratio - 1 - np.log(ratio)).mean(),
            "clip_fraction": (np.abs(ratio - 1) > 0.2).mean(),
        }
        assert 0.1 < expected["clip_fraction"] < 0.9
        for name, number in expected.items():
            np.testing.assert_allclose(parts[name], number, rtol=1e-4, atol=1e-5, err_msg=name)
        assert loss == parts["loss"]


@pytest.mark.parametrize("network", [{}, {"squash": True}, {"scale": "state"}])
def test_first_minibatch_has_ratio_one(network):
    """Stored log-probabilities must be those of the policy that acted, normalisation included."""
    agent = _make(network=network)
    seen = np.random.default_rng(2).normal(3.0, 2.0, (5, T, E, OBS)).astype(np.float32)

    @jax.jit
    def losses(key):
        state = agent.init(key)
        state = state._replace(observations=normalization.update(state.observations, seen, axes=(0, 2)))
        batch, _, _ = agent._targets(state, _rollout(agent, state))
        axes = (None, 0, 0, 0, 0, None, None)
        trees = ppo.split(state.params)
        return jax.vmap(agent.task_loss, axes)(*trees, agent.tasks, agent.masks, batch, state.hyper, KEY)

    _, parts = jax.device_get(losses(jax.random.key(0)))
    assert (parts["clip_fraction"] == 0).all() and np.abs(parts["kl"]).max() < 1e-5


# ------------------------------------------------------------------------------------------------ targets


def test_targets_by_hand():
    """Rewards scaled by the task's own deviation, values of the true final observation, advantages per task."""
    agent, (_, state, rollout, _) = _make(reward_scale=0.5), _compiled()
    batch, returns, sums = jax.device_get(jax.jit(agent._targets)(state, rollout))
    reward = 0.5 * np.asarray(rollout.reward, np.float64)
    done = np.asarray(rollout.terminated | rollout.truncated)
    total, every = np.zeros((T, E)), []
    for t in range(H):
        total = 0.99 * total + reward[t]
        every.append(total)
        total = np.where(done[t], 0, total)
    deviation = np.std(every, axis=(0, 2))
    np.testing.assert_allclose(np.sqrt(returns.variance), deviation, rtol=1e-4)
    np.testing.assert_allclose(sums, total, rtol=1e-4, atol=1e-5)
    reward = reward / deviation[:, None]
    shared, _ = ppo.split(state.params)
    codes = np.broadcast_to(np.eye(T)[:, None], (H, T, E, T))
    value, next_value = (
        _mlp(shared["value"], np.concatenate([np.clip(x, -10, 10), codes], -1))[..., 0]
        for x in (rollout.observation, rollout.final_observation)
    )
    advantage, running = np.zeros((H, T, E)), 0.0
    for t in reversed(range(H)):
        running = np.where(done[t], 0.0, running)
        bootstrap = np.where(rollout.terminated[t], 0.0, next_value[t])
        running = reward[t] + 0.99 * bootstrap - value[t] + 0.99 * 0.95 * running
        advantage[t] = running
    target = np.moveaxis(advantage + value, 1, 0).reshape(T, -1)
    advantage = np.moveaxis(advantage, 1, 0).reshape(T, -1)
    advantage = (advantage - advantage.mean(1, keepdims=True)) / advantage.std(1, keepdims=True)
    np.testing.assert_allclose(batch.target, target, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(batch.advantage, advantage, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(batch.raw_action[1, 2 * E + 3], rollout.extras["raw_action"][2, 1, 3])


def test_scaling_one_tasks_rewards_changes_nothing():
    """With return scaling, a task that pays in thousands counts as much as one that pays in cents."""
    _, state, rollout, update = _compiled()
    richer = rollout._replace(reward=rollout.reward * np.float32([1.0, 1000.0, 1.0])[:, None])
    _close(update(state, rollout, KEY)[0].params, update(state, richer, KEY)[0].params, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ gradients


def test_gradients_are_those_of_each_task_alone_and_mean_is_the_average_loss():
    """One gradient per task, not T copies of the mean; and plain averaging is ordinary multi-task PPO."""
    agent = _make(arrangement="multi_head", surgery="joint")
    state, rollout = _start(agent)
    batch = jax.device_put(_batch(agent, state, rollout))  # a traced number of a task indexes it
    shared, private = ppo.split(state.params)

    def loss(shared, private, t):
        part = _task(private, t)
        return agent.task_loss(shared, part, _task(agent.tasks, t), agent.masks[t], _task(batch, t), state.hyper, KEY)[
            0
        ]

    @jax.jit
    def found():
        alone = jax.vmap(jax.grad(loss), in_axes=(None, None, 0))(shared, private, jnp.arange(T))
        average = jax.grad(lambda s: sum(loss(s, private, t) for t in range(T)) / T)(shared)
        losses = dict.fromkeys(("loss", "loss/policy", "loss/value"), jnp.zeros(T))
        return alone, average, agent._combine(state.grads, shared, alone, losses)

    alone, average, (direction, _, diagnostics) = found()
    _close(direction, average)
    flat = np.concatenate([np.asarray(x).reshape(T, -1) for x in jax.tree.leaves(alone)], axis=1)
    norms = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(diagnostics["grads/norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(diagnostics["grads/cosine"], flat @ flat.T / np.outer(norms, norms), atol=1e-4)

    # The update of one minibatch must have used exactly these: Adam's first moment is 0.1 × the gradient.
    config = {"num_epochs": 1, "num_minibatches": 1, "max_grad_norm": 0.0, "arrangement": "multi_head"}
    agent = _make(**config)
    batch = jax.jit(agent._targets)(state, rollout)[0]
    new, _ = jax.jit(agent.update)(_start(agent)[0], rollout, KEY)

    @jax.jit
    def expected():
        average = jax.grad(lambda s: sum(loss(s, private, t) for t in range(T)) / T)(shared)
        own = jax.vmap(lambda t: jax.grad(loss, argnums=1)(shared, private, t))(jnp.arange(T))
        own = jax.tree.map(lambda x: x[jnp.arange(T), jnp.arange(T)], own)
        return 0.1 * ravel_pytree(average)[0], jax.vmap(lambda g: 0.1 * ravel_pytree(g)[0])(own)

    average, own = expected()
    _close(new.shared_optimizer.mu, average, rtol=1e-3)
    _close(new.private_optimizer.mu, own, rtol=1e-3)


def test_joint_and_separate_surgery():
    """'separate' resolves a conflict of the policies even where the value networks agree; 'joint' sees their sum."""
    agents = {how: _make(method=grads.pcgrad(), tasks=2, surgery=how) for how in ("joint", "separate")}
    shared, _ = ppo.split(jax.eval_shape(agents["joint"].init, KEY).params)
    zeros = jax.tree.map(lambda x: np.zeros((2, *x.shape), np.float32), shared)

    def bias(tree, part, rows):
        tree[part]["head"]["params"]["Dense_0"]["bias"] = np.asarray(rows, np.float32)

    bias(zeros, "policy", [[1.0, 0.0], [-1.0, 1.0]])  # inner product -1
    bias(zeros, "value", [[2.0], [1.0]])  # inner product +2
    losses = dict.fromkeys(("loss", "loss/policy", "loss/value"), np.zeros(2, np.float32))

    def combined(agent, gradients):
        state = agent.init(KEY)
        return agent._combine(state.grads, ppo.split(state.params)[0], gradients, losses)

    found = {}
    for how, agent in agents.items():
        direction, _, diagnostics = jax.device_get(jax.jit(functools.partial(combined, agent))(zeros))
        found[how] = [direction[part]["head"]["params"]["Dense_0"]["bias"] for part in ("policy", "value")]
        assert diagnostics["grads/conflict"] == (how == "separate")
    np.testing.assert_allclose(found["joint"][0], [0.0, 1.0], atol=1e-6)  # the plain sum
    np.testing.assert_allclose(found["separate"][0], [0.5, 1.5], atol=1e-6)  # (½, ½) + (0, 1)
    for how in found:
        np.testing.assert_allclose(found[how][1], [3.0], atol=1e-6)


@pytest.mark.parametrize("surgery", ["separate", "joint"])
def test_a_method_is_told_the_losses_whose_gradients_it_is_given(surgery):
    """The gradient of the values is that of value_cost times their loss."""
    method = grads.Weighting(lambda tasks: (), lambda gram, state, *, losses=None, mask=None: (losses, state))
    agent = _make(method=method, surgery=surgery, value_cost=0.3, num_epochs=1, num_minibatches=1)
    state, rollout = _start(agent)
    _, metrics = jax.device_get(jax.jit(agent.update)(state, rollout, KEY))
    found = [metrics["grads/weight"], metrics.get("grads/weight/value")]
    policy, value = metrics["loss/policy"], 0.3 * metrics["loss/value"]
    np.testing.assert_allclose(found[0], policy if surgery == "separate" else policy + value, rtol=1e-4, atol=1e-6)
    if surgery == "separate":
        np.testing.assert_allclose(found[1], value, rtol=1e-4, atol=1e-6)


def test_bound_cost_draws_means_back_to_the_bounds_and_no_further():
    """Beyond a bound every action is the same one: without the cost nothing tells a mean of 3 from one of 30."""
    agent = _make(bound_cost=0.1, entropy_cost=0.0)
    state, rollout = _begin(agent)
    state.params["policy"].shared["head"]["params"]["Dense_0"]["bias"] = np.float32([3.0, -0.9])
    batch = _task(_batch(agent, state, rollout), 0)
    batch = batch._replace(advantage=np.zeros_like(batch.advantage))
    shared, private = ppo.split(state.params)

    def loss(bias, agent=agent):
        shared["policy"]["head"]["params"]["Dense_0"]["bias"] = bias
        of_task = shared, _task(private, 0), _task(agent.tasks, 0), agent.masks[0], batch
        return agent.task_loss(*of_task, state.hyper, KEY)[1]["loss/policy"]

    bias = np.float32([3.0, -0.9])
    gradient = jax.jit(jax.grad(loss))(bias)
    np.testing.assert_allclose(gradient, [0.1 * 2 * (3.0 - 1.0), 0.0], rtol=0.05)
    without = functools.partial(loss, agent=_make(entropy_cost=0.0))
    np.testing.assert_allclose(jax.jit(jax.grad(without))(bias), 0.0, atol=1e-7)


def test_large_values_do_not_clip_the_policy():
    """A critic's gradient a thousand times as large leaves the policy's step as it is (one norm for both did not)."""
    policies = []
    for cost in (1.0, 1000.0):
        agent = _make(arrangement="multi_head", max_grad_norm=1e-3, value_cost=cost, num_epochs=1, num_minibatches=1)
        _, state, rollout, _ = _compiled(arrangement="multi_head")
        policies.append(jax.jit(agent.update)(state, rollout, KEY)[0].params["policy"])
    for one, other, start in zip(*map(jax.tree.leaves, (*policies, state.params["policy"])), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert not np.array_equal(one, start)


@pytest.mark.parametrize("arrangement", ["none", "multi_head", "one_hot"])
def test_permuting_the_tasks_permutes_the_result(arrangement):
    """Results must not depend on the order in which a suite lists its tasks."""
    _, state, rollout, update = _compiled() if arrangement == "one_hot" else _compiled(arrangement=arrangement)
    order = np.array([2, 0, 1])

    def codes(params):
        """Rows of the first layer that read the task's code move with the tasks."""
        if arrangement not in ("one_hot", "multi_head"):
            return params
        for network in ("policy", "value"):
            layer = params[network].shared["trunk"]["params"]["Dense_0"]
            layer["kernel"] = np.concatenate([layer["kernel"][:OBS], layer["kernel"][OBS:][order]])
        return params

    def permute(state):
        state = jax.tree.map(lambda x: x, state)  # a copy of the containers
        rows = functools.partial(jax.tree.map, lambda x: x[order])
        params = {k: p._replace(private=rows(p.private)) for k, p in state.params.items()}
        return state._replace(
            params=codes(params),
            private_optimizer=rows(state.private_optimizer),
            observations=rows(state.observations),
            returns=rows(state.returns),
            return_sums=rows(state.return_sums),
        )

    def keep(state):
        return state._replace(grads=(), shared_optimizer=())

    straight, metrics = jax.device_get(update(state, rollout, KEY))
    other, others = update(permute(state), jax.tree.map(lambda x: x[:, order], rollout), KEY)
    _close(keep(permute(straight)), keep(other), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"][order], others["loss"], rtol=1e-3, atol=1e-5)


def test_independent_is_as_many_single_task_learners():
    """Case I of the talk: one agent per task must be what T separate runs would be."""
    together, alone = (_make(arrangement="independent", tasks=n) for n in (T, 1))
    state, rollout = _begin(together)
    after, metrics = jax.device_get(jax.jit(together.update)(state, rollout, KEY))
    update = jax.jit(alone.update)
    assert not after.grads and "grads/cosine" not in metrics  # nothing is shared: nothing can conflict

    def slice_of(state, t):
        fields = ("params", "private_optimizer", "observations", "returns", "return_sums")
        return state._replace(**{name: jax.tree.map(lambda x: x[t : t + 1], getattr(state, name)) for name in fields})

    for t in range(T):
        new, _ = update(slice_of(state, t), jax.tree.map(lambda x, t=t: x[:, t : t + 1], rollout), KEY)
        _close(slice_of(after, t), new, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_padded_actions_get_no_gradient(kind):
    """A body with one motor must not train, or be disturbed by, the motor it does not have."""
    action = discrete(3) if kind == "discrete" else continuous(3)
    agent = _make(action=action, arrangement="multi_head", sizes=(2, 3, 3), entropy_cost=0.1, kl_cost=0.1)
    state, rollout = _begin(agent)
    raw = rollout.extras["raw_action"][:, 0]
    assert (raw.max() <= 1) if kind == "discrete" else (raw[..., 2] == 0).all()
    new, _ = jax.device_get(jax.jit(agent.update)(state, rollout, KEY))
    moved = jax.tree.map(lambda a, b: np.abs(a - b), new.params["policy"].private, state.params["policy"].private)
    for leaf in jax.tree.leaves(moved):
        assert leaf[0, ..., 2].max() == 0  # the padded entry of task 0
        assert leaf[0, ..., :2].max() > 0 and leaf[1, ..., 2].max() > 0


# ------------------------------------------------------------------------------------------------ control


def test_learning_rate_schedules():
    _, state, _, _ = _compiled()
    expected = {"constant": [1.0, 1.0, 1.0], "linear": [1.0, 0.5, 0.0], "cosine": [1.0, 0.5, 0.0]}
    for schedule, factors in expected.items():
        agent = _make(learning_rate_schedule=schedule, updates=10)
        rate = jax.vmap(lambda done, agent=agent: agent._learning_rate(state._replace(updates=done)))
        rates = jax.jit(rate)(np.int32([0, 5, 10]))
        np.testing.assert_allclose(rates, [1e-2 * factor for factor in factors], atol=1e-9)


def test_the_learning_rate_is_used():
    """A schedule that only shows in the logs would be a lie: at rate 0 nothing moves."""
    agent, (_, state, rollout, _) = _make(learning_rate_schedule="linear", updates=10), _compiled()
    update = jax.jit(agent.update)
    frozen, _ = update(state._replace(updates=np.int32(10)), rollout, KEY)
    chex.assert_trees_all_equal(frozen.params, state.params)
    assert frozen.updates == 11
    moved, metrics = jax.device_get(update(state, rollout, KEY))
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2, rtol=1e-6)
    steps = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved.params, state.params)
    assert 0 < max(jax.tree.leaves(steps)) < 1e-2 * 4 * 1.5  # four steps of Adam


def test_the_entropy_cost_follows_its_schedule():
    """An update at half of the run is one at half of the cost; at its end, one at none; and the cost matters."""
    _, state, rollout, constant = _compiled()
    falling = jax.jit(_make(updates=10, entropy_schedule="linear").update)

    def updated(update, done, cost):
        hyper = state.hyper._replace(entropy_cost=np.float32(cost))
        new, metrics = jax.device_get(update(state._replace(updates=np.int32(done), hyper=hyper), rollout, KEY))
        return new.params, metrics["loss/policy"]

    fallen = {done: updated(falling, done, 0.5) for done in (0, 5, 10)}
    for done, cost in ((0, 0.5), (5, 0.25), (10, 0.0)):
        chex.assert_trees_all_equal(fallen[done], updated(constant, done, cost))
    assert np.abs(fallen[0][1] - fallen[10][1]).min() > 0.1


def test_adaptive_kl():
    """Lower after a large KL, higher after a small one, within bounds."""
    options = {"adaptive_kl": 0.01, "num_epochs": 1, "num_minibatches": 1}
    agent = _make(**options)
    one, adapt = np.float32(1.0), jax.jit(agent._adapt)
    for kl, factor in ((0.03, 1 / 1.5), (0.001, 1.5), (0.01, 1.0)):
        np.testing.assert_allclose(adapt(one, np.float32(kl)), factor, rtol=1e-6)
    np.testing.assert_allclose(adapt(np.float32(30.0), np.float32(0.0)), 30.0)
    np.testing.assert_allclose(adapt(np.float32(1 / 30), np.float32(9.0)), 1 / 30, rtol=1e-6)
    # The KL is that of the policy which an update leaves, not of those that its steps began from.
    for rate, factor in ((1.0, 1 / 1.5), (1e-7, 1.5)):
        agent = _make(**options, learning_rate=rate)
        state, rollout = _start(agent)
        new, metrics = jax.device_get(jax.jit(agent.update)(state, rollout, KEY))
        np.testing.assert_allclose(metrics["kl"], 0, atol=1e-6)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        np.testing.assert_allclose(new.rate_factor, factor, rtol=1e-6)


def test_target_kl_stops_the_update_and_keeps_what_was_learnt():
    """The rest of the minibatches is skipped: parameters, optimiser and gradient method stand still."""
    options = {"num_epochs": 4, "learning_rate": 0.3, "method": grads.pcgrad()}
    agents = [_make(**options, target_kl=target) for target in (1e3, 1e-3)]
    state, rollout = _start(agents[0])
    states = [jax.device_get(jax.jit(agent.update)(state, rollout, KEY)[0]) for agent in agents]
    steps = [int(state.shared_optimizer.count) for state in states]
    assert steps[0] == 8 and 1 <= steps[1] < 8
    stopped = states[1]
    assert int(stopped.grads["policy"].count) == int(stopped.private_optimizer.count[0]) == steps[1]
    assert (stopped.observations.count == H * E).all()


def test_hyper_parameters_vmap():
    """Two learning rates in one program are two runs."""
    agent, state, rollout, update = _compiled()
    rates = [1e-3, 1e-2]
    with_rate = [state._replace(hyper=state.hyper._replace(learning_rate=np.float32(r))) for r in rates]
    stacked = jax.tree.map(lambda *x: jnp.stack(x) if grads.base.is_key(x[0]) else np.stack(x), *with_rate)
    both, _ = jax.device_get(jax.jit(jax.vmap(agent.update, in_axes=(0, None, None)))(stacked, rollout, KEY))
    for index, one in enumerate(with_rate):
        _close(_task(both, index), update(one, rollout, KEY)[0], rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------ programs


@pytest.mark.parametrize(
    "arrangement, method",
    [
        ("one_hot", "pcgrad"),
        ("embedding", "pcgrad"),
        ("multi_head", 'gradnorm(surrogate="softplus")'),
        ("independent", "mean"),
    ],
)
def test_one_trace_and_strong_types(arrangement, method):
    """A second trace costs every user the compile time again; and everything stays float32 and finite."""
    chex.clear_trace_counter()
    options = {"kl_cost": 0.1, "value_clip": 0.2, "target_kl": 10.0, "adaptive_kl": 0.01}
    agent = _make(arrangement=arrangement, method=gradient_method(method, T), **options)
    state, rollout = _start(agent)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), state)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(state, rollout, key):
        return agent.update(state, rollout, key)

    for seed in range(2):
        state, metrics = update(state, rollout, jax.random.key(seed))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == kinds
    for leaf in jax.tree.leaves((state, metrics)):
        if grads.base.is_key(leaf):
            continue
        assert not leaf.weak_type and leaf.dtype in (jnp.float32, jnp.int32, jnp.bool_)
        assert np.isfinite(leaf).all()
    for name in ("loss", "loss/policy", "loss/value", "entropy", "kl", "clip_fraction", "explained_variance"):
        assert metrics[name].shape == (T,)
    if arrangement != "independent":
        for name, shape in (("cosine", (T, T)), ("conflict", ()), ("norm", (T,)), ("weight", (T,))):
            assert metrics[f"grads/{name}"].shape == metrics[f"grads/{name}/value"].shape == shape


def test_minibatches_visit_everything_once_an_epoch():
    """Rows left out, or visited twice, would be data thrown away."""
    rows = np.broadcast_to(np.arange(H * E, dtype=np.int32), (T, H * E))
    batch = minibatches.Minibatch(*[rows] * len(minibatches.Minibatch._fields))

    def count(seen, minibatch, key):
        assert minibatch.target.shape == (T, H * E // 2)
        seen = seen.at[jnp.arange(T)[:, None], minibatch.target].add(1)
        return seen, {"loss": minibatch.target[:, 0].astype(jnp.float32)}

    for epochs in (1, 3):
        agent = _make(num_epochs=epochs)
        agent._step = count
        seen, metrics = jax.jit(agent._epochs)(np.zeros((T, H * E), np.int32), batch, KEY)
        np.testing.assert_array_equal(seen, epochs)
        assert metrics["loss"][0] != H * E / 4  # 8 if the order were that of the rollout


def test_wrong_sizes_are_named_before_anything_is_compiled():
    config = PPOConfig(rollout_length=5, num_minibatches=8)
    with pytest.raises(ValueError, match="num_minibatches: 8 does not divide .* 5 × 3 = 15"):
        ppo.make_ppo(config, NetworkConfig(), grads.mean(), TaskSpec(2, 3, discrete(2)), num_envs=3, num_updates=1)


# ------------------------------------------------------------------------------------------------ acting


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_policy_for_evaluation(kind):
    """Deterministic is the mode and needs no key; stochastic explores; unseen tasks get the mean."""
    action = discrete(3) if kind == "discrete" else continuous(2)
    agent = _make(action=action, arrangement="multi_head")
    state, rollout = _begin(agent)
    observation, other = rollout.observation[0], jax.random.key(9)
    yes, no, act = np.bool_(True), np.bool_(False), jax.jit(agent.evaluation_policy)
    mode = act(state, observation, KEY, yes)
    assert mode.shape == (T, E, *action.shape)
    np.testing.assert_array_equal(mode, act(state, observation, other, yes))
    drawn = np.asarray(act(state, observation, KEY, no))
    assert (drawn != np.asarray(act(state, observation, other, no))).any()
    few, others = np.broadcast_to(observation[:1, :1], (5, E, OBS)), Unseen(np.zeros((5, 0)), np.ones((5, action.size)))
    unseen = np.asarray(act(state, few, KEY, yes, unseen=others))
    assert unseen.shape == (5, E, *action.shape)
    np.testing.assert_array_equal(unseen[0], unseen[4])


def test_a_nan_is_blamed_on_the_task_that_brought_it():
    """Shared parameters spread it to every task's loss within one update; the report must not blame all."""
    agent, (_, state, rollout, _) = _make(normalize_advantages=False), _compiled()
    update = jax.jit(agent.update)
    assert np.asarray(update(state, rollout, KEY)[1]["finite"]).all()
    reward = rollout.reward.copy()
    reward[3, 1, 2] = np.nan
    _, metrics = update(state, rollout._replace(reward=reward), KEY)
    np.testing.assert_array_equal(metrics["finite"], [True, False, True])


def test_one_task_is_a_plain_ppo():
    """T = 1 is the ordinary case, and must not divide by the number of pairs of tasks: a method has nothing to do."""
    learnt = []
    for method in (grads.pcgrad(), grads.mean()):
        agent = _make(tasks=1, method=method)
        state, metrics = jax.jit(agent.update)(*_start(agent), KEY)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, metrics)))
        # Its Gram matrix is not computed: a norm or cosine read from it would be an invented zero.
        assert not [name for name in metrics if name.startswith("grads/")]
        learnt.append(jax.device_get(state.params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *learnt)
