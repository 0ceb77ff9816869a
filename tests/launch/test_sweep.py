"""mtjax-sweep: mistakes are refused before anything starts; a sweep survives the death of its launcher."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

import mtjax
from mtjax import options
from mtjax.launch import resolve, sweep
from mtjax.sweeps import ledger, plan
from mtjax.training.config import RunConfig

ROOT = pathlib.Path(mtjax.__file__).parents[1]
TINY = (
    "--suite=gridworld-two-rooms",
    "--num_envs=2",
    "--rollout_length=8",
    "--num_minibatches=2",
    "--hidden_sizes=8",
    "--grads=mean",
    "--evaluation_episodes=1",
    "--final_evaluation_episodes=1",
    "--log_every=1",
    "--evaluate_every=100_000",
)


@pytest.fixture
def swept(command):
    """Runs ``mtjax-sweep`` in this process."""
    return lambda *arguments: command(*arguments, main=sweep.main, program="mtjax-sweep")


@pytest.mark.parametrize(
    "typed, message",
    [
        (["--sweep=grads=mean,pcgrad", "--grads=mean"], "--grads is both set and swept; remove one of the two"),
        (["--sweep=grads=mean,pcgrd"], "no method 'pcgrd': did you mean pcgrad"),
        (["--sweep=suite=gridworld-two-rooms,gridworld-mase"], "gridworld-mase"),
        (["--sweep=num_envs=3,4", "--rollout_length=5"], "does not divide rollout_length × num_envs"),
        (["--sweep=learning_rate=1e-3", "--seach=zip"], "Unknown command line flag 'seach'. Did you mean: search"),
        (["--name=../x"], "--name=../x: use letters"),
        (["--resume=nowhere"], "nowhere is not a sweep: there is no such folder"),
        (["--resume=x", "--sweep=grads=mean"], "--sweep cannot be combined with --resume"),
        (["--resume=x", "--num_seeds=3"], "--num_seeds cannot be combined with --resume"),
        (["--retry_failed"], "--retry_failed needs --resume"),
        (["--platform=gpu"], "--platform=gpu: no NVIDIA GPU is visible"),
        (["--max_runs=2", "--sweep=seed=1,2,3"], "more than --max_runs=2"),
        (
            ["--sweep=arrangement=one_hot,film", "--num_experts=8"],
            "num_experts: 8 has no effect with arrangement 'one_hot'",
        ),
        (["--sweep=arrangement=film,experts", "--sweep=num_experts=2,8"], "num_experts: 2 has no effect"),
        (["--launcher=slrm"], "did you mean 'slurm'?"),
    ],
)
def test_mistakes_are_refused_in_one_line_and_leave_nothing(swept, typed, message, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if "--resume" not in typed[0] and "suite" not in typed[0]:
        typed = ["--suite=gridworld-two-rooms", *typed]
    result = swept(*typed)
    assert result.code == 1 and message in result.err, result.err
    assert result.err.startswith("mtjax-sweep: ") and "Traceback" not in result.err
    assert not pathlib.Path("sweeps").exists()


def test_a_folder_whose_first_file_was_torn_is_free(swept):
    """A launcher that was killed while it wrote sweep.json has left a hidden file, and no sweep."""
    folder = pathlib.Path("sweeps/mine")
    folder.mkdir(parents=True)
    (folder / ".sweep.json.tmp").write_text("{")
    assert sweep.choose_folder("mine", "") == folder
    (folder / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty; choose another name"):
        sweep.choose_folder("mine", "")


def test_a_sweep_that_came_first_keeps_its_folder(swept, monkeypatch):
    """Two sweeps of one name at once: while the second was planned, the first one has written its plan."""
    first = pathlib.Path("sweeps/mine/sweep.json")

    def late(*asked):
        first.parent.mkdir(parents=True)
        first.write_text("of the first")

    monkeypatch.setattr(sweep, "make_launcher", late)
    result = swept(*TINY, "--sweep=learning_rate=1e-3,1e-2", "--name=mine")
    assert result.code == 1 and "sweeps/mine is not empty; --resume=sweeps/mine, or choose" in result.err
    assert first.read_text() == "of the first" and not (first.parent / ledger.FILE).exists()


@pytest.mark.parametrize(
    "own, words",
    [
        ({"suite": "lake"}, "trains on suite 'lake'"),
        ({"grads": "every_k(power_if, 2)"}, "trains with method 'power_if'"),
    ],
)
def test_resuming_without_the_users_own_modules_is_refused(swept, own, words):
    """In a shell without MTJAX_SUITES, every trial that was left would be marked as failed."""
    base = options.replace(RunConfig(), {"suite": "gridworld-two-rooms", "grads": "mean"})
    trials = [(change, options.replace(base, change)) for change in ({"num_epochs": 1}, {"num_epochs": 2, **own})]
    made = plan.make_plan("x", trials, lambda config: plan.Facts(1), most_rows=1)
    folder = pathlib.Path("sweeps/x")
    plan.save(made, folder)
    result = swept(f"--resume={folder}")
    remedy = "import the module that registers it, or name that module in MTJAX_SUITES"
    assert result.code == 1 and result.err == f"mtjax-sweep: {folder} {words}, which is not registered: {remedy}\n"
    assert not (folder / ledger.FILE).exists()
    first, second = made.trials
    with ledger.Ledger(folder) as book:  # only what is left to train counts
        ends = {second: {"state": "done", "error": None}}
        book.write("ended", program="p002", attempt=1, state="done", error=None, trials=ends)
    asked = sweep.Command(resume=str(folder))
    assert sweep.unfinished(made, asked) == [made.trials[first].config]


def test_long_plans_are_cut_and_say_by_how_much(swept, probe_suite):
    result = swept(f"--suite={probe_suite}", "--pack=1", "--sweep=seed=range:0:49:1", "--plan_only")
    shown = sum(line.split()[:1] == [f"p{number:03}"] for number in range(1, 50) for line in result.out.splitlines())
    assert f"and {49 - shown} more" in result.out and 30 < shown < 49


def test_the_plan_is_printed_and_nothing_else_happens(swept, probe_suite):
    typed = ("--sweep=grads=mean,pcgrad", "--sweep=learning_rate=log:1e-4:1e-2:3", "--num_seeds=10")
    result = swept(f"--suite={probe_suite}", *typed, "--total_steps=8192", "--name=mine", "--plan_only")
    assert result.code == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[0] == "sweep mine: 6 trials, 60 agents in 2 programs; 491,520 environment steps"
    assert "grads mean, pcgrad separate programs" in lines
    assert "learning_rate 0.0001, 0.001, 0.01 rows of one program" in lines
    assert "p002 3 30 245,760 grads=pcgrad learning_rate=*" in lines
    assert not pathlib.Path("sweeps").exists()


def test_the_plan_says_that_learners_get_different_numbers_of_steps(swept, probe_suite):
    """Both are asked for 100,000 steps, and one of them trains for a third longer."""
    typed = (f"--suite={probe_suite}", "--preset=none", "--num_envs=32", "--name=mine", "--plan_only")
    result = swept(*typed, "--sweep=learner=ppo,sac", "--total_steps=100_000")
    assert result.code == 0, result.err
    lines = [line.strip() for line in result.out.splitlines()]
    assert "total_steps 100,000, in whole updates: 106,496 with ppo, 100,352 with sac" in lines, lines
    result = swept(*typed, "--sweep=learner=ppo,distral", "--sweep=total_steps=1000,100_000")
    assert "whole updates" not in result.out


def test_help_says_what_a_sweep_is_in_whole_sentences(swept):
    text = " ".join(swept("--help").out.split())
    assert "Repeat it for more options. --name" in text


def test_the_guide_prints_the_plan_of_its_first_command(swept):
    """A newcomer who types it must see what the guide shows, or will look for a mistake."""
    guide = (ROOT / "docs" / "guides" / "sweep.md").read_text(encoding="utf-8")
    typed = guide.split("$ mtjax-sweep ", 1)[1].split("\n$", 1)[0].replace("\\\n", " ")
    shown = guide.split("```text\n", 1)[1].split("```", 1)[0]
    result = swept(*shlex.split(typed), "--plan_only")
    assert result.code == 0, result.err
    assert result.out == shown


def test_constants_of_a_method_are_planned_as_one_program(swept, probe_suite):
    typed = ("--sweep=grads=cagrad(c=0.2),cagrad(c=0.4)", "--total_steps=8192", "--name=mine", "--plan_only")
    result = swept(f"--suite={probe_suite}", *typed)
    assert result.code == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[0] == "sweep mine: 2 trials, 2 agents in 1 program; 16,384 environment steps"
    assert "grads cagrad(c=0.2), cagrad(c=0.4) rows of one program" in lines
    result = swept(f"--suite={probe_suite}", "--sweep=grads=mean,cagrad(c=0.2),cagrad(c=0.4)", *typed[1:])
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "grads mean, cagrad(c=0.2), cagrad(c=0.4) rows of 2 programs" in lines


def test_a_preset_follows_the_suite_that_is_swept(swept):
    """Every suite has its own good settings; sweeping suites must not take the first one's for all."""
    asked = sweep.Command(name="both")
    made, _ = sweep.make(asked, {"num_seeds": 1}, ["suite=gridworld-two-rooms,control-cartpole"])
    configs = [trial.config for trial in made.trials.values()]
    assert configs == [resolve.resolve({"suite": config.suite}).config for config in configs]
    assert configs[0] != configs[1]


def test_what_some_trials_do_not_read_takes_its_default_there(swept):
    """A baseline without a bonus has no use for the bonus's weight; it must not forbid the sweep."""
    given = {"suite": "gridworld-two-rooms", "num_experts": 8, "exploration_bonus": 0.5}
    made, _ = sweep.make(sweep.Command(), given, ["arrangement=one_hot,experts", "exploration=none,counts"])
    configs = [trial.config for trial in made.trials.values()]
    assert [config.network.num_experts for config in configs] == [4, 4, 8, 8]
    assert [config.hyper.exploration_bonus for config in configs] == [0.1, 0.5, 0.1, 0.5]


def start(*arguments: str, folder: pathlib.Path) -> subprocess.Popen:
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environ |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "mtjax.launch.sweep", *arguments]
    return subprocess.Popen(command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_method_of_ones_own_can_be_swept(tmp_path, monkeypatch):
    """The launcher checks methods before it needs a suite; it must have seen the user's modules by then."""
    (tmp_path / "own.py").write_text(
        "from mtjax import grads\nfrom mtjax.grads import registry\nregistry.METHODS['own'] = grads.mean\n"
    )
    monkeypatch.setenv("MTJAX_SUITES", "own")
    launcher = start("--suite=gridworld-two-rooms", "--sweep=grads=mean,own", "--plan_only", folder=tmp_path)
    out, err = launcher.communicate()
    assert launcher.returncode == 0 and "grads=own" in out, err


def test_a_sweep_whose_launcher_is_killed_loses_nothing(tmp_path):
    """SIGKILL: the worker notices, saves and ends; resuming goes on from there, and runs what had not begun."""
    long, short = 30_000, 200
    axes = (f"--sweep=total_steps={long},{short}", "--sweep=learning_rate=1e-3,1e-2")
    typed = (*TINY, *axes, "--num_seeds=2", "--name=mine")
    folder = tmp_path / "sweeps" / "mine"
    launcher = start(*typed, folder=tmp_path)
    program = plan.program_dir(folder, "p001")
    deadline = time.monotonic() + 500
    while not ((program / "metrics.jsonl").exists() and '"train"' in (program / "metrics.jsonl").read_text()):
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.05)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate()
    state = ledger.fold(plan.load(folder), ledger.read(folder))
    assert state.programs["p001"].state == ledger.RUNNING

    resumed = start(f"--resume={folder}", folder=tmp_path)
    out, err = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, (out, err, (program / "log.txt").read_text())
    made = plan.load(folder)
    state = ledger.fold(made, ledger.read(folder))
    assert [trial.state for trial in state.trials.values()] == [ledger.DONE] * 4
    assert [progress.attempt for progress in state.programs.values()] == [2, 1]
    for name, trial in made.trials.items():
        own = plan.trial_dir(folder, name)
        assert resolve.load_config(own) == trial.config
        summary = json.loads((own / "summary.json").read_text())
        assert summary["step"] >= trial.config.total_steps and summary["seeds"] == 2
        steps = [json.loads(line)["step"] for line in (own / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)
    events = (program / "metrics.jsonl").read_text()
    assert "stopped by a signal; saved" in events and "resumed from checkpoint" in events
