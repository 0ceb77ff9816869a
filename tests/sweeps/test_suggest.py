"""Search by Optuna: the next trials follow from the plan's own files."""

import json
import math

import pytest

from mtjax import options
from mtjax.launch import sweep as command
from mtjax.sweeps import ledger, plan, schedule, suggest, worker
from mtjax.sweeps.space import Axis

pytest.importorskip("optuna")
AXES = (
    Axis("learning_rate", (), (1e-5, 1e-1), log=True),
    Axis("num_epochs", (), (1, 8), whole=True),
    Axis("grads", ("mean", "pcgrad", "cagrad(c=0.4)")),
)


def quality(changes):
    """Best at a learning rate of 1e-3 with pcgrad."""
    return -((math.log10(changes["learning_rate"]) + 3) ** 2) + (changes["grads"] == "pcgrad")


def test_it_finds_what_is_good_in_batches():
    tried = []
    for _ in range(6):
        found = suggest.suggest(AXES, tried, 8, seed=1)
        assert found == suggest.suggest(AXES, tried, 8, seed=1)  # a resumed sweep asks for the same
        assert len(found) == 8 and not [changes for changes in found if changes in [t for t, _ in tried]]
        for changes in found:
            assert 1e-5 <= changes["learning_rate"] <= 1e-1 and type(changes["num_epochs"]) is int
            assert 1 <= changes["num_epochs"] <= 8 and changes["grads"] in AXES[2].values
        tried += [(changes, quality(changes)) for changes in found]
    best = max(tried, key=lambda pair: pair[1])
    assert best[1] > 0.8
    late = [value for _, value in tried[-16:]]
    early = [value for _, value in tried[:16]]
    assert sum(late) > sum(early)  # it learns


def test_when_nothing_new_is_left():
    axes = (Axis("grads", ("mean", "pcgrad")),)
    assert len(suggest.suggest(axes, [({"grads": "mean"}, 1.0)], 5)) == 1


class Pretend:
    """Ends every program at once; a learning rate above 0.03 diverges."""

    name, slots = "pretend", 2

    def __init__(self, folder):
        self.folder, self.started = folder, []

    def start(self, attempts):
        made = plan.load(self.folder)
        for program, attempt in attempts:
            self.started.append(program.name)
            outcomes = {}
            for name in program.trials:
                changes = made.trials[name].changes
                wild = changes["learning_rate"] > 0.03
                outcomes[name] = {"state": "diverged" if wild else "done", "error": "inf" if wild else None}
                if not wild:
                    own = plan.trial_dir(self.folder, name)
                    own.mkdir(parents=True)
                    measures = {"return": {"mean": {"value": quality({**changes, "grads": "x"})}}}
                    (own / "summary.json").write_text(json.dumps({"results": {"train": {"deterministic": measures}}}))
            own = plan.program_dir(self.folder, program.name)
            own.mkdir(parents=True)
            outcome = worker.Outcome(attempt, "done", None, outcomes)
            (own / worker.OUTCOME).write_text(json.dumps(vars(outcome)))
        return [self for _ in attempts]

    def ended(self):
        return schedule.End("exit code 0")

    def find(self, job, program, attempt):
        return None


def test_a_sweep_grows_by_what_it_found(tmp_path, monkeypatch, capsys):
    """Batches of rows of one program each; diverged trials count as bad; a resumed search asks for nothing more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "inspector", lambda memory: lambda config: plan.Facts(100, ("learning_rate",)))
    launcher = Pretend(tmp_path / "sweeps" / "s")
    monkeypatch.setattr(command, "make_launcher", lambda *_: launcher)

    def run(*typed):
        with pytest.raises(SystemExit) as stopped:
            command.main(["mtjax-sweep", *typed])
        return stopped.value.code or 0

    typed = ("--sweep=learning_rate=log:1e-5:1e-1", "--search=optuna", "--batch=5", "--name=s", "--jobs=1")
    assert run(*typed) == 1 and "needs --max_runs, the number of trials" in capsys.readouterr().err
    code = run(*typed, "--max_runs=12")
    out = capsys.readouterr().out
    made = plan.load(launcher.folder)
    assert launcher.started == ["p001", "p002", "p003"]
    assert [len(program.trials) for program in made.programs.values()] == [5, 5, 2]
    assert "10 of 12 trials tried; best so far" in out
    state = ledger.fold(made, ledger.read(launcher.folder))
    diverged = [name for name, trial in state.trials.items() if trial.state == "diverged"]
    assert code == (4 if diverged else 0)
    values = [value for _, value in suggest.tried(launcher.folder, made, state)]
    assert all(value is not None for value in values)
    assert run("--resume=sweeps/s") == code and launcher.started == ["p001", "p002", "p003"]


def test_what_cannot_be_trained_is_left_out(tmp_path, monkeypatch, capsys):
    """A search meets combinations that no run can have: they are said, and others are tried in their place."""
    monkeypatch.chdir(tmp_path)

    def inspect(config):
        if config.hyper.num_epochs == 2:
            raise ValueError("num_epochs cannot be 2")
        return plan.Facts(100, ("learning_rate",))

    monkeypatch.setattr(plan, "inspector", lambda memory: inspect)
    launcher = Pretend(tmp_path / "sweeps" / "s")
    monkeypatch.setattr(command, "make_launcher", lambda *_: launcher)
    axes = ("--sweep=num_epochs=2,3", "--sweep=learning_rate=log:1e-5:1e-2", "--search=optuna", "--batch=2")
    with pytest.raises(SystemExit) as stopped:
        command.main(["mtjax-sweep", *axes, "--name=s", "--jobs=1", "--max_runs=6"])
    out = capsys.readouterr().out
    made = plan.load(launcher.folder)
    assert not stopped.value.code and len(made.trials) == 6, out
    assert {trial.changes["num_epochs"] for trial in made.trials.values()} == {3}
    assert "skipped num_epochs=2, learning_rate=" in out and "num_epochs cannot be 2" in out

    monkeypatch.setattr(
        plan, "inspector", lambda memory: lambda config: inspect(options.replace(config, {"num_epochs": 2}))
    )
    with pytest.raises(ValueError, match="num_epochs cannot be 2"):  # nothing is left: the first reason is the answer
        command.main(["mtjax-sweep", *axes, "--name=none", "--max_runs=6"])
    assert not (tmp_path / "sweeps" / "none").exists()
    with pytest.raises(SystemExit) as stopped:
        command.main(["mtjax-sweep", "--sweep=grads=mean,pcgradd", "--search=optuna", "--name=typo", "--max_runs=6"])
    assert stopped.value.code == 1 and "did you mean pcgrad" in capsys.readouterr().err
    assert not (tmp_path / "sweeps" / "typo").exists()
