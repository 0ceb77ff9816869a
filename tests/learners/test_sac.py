"""SAC's update, piece by piece and as a whole, against references and against itself."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrangement_cases import quick_initialisation

from mtjax import grads
from mtjax.envs.base import continuous, discrete
from mtjax.learners import replay, sac, transfer
from mtjax.learners.base import TaskSpec, Transitions, Unseen
from mtjax.learners.config import HiPBMDPConfig, SACConfig
from mtjax.learners.descent import Descent
from mtjax.networks.config import NetworkConfig
from mtjax.options import validate

__all__ = ["quick_initialisation"]  # of every test here
T, E, H, OBS, B = 3, 2, 4, 3, 6
SMALL = {"rollout_length": H, "update_to_data": 0.25, "batch_size": B, "replay_capacity": 48, "warm_start": 0}
KEY = jax.random.key(5)
GAMMA = 0.9


def _make(*, action=None, arrangement="one_hot", method=None, tasks=T, sizes=None, network=(), **options):
    """The pure functions of a small SAC; its methods are what make_sac returns."""
    config = SACConfig(**{**SMALL, "learning_rate": 1e-2, "discount": GAMMA, **options})
    network = NetworkConfig(arrangement=arrangement, **{"hidden_sizes": (8,), "scale": "state", **dict(network)})
    contexts = jnp.eye(tasks, 5) if network.told == "context" else None
    spec = TaskSpec(tasks, OBS, action or discrete(3), sizes, contexts)
    return sac.SAC(config, network, method or grads.mean(), spec, num_envs=E)


def _rollout(agent, state, seed=0):
    """Random experience, acted for by the agent itself; tasks of very different reward."""
    draw = np.random.default_rng(seed)
    shape = (H, agent.spec.num_tasks, E)
    observation, final = (jnp.asarray(draw.normal(size=(*shape, OBS)), jnp.float32) for _ in range(2))
    _, extras = jax.vmap(agent.act, in_axes=(None, 0, 0))(state, observation, jax.random.split(KEY, H))
    return Transitions(
        observation=observation,
        reward=jnp.asarray(draw.normal(size=shape) * 10.0 ** np.arange(shape[1])[:, None], jnp.float32),
        terminated=jnp.asarray(draw.random(shape) < 0.2),
        truncated=jnp.asarray(draw.random(shape) < 0.2),
        final_observation=final,
        extras=extras,
    )


def _sample(agent, seed=0):
    """Stored transitions [T, B]; the first of each task is terminal, the others are not."""
    draw = np.random.default_rng(seed)
    shape, action = (agent.spec.num_tasks, B), agent.spec.action
    taken = (
        draw.integers(0, action.size, shape)
        if action.kind == "discrete"
        else draw.uniform(-1, 1, (*shape, action.size))
    )
    return replay.Sample(
        observation=draw.normal(size=(*shape, OBS)).astype(np.float32),
        action=taken.astype(np.int32 if action.kind == "discrete" else np.float32),
        reward=draw.normal(size=shape).astype(np.float32),
        terminated=np.broadcast_to(np.arange(B) == 0, shape),
        final_observation=draw.normal(size=(*shape, OBS)).astype(np.float32),
    )


@functools.cache
def _start(agent):
    """A fresh state, in one small program; in NumPy, for jax would compile whatever a test does with a part of it."""
    return jax.device_get(jax.jit(agent.init)(jax.random.key(0)))


def _task(tree, t):
    return jax.tree.map(lambda leaf: leaf[t], tree)


def _of(parameters, t):
    """A network's parameters as task t has them."""
    return parameters._replace(private=_task(parameters.private, t))


def _close(a, b, rtol=2e-4, atol=2e-6):
    """Equal within rounding, keys aside."""
    plain = functools.partial(jax.tree.map, lambda x: None if grads.base.is_key(x) else np.asarray(x))
    chex.assert_trees_all_close(plain(a), plain(b), rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------- losses and targets


def _mlp(parameters, x):
    p = parameters["trunk"]["params"]["Dense_0"], parameters["head"]["params"]["Dense_0"]
    hidden = np.tanh(x @ np.asarray(p[0]["kernel"]) + np.asarray(p[0]["bias"]))
    return hidden @ np.asarray(p[1]["kernel"]) + np.asarray(p[1]["bias"])


def _values(parameters, x):
    """Answers [2, B, …] of both critics."""
    return np.stack([_mlp(jax.tree.map(lambda leaf, n=n: leaf[n], parameters.shared), x) for n in range(2)])


def _told(x, t):
    return np.concatenate([x, np.tile(np.eye(T)[t], (len(x), 1))], axis=1)


def _losses(agent, state, sample):
    """(batch, what is known, targets, the critics' losses, the policy's) of all tasks, in one program."""

    @jax.jit
    def losses(state, sample):
        batch, known = agent._prepare(state, sample), agent._known(state, KEY)
        policy, critic, axes = state.params["policy"], state.params["critic"], (sac.OF_TASK, sac.OF_TASK, 0, 0)
        target = jax.vmap(agent.task_target, in_axes=axes)(policy, state.targets, known, batch)
        of_critic = jax.vmap(agent.critic_loss, in_axes=(sac.OF_TASK, 0, 0, 0))(critic, known, batch, target)
        return batch, known, target, of_critic, jax.vmap(agent.policy_loss, in_axes=axes)(policy, critic, known, batch)

    return jax.device_get(losses(state, sample))


def test_discrete_losses_and_target_against_numpy():
    """Expectations over all choices; the target bootstraps from the final observation, and never at a terminal step."""
    agent = _make(target_entropy_scale=0.0, initial_temperature=0.3)
    state = _start(agent)
    state = state._replace(targets=jax.tree.map(lambda x: 1.5 * x, state.targets))
    sample = _sample(agent)
    _, _, target, of_critic, of_policy = _losses(agent, state, sample)
    policy, critic = state.params["policy"], state.params["critic"]
    for t in range(T):
        x, after = _told(sample.observation[t], t), _told(sample.final_observation[t], t)

        def probabilities(x):
            out = _mlp(policy.shared, x)
            return np.exp(out) / np.exp(out).sum(axis=1, keepdims=True)

        p = probabilities(after)
        soft = (p * (_values(state.targets, after).min(axis=0) - 0.3 * np.log(p))).sum(axis=1)
        expected = sample.reward[t] + GAMMA * np.where(np.arange(B) == 0, 0.0, soft)
        np.testing.assert_allclose(target[t, :, 0], expected, rtol=2e-4, atol=1e-5)

        q = _values(critic, x)
        taken = q[:, np.arange(B), sample.action[t]]
        loss, parts = _task(of_critic, t)
        np.testing.assert_allclose(loss, 0.5 * ((taken - expected) ** 2).mean(axis=1).sum(), rtol=2e-4)
        np.testing.assert_allclose(parts["value"], taken.mean(), rtol=2e-4, atol=1e-5)

        p = probabilities(x)
        loss, parts = _task(of_policy, t)
        np.testing.assert_allclose(loss, (p * (0.3 * np.log(p) - q.min(axis=0))).sum(axis=1).mean(), rtol=2e-4)
        np.testing.assert_allclose(parts["entropy"], -(p * np.log(p)).sum(axis=1).mean(), rtol=2e-4)


def test_continuous_losses_and_target_against_numpy():
    """The density is that of the squashed action which the critics see."""
    agent = _make(action=continuous(2), initial_temperature=0.3)
    state = _start(agent)
    sample = _sample(agent)
    policy, critic, t = state.params["policy"], state.params["critic"], 1
    _, known, target, of_critic, of_policy = _losses(agent, state, sample)
    noises = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.normal(key, (B, 2))))(known.key[t]))

    def drawn(x, noise):
        """An action at every row with its log-density, from the same noise."""
        mean, log_scale = np.split(_mlp(policy.shared, x), 2, axis=1)
        log_scale = np.clip(log_scale - 0.5, -5, 2)  # NetworkConfig.initial_log_scale
        action = np.tanh(mean + np.exp(log_scale) * noise)
        density = -0.5 * noise**2 - log_scale - 0.5 * np.log(2 * np.pi) - np.log(1 - action**2)
        return action, density.sum(axis=1)

    def values(parameters, x, action):
        return _values(parameters, _told(np.concatenate([x, action], axis=1), t))[..., 0]

    after = sample.final_observation[t]
    action, log_prob = drawn(_told(after, t), noises[0])
    soft = values(state.targets, after, action).min(axis=0) - 0.3 * log_prob
    expected = sample.reward[t] + GAMMA * np.where(np.arange(B) == 0, 0.0, soft)
    np.testing.assert_allclose(target[t, :, 0], expected, rtol=1e-3, atol=1e-4)

    x = sample.observation[t]
    taken = values(critic, x, sample.action[t])
    loss, _ = _task(of_critic, t)
    np.testing.assert_allclose(loss, 0.5 * ((taken - expected) ** 2).mean(axis=1).sum(), rtol=1e-3)
    action, log_prob = drawn(_told(x, t), noises[1])
    loss, parts = _task(of_policy, t)
    np.testing.assert_allclose(loss, (0.3 * log_prob - values(critic, x, action).min(axis=0)).mean(), rtol=1e-3)
    np.testing.assert_allclose(parts["entropy"], -log_prob.mean(), rtol=1e-3)


def test_truncation_is_no_end():
    """From rollout through replay to the target: only ``terminated`` stops the bootstrap, from where it got to."""
    agent = _make(batch_size=64)
    state, take_in = _start(agent), jax.jit(agent._take_in)
    rollout = jax.device_get(jax.jit(functools.partial(_rollout, agent))(state))
    rollout = rollout._replace(terminated=np.zeros_like(rollout.terminated), truncated=np.ones_like(rollout.truncated))
    state = take_in(state, rollout)

    @jax.jit
    def drawn(state):
        return agent._prepare(state, agent.buffer.sample(state.replay, KEY, 64))

    batch = jax.device_get(drawn(state))
    assert (batch.discount == np.float32(GAMMA)).all()
    for t in range(T):
        reached = rollout.final_observation[:, t].reshape(-1, OBS)
        rewards = rollout.reward[:, t].reshape(-1)
        for next_observation, reward in zip(batch.next_observation[t], batch.reward[t], strict=True):
            np.testing.assert_array_equal(reached[np.flatnonzero(rewards == reward)[0]], next_observation)

    @jax.jit
    def second(state):
        rows = agent.buffer.unpack(state.replay.rows[:, H * E : 2 * H * E])
        return rows, agent._prepare(state, rows)

    rows, batch = jax.device_get(second(take_in(state, rollout._replace(terminated=np.ones_like(rollout.terminated)))))
    assert rows.terminated.all() and (batch.discount == 0).all()


def test_the_replay_keeps_what_the_environments_gave():
    """Statistics move on: a transition that was stored normalised would mean something else when it is drawn."""
    agent = _make(normalize_observations=True, return_scaling="running", reward_scale=0.1)
    state = _start(agent)
    rollouts = jax.device_get(jax.jit(lambda state: [_rollout(agent, state, seed) for seed in (0, 1)])(state))
    take_in, unpack = jax.jit(agent._take_in), jax.jit(agent.buffer.unpack)
    for rollout in rollouts:
        rollout = rollout._replace(
            observation=5.0 + 3.0 * rollout.observation, final_observation=np.full((H, T, E, OBS), 7.0, np.float32)
        )
        state = jax.device_get(take_in(state, rollout))
        end = int(state.replay.position)
        newest = jax.device_get(unpack(state.replay.rows[:, end - H * E : end]))
        for name in ("observation", "reward", "final_observation", "terminated"):
            given = np.moveaxis(getattr(rollout, name), 1, 0)
            np.testing.assert_array_equal(getattr(newest, name), given.reshape(T, H * E, *given.shape[3:]), name)
    batch = jax.device_get(jax.jit(agent._prepare)(state, newest))  # what is learnt from is normalised, and scaled
    np.testing.assert_allclose(batch.observation.mean(axis=1), 0.0, atol=1.0)
    assert np.abs(newest.observation).mean() > 4 and np.abs(batch.reward).max() <= 10 < np.abs(newest.reward).max()


def test_temperature_moves_by_its_gradient():
    """d/d log α of α (H − H̄): too little entropy heats, too much cools, each task for itself."""
    agent = _make(action=continuous(2), sizes=(2, 1, 2), initial_temperature=0.5, temperature_learning_rate=0.1)
    agent.temperature_optimizer = optax.identity()
    state = _start(agent)
    np.testing.assert_array_equal(jax.jit(agent.target_entropy)(state.hyper), [-2.0, -1.0, -2.0])
    entropy = np.float32([-3.0, -1.0, 1.0])
    found, _ = jax.jit(agent._heat)(state, entropy)
    np.testing.assert_allclose(found, np.log(0.5) - 0.1 * 0.5 * np.asarray([-1.0, 0.0, 3.0]), rtol=1e-6)
    still = _make(learn_temperature=False)
    np.testing.assert_array_equal(still._heat(state, entropy)[0], state.log_temperature)
    padded = _make(sizes=(3, 2, 3), discrete_entropy_scale=0.3)
    own = state.hyper._replace(discrete_entropy_scale=_start(padded).hyper.discrete_entropy_scale)
    np.testing.assert_allclose(jax.jit(padded.target_entropy)(own), 0.3 * np.log([3, 2, 3]), rtol=1e-6)


def test_task_weights():
    """Both published forms have mean one; the paper prints exp(−α)/Σ, its code computes softmax(−log α)·T."""
    alpha, weights = np.asarray([0.1, 0.5, 2.0]), jax.jit(sac.task_weights, static_argnums=0)
    np.testing.assert_array_equal(weights("equal", alpha), 1.0)
    exponential = np.exp(-alpha) / np.exp(-alpha).sum() * 3
    np.testing.assert_allclose(weights("exponential", alpha), exponential, rtol=1e-5)
    inverse = (1 / alpha) / (1 / alpha).sum() * 3
    np.testing.assert_allclose(weights("inverse", alpha), inverse, rtol=1e-5)
    agent = _make(task_weights="inverse")
    state = _start(agent)._replace(log_temperature=np.log(alpha.astype(np.float32)))
    *_, (loss, parts) = _losses(agent, state, _sample(agent))
    np.testing.assert_allclose(loss, inverse * parts["loss/policy"], rtol=1e-5)


# ------------------------------------------------------------------------------------------- gradient steps


@functools.cache
def _before(**options):
    """(agent, state, batch, its compiled gradient step) before one."""
    agent = _make(**options)

    @jax.jit
    def start(key):
        state = agent.init(key)
        state = state._replace(log_temperature=jnp.log(jnp.linspace(0.2, 0.8, agent.spec.num_tasks)))
        return state, agent._prepare(state, _sample(agent))

    step = jax.jit(agent._step)
    return agent, *jax.device_get(start(jax.random.key(0))), lambda *args: jax.device_get(step(*args))


@functools.cache
def _stepped(**options):
    """(state before, batch, state after, metrics) of one gradient step."""
    _, state, batch, step = _before(**options)
    return state, batch, *step(state, batch, KEY)


SLOW = {"action": continuous(2), "arrangement": "multi_head", "polyak": 0.2, "task_weights": "equal"}


@pytest.mark.parametrize("weighing", ["equal", "inverse"])
def test_split_gradients_average_to_that_of_the_mean_loss(weighing):
    """Plain averaging is ordinary multi-task SAC: one loss, the mean over tasks, and one gradient of it."""
    agent, state, batch, _ = _before(**SLOW | {"task_weights": weighing})

    @jax.jit
    def found(policy, critic):
        known, axes = agent._known(state, KEY), (sac.OF_TASK, sac.OF_TASK, 0, 0)
        targets = jax.vmap(agent.task_target, in_axes=axes)(policy, state.targets, known, batch)
        _, of_critic = jax.vmap(agent.critic_gradient, in_axes=(*axes, 0))(critic, policy, known, batch, targets)
        of_policy = jax.vmap(jax.grad(agent.policy_loss, has_aux=True), in_axes=axes)(policy, critic, known, batch)[0]
        return of_policy, of_critic

    @jax.jit
    def expected(policy, critic):
        known, tasks = agent._known(state, KEY), range(T)  # one task after another, in one loss

        def policy_loss(moved):
            each = [
                agent.policy_loss(_of(moved, t), _of(critic, t), _task(known, t), _task(batch, t))[0] for t in tasks
            ]
            return sum(each) / T

        def critic_loss(moved):
            each = []
            for t in tasks:
                k, b = _task(known, t), _task(batch, t)
                target = agent.task_target(_of(policy, t), _of(state.targets, t), k, b)
                each.append(agent.critic_loss(_of(moved, t), k, b, target)[0])
            return sum(each) / T

        return jax.grad(policy_loss)(policy), jax.grad(critic_loss)(critic)

    @jax.jit
    def direction(parameters, gradients):
        descent = Descent(grads.mean(), T, optax.identity())
        moved, _, _ = descent.step(parameters, descent.init(parameters, KEY), gradients, jnp.ones(T), 1.0)
        return jax.tree.map(lambda old, new: old - new, parameters.shared, moved.shared)

    parameters = state.params["policy"], state.params["critic"]
    of_tasks, of_mean = jax.device_get((found(*parameters), expected(*parameters)))
    for p, split, unsplit in zip(parameters, of_tasks, of_mean, strict=True):
        _close(jax.tree.map(lambda leaf: leaf.mean(axis=0), split.shared), unsplit.shared)
        _close(jax.tree.map(lambda leaf: leaf / T, split.private), unsplit.private)
        _close(direction(p, split), unsplit.shared, atol=2e-5)


def _losses_as_weights():
    """A method whose weights are the losses that it is told."""
    return grads.Weighting(lambda num_tasks: (), lambda gram, state, *, losses=None, mask=None: (losses, state))


def test_a_method_is_told_the_losses_whose_gradients_it_is_given():
    """With task_weights a task's gradient is that of its weight times its loss."""
    _, _, _, metrics = _stepped(task_weights="inverse", method=_losses_as_weights())
    assert np.ptp(metrics["weight"]) > 0.5
    for part, suffix in (("policy", ""), ("value", "/value")):
        expected = metrics["weight"] * metrics[f"loss/{part}"]
        np.testing.assert_allclose(metrics[f"grads/weight{suffix}"], expected, rtol=1e-5)


def test_one_agent_per_task_is_that_many_agents():
    """Nothing leaks between tasks that share nothing: T agents in one program are T programs."""
    state, batch, after, metrics = _stepped(arrangement="independent", max_grad_norm=0.5, weight_decay=0.1)
    assert not [name for name in metrics if name.startswith("grads/")]
    one = _make(arrangement="independent", tasks=1, max_grad_norm=0.5, weight_decay=0.1)
    step = jax.jit(one._step)
    mine = {part: p.private for part, p in after.params.items()} | {"targets": after.targets.private}
    for t in range(T):

        def row(x, t=t):
            return x[t : t + 1] if np.ndim(x) and x.shape[0] == T else x

        new, numbers = step(jax.tree.map(row, state._replace(replay=None)), jax.tree.map(row, batch), KEY)
        alone = {part: p.private for part, p in new.params.items()} | {"targets": new.targets.private}
        _close(alone, jax.tree.map(row, mine))
        np.testing.assert_allclose(new.log_temperature, after.log_temperature[t : t + 1], rtol=1e-5)
        np.testing.assert_allclose(numbers["loss"], metrics["loss"][t : t + 1], rtol=1e-4)


def test_the_order_of_tasks_does_not_matter():
    """Tasks renamed are tasks renamed: nothing may depend on which comes first."""
    (state, batch, after, metrics), step = _stepped(arrangement="embedding"), _before(arrangement="embedding")[-1]
    order = np.asarray([2, 0, 1])

    def shuffled(tree):
        return jax.tree.map(lambda x: x[order] if np.ndim(x) and x.shape[0] == T else x, tree)

    def parts(state):
        """What leads with the task axis (an ensemble of N critics never has N = T here)."""
        params = {k: p._replace(private=shuffled(p.private)) for k, p in state.params.items()}
        targets = state.targets._replace(private=shuffled(state.targets.private))
        return state._replace(params=params, targets=targets, log_temperature=state.log_temperature[order])

    new, numbers = step(parts(state), shuffled(batch), KEY)
    _close(new.params, parts(after).params, rtol=1e-3, atol=1e-5)
    _close(new.log_temperature, after.log_temperature[order])
    for name in ("loss", "entropy", "grads/norm", "grads/norm/value"):
        np.testing.assert_allclose(numbers[name], metrics[name][order], rtol=1e-3, atol=1e-5)


def test_targets_follow_slowly_and_start_as_copies():
    state, _, after, _ = _stepped(**SLOW)
    _close(state.targets, state.params["critic"])
    expected = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, state.targets, after.params["critic"])
    _close(after.targets, expected)
    leaves = jax.tree.leaves(jax.jit(_make(**SLOW).init)(jax.random.key(0)))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves if not grads.base.is_key(leaf)]
    assert len(pointers) == len(set(pointers)), "leaves that alias cannot be donated"


def test_hyper_parameters_vmap():
    """A sweep packs trials as rows of one program: each row must be the trial alone. A rate of 0 is the policy's."""
    agent, state, batch, alone = _before(arrangement="embedding")
    rows = {
        "learning_rate": [1e-2, 1e-3],
        "critic_learning_rate": [0.0, 1e-2],
        "temperature_learning_rate": [0.0, 1e-1],
        "polyak": [0.1, 0.5],
        "discrete_entropy_scale": [0.5, 0.9],
    }

    def having(values):
        return state._replace(hyper=state.hyper._replace(**values))

    @jax.jit
    @jax.vmap
    def step(values):
        return agent._step(having(values), batch, KEY)[0]

    packed = {name: np.asarray(values, np.float32) for name, values in rows.items()}
    together = jax.device_get(step(packed))
    for row in range(2):
        own, _ = alone(having({name: values[row] for name, values in packed.items()}), batch, KEY)
        for part in ("params", "targets", "log_temperature"):
            _close(_task(getattr(together, part), row), getattr(own, part), rtol=1e-3, atol=1e-5)
    moved = np.abs(together.log_temperature - state.log_temperature).max()
    np.testing.assert_allclose(moved, 1e-1, rtol=1e-2)  # of Adam's first step, by the second row's own rate


def test_each_network_has_its_own_method():
    """--grads for the policy, --critic_grads for the critics, both with their diagnostics."""
    _, _, _, metrics = _stepped(action=continuous(2), method=grads.pcgrad(), critic_grads="sum")
    np.testing.assert_array_equal(metrics["grads/weight/value"], 1.0)
    for name, shape in (("cosine", (T, T)), ("conflict", ()), ("norm", (T,)), ("weight", (T,))):
        assert metrics[f"grads/{name}"].shape == metrics[f"grads/{name}/value"].shape == shape
    with pytest.raises(ValueError, match="no method 'som': did you mean sum"):
        _make(critic_grads="som")


@pytest.mark.parametrize("arrangement", ["one_hot", "independent"])
def test_famo_is_told_the_critics_losses_after_each_step(arrangement):
    """Of the same batch and targets, with the new critics; otherwise its logits would stand still at 0."""
    options = {"action": continuous(2), "critic_grads": "famo(gamma=0.0)", "arrangement": arrangement}
    agent, *_ = _before(**options)
    state, batch, after, metrics = _stepped(**options)
    if arrangement == "independent":  # nothing is shared, so nothing is combined
        assert after.descent["critic"].grads == ()
        return

    @jax.jit
    def losses_after(state, critic, batch):
        known, axes = agent._known(state, KEY), (sac.OF_TASK, sac.OF_TASK, 0, 0)
        target = jax.vmap(agent.task_target, in_axes=axes)(state.params["policy"], state.targets, known, batch)
        return jax.vmap(agent.critic_loss, in_axes=(sac.OF_TASK, 0, 0, 0))(critic, known, batch, target)[0]

    found = np.log(np.asarray(losses_after(state, after.params["critic"], batch), np.float64))
    progress = np.log(np.asarray(metrics["loss/value"], np.float64)) - found
    logits = jax.tree.leaves(after.descent["critic"].grads.inner)[0][0]
    assert np.abs(progress).min() > 1e-3  # all critics have moved
    np.testing.assert_allclose(logits, -0.025 * (progress - progress.mean()) / T, rtol=1e-3, atol=1e-6)


# -------------------------------------------------------------------------------------------------- updates


USUAL = {"warm_start": 16, "action": continuous(2), "sizes": (2, 1, 2), "normalize_observations": True}


@functools.cache
def _update(**options):
    """An agent with its compiled update and rollout, whose results are NumPy's."""
    agent = _make(**options)
    update, rollout = jax.jit(agent.update), jax.jit(functools.partial(_rollout, agent))
    return agent, lambda *args: jax.device_get(update(*args)), lambda state: jax.device_get(rollout(state))


@functools.cache
def _acting(agent):
    """Its compiled ``act``."""
    return jax.jit(agent.act)


def _act(agent, state):
    """Actions at 500 observations of zeros of each task, and what else is said of them."""
    return jax.device_get(_acting(agent)(state, np.zeros((T, 500, OBS), np.float32), KEY))


def test_nothing_is_learnt_before_the_warm_start_is_over():
    """Until 16 transitions a task are there, parameters stay; then they move, and the random actions end."""
    agent, update, rollout = _update(**USUAL)
    start = state = _start(agent)
    action, extras = _act(agent, state)
    np.testing.assert_array_equal(action, extras["action"])
    np.testing.assert_allclose(action.std(axis=(0, 1))[0], 2 / np.sqrt(12), atol=0.03)  # uniform in [-1, 1]
    assert (action[1, :, 1] == 0).all() and (action[0, :, 1] != 0).all()
    state, metrics = update(state, rollout(state), KEY)
    kept = lambda s: (s.params, s.targets, s.descent, s.log_temperature)  # noqa: E731
    _close(kept(state), kept(start))
    assert state.seen == state.replay.size == metrics["replay/size"] == 8 and state.observations.count[0] == 8
    said = {"replay/size", "learning_rate", "finite"}  # of steps that were not kept nothing is: they are no news
    assert all(np.isfinite(v).all() if name in said else np.isnan(v).all() for name, v in metrics.items())
    state, metrics = update(state, rollout(state), KEY)
    assert all(np.isfinite(v).all() for v in metrics.values())
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start.params)
    assert all(jax.tree.leaves(moved)) and state.updates == 2
    action, _ = _act(agent, state)
    assert action.std() < 0.5 and (action[1, :, 1] == 0).all()
    state, _ = update(state._replace(seen=np.int32(2**31 - 5)), rollout(state), KEY)
    assert state.seen == 2**31 - 1  # not negative, as if nothing had been seen yet


def test_a_warm_start_ends_with_a_full_replay():
    """One longer than the replay is: the random actions end where learning begins."""
    agent = _make(**USUAL | {"warm_start": 1000})
    state = _start(agent)
    for number, random in ((agent.buffer.capacity - 1, True), (agent.buffer.capacity, False)):
        action, _ = _act(agent, state._replace(seen=np.int32(number)))
        assert (action[0].std() > 0.55) == random, number


def test_an_emptied_replay_is_filled_before_learning_goes_on():
    """After a resume without the replay, nothing may be drawn from zeros; and the policy acts, not chance once more."""
    agent, update, rollout = _update(**USUAL)
    state = _start(agent)._replace(seen=np.int32(1000))
    new, _ = update(state, rollout(state), KEY)
    _close(new.params, state.params)
    of_policy, at_random = (_act(agent, state._replace(seen=np.int32(seen)))[0] for seen in (1000, 0))
    assert (of_policy != at_random).any() and new.seen > 1000


def test_metrics():
    agent, update, rollout = _update(**USUAL)
    state = _start(agent)
    for _ in range(2):  # the first only fills the replay
        state, metrics = update(state, rollout(state), KEY)
    for name in ("loss", "loss/policy", "loss/value", "value", "entropy", "temperature", "finite"):
        assert metrics[name].shape == (T,)
    assert metrics["finite"].dtype == bool and metrics["finite"].all() and metrics["learning_rate"] == np.float32(1e-2)
    np.testing.assert_allclose(metrics["loss"], metrics["loss/policy"] + metrics["loss/value"], rtol=1e-5)


def test_a_nan_is_blamed_on_the_task_that_brought_it():
    """It may lie in the replay for hours before it is drawn, and then spreads to every task."""
    agent, update, rollout = _update(**USUAL)
    state = _start(agent)
    sick = rollout(state)
    reward = sick.reward.copy()
    reward[3, 1, 1] = np.nan
    np.testing.assert_array_equal(update(state, sick._replace(reward=reward), KEY)[1]["finite"], [True, False, True])


@pytest.mark.parametrize("method", ["fixed(weights=(1, 2, 3))", "cosine_gate(2)", "trimmed_mean"])
def test_fine_tuning_needs_no_method_of_all_tasks(method):
    """Weights of three tasks, or a main one among them, say nothing of the one task that an agent learns on in."""
    check_fine_tuning(_make(method=grads.get(method)))


@pytest.mark.parametrize("weights", ["own", "shared"])
def test_fine_tuning_of_composed_networks(weights):
    """PaCo's weights of the one task, which policy and critics may have in common, learn on as the rest does."""
    check_fine_tuning(_make(arrangement="paco", paco_weights=weights))


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.19, 0.25, 0.6, 1.0, 4.0])
def test_fine_tuning_keeps_the_ratio_of_gradient_steps(ratio):
    agent = _make(update_to_data=ratio)
    alone = transfer.of_one_task(agent, 10_000)
    assert alone.arriving == transfer.rollout_length(agent) >= agent.config.rollout_length
    assert alone.num_steps / alone.arriving == pytest.approx(ratio, rel=0.05)
    if ratio * H == int(ratio * H):
        assert alone.arriving == H


def test_fine_tuning_starts_from_a_scale_between_those_of_the_tasks():
    """A mean would be the largest task's, and what is known of many steps would keep it so."""
    agent = _make(return_scaling="running")
    state = _start(agent)
    returns = state.rewards.returns._replace(
        count=jnp.full(T, 1e6), variance=jnp.asarray([1.0, 1e2, 1e4]), mean=jnp.asarray([1.0, 2.0, 6.0])
    )
    rewards = state.rewards._replace(returns=returns, largest=jnp.asarray([1.0, 10.0, 100.0]))
    alone = transfer.of_one_task(agent, 100)
    observations = state.observations._replace(count=jnp.full(state.observations.count.shape, 1e6))
    state = state._replace(rewards=rewards, observations=observations)
    unseen = Unseen(jnp.zeros((1, 0)), jnp.ones((1, 3)))
    start = jax.jit(lambda s, unseen: transfer.of_one_state(alone, s, unseen, KEY))
    found = start(state, unseen).rewards
    sizes = [found.returns.variance[0], found.largest[0], found.returns.mean[0]]
    np.testing.assert_allclose(sizes, [100, 10, 3], rtol=1e-4)
    assert (
        found.returns.count[0] == transfer.KNOWN and (start(state, unseen).observations.count == transfer.KNOWN).all()
    )
    alike = start(state, unseen._replace(relatives=jnp.asarray([[0.0, 0.0, 1.0]])))  # as the third task alone
    np.testing.assert_allclose(alike.rewards.returns.variance, [1e4], rtol=1e-5)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x[0], alike.params["policy"].private),
        jax.tree.map(lambda x: x[2], state.params["policy"].private),
    )


def check_fine_tuning(agent):
    tuning, unseen = agent.learner().fine_tuning(H), Unseen(jnp.zeros((1, 0)), jnp.ones((1, 3)))

    def tune(state):
        shape = (tuning.rollout_length, 1, 1)
        seen, zeros, never = jnp.zeros((*shape, OBS)), jnp.zeros(shape), jnp.zeros(shape, bool)
        rollout = Transitions(seen, zeros, never, never, seen, {"action": zeros.astype(jnp.int32)})
        return tuning.update(tuning.start(state, unseen, KEY), unseen, rollout, KEY)[0]

    tuned = jax.eval_shape(tune, jax.eval_shape(agent.init, KEY))
    assert tuned.log_temperature.shape == (1,)


def test_choices_that_are_none_are_never_made():
    """Padded choices: neither at random, nor by the policy, nor in the expectation of the losses."""
    agent = _make(sizes=(3, 2, 1), initial_temperature=0.3, warm_start=1)
    state = _start(agent)
    for seen in (0, 1):
        action, _ = _act(agent, state._replace(seen=np.int32(seen)))
        assert action.dtype == np.int32 and [sorted(set(a.tolist())) for a in action] == [
            [0, 1, 2],
            [0, 1],
            [0],
        ]

    @jax.jit
    def candidates_of(state, t):
        known = _task(agent._known(state, KEY), t)
        return agent._candidates(_of(state.params["policy"], t), known, jnp.zeros((B, OBS)), KEY)

    candidates = jax.device_get(candidates_of(state, np.int32(2)))
    np.testing.assert_allclose(candidates.probability, np.eye(3)[np.zeros(B, int)], atol=1e-7)
    assert (candidates.log_prob == 0).all()


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_policy_for_evaluation(kind):
    """Deterministic is the mode and needs no key; stochastic explores; unseen tasks get the mean."""
    action = discrete(3) if kind == "discrete" else continuous(2)
    agent = _make(action=action, arrangement="multi_head", normalize_observations=True)
    state = _start(agent)
    observation, other = np.ones((T, 40, OBS), np.float32), jax.random.key(9)
    yes, no, act = np.bool_(True), np.bool_(False), jax.jit(agent.evaluation_policy)
    mode = act(state, observation, KEY, yes)
    assert mode.shape == (T, 40, *action.shape)
    np.testing.assert_array_equal(mode, act(state, observation, other, yes))
    drawn = np.asarray(act(state, observation, KEY, no))
    assert (drawn != np.asarray(act(state, observation, other, no))).any() and (abs(drawn) <= 2).all()
    others = Unseen(np.zeros((5, 0), np.float32), np.ones((5, action.size), np.float32))
    unseen = np.asarray(act(state, np.ones((5, E, OBS), np.float32), KEY, yes, others))
    assert unseen.shape == (5, E, *action.shape)
    np.testing.assert_array_equal(unseen[0], unseen[4])


def test_the_parts_of_brc_together():
    """Wide residual critics, categorical returns and the return normaliser (each tested alone, too) in one update."""
    network = (("value_trunk", "residual"), ("embedding_size", 4), ("unit_norm_embedding", True))
    rest = {"critic_head": "categorical", "num_atoms": 11, "return_scaling": "range", "critic_reduction": "mean"}
    agent, update, rollout = _update(network=network, action=continuous(2), arrangement="embedding", **rest)
    state = _start(agent)
    layers = state.params["critic"].shared["trunk"]["params"]
    assert layers["LayerNorm_2"]["scale"].shape == (2, 8)
    assert state.params["critic"].private["embedding"].shape == (T, 2, 4)
    state, metrics = update(state, rollout(state), KEY)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, metrics)))
    for config in (SACConfig, HiPBMDPConfig):  # before anything is made, and of every trial that is packed
        with pytest.raises(ValueError, match="return_scaling: 'range' needs a discount below 1, not 1.0"):
            validate(config(return_scaling="range", discount=1.0))


def test_critics_of_their_own_under_one_policy():
    """One task's rewards move its critic and no other; the policy is all tasks', so that unseen ones have one."""
    agent = _make(arrangement="none", network=(("value_arrangement", "independent"),))
    learner, state = agent.learner(), _start(agent)
    assert learner.generalises and learner.fine_tuning is None  # an average of critics is none to learn on with
    assert not jax.tree.leaves(state.params["critic"].shared) and not jax.tree.leaves(state.params["policy"].private)
    rollout = jax.device_get(jax.jit(functools.partial(_rollout, agent))(state))
    reward = rollout.reward.copy()
    reward[:, 0] *= -3.0
    other = rollout._replace(reward=reward)

    @jax.jit
    def learnt(rollout):
        before = agent._take_in(state, rollout)
        batch = agent._prepare(before, agent.buffer.sample(before.replay, KEY, B))
        return agent._step(before._replace(replay=None), batch, KEY)[0].params

    one, two = jax.device_get((learnt(rollout), learnt(other)))
    for a, b in zip(jax.tree.leaves(one["critic"].private), jax.tree.leaves(two["critic"].private), strict=True):
        np.testing.assert_allclose(a[1:], b[1:], rtol=1e-5, atol=1e-7)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one["critic"].private, two["critic"].private)
    assert max(jax.tree.leaves(moved)) > 1e-4
