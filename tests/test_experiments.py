"""The studies under experiments/: every configuration that their flags can ask for is one that trains."""

import functools
import importlib
import pathlib
import sys

import pytest
from absl import flags

from mtjax import suites
from mtjax.training.trainer import check_splits, make_learner

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = flags.FLAGS

# Of a study: flags that are not its defaults, and what its variants are asked by.
CASES = [
    ("sharing", {}, ("hidden-hopper",)),
    ("sharing", {}, ("metaworld-mt10",)),
    ("sharing", {"learner": "sac"}, ("hidden-hopper",)),
    ("distral_two_rooms", {}, ()),
    ("distral_two_rooms", {"suite": "gridworld-mazes", "num_envs": 16}, ()),
    ("distral_two_rooms", {"suite": "control-pendulum"}, ()),
    ("hidden_parameters", {}, ()),
    ("auxiliary_gating", {}, ()),
    ("interference", {}, ()),
    ("exploration", {}, ("drawer-open",)),
    ("exploration", {"task": "pick-place"}, ("pick-place",)),
]


make_suite = functools.cache(suites.make)


@pytest.fixture
def study(monkeypatch):
    """Imports a study with flags of its own: all of them define the same names."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    before, loaded = set(FLAGS), []

    def load(name, values):
        module = importlib.import_module(name)
        loaded.append(name)
        FLAGS.mark_as_parsed()
        for flag, value in values.items():
            FLAGS[flag].value = value
        return module

    yield load
    for flag in set(FLAGS) - before:
        delattr(FLAGS, flag)
    for name in loaded:
        del sys.modules[name]


@pytest.mark.parametrize("name, values, asked", CASES, ids=lambda case: str(case)[:40])
def test_variants(study, name, values, asked):
    """A variant that the learner or the suite cannot have would end a study with a traceback, perhaps after hours."""
    configs = study(name, values).variants(*asked)
    assert len(configs) > 2
    for config in configs.values():
        config.validate()
        suite = make_suite(config.suite)
        check_splits(config, suite)
        make_learner(config, suite, num_updates=10)
    assert len({str(config) for config in configs.values()}) == len(configs)
