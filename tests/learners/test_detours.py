"""Detours: where they lead is learnt from, what they were is not."""

import functools

import jax
import numpy as np
import pytest
from arrangement_cases import quick_initialisation

from mtjax import grads
from mtjax.envs.base import continuous, discrete
from mtjax.learners import detours, distral, ppo
from mtjax.learners.base import TaskSpec, Transitions
from mtjax.learners.config import DistralConfig, PPOConfig
from mtjax.networks.config import NetworkConfig

__all__ = ["quick_initialisation"]  # of every test here
T, E, H, OBS = 2, 3, 16, 3
KEY = jax.random.key(1)


def _draw(action, *, share, longest, length=200, num_envs=50, sizes=None):
    masks = np.ones((T, action.size), np.float32) if sizes is None else np.asarray(sizes)
    shape = {"length": length, "num_envs": num_envs}
    draw = functools.partial(detours.draw, action=action, share=share, longest=longest, **shape)
    return jax.device_get(jax.jit(draw)(KEY, masks))


@pytest.mark.parametrize("share, longest", [(0.2, 40), (0.5, 7), (0.8, 1)])
def test_share_is_that_of_every_step(share, longest):
    """Also of the first: a detour may be under way when a rollout begins."""
    active = _draw(discrete(2), share=share, longest=longest, length=60, num_envs=4000).active
    np.testing.assert_allclose(active.mean(), share, atol=0.01)
    np.testing.assert_allclose(active.mean(axis=(1, 2)), share, atol=0.04)


def test_one_action_is_held_for_the_whole_detour():
    plan = _draw(continuous(2), share=0.3, longest=8)
    assert np.abs(plan.action).max() <= 1 and plan.action[plan.active].std() == pytest.approx(1 / 3**0.5, abs=0.02)
    lengths = []
    for t in range(T):
        for e in range(plan.active.shape[2]):
            active, action = plan.active[:, t, e], plan.action[:, t, e]
            changes = np.any(action[1:] != action[:-1], axis=-1)
            assert not changes[~active[1:]].any()  # a new action only where a detour begins
            edges = np.flatnonzero(np.concatenate([[True], changes | (active[1:] != active[:-1]), [True]]))
            lengths += [b - a for a, b in zip(edges[1:-2], edges[2:-1], strict=True) if active[a]]
    assert sorted(set(lengths)) == list(range(1, 9))
    np.testing.assert_allclose(np.mean(lengths), 4.5, atol=0.2)


def test_only_real_actions():
    assert not _draw(continuous(2), share=0.5, longest=3, sizes=[[1, 1], [1, 0]]).action[:, 1, :, 1].any()
    choices = _draw(discrete(3), share=0.5, longest=3, sizes=[[1, 1, 1], [1, 1, 0]])
    held = [set(choices.action[:, t][choices.active[:, t]]) for t in range(T)]
    assert held == [{0, 1, 2}, {0, 1}]


LEARNERS = {"ppo": (ppo.PPO, PPOConfig), "distral": (distral.Distral, DistralConfig)}


def _make(learner="ppo", **options):
    kind, config = LEARNERS[learner]
    usual = {"num_epochs": 1, "num_minibatches": 1, "max_grad_norm": 0.0, "return_scaling": "none"}
    config = config(rollout_length=H, **{**usual, **options})
    network = NetworkConfig(arrangement="independent", hidden_sizes=(8,))
    return kind(config, network, grads.mean(), TaskSpec(T, OBS, continuous(2)), num_envs=E, num_updates=10)


@functools.cache
def _started(learner="ppo", **options):
    """(agent, a fresh state, a rollout in which no detour was possible), in one program."""
    agent, draw = _make(learner, **options), np.random.default_rng(0)
    observation = draw.normal(size=(H + 1, T, E, OBS)).astype(np.float32)
    nothing = np.zeros((H, T, E), bool)

    @jax.jit
    def start(key):
        state = agent.init(key)
        act = jax.vmap(agent.act, in_axes=(None, 0, 0))
        return state, act(state, observation[:-1], jax.random.split(key, H))[1]

    state, extras = jax.device_get(start(KEY))
    rollout = Transitions(
        observation=observation[:-1],
        reward=draw.normal(size=(H, T, E)).astype(np.float32),
        terminated=nothing,
        truncated=nothing,
        final_observation=observation[1:],
        extras=extras,
    )
    return agent, state, rollout


@functools.cache
def _update(**options):
    """The compiled update of an agent that several tests ask for."""
    return jax.jit(_started(**options)[0].update)


def _on(rollout, active):
    """The rollout with detours [H, T, E] under way."""
    return rollout._replace(extras={**rollout.extras, "detour": active})


def test_share_follows_its_schedule():
    """From detour_share at the first update to nothing at the last."""
    state = _started()[1]  # which knows nothing of detours

    @functools.cache
    def planned(**options):
        plan = _make(detour_share=0.4, detour_steps=2, **options).learner().detours
        keys = jax.random.split(KEY, 200)
        return jax.jit(lambda n: jax.vmap(lambda key: plan(state._replace(updates=n), key, H).active)(keys).mean())

    def share(updates, **options):
        return float(planned(**options)(np.int32(updates)))

    assert share(9) == pytest.approx(0.4, abs=0.02) == share(0, detour_schedule="linear")
    assert share(5, detour_schedule="linear") == pytest.approx(0.2, abs=0.02)
    assert share(10, detour_schedule="linear") == 0.0


def test_share_ends_with_its_part_of_the_run():
    """A grasp does not survive a detour: what is delicate is learnt after them."""
    agent = {kind: _make(detour_share=0.4, detour_part=0.5, detour_schedule=kind) for kind in ("constant", "linear")}
    state = _started()[1]  # which knows nothing of detours

    def shares(kind, updates):
        remaining = jax.vmap(lambda n: agent[kind]._remaining(state._replace(updates=n), kind, part=0.5))
        return np.asarray(jax.jit(remaining)(np.asarray(updates, np.int32))).tolist()

    assert shares("constant", (0, 4, 5, 9)) == [1.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(shares("linear", (0, 4, 5, 9)), [1.0, 0.2, 0.0, 0.0], atol=1e-6)
    learner = agent["constant"].learner()
    plan = jax.jit(lambda n: learner.detours(state._replace(updates=n), KEY, H).active)
    assert np.asarray(plan(np.int32(4))).any() and not np.asarray(plan(np.int32(5))).any()


@pytest.mark.parametrize("scaling", ["none", "running", "popart"])
def test_rewards_of_a_detour_change_nothing(scaling):
    """Neither its own steps learn from them, nor the steps before it, nor what scales; rewards after it do count."""
    options = {"detour_share": 0.2, "return_scaling": scaling}
    (_, state, rollout), update = _started(**options), _update(**options)
    active = np.zeros((H, T, E), bool)
    active[5:9, 0, 1] = True
    rollout = _on(rollout, active)

    def learnt(rollout):
        new = update(state, rollout, KEY)[0]
        return jax.device_get((new.params, new.returns, new.return_sums))

    want = learnt(rollout)

    def moved(steps):
        reward = rollout.reward.copy()
        reward[steps, 0, 1] += 100.0
        return learnt(rollout._replace(reward=reward))

    jax.tree.map(np.testing.assert_array_equal, moved(slice(5, 9)), want)
    for steps in (4, 9):
        leaves = zip(jax.tree.leaves(moved(steps)), jax.tree.leaves(want), strict=True)
        assert any(np.any(a != b) for a, b in leaves), steps


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_is_learnt_is_what_the_other_steps_alone_teach(learner):
    """Weight 0 is the same as not being there: a batch of three environments, two of them all on a detour."""
    agent, state, rollout = _started(learner, detour_share=0.2, normalize_observations=False)
    active = np.zeros((H, T, E), bool)
    active[:, :, 1:] = True
    batch, _, _ = jax.device_get(jax.jit(agent._targets)(state, _on(rollout, active)))
    kept = np.flatnonzero(batch.weight[0])  # only the steps of the first environment, by hand
    by_hand = jax.tree.map(lambda x: x[:, kept], batch._replace(weight=None))
    one = functools.partial(jax.tree.map, lambda x: x[0])

    @jax.jit
    def gradients(shared, private):
        loss, of_task = jax.grad(agent.task_loss, argnums=(0, 1), has_aux=True), (one(agent.tasks), agent.masks[0])
        return [loss(shared, one(private), *of_task, one(b), state.hyper, KEY)[0] for b in (batch, by_hand)]

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *gradients(*ppo.split(state.params))
    )


def test_a_rollout_that_is_all_detour_teaches_nothing_and_breaks_nothing():
    """A few environments and short rollouts: it happens. The mean of no advantages is NaN, if one is not careful."""
    (_, state, rollout), update = _started(detour_share=0.2), _update(detour_share=0.2)
    state = state._replace(hyper=state.hyper._replace(entropy_cost=np.float32(0.1)))
    after, metrics = update(state, _on(rollout, np.ones((H, T, E), bool)), KEY)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert all(np.isfinite(value).all() for value in jax.device_get(metrics).values())


def test_no_detours_no_difference():
    """A rollout in which none happened teaches what one teaches that could have none."""
    agent, state, rollout = _started()
    plain = _update()(state, rollout, KEY)[0]
    none = _update(detour_share=0.2)(state, _on(rollout, np.zeros((H, T, E), bool)), KEY)[0]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), plain.params, none.params)
    assert agent.learner().detours is None and _make(detour_share=0.1).learner().detours
