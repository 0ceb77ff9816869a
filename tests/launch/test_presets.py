"""Presets name real options, and the nearest pattern wins."""

from __future__ import annotations

import pytest

from mtjax import options, suites
from mtjax.launch import presets, resolve
from mtjax.learners.config import PPOConfig, SACConfig
from mtjax.learners.registry import LEARNERS
from mtjax.training.config import RunConfig


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: f"{preset.pattern} {preset.learner}")
def test_every_preset_is_a_valid_configuration(preset):
    config = options.replace(RunConfig(), {"learner": preset.learner, **preset.options})
    config.validate()
    if hasattr(config.hyper, "num_minibatches"):
        assert config.num_envs * config.hyper.rollout_length % config.hyper.num_minibatches == 0
    if hasattr(config.hyper, "warm_start"):
        assert config.hyper.warm_start < config.hyper.replay_capacity
    assert preset.reason


def test_every_registered_suite_with_a_family_has_a_preset():
    for name in suites.names():
        if name.split("-")[0] in ("gridworld", "control", "hidden", "goals", "bodies", "metaworld"):
            for learner in LEARNERS:
                found = presets.find(name, learner)
                assert found and (found.pattern != "*" or learner not in ("ppo", "sac")), (name, learner)


def test_the_longest_pattern_wins(monkeypatch):
    family = presets.Preset("a-*", "family", {"num_envs": 2})
    one = presets.Preset("a-b*", "one of it", {"num_envs": 3})
    monkeypatch.setattr(presets, "PRESETS", (one, family))
    assert presets.find("a-bc") == one
    assert presets.find("a-c") == family
    assert presets.find("c") is None
    assert presets.find("a-bc", choice="none") is None
    assert presets.find("c", choice="a-*") == family


def test_each_learner_has_its_own_presets():
    """SAC with PPO's learning rate and a million environments would only look broken."""
    ppo, sac = (presets.configure("hidden-hopper", learner=name) for name in ("ppo", "sac"))
    assert type(ppo.hyper) is PPOConfig and type(sac.hyper) is SACConfig
    assert sac.network.activation == "relu" and ppo.network.activation == "tanh"
    assert presets.find("unheard-of", "sac").pattern == "*" and presets.find("unheard-of", "ppo") is None
    with pytest.raises(ValueError, match="preset 'brc' is for --learner=sac; the learner here is ppo"):
        presets.configure("hidden-hopper", preset="brc")


def test_a_named_preset_lies_on_top_of_the_suites():
    plain, brc = (presets.configure("hidden-hopper", learner="sac", preset=name) for name in ("auto", "brc"))
    assert brc.num_envs == plain.num_envs and brc.hyper.learning_rate == plain.hyper.learning_rate
    assert brc.hyper.critic_head == "categorical" and plain.hyper.critic_head == "scalar"


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="unknown preset 'gridwold-.*; did you mean gridworld-"):
        presets.find("gridworld-two-rooms", choice="gridwold-*")


def test_flags_beat_the_preset_and_the_preset_beats_defaults():
    resolved = resolve.resolve({"suite": "gridworld-maze", "learning_rate": 0.5})
    assert resolved.config.hyper.learning_rate == 0.5
    assert resolved.config.network.activation == "relu"
    assert resolved.config.hyper.discount == RunConfig().hyper.discount
    assert resolved.sources["learning_rate"] == "flag"
    assert resolved.sources["activation"] == "preset"


def test_what_a_preset_brings_in_vain_takes_its_default(monkeypatch):
    """A flag may switch off what reads it; only what was typed in vain is refused."""
    brings = presets.Preset("gridworld-*", "", {"arrangement": "experts", "num_experts": 8})
    monkeypatch.setattr(presets, "PRESETS", (brings,))
    assert presets.configure("gridworld-two-rooms").network.num_experts == 8
    for config in (
        presets.configure("gridworld-two-rooms", arrangement="film"),
        resolve.resolve({"suite": "gridworld-two-rooms", "arrangement": "film"}).config,
    ):
        assert (config.network.arrangement, config.network.num_experts) == ("film", 4)
    with pytest.raises(ValueError, match="num_experts: 8 has no effect"):
        presets.configure("gridworld-two-rooms", arrangement="film", num_experts=8)


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
    for preset in presets.PRESETS:
        assert f"{preset.pattern} (--learner={preset.learner}): {preset.reason}\n" in result.out
