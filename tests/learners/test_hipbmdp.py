"""HiP-BMDP: what its losses move, what it is in the limits, what its gate admits, and that it learns."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrangement_cases import quick_initialisation
from learner_loop import learn, optimal_of

from mtjax import grads
from mtjax.envs import probe
from mtjax.envs.base import continuous, discrete
from mtjax.learners import hipbmdp, replay, sac
from mtjax.learners.base import TaskSpec, Transitions, Unseen
from mtjax.learners.config import HiPBMDPConfig, SACConfig
from mtjax.networks.base import Parameters
from mtjax.networks.config import NetworkConfig

__all__ = ["quick_initialisation"]  # of every test here
T, E, H, OBS, B = 3, 2, 4, 3, 6
KEY = jax.random.key(5)
SMALL = {
    "rollout_length": H,
    "update_to_data": 0.25,
    "batch_size": B,
    "replay_capacity": 48,
    "warm_start": 0,
    "learning_rate": 1e-2,
    "discount": 0.9,
}
MODELS = {"latent_size": 4, "state_encoder_sizes": (5,), "theta_size": 2, "theta_hidden_sizes": (), "model_sizes": (6,)}


def _network(arrangement="none", **options):
    return NetworkConfig(arrangement=arrangement, hidden_sizes=(8,), scale="state", **options)


def _make(*, action=None, network=None, method=None, **options):
    config = HiPBMDPConfig(**{**SMALL, **MODELS, **options})
    config.check()
    spec = TaskSpec(T, OBS, action or continuous(2))
    return hipbmdp.HiPBMDP(config, network or _network(), method or grads.mean(), spec, num_envs=E)


def _sample(action, seed=0):
    draw = np.random.default_rng(seed)
    taken = draw.integers(0, action.size, (T, B)) if action.kind == "discrete" else draw.uniform(-1, 1, (T, B, 2))
    return replay.Sample(
        observation=draw.normal(size=(T, B, OBS)).astype(np.float32),
        action=taken.astype(np.int32 if action.kind == "discrete" else np.float32),
        reward=draw.normal(size=(T, B)).astype(np.float32),
        terminated=np.broadcast_to(np.arange(B) == 0, (T, B)),
        final_observation=draw.normal(size=(T, B, OBS)).astype(np.float32),
    )


def _rollout(agent, state, seed=0):
    draw = np.random.default_rng(seed)
    observation, final = (jnp.asarray(draw.normal(size=(H, T, E, OBS)), jnp.float32) for _ in range(2))
    _, extras = jax.vmap(agent.act, in_axes=(None, 0, 0))(state, observation, jax.random.split(KEY, H))
    reward = jnp.asarray(draw.normal(size=(H, T, E)), jnp.float32)
    no = jnp.zeros((H, T, E), bool)
    return Transitions(observation, reward, no, no, final, extras)


def _close(a, b, rtol=1e-4, atol=1e-6):
    chex.assert_trees_all_close(jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b), rtol=rtol, atol=atol)


# ---------------------------------------------------------------------------------------------- limits


def test_without_encoder_embedding_and_losses_it_is_sac():
    """The same start, the same gradient step: what HiP-BMDP adds is what its options say."""
    action = discrete(3)
    nothing = {"state_encoder": "identity", "theta_size": 0, "transition_cost": 0.0, "reward_cost": 0.0}
    config = HiPBMDPConfig(**SMALL, **nothing)
    config.check()
    spec, network = TaskSpec(T, OBS, action), _network("one_hot")
    mine = hipbmdp.HiPBMDP(config, network, grads.pcgrad(), spec, num_envs=E)
    plain = sac.SAC(SACConfig(**SMALL), network, grads.pcgrad(), spec, num_envs=E)

    def step(agent):
        state = agent.init(jax.random.key(0))
        state, metrics = agent._step(state, agent._prepare(state, _sample(action)), KEY)
        return state, metrics

    (found, found_metrics), (expected, metrics) = (
        jax.jit(step, static_argnums=0)(mine),
        jax.jit(step, static_argnums=0)(plain),
    )
    _close(found.params["policy"], expected.params["policy"])
    critic = found.params["critic"]
    _close(critic._replace(shared=critic.shared["critic"]), expected.params["critic"])
    _close(found.log_temperature, expected.log_temperature)
    assert set(metrics) == set(found_metrics)


# ----------------------------------------------------------------------------------------- what moves what


@functools.cache
def _gradients():
    """Of task 1: each loss's gradient; then what moves the critics, ungated and gated; then the losses themselves."""
    options = {"reconstruction_cost": 0.5, "transition_model": "ensemble", "transition_members": 2}
    agent, gated = _make(**options), _make(**options, auxiliary_gate="weighted")

    @jax.jit
    def known(key):
        state = agent.init(key)
        batch, beliefs = agent._prepare(state, _sample(agent.spec.action)), agent._known(state, KEY)
        of = lambda tree: jax.tree.map(lambda leaf: leaf[1], tree)  # noqa: E731
        policy, critic = (p._replace(private=of(p.private)) for p in (state.params["policy"], state.params["critic"]))
        batch, beliefs = of(batch), of(beliefs)
        target = agent.task_target(policy, critic, beliefs, batch)
        losses = agent.losses(policy, beliefs, batch, target)
        each = {name: jax.grad(loss, has_aux=True)(critic)[0] for name, loss in losses.items()}
        moves = (one.critic_gradient(critic, policy, beliefs, batch, target) for one in (agent, gated))
        return each, *moves, {name: loss(critic)[0] for name, loss in losses.items()}

    return jax.device_get(known(jax.random.key(0)))


def _moved(gradient):
    """Which parts of the world a gradient moves."""
    return {
        name
        for name, part in gradient.shared["world"].items()
        if any(float(np.abs(leaf).max()) > 1e-7 for leaf in jax.tree.leaves(part))
    }


def test_every_loss_moves_what_it_should():
    """θ stands for the dynamics: values move the encoder, never the embeddings."""
    each, *_ = _gradients()
    assert {name: _moved(gradient) for name, gradient in each.items()} == {
        "value": {"encoder"},
        "transition": {"encoder", "embedding", "transition"},
        "reward": {"encoder", "embedding", "reward"},
        "reconstruction": {"encoder", "decoder"},
    }
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(each["value"].shared["critic"]))


def test_ungated_it_is_the_sum_of_all():
    each, ((loss, metrics), direction), _, losses = _gradients()
    np.testing.assert_allclose(loss, sum(losses.values()), rtol=1e-4)
    _close(direction, jax.tree.map(lambda *leaves: sum(leaves), *each.values()))
    assert {"loss/value", "loss/transition", "loss/theta", "loss/reward", "loss/reconstruction"} <= set(metrics)
    assert not [name for name in metrics if name.startswith("gate/")]


def _flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def test_the_gate_admits_by_the_cosine_on_the_encoder():
    """Each auxiliary loss counts on the encoder as far as it agrees with the critics; its own model learns in full."""
    each, _, ((loss, metrics), direction), losses = _gradients()
    encoders = {name: _flat(g.shared["world"]["encoder"]) for name, g in each.items()}
    main, expected, admitted = encoders["value"], encoders["value"].copy(), float(losses["value"])
    for name in ("transition", "reward", "reconstruction"):
        cosine = main @ encoders[name] / np.linalg.norm(main) / np.linalg.norm(encoders[name])
        weight = max(cosine, 0.0)
        np.testing.assert_allclose(metrics[f"gate/{name}"], weight, atol=1e-4)
        expected += weight * encoders[name]
        admitted += weight * losses[name]
    np.testing.assert_allclose(loss, admitted, rtol=1e-3)
    np.testing.assert_allclose(_flat(direction.shared["world"]["encoder"]), expected, rtol=1e-3, atol=1e-5)
    for part in ("transition", "reward", "embedding", "decoder"):
        summed = sum(_flat(g.shared["world"][part]) for g in each.values())
        np.testing.assert_allclose(_flat(direction.shared["world"][part]), summed, rtol=1e-3, atol=1e-6)


def test_an_opposed_loss_is_kept_out_of_the_encoder():
    """Made by hand: one that agrees, one that opposes, one at a right angle."""

    def gradient(encoder, own):
        encoder, own = np.float32(encoder), np.float32([own])
        world = {"encoder": {"kernel": encoder}, "decoder": {"kernel": own}}
        return Parameters({"world": world, "critic": {"kernel": own}}, {})

    rows = [gradient([2.0, 0.0], 1.0), gradient([3.0, 4.0], 2.0), gradient([-1.0, 5.0], 3.0), gradient([0.0, 1.0], 4.0)]
    admit = jax.jit(hipbmdp.admit, static_argnames="weighted")
    direction, weights = admit(rows, weighted=True)
    np.testing.assert_allclose(weights, [1.0, 0.6, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(direction.shared["world"]["encoder"]["kernel"], [3.8, 2.4], rtol=1e-6)
    np.testing.assert_allclose(direction.shared["world"]["decoder"]["kernel"], [10.0])
    direction, weights = admit(rows, weighted=False)
    np.testing.assert_allclose(weights, [1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(direction.shared["world"]["encoder"]["kernel"], [5.0, 5.0], rtol=1e-6)


# --------------------------------------------------------------------------------------------- whole updates


def test_one_trace_serves_every_update_and_everything_moves():
    """All parts together; targets follow the encoder slowly, too."""
    agent = _make(
        transition_model="ensemble",
        transition_members=2,
        reconstruction_cost=0.5,
        latent_cost=1e-3,
        auxiliary_gate="unweighted",
        normalize_observations=True,
    )
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(agent.update, n=1))
    start = state = jax.jit(agent.init)(jax.random.key(0))
    rollout = jax.jit(functools.partial(_rollout, agent))(state)
    for _ in range(3):
        state, metrics = update(state, rollout, KEY)
    chex.clear_trace_counter()
    start, state, metrics = jax.device_get((start, state, metrics))
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), (state.params, state.targets), (start.params, start.targets)
    )
    assert all(jax.tree.leaves(moved)) and metrics["finite"].all()
    for name in ("loss/transition", "loss/theta", "loss/reward", "loss/reconstruction", "gate/reward", "entropy"):
        assert metrics[name].shape == (T,) and np.isfinite(metrics[name]).all()
    assert metrics["grads/cosine/value"].shape == (T, T)


def test_unseen_tasks_are_acted_for_by_the_mean_embedding_and_by_an_inferred_one():
    """θ alone tells the policy of the task: with a training task's θ an unseen task is treated as that task."""
    action = discrete(3)
    agent = _make(action=action)
    state = jax.device_get(jax.jit(agent.init)(jax.random.key(0)))
    # A policy that has learnt nothing says the same to all: make it decided.
    state.params["policy"] = jax.tree.map(lambda leaf: 30.0 * leaf, state.params["policy"])
    adaptation, yes = agent.adaptation(), np.bool_(True)
    observation = np.random.default_rng(3).normal(size=(T, 50, OBS)).astype(np.float32)
    others = Unseen(np.zeros((T, 0), np.float32), np.ones((T, action.size), np.float32))
    act, adapted = jax.jit(agent.evaluation_policy), jax.jit(adaptation.policy)
    seen = np.asarray(act(state, observation, KEY, yes))
    zero_shot = np.asarray(act(state, observation, KEY, yes, others))

    @jax.jit
    def known(state):
        start = adaptation.start(state, others)
        seen = _sample(action), jnp.ones((T, B))
        inferred = adaptation.infer(state, start, *seen, others, num_steps=3, learning_rate=0.1)
        return start, agent.thetas(state.params["critic"], agent.tasks), inferred

    start, thetas, inferred = jax.device_get(known(state))
    np.testing.assert_array_equal(start[0], start[1])
    np.testing.assert_array_equal(adapted(state, start, observation, KEY, yes, others), zero_shot)
    np.testing.assert_array_equal(adapted(state, thetas, observation, KEY, yes, others), seen)
    assert seen.shape == zero_shot.shape == (T, 50, *action.shape) and (seen != zero_shot).any()
    assert inferred.shape == (T, 2) and (inferred != start).all()
    assert _make(theta_size=0).adaptation() is None


def test_images_are_encoded_by_convolutions():
    """Policy and critics get latent states, and no encoder of their own; sizes that do not fit are refused."""
    image = {"image_shape": (2, 3, 2), "conv_channels": (2,)}
    config, spec = HiPBMDPConfig(**SMALL, **MODELS), TaskSpec(T, 12, continuous(2))
    agent = hipbmdp.HiPBMDP(config, _network(**image), grads.mean(), spec, num_envs=E)
    state = jax.jit(agent.init)(jax.random.key(0))
    critic = state.params["critic"]
    assert "Conv_0" in critic.shared["world"]["encoder"]["params"]["ConvTrunk_0"]
    assert "encoder" not in critic.shared["critic"] and "encoder" not in state.params["policy"].shared
    action, _ = jax.jit(agent.act)(state, np.ones((T, 5, 12), np.float32), KEY)
    assert action.shape == (T, 5, 2) and np.isfinite(action).all()
    with pytest.raises(ValueError, match="an image of 2x3x2 has 12 numbers, but an observation has 11"):
        hipbmdp.HiPBMDP(config, _network(**image), grads.mean(), spec._replace(observation_size=11), num_envs=E)
    same = HiPBMDPConfig(**SMALL, state_encoder="identity")
    with pytest.raises(ValueError, match="no effect with state_encoder=identity"):
        hipbmdp.HiPBMDP(same, _network(**image), grads.mean(), spec, num_envs=E)
    with pytest.raises(ValueError, match=r"encoder_sizes: \(8,\) has no effect"):
        hipbmdp.HiPBMDP(config, _network(encoder_sizes=(8,), **image), grads.mean(), spec, num_envs=E)


def test_policy_and_critics_see_embeddings_in_units_of_their_spread():
    """The θ-learning error may shrink them to a hundredth: neither actions nor values may notice."""
    agent = _make()
    critic = jax.device_get(jax.jit(lambda key: agent.init(key).params["critic"])(jax.random.key(0)))
    observation = np.random.default_rng(5).normal(size=(T, 5, OBS)).astype(np.float32)

    @jax.jit
    def known(critic):
        return agent.thetas(critic, agent.tasks), agent._see(critic, agent.tasks, observation)

    small = jax.tree.map(lambda leaf: leaf, critic)
    small.shared["world"]["embedding"]["table"] = 0.01 * critic.shared["world"]["embedding"]["table"] + 3.0
    (thetas, of_small), (_, seen) = jax.device_get((known(small), known(critic)))
    np.testing.assert_allclose(thetas.mean(), 3.0, atol=0.1)
    _close(of_small, seen, rtol=1e-2, atol=1e-3)
    told = seen[:, 0, -2:]
    np.testing.assert_allclose([told.mean(axis=0).max(), np.sqrt((told**2).mean())], [0.0, 1.0], atol=1e-3)


def test_it_learns_tasks_that_only_theta_tells_apart(monkeypatch):
    """The policy is blind but for θ, and each task wants another action: θ must be learnt, and reach the policy.

    Rewards alone differ here. The θ-learning error sees transitions, which are alike, and would pull all θ together.
    """
    monkeypatch.undo()  # networks that are to learn start as they do outside of tests
    env, tasks = probe.ObservationAction(kind="continuous"), probe.tasks([1.0, -2.0, 0.5], [0.6, -0.4, 0.0])
    config = HiPBMDPConfig(
        learning_rate=1e-2,
        discount=0.9,
        polyak=0.1,
        rollout_length=5,
        update_to_data=0.1,
        batch_size=32,
        replay_capacity=2000,
        warm_start=40,
        initial_temperature=0.3,
        latent_size=8,
        state_encoder_sizes=(),
        theta_size=2,
        theta_hidden_sizes=(),
        theta_cost=0.0,
        model_sizes=(16,),
    )
    envs = env.vector_env(tasks, 8)
    spec = TaskSpec(envs.num_tasks, envs.observation_size, envs.action)
    network = NetworkConfig(arrangement="none", hidden_sizes=(16, 16), scale="state", activation="relu")
    agent = hipbmdp.HiPBMDP(config, network, grads.mean(), spec, num_envs=8)
    state, losses = learn(agent, envs, length=5, updates=300, metric="loss/reward")
    optimal = optimal_of(env, tasks, 0.9)
    actions = np.asarray(jax.jit(agent.evaluation_policy)(state, optimal.observations, KEY, np.bool_(True)))
    np.testing.assert_allclose(actions[..., 0], optimal.actions, atol=0.15)
    assert losses[-50:].mean() < 0.1 * losses[20:40].mean()


# ------------------------------------------------------------------------------------ what is refused


def test_gradnorm_of_models_needs_losses_above_0():
    """A Gaussian model's loss is a density's logarithm, which may be below 0; L/L(0) says nothing of it."""
    with pytest.raises(ValueError, match="critic_grads: gradnorm divides .* a likely transition's loss is below 0"):
        _make(critic_grads="gradnorm(alpha=1.0)")
    _make(critic_grads='gradnorm(alpha=1.0, surrogate="softplus")')
    _make(critic_grads="gradnorm(alpha=1.0)", transition_model="deterministic")
