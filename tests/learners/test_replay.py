"""Replay against a ring buffer in NumPy: a transition that is lost or mixed up is learnt from for ever."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.envs.base import continuous, discrete
from mtjax.learners import replay
from mtjax.learners.base import TaskSpec, Transitions

T, E, H, OBS = 2, 3, 4, 2


def _buffer(action=None, capacity=30, **options):
    return replay.Buffer(TaskSpec(T, OBS, action or continuous(2)), capacity=capacity, arriving=H * E, **options)


def _rollout(seed, action):
    draw = np.random.default_rng(seed)
    shape = (H, T, E)
    taken = (
        draw.integers(0, action.size, shape) if action.kind == "discrete" else draw.normal(size=(*shape, action.size))
    )
    rollout = Transitions(
        observation=draw.normal(size=(*shape, OBS)).astype(np.float32),
        reward=(1000 * draw.normal(size=shape)).astype(np.float32),
        terminated=draw.random(shape) < 0.3,
        truncated=draw.random(shape) < 0.3,
        final_observation=draw.normal(size=(*shape, OBS)).astype(np.float32),
        extras={},
    )
    return rollout, taken.astype(np.int32 if action.kind == "discrete" else np.float32)


def _stored(buffer, state, number):
    """The first transitions of each task that are stored, in NumPy."""
    return jax.device_get(jax.jit(lambda rows: buffer.unpack(rows[:, :number]))(state.rows))


def _as_tuples(sample, task):
    """The transitions of one task, as tuples of numbers; ``sample`` leads with [T, N]."""
    columns = [np.asarray(leaf[task]).reshape(leaf.shape[1], -1) for leaf in sample]
    return [tuple(map(float, row)) for row in np.concatenate(columns, axis=1)]


@pytest.mark.parametrize("action", [continuous(2), discrete(5)], ids=["continuous", "discrete"])
def test_holds_the_newest_transitions_of_each_task(action):
    """Five rollouts of 12 into room for 36 (30 rounded up): the oldest 24 are gone, nothing else, task by task."""
    buffer = _buffer(action)
    assert buffer.capacity == 36
    insert = jax.jit(buffer.insert, donate_argnums=0)
    ring = [collections.deque(maxlen=buffer.capacity) for _ in range(T)]
    state = buffer.init()
    for seed in range(5):
        rollout, taken = _rollout(seed, action)
        state = insert(state, rollout, taken)
        for h in range(H):
            one = replay.Sample(
                *(
                    x[h]
                    for x in (rollout.observation, taken, rollout.reward, rollout.terminated, rollout.final_observation)
                )
            )
            for t in range(T):
                ring[t].extend(_as_tuples(one, t))
        assert state.size == min(12 * (seed + 1), 36) and state.position == 12 * (seed + 1) % 36
        filled = _stored(buffer, state, int(state.size))
        for t in range(T):
            assert sorted(_as_tuples(filled, t)) == sorted(ring[t])
    assert filled.terminated.dtype == bool and filled.action.dtype == (
        np.int32 if action.kind == "discrete" else np.float32
    )


def test_draws_are_uniform_of_the_own_task_and_of_what_is_there():
    """A half-empty replay must not give zeros, and no task another's data."""
    action = continuous(2)
    buffer = _buffer(action)
    state, insert = buffer.init(), jax.jit(buffer.insert)
    for seed in range(2):
        state = insert(state, *_rollout(seed, action))
    sample = jax.jit(buffer.sample, static_argnums=2)
    drawn = jax.device_get(sample(state, jax.random.key(0), 4800))
    stored = _stored(buffer, state, 24)
    for t in range(T):
        count = collections.Counter(_as_tuples(drawn, t))
        assert set(count) == set(_as_tuples(stored, t))
        assert min(count.values()) > 140 and max(count.values()) < 270  # 200 ± 5 deviations
    rows = np.asarray(drawn.reward)
    assert not np.array_equal(rows, sample(state, jax.random.key(1), 4800).reward)
    ranks = [np.argsort(np.argsort(rows[t])) for t in range(T)]
    assert abs(np.corrcoef(ranks)[0, 1]) < 0.1  # each task's draws are its own


def test_room_for_more_than_arrives_changes_no_draw():
    """A fine-tuned agent's replay holds as much as will arrive; its curve must not depend on that."""
    drawn = []
    for capacity in (24, 1000):
        buffer = _buffer(capacity=capacity)
        state, insert, sample = buffer.init(), jax.jit(buffer.insert), jax.jit(buffer.sample, static_argnums=2)
        for seed in range(2):
            state = insert(state, *_rollout(seed, continuous(2)))
            drawn.append(sample(state, jax.random.key(seed), 64))
    chex.assert_trees_all_equal(drawn[:2], drawn[2:])


def test_insertion_is_in_place():
    """A copy of a million transitions at every update would cost more than learning."""
    buffer = _buffer()
    state = jax.tree.map(jnp.copy, buffer.init())
    before = state.rows.unsafe_buffer_pointer()
    state = jax.jit(buffer.insert, donate_argnums=0)(state, *_rollout(0, continuous(2)))
    assert state.rows.unsafe_buffer_pointer() == before


def test_memory_is_known_before_it_is_taken(monkeypatch):
    buffer = _buffer(capacity=10**6)
    assert buffer.bytes == 4 * T * buffer.capacity * (2 * OBS + 2 + 2)
    small = _buffer()
    assert small.bytes == small.init().rows.nbytes
    assert buffer.describe(3) == "replay: 1,000,008 transitions of each of 2 tasks and 3 seeds, 192 MB on the device"
    monkeypatch.setattr(replay, "free_memory", lambda: 100_000_000)
    buffer.require_memory(1)
    with pytest.raises(ValueError, match="3 seeds, 192 MB on the device, but 100 MB are free; lower replay_capacity"):
        buffer.require_memory(3)
    with pytest.raises(ValueError, match="but replay_limit allows 50 MB"):
        _buffer(capacity=10**6, limit=5e7).require_memory(1)
    _buffer(capacity=10**6, limit=5e8).require_memory(3)  # the user knows better
    monkeypatch.undo()
    assert replay.free_memory() is None or replay.free_memory() > 1e6


def test_a_replay_can_be_left_out_of_a_state():
    buffer = _buffer()
    full = {"a": jnp.ones(3), "replay": jax.jit(buffer.insert)(buffer.init(), *_rollout(0, continuous(2)))}
    light = replay.emptied(full)
    assert light["replay"].rows.size == 0 and light["replay"].size == light["replay"].position == 0
    again = replay.refilled(light, full)
    assert again["replay"].rows.shape == full["replay"].rows.shape and (again["replay"].rows == 0).all()
    assert [x.shape for x in replay.without(full)] == [(3,)]
