"""Measures: a wrong aggregate or a too narrow interval is a wrong claim in somebody's paper."""

import numpy as np
import pytest
import scipy.stats

from mtjax.training import statistics

SCORES = np.array([[0.0, 1.0, 2.0, 9.0], [4.0, 4.0, 6.0, 2.0]])  # [S=2, T=4]


def test_by_hand():
    np.testing.assert_allclose(statistics.mean(SCORES), [3.0, 4.0])
    np.testing.assert_allclose(statistics.median(SCORES), [1.5, 4.0])
    np.testing.assert_allclose(statistics.worst(SCORES), [0.0, 2.0])
    # Sorted: 0 1 | 2 2 4 4 | 6 9: the middle half has mean 3.
    assert statistics.iqm(SCORES) == 3.0
    values = {name: entry["value"] for name, entry in statistics.summarize(SCORES).items()}
    assert values == {"mean": 3.5, "median": 2.75, "worst": 1.0, "iqm": 3.0}


def test_leading_axes_and_missing_tasks():
    stacked = np.stack([SCORES, SCORES + 1])
    np.testing.assert_allclose(statistics.iqm(stacked), [3.0, 4.0])
    np.testing.assert_allclose(statistics.worst(stacked), [[0, 2], [1, 3]])
    holes = np.array([[np.nan, 1.0, 3.0], [np.nan] * 3])
    np.testing.assert_allclose(statistics.mean(holes, skip_missing=True), [2.0, np.nan])
    np.testing.assert_allclose(statistics.worst(holes, skip_missing=True), [1.0, np.nan])
    assert np.isnan(statistics.mean(holes)).all() and np.isnan(statistics.iqm(holes))


def test_one_seed_has_no_interval_and_a_diverged_one_no_value():
    for entry in statistics.summarize(SCORES[:1]).values():
        assert entry["low"] is None and entry["high"] is None and entry["value"] is not None
    diverged = SCORES.copy()
    diverged[0, 0] = np.nan
    assert statistics.summarize(diverged)["mean"] == {"value": None, "low": None, "high": None}
    with pytest.raises(ValueError, match=r"\[seeds, tasks\], got \[4\]"):
        statistics.summarize(SCORES[0])


def test_interval_is_that_of_whole_agents():
    # Two agents, all tasks equal within each: resampling gives means 0, 1/2, 1 with 1/4, 1/2, 1/4.
    agents = np.array([[0.0] * 20, [1.0] * 20])
    assert statistics.summarize(agents)["mean"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    narrow = statistics.summarize(agents, stratify=True)["mean"]  # takes the 20 tasks for independent
    assert 0.2 < narrow["low"] < 0.4 and 0.6 < narrow["high"] < 0.8


def test_interval_covers_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        interval = statistics.bootstrap(
            generator.normal(size=(20, 3)), statistics.STATISTICS["mean"], resamples=400, seed=trial
        )
        hits += interval[0] <= 0.0 <= interval[1]
    assert 86 <= hits <= 99


def test_interval_agrees_with_scipy():
    scores = np.random.default_rng(1).normal(size=(10, 5))
    per_agent = scores.mean(axis=1)
    reference = scipy.stats.bootstrap(
        (per_agent,), np.mean, n_resamples=9999, method="percentile", random_state=0
    ).confidence_interval
    ours = statistics.summarize(scores, resamples=9999)["mean"]
    np.testing.assert_allclose([ours["low"], ours["high"]], reference, atol=0.02)


def test_summary_is_reproducible_and_ignores_the_order_of_tasks():
    scores = np.random.default_rng(2).normal(size=(5, 7))
    first = statistics.summarize(scores)
    assert first == statistics.summarize(scores)
    shuffled = statistics.summarize(scores[:, ::-1])
    for name in first:
        np.testing.assert_allclose(list(first[name].values()), list(shuffled[name].values()))


def test_probability_of_improvement_by_hand():
    ours, theirs = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0], [2.0, 4.0]])
    # Task 0: 1 loses twice, 3 wins twice: 1/2. Task 1: two ties, two wins: 3/4.
    found = statistics.probability_of_improvement(ours, theirs)
    assert found["value"] == 0.625 and found["low"] < 0.625 < found["high"]
    better = statistics.probability_of_improvement(ours + 10, theirs, stratify=True)
    assert better == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert statistics.probability_of_improvement(ours[:1], theirs)["low"] is None
    unknown = statistics.probability_of_improvement(ours, np.full_like(theirs, np.nan))
    assert np.isnan(list(unknown.values())).all()
    with pytest.raises(ValueError, match="cannot compare 2 tasks with 1"):
        statistics.probability_of_improvement(ours, theirs[:, :1])


# What rliable 1.2 (with pandas 2) says of these, at 20,000 bootstrap samples: it is not installed with the tests.
RECORDED = [
    [0.126, -0.132, 0.64, 0.105, -0.536],
    [0.362, 1.304, 0.947, -0.704, -1.265],
    [-0.623, 0.041, -2.325, -0.219, -1.246],
    [-0.732, -0.544, -0.316, 0.412, 1.043],
    [-0.129, 1.366, -0.665, 0.352, 0.903],
    [0.094, -0.743, -0.922, -0.458, 0.22],
    [-1.01, -0.209, -0.159, 0.541, 0.215],
    [0.355, -0.654, -0.13, 0.784, 1.493],
]
RECORDED_OTHERS = [
    [0.746, 1.222, 0.73, -0.903, 1.305],
    [0.846, -0.137, 0.981, 0.765, 0.694],
    [0.428, 0.947, -0.336, 0.237, -0.082],
    [0.999, 0.44, 0.108, -0.382, 0.143],
    [0.408, 0.124, 1.694, 1.407, -2.311],
    [-1.489, 0.225, -0.022, 0.614, 0.617],
]


def test_against_what_rliable_said():
    found = statistics.summarize(np.array(RECORDED), stratify=True, resamples=20_000)
    for name, value, low, high in (
        ("iqm", -0.07925, -0.3314525, 0.17800375),
        ("mean", -0.06045, -0.29760125, 0.17567562),
    ):
        np.testing.assert_allclose(found[name]["value"], value)
        np.testing.assert_allclose([found[name]["low"], found[name]["high"]], [low, high], atol=0.01)
    ours = statistics.probability_of_improvement(
        np.array(RECORDED), np.array(RECORDED_OTHERS), stratify=True, resamples=20_000
    )
    np.testing.assert_allclose(ours["value"], 0.3208333333333334)
    np.testing.assert_allclose([ours["low"], ours["high"]], [0.19166667, 0.45833333], atol=0.01)


def test_performance_profile_against_what_rliable_said():
    scores = np.array([[0.11, 0.52, 0.93, 0.30], [0.25, 0.48, 0.70, 0.30], [0.05, 0.61, 0.88, 0.95]])
    thresholds = np.array([0.0, 0.25, 0.3, 0.5, 0.9, 1.0])
    share, low, high = statistics.performance_profile(scores, thresholds, stratify=True, resamples=20_000)
    np.testing.assert_allclose(share, [1, 9 / 12, 7 / 12, 6 / 12, 2 / 12, 0])
    np.testing.assert_allclose(low, [1, 9 / 12, 6 / 12, 4 / 12, 0, 0])
    np.testing.assert_allclose(high, [1, 9 / 12, 9 / 12, 8 / 12, 4 / 12, 0])


def test_a_performance_profile_resamples_whole_agents():
    """One good agent and one bad one: the band is from none to all, however many tasks there are."""
    scores = np.array([[1.0] * 50, [0.0] * 50])
    share, low, high = statistics.performance_profile(scores, np.array([0.5]))
    assert (share, low, high) == (0.5, 0.0, 1.0)
    share, low, high = statistics.performance_profile(scores[:1], np.array([0.5, 2.0]))
    np.testing.assert_array_equal([share, low, high], [[1.0, 0.0]] * 3)
