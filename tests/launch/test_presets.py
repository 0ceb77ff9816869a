"""Presets name real options, and the nearest pattern wins."""

from __future__ import annotations

import pytest

from mtjax import options, suites
from mtjax.launch import presets, resolve
from mtjax.training.config import RunConfig


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.pattern)
def test_every_preset_is_a_valid_configuration(preset):
    config = options.replace(RunConfig(), preset.options)
    config.validate()
    assert config.num_envs * config.ppo.rollout_length % config.ppo.num_minibatches == 0
    assert preset.reason


def test_every_registered_suite_with_a_family_has_a_preset():
    for name in suites.names():
        if name.split("-")[0] in ("gridworld", "control", "hidden", "goals", "bodies", "metaworld"):
            assert presets.find(name), name


def test_the_longest_pattern_wins(monkeypatch):
    family = presets.Preset("a-*", "family", {"num_envs": 2})
    one = presets.Preset("a-b*", "one of it", {"num_envs": 3})
    monkeypatch.setattr(presets, "PRESETS", (one, family))
    assert presets.find("a-bc") == one
    assert presets.find("a-c") == family
    assert presets.find("c") is None
    assert presets.find("a-bc", "none") is None
    assert presets.find("c", "a-*") == family


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="unknown preset 'gridwold-.*; did you mean gridworld-"):
        presets.find("gridworld-two-rooms", "gridwold-*")


def test_flags_beat_the_preset_and_the_preset_beats_defaults():
    resolved = resolve.resolve({"suite": "gridworld-maze", "learning_rate": 0.5})
    assert resolved.config.ppo.learning_rate == 0.5
    assert resolved.config.network.activation == "relu"
    assert resolved.config.ppo.discount == RunConfig().ppo.discount
    assert resolved.sources["learning_rate"] == "flag"
    assert resolved.sources["activation"] == "preset"


def test_no_preset_leaves_the_defaults():
    resolved = resolve.resolve({"suite": "gridworld-maze"}, preset="none")
    assert resolved.config == RunConfig(suite="gridworld-maze")


def test_a_few_lines_of_python_are_what_the_command_runs():
    resolved = resolve.resolve({"suite": "gridworld-maze", "seed": 3})
    assert presets.configure("gridworld-maze", seed=3) == resolved.config
    with pytest.raises(ValueError, match="unknown option 'sede'; did you mean seed"):
        presets.configure("gridworld-maze", sede=3)
    with pytest.raises(ValueError, match="num_envs: 0 is too small"):
        presets.configure("gridworld-maze", num_envs=0)


def test_list_presets(command):
    result = command("--list_presets")
    assert result.code == 0
    assert all(f"{preset.pattern}: {preset.reason}\n" in result.out for preset in presets.PRESETS)
