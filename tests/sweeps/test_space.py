"""Axes: what a user writes after --sweep is what is tried, or is refused in one line."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtjax.launch import sweep
from mtjax.sweeps import space

KNOWN, PARSE = sweep.readable()


def axis(text):
    return space.parse_axis(text, KNOWN, PARSE)


@pytest.mark.parametrize(
    "text, values",
    [
        ("grads=mean,pcgrad", ("mean", "pcgrad")),
        ("grads=cagrad(c=0.1),cagrad(c=0.4, rescale=None)", ("cagrad(c=0.1)", "cagrad(c=0.4, rescale=None)")),
        ("grads=gradnorm(alpha=1.5, surrogate='a,b'),mean", ("gradnorm(alpha=1.5, surrogate='a,b')", "mean")),
        ("learning_rate=1e-3, 3e-4", (1e-3, 3e-4)),
        ("learning_rate=log:1e-4:1e-2:3", (1e-4, 1e-3, 1e-2)),
        ("discount=linear:0.9:0.99:4", (0.9, 0.93, 0.96, 0.99)),
        ("num_epochs=range:2:8:2", (2, 4, 6)),
        ("seed=range:0:3", (0, 1, 2)),
        ("rollout_length=log:16:256:5", (16, 32, 64, 128, 256)),
        ("hidden_sizes=(64,64),(256,)", ((64, 64), (256,))),
        ("normalize_observations=true,false", (True, False)),
        ("polyak=0.005,0.01", (0.005, 0.01)),  # of another learner than the default
    ],
)
def test_what_is_written_is_what_is_tried(text, values):
    assert axis(text).values == values
    assert list(map(type, axis(text).values)) == list(map(type, values))


@pytest.mark.parametrize(
    "text, message",
    [
        ("learnin_rate=1", "--sweep=learnin_rate=1: unknown option 'learnin_rate'; did you mean learning_rate"),
        ("learning_rate", "write NAME=VALUES"),
        ("learning_rate=", "no value is given"),
        ("learning_rate=1e-3,,1", "a value is empty"),
        ("learning_rate=1e-3,fast", "'fast' is not a number"),
        ("learning_rate=0,1", "0.0 is too small; it must be greater than 0"),
        ("learning_rate=1e-3,0.001", "0.001 is repeated"),
        ("learning_rate=log:0:1:3", "LOW must be positive and less than HIGH"),
        ("learning_rate=log:2:1:3", "LOW must be positive and less than HIGH"),
        ("learning_rate=log:1", "write log:LOW:HIGH:NUMBER"),
        ("learning_rate=log:1e-3:1:1", "a whole number of at least 2"),
        ("learning_rate=log:a:1:3", "'a' is not a number"),
        ("discount=linear:0.9:1.1:3", "1.1 is too large; it must be at most 1"),
        ("discount=linear:0.9:1.1", "1.1 is too large; it must be at most 1"),
        ("num_epochs=log:1:2:5", "is repeated"),
        ("num_epochs=linear:2.2:3.8", "at least two whole numbers from LOW to HIGH"),
        ("num_epochs=range:5:1", "a range must have 1"),
        ("num_epochs=range:1:5:0", "with a positive STEP"),
        ("num_epochs=1.5,2", "'1.5' is not a whole number"),
        ("grads=log:1:2:3", "grads is not a numeric option"),
        ("grads=cagrad(c=0.1,mean", "missing ')'"),
        ("grads=cagrad),mean", "unmatched ')'"),
        ("arrangement=one_hot,multihead", "'multihead' is not one of one_hot"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as refused:
        axis(text)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@given(st.lists(st.text("ab(1=.)", min_size=1).filter(lambda t: t.count("(") == t.count(")") == 0), min_size=1))
def test_a_list_without_brackets_is_cut_at_every_comma(parts):
    assert space.split_list(",".join(parts)) == parts


AXES = ("grads=mean,pcgrad", "learning_rate=1e-4,1e-3,1e-2")


def test_a_grid_is_every_combination():
    trials = space.combine([axis(text) for text in AXES], "grid")
    assert len(trials) == 6 and trials[1] == {"grads": "mean", "learning_rate": 1e-3}
    assert space.combine([], "grid") == [{}]  # nothing is swept: one trial


def test_zip_walks_all_axes_at_once():
    axes = [axis("grads=mean,pcgrad"), axis("learning_rate=1e-4,1e-3")]
    assert space.combine(axes, "zip") == [
        {"grads": "mean", "learning_rate": 1e-4},
        {"grads": "pcgrad", "learning_rate": 1e-3},
    ]
    with pytest.raises(ValueError, match="grads has 2, learning_rate has 3"):
        space.combine([axis(text) for text in AXES], "zip")


def test_random_draws_are_repeatable_different_and_inside():
    axes = [axis("learning_rate=log:1e-5:1e-2"), axis("num_epochs=linear:1:8"), axis("grads=mean,pcgrad")]
    trials = space.combine(axes, "random", most=200, seed=3)
    assert trials == space.combine(axes, "random", most=200, seed=3)
    assert trials != space.combine(axes, "random", most=200, seed=4)
    assert len({tuple(trial.values()) for trial in trials}) == 200
    rates = [trial["learning_rate"] for trial in trials]
    assert 1e-5 <= min(rates) and max(rates) <= 1e-2
    # Evenly in the logarithm: about a third of them in each decade.
    decades = [math.floor(math.log10(rate)) for rate in rates]
    assert all(40 < decades.count(decade) < 95 for decade in (-5, -4, -3))
    assert {trial["num_epochs"] for trial in trials} == set(range(1, 9))


def test_whole_numbers_are_drawn_whole():
    """Also where an interval does not end at one."""
    drawn = [axis("num_epochs=linear:2.5:5.9").draw(random.Random(seed)) for seed in range(100)]
    assert set(drawn) == {3, 4, 5} and set(map(type, drawn)) == {int}


@pytest.mark.parametrize(
    "texts, search, most, message",
    [
        (["grads=mean,pcgrad"] * 2, "grid", 0, "--sweep=grads is given 2 times"),
        (AXES, "grid", 5, "the grid has 6 trials, more than --max_runs=5"),
        (["learning_rate=log:1e-4:1"], "grid", 0, "is an interval"),
        (["learning_rate=log:1e-4:1"], "random", 0, "needs --max_runs, the number of trials"),
        ([], "random", 5, "nothing to vary"),
        (["grads=mean,pcgrad"], "random", 3, "there are only 2 different trials"),
    ],
)
def test_searches_that_cannot_be(texts, search, most, message):
    with pytest.raises(ValueError, match=message):
        space.combine([axis(text) for text in texts], search, most=most)
