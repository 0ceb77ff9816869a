"""``mtjax-evaluate`` hands on what was asked for and prints a table for every split and mode."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mtjax.launch import evaluate, show

PROBE = "--suite=launch-probe"


@pytest.fixture
def evaluated(command, training):
    """A function that evaluates a run with arguments: (result, what the library was asked)."""
    command(PROBE, "--run_dir=run")

    def run(*arguments):
        result = command("--run_dir=run", *arguments, main=evaluate.main, program="mtjax-evaluate")
        return result, training.calls[-1]

    return run


def test_defaults_are_all_splits_and_both_modes(evaluated):
    result, (run_dir, asked) = evaluated()
    assert result.code == 0 and run_dir == "run"
    assert asked == {
        "splits": ("train",),
        "modes": ("deterministic", "stochastic"),
        "episodes": 50,
        "seed": 0,
        "checkpoint": None,
        "video": False,
        "mesh": "",
    }


def test_flags_are_handed_on(evaluated):
    result, (_, asked) = evaluated("--modes=stochastic", "--episodes=3", "--seed=4", "--checkpoint=0", "--video")
    assert result.out.endswith("  videos: run/videos\n")
    assert asked == {
        "splits": ("train",),
        "modes": ("stochastic",),
        "episodes": 3,
        "seed": 4,
        "checkpoint": 0,
        "video": True,
        "mesh": "",
    }


def test_a_table_of_tasks_and_aggregates(evaluated):
    result, _ = evaluated()
    assert "train, deterministic policy, checkpoint 12345, 50 episodes per task:\n" in result.out
    words = [line.split() for line in result.out.splitlines()]
    assert ["task", "return", "length"] in words
    assert ["task_1", "0", "0"] in words
    assert ["(worst)", *["0.5", "[0.25,", "0.75]"] * 2] in words


def test_what_is_not_finite_is_a_dash(tmp_path):
    """One seed whose last episodes overflowed: the run still has a summary, the others' numbers and a table."""
    from mtjax.training import files, results

    values = {"return": np.array([[1.0, 2.0], [3.0, np.nan]]), "length": np.array([[1.0, np.inf], [1.0, 1.0]])}
    measures = results.summarize_evaluation(values, ("task_0", "task_1"))
    files.write_json(tmp_path / "summary.json", measures)  # which takes no NaN
    assert json.loads((tmp_path / "summary.json").read_text())["return"]["tasks"] == {"task_0": 2.0, "task_1": None}
    found = {"step": 1, "episodes": 1, "results": {"train": {"deterministic": measures}}}
    words = [line.split() for line in show.evaluation(found).splitlines()]
    assert ["task_0", "2", "1"] in words and ["task_1", "–", "–"] in words and ["(mean)", "–", "–"] in words


def test_a_checkpoint_of_another_configuration_is_one_line(command, probe_suite, tmp_path):
    """A run of an older version, or one whose config.json was edited: no traceback, and the leaf is named."""
    tiny = "--total_steps=8 --num_envs=1 --rollout_length=4 --num_minibatches=1 --num_epochs=1 --hidden_sizes=8"
    quiet = "--novideo --notensorboard --noprogress --evaluation_episodes=1 --final_evaluation_episodes=1"
    assert command(PROBE, "--run_dir=run", *tiny.split(), *quiet.split()).code == 0
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    assert saved["network"]["hidden_sizes"] == [8]
    saved["network"]["hidden_sizes"] = [16]
    path.write_text(json.dumps(saved))
    result = command("--run_dir=run", main=evaluate.main, program="mtjax-evaluate")
    assert result.code == 1 and result.err.count("\n") == 1
    assert result.err.startswith("mtjax-evaluate: checkpoint 8 in ")
    assert " was written with another configuration or version of mtjax: leaf " in result.err
    assert "8, 2] there and float32[1, 16, 2] here (" in result.err


def test_help_lists_the_flags(command):
    result = command("--help", main=evaluate.main, program="mtjax-evaluate")
    assert result.code == 0
    for name in ("run_dir", "splits", "modes", "episodes", "seed", "checkpoint", "[no]video"):
        assert f"\n  --{name}\n" in result.out
