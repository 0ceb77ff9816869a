"""Memory: what a run needs is said before it starts, and as many environments are chosen as fit and are of use."""

import contextlib
import types

import jax
import jax.numpy as jnp
import pytest

from mtjax import options
from mtjax.launch import presets
from mtjax.suites import make
from mtjax.training import memory
from mtjax.training.memory import Footprint, choose
from mtjax.training.meshes import ONE, Layout
from mtjax.training.trainer import Trainer

GB = 10**9
RUN = {"start": 32, "steps_of_env": 8 * 64}  # a preset's environments; tasks · rollout_length


def gigabyte_each(number: int) -> float:
    return number * GB


def test_as_many_as_the_memory_takes():
    """Half of what is free: 128 need more than 100 of 200 GB."""
    choice = choose(gigabyte_each, 200 * GB, total_steps=10**9, **RUN)
    assert choice == (64, "128 would take more than 50% of the free 200 GB")


def test_as_many_as_leave_enough_updates():
    """On a large device the length of the run is what limits: 10M steps are 610 updates of 32 environments."""
    choice = choose(gigabyte_each, 10**6 * GB, total_steps=10_000_000, **RUN)
    assert choice.num_envs == 64
    assert choice.reason.startswith("128 would leave only 152 updates in 10,000,000 steps; the minimum is 200")
    assert choice.reason.endswith("memory is not the limit: 64 GB of 1 PB")


def test_a_short_run_keeps_the_presets_number():
    choice = choose(gigabyte_each, 10**6 * GB, total_steps=100_000, **RUN)
    assert choice.num_envs == 32 and choice.reason.startswith("64 would leave only 3 updates in 100,000 steps")


def test_fewer_where_the_presets_number_does_not_fit():
    choice = choose(gigabyte_each, 20 * GB, total_steps=10**9, **RUN)
    assert choice == (8, "16 would take more than 50% of the free 20 GB")
    choice = choose(gigabyte_each, 1 * GB, total_steps=10**9, **RUN)
    assert choice == (1, "even this number takes more than 50% of the free 1 GB")


def test_a_multiple_of_the_mesh():
    def chosen(**sizes):
        return choose(gigabyte_each, 40 * GB, total_steps=10**9, steps_of_env=512, **sizes).num_envs

    assert chosen(start=40, multiple=4) == 20
    assert chosen(start=44, multiple=4) == 44  # half of it is none
    assert chosen(start=32, multiple=3) == 15 and chosen(start=1, multiple=3) == 12


def test_without_a_word_about_memory_the_updates_decide():
    choice = choose(gigabyte_each, None, total_steps=10_000_000, **RUN)
    assert choice == (64, "128 would leave only 152 updates in 10,000,000 steps; the minimum is 200")


def test_the_need_of_a_run_is_what_its_arrays_take(monkeypatch):
    """Twice the environments add exactly their state and rollout; a mesh divides them, and seeds divide the rest."""
    config = presets.configure("control-cartpole", num_envs=4, num_minibatches=2, hidden_sizes=(8,), total_steps=10**9)
    suite = make(config.suite)
    seen = {}

    def spy(needs, free, **sizes):
        seen.update(sizes, needs=needs)
        return memory.Choice(sizes["start"], "")

    monkeypatch.setattr(memory, "choose", spy)
    memory.choose_envs(config, suite, ONE)
    alone, steps = seen["needs"], seen["steps_of_env"]
    assert steps == suite.num_tasks * config.hyper.rollout_length
    # observation and final observation of 4 numbers, reward, two flags, the action's logarithm and choice
    rollout = steps * (2 * 4 * 4 + 4 + 2 + 4 + 4)
    each = (alone(12) - alone(8)) / 4 / (1 + memory.TEMPORARIES)
    assert rollout < each < 1.2 * rollout  # and the environments themselves
    memory.choose_envs(options.replace(config, {"num_seeds": 2}), suite, Layout(2, 2))
    meshed = seen["needs"]
    assert (meshed(12) - meshed(8)) == pytest.approx((alone(12) - alone(8)) / 2)
    assert seen["multiple"] == 2 and meshed(0) == pytest.approx(alone(0))


@pytest.mark.parametrize("saved", [True, False])
def test_a_replay_needs_its_room_once(monkeypatch, saved):
    """It is written in place, so that no allowance is made for temporaries of it; and it is there though not saved."""
    options_of = {"learner": "sac", "replay_capacity": 50_000, "hidden_sizes": (8,), "checkpoint_replay": saved}
    config = presets.configure("control-pendulum", **options_of)
    suite, needs = make(config.suite), []
    monkeypatch.setattr(memory, "choose", lambda need, free, **sizes: needs.append(need) or memory.Choice(1, ""))
    for capacity in (50_000, 100_000):
        memory.choose_envs(options.replace(config, {"replay_capacity": capacity}), suite, ONE)
    small, large = (need(config.num_envs) for need in needs)
    row = (2 * suite.observation_size + suite.action.size + 2) * 4  # observations, action, reward, the end
    assert large - small == pytest.approx(50_000 * suite.num_tasks * row, rel=0.1)


def test_a_run_that_cannot_fit_is_refused_before_it_starts(monkeypatch):
    """What is traced is exact; a rollout far below the memory is not traced, so that a normal run starts at once."""
    config = presets.configure("control-cartpole", num_envs=4, num_minibatches=2, hidden_sizes=(8,))
    trainer = Trainer(config, make(config.suite))
    rollout, need = memory._rollout(trainer), memory._size(memory._shapes(trainer))
    assert rollout < need
    traced = []
    shapes = memory._shapes
    monkeypatch.setattr(memory, "_shapes", lambda trainer: traced.append(1) or shapes(trainer))
    for free, refused, traces in (
        (None, False, 0),
        (rollout - 1, True, 0),
        (rollout, True, 1),
        (need - 1, True, 1),
        (need, False, 1),
        (rollout / memory.LOOK, False, 0),
    ):
        traced.clear()
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        with pytest.raises(ValueError, match="num_envs=4, num_seeds=1: ") if refused else contextlib.nullcontext():
            memory.require(trainer)
        assert len(traced) == traces, free


def test_simulators_on_the_host_are_left_alone():
    """To try numbers out would start their pools."""
    suite = types.SimpleNamespace(name="metaworld-mt10", on_device=False)
    with pytest.raises(ValueError, match="'metaworld-mt10' runs its simulators on the host, limited by cores"):
        memory.choose_envs(presets.configure("gridworld-two-rooms"), suite, ONE)


def test_what_a_compiled_program_takes():
    found = memory.of_program(jax.jit(lambda x: x + 1).lower(jnp.zeros(1000, jnp.float32)).compile())
    assert found.arguments == found.results == 4000
    donated = memory.of_program(jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros(1000)).compile())
    assert donated.arguments == 4000 and donated.results == 0
    assert memory.of_program(types.SimpleNamespace(memory_analysis=lambda: None)) is None


def test_memory_in_one_line():
    program = Footprint(4 * GB, 0, 2 * GB)
    text = memory.describe(program, 10 * GB)
    assert text == "memory per device: 6 GB (state and rollout 4 GB, results 0 B, temporaries 2 GB); 10 GB free"
    assert memory.describe(program, GB).endswith("this will probably not fit: lower num_envs or num_seeds")
    assert memory.describe(program, None).endswith("temporaries 2 GB)")
    assert memory.describe(None, GB) is None
