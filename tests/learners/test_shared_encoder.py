"""An encoder that policy and value network share: the same networks otherwise, and who teaches it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrangement_cases import CONTEXTS, OBS, SPEC, A, D, E, H, T, quick_initialisation, rollout_of

from mtjax import grads
from mtjax.learners import distral, hipbmdp, ppo, sac
from mtjax.learners.base import TaskSpec, Unseen
from mtjax.learners.config import DistralConfig, HiPBMDPConfig, PPOConfig, SACConfig
from mtjax.networks.arrangements import make_network
from mtjax.networks.base import Parameters
from mtjax.networks.config import NetworkConfig
from mtjax.networks.shared_encoder import behind, make_shared_encoder, through
from mtjax.networks.task import training_tasks

__all__ = ["quick_initialisation"]  # of every test here
CARE = {"arrangement": "care", "encoder_sizes": (3,), "context_sizes": (3,), "num_experts": 2}
CASES = {
    "care": CARE,
    "care, a head a task": {**CARE, "head": "private"},
    "care behind an encoder a task": {**CARE, "encoder": "private"},
    "an encoder a task": {"arrangement": "task_encoders", "encoder_sizes": (5, 3)},
    "an encoder and a head a task": {"arrangement": "encoders_and_heads"},
    "one encoder, film": {"arrangement": "film", "encoder": "shared"},
    "a plain policy behind care's encoders": {
        "arrangement": "one_hot",
        "value_arrangement": "care",
        "encoder_sizes": (50,),
    },
    "one agent a task": {"arrangement": "independent", "encoder": "private"},
    "images": {"arrangement": "one_hot", "image_shape": (3, 1, 1)},
}
ON_POLICY = PPOConfig(rollout_length=H, num_epochs=1, num_minibatches=1, learning_rate=1e-2)
OFF_POLICY = SACConfig(rollout_length=H, replay_capacity=16, batch_size=4, warm_start=1, learning_rate=1e-2)
AGENTS = {
    "ppo": lambda network: ppo.PPO(ON_POLICY, network, grads.pcgrad(), SPEC, num_envs=E, num_updates=2),
    "sac": lambda network: sac.SAC(OFF_POLICY, network, grads.pcgrad(), SPEC, num_envs=E),
}
VALUES = {"ppo": "value", "sac": "critic"}  # the names of the value networks' parameters


def _network(case, policy_encoder="value"):
    network = NetworkConfig(hidden_sizes=(4,), scale="state", policy_encoder=policy_encoder, **CASES[case])
    network.check()
    return network


@pytest.mark.parametrize("case", CASES)
def test_through_the_encoder_is_the_whole_network(case):
    """With the same parameters, what sees through a shared encoder is the network of ``make_network``."""
    network = _network(case)
    config = network.of_value()
    shape = {"inputs": OBS, "num_tasks": T, "contexts": D}
    whole = make_network(config, outputs=2, sizes=config.hidden_sizes, gain=1.0, **shape)
    encoder = make_shared_encoder(network, **shape)
    rest = make_network(
        behind(encoder, config), outputs=2, sizes=config.hidden_sizes, gain=1.0, **{**shape, "inputs": encoder.width}
    )
    apart = through(encoder, rest)
    draw, shapes = np.random.default_rng(2), jax.eval_shape(apart.init, jax.random.key(1))
    p = jax.tree.map(lambda leaf: 0.5 * draw.normal(size=leaf.shape).astype(np.float32), shapes)  # any will do
    merged = Parameters(*({**side["encoder"], **side["rest"]} for side in p))
    assert jax.tree.structure(merged) == jax.tree.structure(jax.eval_shape(whole.init, jax.random.key(0)))
    tasks, x = training_tasks(T, CONTEXTS), draw.normal(size=(T, 7, OBS)).astype(np.float32)

    def said(network):
        def of_task(*args):
            return network.apply(*args), dict(network.diagnose(*args))

        return jax.jit(jax.vmap(of_task, in_axes=(None, 0, 0, 0)))

    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, said(apart)(*p, tasks, x), said(whole)(*merged, tasks, x))
    if whole.last_shared:
        assert apart.last_shared.split("/", 1)[1] == whole.last_shared


@pytest.mark.parametrize("learner", AGENTS)
@pytest.mark.parametrize("case", ("care, a head a task", "an encoder a task", "one agent a task", "images"))
def test_updates(case, learner):
    """Everything is finite and moves; the policy has no encoder; routing is the value network's to tell."""
    network = _network(case)
    agent = AGENTS[learner](network)
    rollout = rollout_of({"action": np.random.default_rng(1).uniform(-1, 1, (H, T, E, A)).astype(np.float32)})

    @jax.jit
    def run(key):
        state = agent.init(key)
        _, extras = jax.vmap(agent.act, in_axes=(None, 0, None))(state, rollout.observation, key)
        seen = rollout if learner == "sac" else rollout._replace(extras=extras)
        after, metrics = agent.update(state, seen, key)
        acts = agent.evaluation_policy(after, rollout.observation[0], key, jnp.asarray(True))
        if network.generalises:  # to any number of tasks
            others = Unseen(jnp.concatenate([CONTEXTS] * 2), jnp.concatenate([agent.masks] * 2))
            theirs = jnp.concatenate([rollout.observation[0]] * 2)
            acts = agent.evaluation_policy(after, theirs, key, jnp.asarray(True), others)[T:]
        return state.params, after.params, metrics, acts

    before, after, metrics, acts = jax.device_get(run(jax.random.key(0)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, metrics, acts)))
    assert acts.shape == (T, E, A)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, before)
    assert not [path for path, flag in jax.tree_util.tree_leaves_with_path(moved) if not flag]
    encoders = [name for side in before["policy"] for name in side if name in ("encoder", "encoders", "context")]
    assert not encoders
    if network.of_value().arrangement == "care":
        assert metrics["routing/value"].shape == (T, network.num_experts)
    assert not any(name.startswith("routing") and name.endswith("policy") for name in metrics)


@pytest.mark.parametrize("learner", AGENTS)
def test_the_policy_acts_on_what_the_value_networks_encoder_says(learner):
    """Another encoder of the critics, other actions; another head of theirs, the same ones."""
    agent = AGENTS[learner](_network("an encoder a task"))
    state, policy = jax.device_get(jax.jit(agent.init)(jax.random.key(0))), jax.jit(agent.evaluation_policy)
    x = np.random.default_rng(1).normal(size=(T, E, OBS)).astype(np.float32)

    def act(change):
        value = state.params[VALUES[learner]]
        private, shared = ({k: dict(v) for k, v in side.items()} for side in (value.private, value.shared))
        change(shared, private)
        params = {**state.params, VALUES[learner]: Parameters(shared, private)}
        return np.asarray(policy(state._replace(params=params), x, jax.random.key(0), np.bool_(True)))

    def other_encoder(shared, private):
        private["encoder"] = jax.tree.map(lambda leaf: leaf + 0.5, private["encoder"])

    def other_rest(shared, private):
        shared["rest"] = jax.tree.map(lambda leaf: leaf + 0.5, shared["rest"])

    as_it_is = act(lambda shared, private: None)
    assert (np.abs(act(other_encoder) - as_it_is) > 1e-5).all()
    np.testing.assert_array_equal(act(other_rest), as_it_is)


@pytest.mark.parametrize(("teachers", "taught"), [("value", False), ("both", True)])
def test_who_teaches_the_encoder_of_ppo(teachers, taught):
    """Without a value loss the encoder has a gradient only where the policy teaches, too."""
    config = PPOConfig(rollout_length=H, num_epochs=1, num_minibatches=1, value_cost=0.0)
    agent = ppo.PPO(config, _network("care", teachers), grads.mean(), SPEC, num_envs=E, num_updates=2)
    rollout = rollout_of({})

    @jax.jit
    def gradients(key):
        state = agent.init(key)
        _, extras = jax.vmap(agent.act, in_axes=(None, 0, None))(state, rollout.observation, jax.random.key(1))
        batch, _, _ = agent._targets(state, rollout._replace(extras=extras))
        shared, private = ppo.split(state.params)
        loss = functools.partial(agent.task_loss, hyper=state.hyper, key=jax.random.key(2))
        of_tasks = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0, 0, 0, 0))
        return of_tasks(shared, private, agent.tasks, agent.masks, batch)[0]

    found = jax.device_get(gradients(jax.random.key(0)))
    norms = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found["value"]["encoder"])]
    assert all(norm > 0 for norm in norms) if taught else all(norm == 0 for norm in norms)
    assert all(float(np.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(found["value"]["rest"]))


def test_sacs_targets_have_a_slow_encoder_of_their_own():
    agent = AGENTS["sac"](_network("care"))
    rollout = rollout_of({"action": np.zeros((H, T, E, A), np.float32)})

    @jax.jit
    def run(key):
        before = agent.init(key)
        return before, agent.update(before, rollout, jax.random.key(1))[0]

    before, after = jax.device_get(run(jax.random.key(0)))
    old, new = (state.params["critic"].shared["encoder"] for state in (before, after))
    slow = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), after.targets.shared["encoder"], old))
    fast = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), new, old))
    assert all(0 < s < f for s, f in zip(slow, fast, strict=True))


def test_learners_that_cannot_say_so():
    spec = TaskSpec(T, OBS, SPEC.action, contexts=CONTEXTS)
    options = {"num_envs": E, "num_updates": 1}
    with pytest.raises(ValueError, match=r"^policy_encoder: in SAC only the critics' loss trains the shared encoder"):
        sac.make_sac(OFF_POLICY, _network("care", "both"), grads.mean(), spec, **options)
    with pytest.raises(ValueError, match=r"^policy_encoder: .*distral"):
        distral.make_distral(
            DistralConfig(rollout_length=H, num_minibatches=1), _network("care"), grads.mean(), spec, **options
        )
    with pytest.raises(ValueError, match=r"^policy_encoder: .*hipbmdp"):
        hipbmdp.make_hipbmdp(HiPBMDPConfig(), _network("care"), grads.mean(), spec, **options)
