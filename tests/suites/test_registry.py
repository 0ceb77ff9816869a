"""A user finds suites by name, and makes new ones; mistakes get one clear message."""

import jax
import jax.numpy as jnp
import pytest

from mtjax import suites
from mtjax.envs import Step, VectorEnv, continuous

pytestmark = pytest.mark.smoke
VERSION = suites.Version(suite="1", simulator="none", reward="1", horizon=7)


class Drift:
    observation_size = 1
    action = continuous(1)

    def reset(self, task, key):
        return task["start"], task["start"][None]

    def step(self, task, state, action, key):
        state = state + action[0]
        return state, Step(state[None], -jnp.abs(state), False, False, state[None], {})


def split(*starts, names=None):
    names = names or [f"start_{start}" for start in starts]
    infos = tuple(suites.TaskInfo(name, f"Starts at {name}.") for name in names)
    return suites.Split(infos, suites.stack([{"start": start} for start in starts]))


ONE = split(1.0).infos


def test_from_env_makes_a_working_suite():
    made = suites.from_env("drift", Drift(), {"train": split(1.0, 2.0)}, version=VERSION)
    suites.register("drift")(lambda: made)
    suite = suites.make("drift")
    assert suite.num_tasks == 2 and suite.horizon == 7 and not suite.has_success
    assert [info.name for info in suite.tasks] == ["start_1.0", "start_2.0"]
    envs = suite.vector_env(3)
    assert isinstance(envs, VectorEnv) and envs.horizon == 7
    _, observation = envs.reset(jax.random.key(0))
    assert observation.tolist() == [[[1.0]] * 3, [[2.0]] * 3]


def test_from_env_finds_out_whether_success_is_reported():
    """Without has_success=True it used to be lost, without a word."""

    class Reaching(Drift):
        def step(self, task, state, action, key):
            state, step = super().step(task, state, action, key)
            return state, step._replace(info={"success": jnp.abs(state) < 0.1})

    splits = {"train": split(1.0, 2.0)}
    assert suites.from_env("drift", Reaching(), splits, version=VERSION).has_success
    assert not suites.from_env("drift", Reaching(), splits, version=VERSION, has_success=False).has_success


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": suites.Split(ONE, {"start": jnp.zeros(2)})},
            r"has 1 infos.*\[1\]; found \[\[2\]\]",
        ),
        ({"train": suites.Split(ONE, {"start": jnp.zeros(())})}, r"has 1 infos.*found \[\[\]\]"),
        ({"train": suites.Split(ONE, {})}, r"has 1 infos.*found \[\]"),
        ({"train": split(1.0, 2.0, names=["same", "same"])}, "repeats a task name"),
        ({"interpolation": split(1.0)}, "no split 'train', only \\['interpolation'\\]"),
    ],
)
def test_from_env_names_what_is_wrong(splits, message):
    with pytest.raises(ValueError, match=message):
        suites.from_env("drift", Drift(), splits, version=VERSION)


def test_an_unknown_split_lists_those_there_are():
    suite = suites.from_env("drift", Drift(), {"train": split(1.0)}, version=VERSION)
    with pytest.raises(ValueError, match=r"'drift' has no split 'test'; it has train"):
        suite.vector_env(2, split="test")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gridworld-two-room", "gridworld-two-rooms"),
        ("Gridworld-Mazes", "gridworld-mazes"),
        ("cartpole", "control-cartpole"),
        ("control_acrobot", "control-acrobot"),
    ],
)
def test_an_unknown_suite_names_the_nearest(typed, meant):
    with pytest.raises(ValueError, match=rf"unknown suite '{typed}'; did you mean .*{meant}"):
        suites.make(typed)


def test_a_name_like_no_other_lists_all():
    with pytest.raises(ValueError, match="known suites: .*gridworld-mazes"):
        suites.make("zzzzzzzz")


def test_a_name_is_taken_once_unless_replaced():
    make = suites.register("taken")(lambda: None)
    with pytest.raises(ValueError, match="'taken' is already registered"):
        suites.register("taken")(make)
    suites.register("taken", replace=True)(make)
    assert "taken" in suites.names() and suites.names() == sorted(suites.names())


def test_a_suite_must_bear_the_name_it_is_registered_by():
    made = suites.from_env("drift", Drift(), {"train": split(1.0)}, version=VERSION)
    suites.register("other")(lambda: made)
    with pytest.raises(ValueError, match="registered as 'other' calls itself 'drift'"):
        suites.make("other")


def test_stack_names_the_task_that_differs():
    with pytest.raises(ValueError, match=r"task 1 has \['b'\], task 0 has \['a'\]"):
        suites.stack([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ValueError, match="at least one"):
        suites.stack([])


def test_suites_of_ones_own_are_known_to_every_process(tmp_path, monkeypatch):
    """A sweep's programs know of a suite only what the environment says."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_suites.py").write_text(
        "import dataclasses\nfrom mtjax import suites\n\n"
        "@suites.register('own-pendulum')\n"
        "def make():\n"
        "    return dataclasses.replace(suites.make('control-pendulum'), name='own-pendulum')\n"
    )
    monkeypatch.setenv("MTJAX_SUITES", "own_suites")
    suites._import_own()
    assert suites.make("own-pendulum").num_tasks == 9
    monkeypatch.setenv("MTJAX_SUITES", "own_suite")
    for missing in ("own_suite.more", "nosuch.own_suite"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"={missing}: there is no such module"):
            patch.setenv("MTJAX_SUITES", missing)
            suites._import_own()
    with pytest.raises(ValueError, match="MTJAX_SUITES=own_suite: there is no such module"):
        suites._import_own()
