"""Watching a sweep: the numbers of a live table."""

import dataclasses
import json

import pytest
import rich.console

from mtjax import options
from mtjax.launch import watch
from mtjax.sweeps import ledger, plan, status, worker
from mtjax.training import lock
from mtjax.training.config import RunConfig


@pytest.fixture
def sweep(tmp_path):
    """p001 trains two packed trials with two seeds each, p002 is done, p003 failed, p004 waits; no launcher."""
    base = RunConfig(num_seeds=2)
    changes = [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}, *({"num_epochs": n} for n in (1, 2, 3))]
    trials = [(change, options.replace(base, change)) for change in changes]
    made = plan.make_plan("s", trials, lambda config: plan.Facts(1000, ("learning_rate",)), most_rows=9)
    plan.save(made, tmp_path)
    with ledger.Ledger(tmp_path) as book:
        for name in ("p001", "p002", "p003"):
            book.write("started", program=name, attempt=1, job="x")
        for name, state in (("p002", "done"), ("p003", "failed")):
            error = "ValueError: no" if state == "failed" else None
            trials = {trial: {"state": state, "error": error} for trial in made.programs[name].trials}
            book.write("ended", program=name, attempt=1, state=state, error=error, trials=trials)
    lines = [
        {"kind": "train", "step": 100, "values": {"success": [[None]] * 4, "steps_per_second": 5.0}},
        {"kind": "evaluation", "step": 200, "split": "train", "mode": "deterministic",
         "values": {"success_any": [[0.0, 0.2], [0.4, 0.2], [1.0, 0.5], [1.0, 0.7]]}},
        {"kind": "evaluation", "step": 200, "split": "extrapolation", "mode": "deterministic",
         "values": {"success_any": [[0.0]] * 4}},
        {"kind": "train", "step": 250, "values": {"success": [[None, 1.0]] * 4, "steps_per_second": 7.0}},
    ]  # fmt: skip
    own = plan.program_dir(tmp_path, "p001")
    own.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (own / "metrics.jsonl").write_text(text + '{"kind": "train", "step": 300, "val')  # torn: still being written
    with lock.lock(own, "program"):  # it is running
        yield tmp_path


@pytest.mark.parametrize("tail", [8, 200, 2**18])
def test_each_trial_of_a_program_has_its_own_numbers(sweep, monkeypatch, tail):
    """Whatever part of the record is looked at first."""
    monkeypatch.setattr(status, "TAIL", tail)
    now = status.look(sweep)
    first, second = now.rows[:2]
    assert (first.state, first.share, first.speed, first.measure) == ("running", 0.25, 7.0, "success")
    assert first.measures == pytest.approx({"mean": 0.2, "worst": 0.1})
    assert second.measures == pytest.approx({"mean": 0.8, "worst": 0.6})
    assert [row.state for row in now.rows] == ["running", "running", "failed", "waiting", "done"]
    assert now.rows[2].error == "ValueError: no" and now.rows[4].share == 1.0


def test_an_old_checkpoint_that_is_evaluated_is_not_the_newest(sweep):
    path = plan.program_dir(sweep, "p001") / "metrics.jsonl"
    torn = path.read_text()
    old = {"kind": "evaluation", "step": 100, "split": "train", "mode": "deterministic",
           "values": {"success_any": [[0.0, 0.0]] * 4}}  # fmt: skip
    path.write_text(torn[: torn.rindex("\n") + 1] + json.dumps(old) + "\n")
    first, second = status.look(sweep).rows[:2]
    assert (first.measures["mean"], second.measures["mean"]) == pytest.approx((0.2, 0.8)) and first.share == 0.25


def test_time_left(sweep):
    events = ledger.read(sweep)
    now = status.look(sweep, now=events[0]["time"] + 60)
    # 2 × 0.25 + 1 of 4 trials that can still be done, 2,000 steps each; the one program that runs makes 7 in a second.
    assert now.elapsed == pytest.approx(60) and now.left == pytest.approx(2000 * 2.5 / 7)
    later = status.look(sweep, now=events[0]["time"] + 3600)  # after an hour in which nothing happened
    assert later.left == now.left


def test_whether_a_launcher_is_at_work(sweep):
    assert not status.look(sweep).launcher
    with lock.lock(sweep, "sweep"):
        assert status.look(sweep).launcher


def test_the_command_without_a_terminal_prints_once(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as stopped:
        watch.main(["mtjax-watch", str(sweep)])
    printed = capsys.readouterr().out
    assert not stopped.value.code
    for words in ("1 done, 2 running, 1 waiting, 1 failed", "success (mean)", "80%", "ValueError: no", "no launcher"):
        assert words in printed, printed
    monkeypatch.setenv("COLUMNS", "80")  # as terminals open
    with pytest.raises(SystemExit):
        watch.main(["mtjax-watch", str(sweep)])
    narrow = capsys.readouterr().out
    assert "002_learning_rate=0.01" in narrow and "80%" in narrow, narrow  # the name in one piece
    with pytest.raises(SystemExit) as stopped:
        watch.main(["mtjax-watch"])
    assert stopped.value.code == 1 and "name the folder of one sweep" in capsys.readouterr().err


def watched(folder, width, height=24):
    """The lines of a live picture, as a terminal of this size shows it."""
    console = rich.console.Console(width=width, height=height, force_terminal=True, color_system=None)
    lines = console.render_lines(watch.fitting(status.look(folder), console), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def diverged(tmp_path, number, error):
    """A sweep of ``number`` trials, all of which have diverged."""
    changes = [{"learning_rate": 1e-3 * (n + 1)} for n in range(number)]
    trials = [(change, options.replace(RunConfig(), change)) for change in changes]
    made = plan.make_plan("s", trials, lambda config: plan.Facts(1000, ("learning_rate",)), most_rows=1)
    plan.save(made, tmp_path)
    with ledger.Ledger(tmp_path) as book:
        for name, program in made.programs.items():
            ends = {trial: {"state": "diverged", "error": f"{trial}: {error}"} for trial in program.trials}
            book.write("started", program=name, attempt=1, job="x")
            book.write("ended", program=name, attempt=1, state="done", error=None, trials=ends)


def test_an_error_takes_one_line_below_the_table(tmp_path):
    """In a column, one divergence takes half of the screen."""
    error = "diverged at step 12,345 on task 'mass_0.50': the loss of the policy is not finite; the last good " * 2
    diverged(tmp_path, 2, error)
    lines = watched(tmp_path, 80)
    assert len(lines) == 6 and all(len(line) <= 80 for line in lines), lines
    assert lines[-1].startswith("002: 002_learning_rate=0.002: diverged at step 12,345 on") and lines[-1][-1] == "…"


def test_the_picture_is_as_high_as_the_screen(tmp_path):
    """The terminal would cut off what is below, which is the newest."""
    diverged(tmp_path, 60, "diverged")
    lines = watched(tmp_path, 60)
    assert 21 < len(lines) < 24 and lines[-1].endswith("more errors") and "diverged" in lines[-2], lines
    assert any(line.startswith("… and ") and line.endswith("more") for line in lines)


@pytest.mark.parametrize("left", [None, "done"])
def test_a_program_that_was_killed_with_its_launcher_is_not_running(sweep, left):
    """After kill -9 of both, somebody who watches would wait for ever."""
    made = plan.load(sweep)
    if left:
        trials = {name: {"state": left, "error": None} for name in made.programs["p001"].trials}
        outcome = worker.Outcome(1, left, None, trials)
        (plan.program_dir(sweep, "p001") / worker.OUTCOME).write_text(json.dumps(dataclasses.asdict(outcome)))
    assert status.look(sweep).state.programs["p001"].state == "running"  # as the lock is held
    (plan.program_dir(sweep, "p001") / lock.FILE).unlink()
    now = status.look(sweep)
    assert now.state.count()["running"] == 0 and now.left is None and not now.launcher
    assert [row.state for row in now.rows if row.program == "p001"] == [left or "stopped"] * 2
    with lock.lock(sweep, "sweep"):
        assert status.look(sweep).state.count()["running"] == 2  # with a launcher, it is about to start


def test_a_job_in_a_queue_outlives_its_launcher(sweep):
    """SLURM starts it later; to show it as stopped would invite to start it twice."""
    (plan.program_dir(sweep, "p001") / lock.FILE).unlink()
    with ledger.Ledger(sweep) as book:
        book.write("started", program="p001", attempt=1, job="slurm 7_0")
    assert status.look(sweep).state.programs["p001"].state == "running"
