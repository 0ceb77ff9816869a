"""``mtjax-evaluate`` hands on what was asked for and prints a table for every split and mode."""

from __future__ import annotations

import pytest

from mtjax.launch import evaluate

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
    _, (_, asked) = evaluated("--modes=stochastic", "--episodes=3", "--seed=4", "--checkpoint=0", "--video")
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
    assert "train, deterministic policy, checkpoint 12345, 50 episodes a task:\n" in result.out
    words = [line.split() for line in result.out.splitlines()]
    assert ["task", "return", "length"] in words
    assert ["task_1", "0", "0"] in words
    assert ["(worst)", *["0.5", "[0.25,", "0.75]"] * 2] in words


def test_help_lists_the_flags(command):
    result = command("--help", main=evaluate.main, program="mtjax-evaluate")
    assert result.code == 0
    for name in ("run_dir", "splits", "modes", "episodes", "seed", "checkpoint", "[no]video"):
        assert f"\n  --{name}\n" in result.out
