"""The ledger and the scheduler: after any kill exactly what is missing runs, and a failure stops nothing else."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from mtjax import options
from mtjax.launch import show
from mtjax.sweeps import ledger, plan, schedule, worker
from mtjax.sweeps.ledger import DIVERGED, DONE, FAILED, RUNNING, STOPPED, WAITING
from mtjax.training.config import RunConfig


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A saved plan: p001 with two packed trials, p002 and p003 with one each."""
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.0)
    changes = [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}, {"num_epochs": 1}, {"num_epochs": 2}]
    trials = [(change, options.replace(RunConfig(), change)) for change in changes]
    result = plan.make_plan("s", trials, lambda config: plan.Facts(1, ("learning_rate",)), most_rows=9)
    plan.save(result, tmp_path)
    return result


class FakeJob:
    def __init__(self, work):
        self.work, self.name, self.polls, self.stopped = work, "fake job", 0, 0

    def ended(self):
        self.polls += 1
        return self.work(self)

    def stop(self):
        self.stopped += 1

    kill = stop


class FakeLauncher:
    """Programs that end as ``script[program][attempt - 1]`` says: a state, "killed", "endless" or "full" (the disk)."""

    name = "fake"

    def __init__(self, folder, slots=1, **script):
        self.folder, self.slots, self.script = folder, slots, script
        self.started, self.running, self.most = [], 0, 0
        self.on_start = lambda program: None

    def start(self, attempts):
        return [self._start(program, attempt) for program, attempt in attempts]

    def _start(self, program, attempt):
        self.started.append((program.name, attempt))
        self.running += 1
        self.most = max(self.most, self.running)
        script = self.script.get(program.name, [DONE])
        state = script[min(attempt, len(script)) - 1]
        if state == "unstartable":
            self.running -= 1
            return OSError("no room")
        self.on_start(program)

        def work(job):
            if state == "endless":
                if not job.stopped:
                    return None
                self._leave(program, attempt, STOPPED)
            elif job.polls < 3:
                return None
            elif state not in ("killed", "preempted"):
                self._leave(program, attempt, state)
            self.running -= 1
            return schedule.End("killed by SIGKILL" if state == "killed" else "exit code 0", state == "preempted")

        return FakeJob(work)

    def _leave(self, program, attempt, state):
        if state == "full":
            return leave(self.folder, program, worker.without_room(program, attempt))
        trials = {name: {"state": state, "error": "x" if state == FAILED else None} for name in program.trials}
        if state == DIVERGED:
            state = DONE
        leave(self.folder, program, worker.Outcome(attempt, state, "x" if state == FAILED else None, trials))

    def find(self, job, program, attempt):
        return None


def leave(folder, program, outcome):
    path = plan.program_dir(folder, program.name) / worker.OUTCOME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(outcome)))


def run(made, launcher, **policy):
    lines = []
    state = schedule.run(launcher.folder, made, launcher, schedule.Policy(**policy), report=lines.append)
    return state, lines


def states(state):
    return [progress.state for progress in state.trials.values()]


def test_every_program_runs_once_and_no_more_at_a_time_than_there_are_slots(made, tmp_path):
    launcher = FakeLauncher(tmp_path, slots=2)
    state, lines = run(made, launcher)
    assert launcher.started == [("p001", 1), ("p002", 1), ("p003", 1)] and launcher.most == 2
    assert states(state) == [DONE] * 4 and state.count()[DONE] == 4
    assert "p001 done: 2 of 2 trials" in lines and "p002 done: 1 of 1 trial" in lines
    again = FakeLauncher(tmp_path)
    assert states(run(made, again)[0]) == [DONE] * 4 and again.started == []


def test_a_failed_program_keeps_its_error_and_stops_no_other(made, tmp_path):
    launcher = FakeLauncher(tmp_path, p001=[FAILED], p001a=[FAILED], p002=["killed"], p003=[DIVERGED])
    state, lines = run(made, launcher)
    assert states(state) == [FAILED, DONE, FAILED, DIVERGED]
    assert [progress.error for progress in state.programs.values()] == ["x", None, "killed by SIGKILL", None]
    assert any("p002 failed: killed by SIGKILL" in line for line in lines)
    again, made = FakeLauncher(tmp_path), plan.load(tmp_path)
    run(made, again)
    assert again.started == []  # only asked for are they tried again
    state, _ = run(made, again, retry_failed=True)
    assert again.started == [("p001a", 2), ("p002", 2)]  # a divergence would come again
    assert states(state) == [DONE, DONE, DONE, DIVERGED]
    assert state.programs["p001a"].failures == 1


class Crashing(FakeLauncher):
    """A bad trial kills whatever program it is in, as one that needs too much memory does."""

    def _start(self, program, attempt):
        self.script[program.name] = ["killed" if self.bad in program.trials else DONE]
        return super()._start(program, attempt)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_bad_trial_does_not_take_its_pack_with_it(tmp_path, monkeypatch, bad, retries):
    """The others end well; the ledger and the plan still say where each is, also to who resumes."""
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.0)
    changes = [{"learning_rate": rate} for rate in (1e-4, 2e-4, 3e-4, 4e-4, 5e-4)]
    trials = [(change, options.replace(RunConfig(), change)) for change in changes]
    made = plan.make_plan("s", trials, lambda config: plan.Facts(1, ("learning_rate",)), most_rows=9)
    plan.save(made, tmp_path)
    launcher = Crashing(tmp_path, slots=2)
    launcher.bad = list(made.trials)[bad]
    state, lines = run(made, launcher, retries=retries)
    assert states(state) == [FAILED if number == bad else DONE for number in range(5)]
    assert state.trials[launcher.bad].error == "killed by SIGKILL"
    assert len(launcher.started) <= 7 + 4 * retries  # 5 = 3 + 2, then 3 = 2 + 1, then 2 = 1 + 1
    assert "the trials of p001 will be retried as p001a and p001b" in lines
    after = plan.load(tmp_path)
    assert sorted(name for program in after.programs.values() for name in program.trials) == sorted(made.trials)
    again = FakeLauncher(tmp_path)
    assert states(run(after, again, retry_failed=True)[0]) == [DONE] * 5
    assert [attempt for _, attempt in again.started] == [2 + retries]  # the bad one, and it alone


def test_retries_are_as_many_as_asked(made, tmp_path):
    launcher = FakeLauncher(tmp_path, p001=[FAILED, DONE], p002=["killed"], p003=["unstartable", DONE])
    state, _ = run(made, launcher, retries=2)
    assert [launcher.started.count(("p002", attempt)) for attempt in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert states(state) == [DONE, DONE, FAILED, DONE]


@pytest.mark.parametrize("died", ["after the end was booked", "before it was learnt of"])
def test_a_retry_that_was_asked_for_survives_the_launcher(made, tmp_path, monkeypatch, died):
    """The launcher was killed between a failure and the retry; who resumes still owes it, and does not halve a pack."""

    class Killed(BaseException):
        pass

    def report(line):
        if line.startswith("p001 failed"):
            raise Killed

    if died == "after the end was booked":
        with pytest.raises(Killed):
            first = FakeLauncher(tmp_path, p001=[FAILED])
            schedule.run(tmp_path, made, first, schedule.Policy(retries=1), report=report)
        retries = 0  # what was asked of the first launcher holds
    else:
        with ledger.Ledger(tmp_path) as book:
            book.write("started", program="p001", attempt=1, job="process 1")
        trials = {name: {"state": FAILED, "error": "x"} for name in made.programs["p001"].trials}
        leave(tmp_path, made.programs["p001"], worker.Outcome(1, FAILED, "x", trials))
        retries = 1
    again = FakeLauncher(tmp_path, p001=[FAILED, DONE])
    state, _ = run(made, again, retries=retries)
    assert again.started == [("p001", 2), ("p002", 1), ("p003", 1)]
    assert states(state) == [DONE] * 4 and state.programs["p001"].failures == 1


def test_a_failure_while_stopping_is_not_the_end(made, tmp_path):
    """A signal came and a program failed: the sweep says that it can be resumed, and then retries."""

    class Failing(FakeLauncher):
        def _start(self, program, attempt):
            job = super()._start(program, attempt)
            if (program.name, attempt) == ("p003", 1):
                os.kill(os.getpid(), signal.SIGTERM)
            return job

    with pytest.raises(schedule.Stopped):
        run(made, Failing(tmp_path, p003=[FAILED]), retries=1)
    again = FakeLauncher(tmp_path, p003=[FAILED, DONE])
    assert states(run(made, again)[0]) == [DONE] * 4 and again.started == [("p003", 2)]


def test_a_machine_that_interrupts_for_ever(made, tmp_path, monkeypatch):
    """It counts as a failure in the end, and not as done."""
    monkeypatch.setattr(schedule, "MOST_INTERRUPTIONS", 3)
    launcher = FakeLauncher(tmp_path, p002=["preempted"])
    state, _ = run(made, launcher)
    assert states(state) == [DONE, DONE, FAILED, DONE] and launcher.started.count(("p002", 4)) == 0
    assert "interrupted too often" in state.programs["p002"].error


def test_a_program_whose_machine_wants_the_place_goes_on(made, tmp_path):
    launcher = FakeLauncher(tmp_path, p001=[STOPPED, "preempted", DONE])
    state, _ = run(made, launcher)
    assert states(state) == [DONE] * 4 and launcher.started[:3] == [("p001", 1), ("p001", 2), ("p001", 3)]


def test_a_signal_lets_programs_save_and_resuming_runs_the_rest(made, tmp_path):
    launcher = FakeLauncher(tmp_path, p002=["endless"])
    launcher.on_start = lambda program: program.name == "p002" and os.kill(os.getpid(), signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(schedule.Stopped, match=f"--resume={tmp_path}"):
        run(made, launcher)
    assert signal.getsignal(signal.SIGTERM) == before
    state = ledger.fold(made, ledger.read(tmp_path))
    assert states(state) == [DONE, DONE, STOPPED, WAITING]
    again = FakeLauncher(tmp_path)
    assert states(run(made, again)[0]) == [DONE] * 4
    assert again.started == [("p002", 2), ("p003", 1)]  # what has begun comes first


def test_a_full_disk_ends_the_sweep_and_resuming_continues_it(made, tmp_path):
    """A pack would be retried as halves, from the beginning, and so lose its progress; or be started in a loop."""
    launcher = FakeLauncher(tmp_path, slots=2, p001=["full"], p002=["endless"])
    lines = []
    with pytest.raises(
        schedule.Stopped, match=f"^the disk is full: free space, then continue with --resume={tmp_path}$"
    ):
        schedule.run(tmp_path, made, launcher, report=lines.append)
    assert launcher.started == [("p001", 1), ("p002", 1)]
    assert "p001 stopped and can be continued: the disk is full" in lines
    assert "saving and stopping 1 program … (send a signal to kill)" in lines
    assert list(plan.load(tmp_path).programs) == list(made.programs)
    again = FakeLauncher(tmp_path)
    assert states(run(made, again)[0]) == [DONE] * 4
    assert again.started == [("p001", 2), ("p002", 2), ("p003", 1)]


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["the ledger", "an outcome", "the log"])
def test_a_disk_without_room_for_the_sweep_itself(made, tmp_path, monkeypatch, what):
    """Whatever could not be written, no trial has failed by it."""
    launcher = FakeLauncher(tmp_path, p001=["killed" if what == "an outcome" else "endless"])
    if what == "the ledger":
        write = ledger.Ledger.write

        def until_it_ends(book, event, **fields):
            (no_room if event == "ended" else write)(book, event, **fields)

        monkeypatch.setattr(ledger.Ledger, "write", until_it_ends)
        launcher.on_start = lambda program: os.kill(os.getpid(), signal.SIGTERM)
    elif what == "an outcome":
        monkeypatch.setattr(worker.tempfile, "TemporaryFile", no_room)
    else:
        launcher.start = lambda attempts: [OSError(errno.EDQUOT, "quota")] * len(attempts)
    with pytest.raises(schedule.Stopped, match="the disk is full"):
        run(made, launcher)
    monkeypatch.undo()
    state, _ = run(made, FakeLauncher(tmp_path))
    assert states(state) == [DONE] * 4 and not any(progress.failures for progress in state.programs.values())


def test_a_full_disk_is_no_failure_of_a_program(made, tmp_path, monkeypatch, capsys):
    """The outcome says so however the error is wrapped; the exit code, if not even the outcome can be written."""

    def train(*_):
        try:
            no_room()
        except OSError as error:
            raise RuntimeError("the checkpoint could not be written") from error

    monkeypatch.setattr(worker, "_train", train)
    assert worker.run(tmp_path, "p001", 1) == worker.without_room(made.programs["p001"], 1)
    assert worker.outcome_of(tmp_path, made.programs["p001"], 1).error == "the disk is full"
    assert "the disk is full: p001 continues from its last checkpoint" in capsys.readouterr().out
    monkeypatch.setattr(worker, "write_json", no_room)
    assert worker.run(tmp_path, "p001", 2).state == STOPPED
    assert worker.outcome_of(tmp_path, made.programs["p001"], 2) is None
    assert worker.disk_full(RuntimeError("step 8 could not be saved: No space left on device"))
    assert not worker.disk_full(RuntimeError("no"))


def test_a_failed_program_says_where_its_traceback_is(made, tmp_path):
    """Its one line of error is rarely enough, and nobody knows of the log."""
    log = plan.program_dir(tmp_path, "p002") / worker.LOG
    log.parent.mkdir(parents=True)
    log.write_text("Traceback")
    state, lines = run(made, FakeLauncher(tmp_path, p002=[FAILED], p003=[FAILED]))
    assert f"p002 failed: x; its log: {log}" in lines and "p003 failed: x" in lines
    end = show.sweep_end(made, state, tmp_path, 1.0).splitlines()
    assert f"  {made.programs['p002'].trials[0]}: x; its log: {log}" in end


@pytest.mark.parametrize("left", [None, DONE, FAILED, STOPPED])
def test_what_happened_after_the_launcher_was_killed_is_learnt_from_the_outcome(made, tmp_path, left):
    """SIGKILL leaves a ledger that ends with "started"; the program may have ended since, or not."""
    with ledger.Ledger(tmp_path) as book:
        book.write("started", program="p001", attempt=1, job="process 1")
    with (tmp_path / ledger.FILE).open("a") as file:
        file.write('{"time":1,"event":"sta')  # torn by the kill
    assert states(ledger.fold(made, ledger.read(tmp_path)))[0] == RUNNING
    stale = worker.Outcome(0, DONE, None, {n: {"state": DONE, "error": None} for n in made.programs["p001"].trials})
    leave(tmp_path, made.programs["p001"], stale)  # of an older attempt: says nothing
    if left:
        error = "x" if left == FAILED else None
        trials = {name: {"state": left, "error": error} for name in made.programs["p001"].trials}
        leave(tmp_path, made.programs["p001"], worker.Outcome(1, left, error, trials))
    launcher = FakeLauncher(tmp_path)
    state, _ = run(made, launcher)
    begun = {DONE: [], FAILED: [("p001a", 1), ("p001b", 1)]}.get(left, [("p001", 2)])
    assert launcher.started == [*begun, ("p002", 1), ("p003", 1)]
    assert states(state)[:2] == [DONE] * 2


def test_a_broken_ledger_is_not_guessed_at(tmp_path, made):
    (tmp_path / ledger.FILE).write_text('{"time":1,"event":"x"}\nnonsense\n{"time":1,"event":"x"}\n')
    with pytest.raises(ValueError, match="line 2 of .* is broken: b'nonsense'"):
        ledger.read(tmp_path)


def test_two_launchers_on_one_sweep(made, tmp_path):
    """The second is refused; the lock ends with the process that holds it, even by SIGKILL."""
    code = "import sys, time; from mtjax.training import lock\nwith lock.lock(sys.argv[1], 'sweep'):\n"
    code += "    print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by process {holder.pid} on "):
            run(made, FakeLauncher(tmp_path))
        holder.kill()
    assert states(run(made, FakeLauncher(tmp_path))[0]) == [DONE] * 4


def test_a_program_that_is_still_held_has_not_failed(made, tmp_path, monkeypatch):
    """The worker of a launcher that was killed is saving: the next attempt waits, and then counts as interrupted."""
    monkeypatch.setattr(worker, "PATIENCE", 0.0)
    own = plan.program_dir(tmp_path, "p001")
    code = "import sys, time; from mtjax.training import lock\nwith lock.lock(sys.argv[1], 'program'):\n"
    code += "    print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, own], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert worker.run(tmp_path, "p001", 2).state == STOPPED
        holder.kill()
    outcome = worker.outcome_of(tmp_path, made.programs["p001"], 2)
    assert outcome.state == STOPPED and {end["state"] for end in outcome.trials.values()} == {STOPPED}
