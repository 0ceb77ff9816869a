"""Progress: a user who sees nothing for minutes, or a wrong time left, stops the run."""

import io
import time
import types
import warnings

import numpy as np
import pytest
import rich.console

from mtjax.training import progress
from mtjax.training.progress import Progress
from mtjax.training.record import Unrecorded
from mtjax.training.session import Session

VALUES = {"return": np.array([[100.0, 2000.0, 300.0], [100.0, np.nan, 500.0]])}


def console(terminal: bool) -> rich.console.Console:
    return rich.console.Console(
        file=io.StringIO(), force_terminal=terminal, width=120, legacy_windows=False, color_system=None
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_without_a_terminal(clock):
    out = console(terminal=False)
    with Progress(100_000, "hidden-hopper", console=out) as bar:
        with bar.compiling("update"):
            clock[0] += 7
        for second in range(1, 26):
            clock[0] += 1
            bar.update(1000 * second, VALUES)
        bar.evaluation(25_000, "train", "deterministic", {"success_any": np.array([[0.25, 1.0]])})
    lines = out.file.getvalue().splitlines()
    assert lines[:2] == ["compiling update …", "compiled update in 7.0 s"]
    # mean of (800, 300), median of (300, 300), worst of (100, 100)
    measures = "return: mean 550 · median 300 · worst 100"
    assert lines[2] == f"hidden-hopper: 10% of 100.0k steps · 1.0k steps/s · 1:30 left · {measures}"
    assert lines[3].startswith("hidden-hopper: 20%")
    assert lines[4] == (
        "evaluation at 25.0k steps (train, deterministic): success: mean 62.5% · median 62.5% · worst 25%"
    )
    assert lines[5].startswith("hidden-hopper: 25%") and len(lines) == 6


def test_the_speed_is_of_all_seeds_and_the_time_left_is_theirs(clock):
    """As the record has it: eight seeds that make 1,000 steps each in a second make 8,000."""
    out = console(terminal=False)
    with Progress(100_000, "s", num_seeds=8, console=out) as bar:
        for second in range(1, 3):
            clock[0] += 1
            bar.update(1000 * second)
    assert out.file.getvalue().splitlines()[0] == "s: 1% of 100.0k steps × 8 seeds · 8.0k steps/s · 1:39 left"


def test_compiling_within_a_pause_leaves_a_clock_that_goes_on(clock):
    """The first evaluation compiles its program: afterwards speeds are those of training, from the pause's end on."""
    with Progress(1_000_000, "s", enabled=False) as bar:
        clock[0] += 10
        bar.update(100)
        with bar.paused():
            with bar.compiling("the evaluation"):
                clock[0] += 7
            clock[0] += 50
        assert bar.steps_per_second is None
        clock[0] += 10
        bar.update(200)
        assert bar.steps_per_second == pytest.approx(10)


def test_speed_is_recent_and_leaves_pauses_out(clock):
    with Progress(1_000_000, "s", enabled=False) as bar:
        clock[0] += 5
        bar.start(500_000)  # a resumed run: these steps took other seconds than these five
        assert bar.steps_per_second is None
        for second in range(1, 101):
            clock[0] += 1
            bar.update(500_000 + 10 * second)
        assert bar.steps_per_second == pytest.approx(10)
        with bar.paused():
            clock[0] += 1000
        assert bar.steps_per_second == pytest.approx(10)
        clock[0] += 1
        bar.update(501_010)
        assert bar.steps_per_second == pytest.approx(10)


def test_a_checkpoint_is_no_part_of_the_speed(clock):
    """Neither on the screen nor in the record: a large replay takes long to copy, and training is not slower for it."""

    def save(*_):
        clock[0] += 50

    itself = types.SimpleNamespace(whole=lambda state: state)
    session = object.__new__(Session)
    session.trainer = types.SimpleNamespace(steps_per_update=10, placement=itself, saved=itself.whole)
    session.saver, session.recorder = types.SimpleNamespace(save=save), Unrecorded()
    session.update, session.saved, session.lost, session.state = 1, None, {}, None
    session.started, session.seconds_before = clock[0], 0.0
    with Progress(100, "s", enabled=False) as session.bar:
        session.mark = clock[0]
        clock[0] += 1
        session.bar.update(10)
        one = np.ones((1, 1))
        session._save({"finite": one, "finite_state": one[0], "finite_steps": one, "updates": one[0]})
        assert session.saved == 10 and session.mark == 1050
        clock[0] += 1
        session.bar.update(20)
        assert session.bar.steps_per_second == pytest.approx(10)


def test_the_live_bar_shows_compiling_steps_and_measures():
    out = console(terminal=True)
    with Progress(10_000_000, "goals-ant", console=out) as bar:
        with bar.compiling("rollout"):
            time.sleep(0.6)
        bar.update(4_100_000, VALUES)
        bar.message("a line that stays")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("beware of this", stacklevel=1)
    text = out.file.getvalue()
    for part in ("compiling rollout … 0 s", "goals-ant", "41%", "4.1M of 10.0M steps", "worst 100"):
        assert part in text
    assert "a line that stays" in text and "warning: beware of this" in text


def test_a_warning_is_given_back_to_python_afterwards():
    before = warnings.showwarning
    with pytest.raises(KeyError), Progress(1, "s", console=console(terminal=False)):
        raise KeyError
    assert warnings.showwarning is before


def test_disabled_says_nothing():
    out = console(terminal=True)
    with Progress(10, "s", enabled=False, console=out) as bar:
        with bar.compiling("update"):
            pass
        bar.update(10, VALUES)
        bar.message("hello")
    assert out.file.getvalue() == ""


def test_a_failed_compilation_is_not_called_compiled():
    out = console(terminal=False)
    with Progress(10, "s", console=out) as bar, pytest.raises(RuntimeError), bar.compiling("update"):
        raise RuntimeError
    assert "compiled update" not in out.file.getvalue()


@pytest.mark.parametrize(
    "values, text",
    [
        ({}, ""),
        ({"return": np.full((1, 2), np.nan)}, ""),
        ({"return": np.array([[-1.234, 5678.0]])}, "return: mean 2,838 · median 2,838 · worst -1.23"),
        (
            {"success": np.full((1, 2), np.nan), "return": np.ones((1, 1))},
            "return: mean 1 · median 1 · worst 1",
        ),
    ],
)
def test_describe(values, text):
    assert progress.describe(values) == text


def test_texts():
    assert [progress.steps_text(x) for x in (950, 12_345, 4.1e6, 2e9)] == ["950", "12.3k", "4.1M", "2.0G"]
    assert [progress.time_text(x) for x in (5, 65, 7384)] == ["0:05", "1:05", "2:03:04"]
