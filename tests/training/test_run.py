"""Whole runs: the folder that a run leaves, and what happens to it when the run is killed, damaged or diverges."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import options, suites
from mtjax.envs import Step, continuous
from mtjax.learners.config import PPOConfig
from mtjax.networks.config import NetworkConfig
from mtjax.suites import base
from mtjax.training import config as training_config
from mtjax.training import plots, record, run
from mtjax.training.checkpoint import Checkpointer, CheckpointError
from mtjax.training.config import RunConfig
from mtjax.training.evaluation import Evaluator
from mtjax.training.trainer import Part, Trainer

UPDATES, STEPS = 8, 2 * 2 * 8  # of a run, of an update
CONFIG = RunConfig(
    suite="run-drift",
    total_steps=UPDATES * STEPS,
    num_envs=2,
    num_seeds=2,
    log_every=1,
    evaluate_every=4 * STEPS,
    checkpoint_every=2 * STEPS,
    evaluation_episodes=2,
    final_evaluation_episodes=4,
    hyper=PPOConfig(rollout_length=8, num_epochs=2, num_minibatches=2),
    network=NetworkConfig(hidden_sizes=(8,)),
)


class Goal(NamedTuple):
    place: jax.Array
    breaks_at: jax.Array  # the step from which its rewards are NaN


class Drift:
    """A noisy point on a line that should go to the task's place."""

    observation_size = 1
    action = continuous(1)

    def reset(self, task, key):
        start = jax.random.normal(key)
        return (start, jnp.zeros((), jnp.int32)), start[None]

    def step(self, task, state, action, key):
        x, time = state
        x = x + 0.3 * jnp.clip(action[0], -1.0, 1.0) + 0.1 * jax.random.normal(key)
        distance, no = jnp.abs(x - task.place), jnp.zeros((), bool)
        reward = jnp.where(time >= task.breaks_at, jnp.nan, -distance)
        info = {"success": (distance < 0.3).astype(jnp.float32)}
        return (x, time + 1), Step(x[None], reward, no, no, x[None], info)


def make_suite(name="run-drift", horizon=6, breaks_at=10**6):
    """Two tasks to train on and one held out; the second task's rewards break at ``breaks_at``."""

    def split(*places):
        infos = tuple(suites.TaskInfo(f"to_{place}", f"Go to {place}.") for place in places)
        limits = jnp.asarray([10**6, breaks_at][: len(places)])
        return suites.Split(infos, Goal(jnp.asarray(places, jnp.float32), limits))

    splits = {"train": split(-1, 1), "extrapolation": split(3)}
    version = suites.Version("1", "none", "v1", horizon)
    return suites.from_env(name, Drift(), splits, version=version, has_success=True)


def kill_after(update, number):
    """A patch of Session: the process sends itself a signal once so many updates are done."""
    one_update = run.Session._one_update

    def patched(self, **options):
        if self.update == update:
            self.saver.wait()
            os.kill(os.getpid(), number)
        return one_update(self, **options)

    return patched


@pytest.fixture(scope="module", autouse=True)
def setting(tmp_path_factory):
    """The suites, and a compilation cache, so that a run compiles what another has compiled only once."""
    options = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    for name, value in options.items():
        jax.config.update(name, value)
    base._REGISTRY["run-drift"] = make_suite
    base._REGISTRY["run-breaks"] = lambda: make_suite("run-breaks", horizon=1000, breaks_at=30)
    yield options
    del base._REGISTRY["run-drift"], base._REGISTRY["run-breaks"]
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _train(folder, config=CONFIG, **options):
    options = {"progress": False, "video": False, "tensorboard": False, **options}
    return run.train(config, folder, **options)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(folder, summary) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, _train(folder, tensorboard=True)


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "plot_run", lambda folder: [])


def _state(folder):
    """The last checkpoint's step and every number in it."""
    trainer = Trainer(CONFIG, suites.make(CONFIG.suite))
    with Checkpointer(folder, read_only=True) as saver:
        step, state, host = saver.restore(jax.eval_shape(trainer.init))
    assert host["update"] * STEPS == step
    return step, jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x),
        state,
    )


def _lines(folder):
    """The record without what only a clock knows, and without events."""
    lines = []
    for line in record.read(folder):
        line.pop("time")
        if line["kind"] == "train":
            line["values"] = {k: v for k, v in line["values"].items() if not k.startswith(("seconds", "steps_per"))}
        if line["kind"] != "event":
            lines.append(line)
    return lines


def _events(folder):
    return [line["message"] for line in record.read(folder) if line["kind"] == "event"]


def _same(folder, straight):
    """Bit for bit the undisturbed run: parameters, optimisers, environments, keys and every recorded number."""
    step, state = _state(folder)
    assert step == UPDATES * STEPS
    chex.assert_trees_all_equal(state, _state(straight)[1])
    mine, theirs = _lines(folder), _lines(straight)
    assert [(x["kind"], x["step"]) for x in mine] == [(x["kind"], x["step"]) for x in theirs]
    for a, b in zip(mine, theirs, strict=True):
        chex.assert_trees_all_equal(a.pop("values", {}), b.pop("values", {}))
        assert a == b


# ------------------------------------------------------------------------------------------------ the folder


def test_what_a_run_leaves(straight):
    """Configuration, versions, suite, record, checkpoints, pictures, summary: a result can be traced to its cause."""
    folder, summary = straight
    for name in ("config.json", "versions.json", "suite.json", "metrics.jsonl", "summary.json"):
        assert (folder / name).stat().st_size > 0
    for name in ("checkpoints", "tensorboard", "plots"):
        assert any((folder / name).iterdir())
    assert run.load_config(folder) == CONFIG
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    described = json.loads((folder / "suite.json").read_text())
    assert [task["name"] for task in described["tasks"]["extrapolation"]] == ["to_3"]
    assert summary["step"] == UPDATES * STEPS and summary["seeds"] == 2 and summary["episodes"] == 4
    assert set(summary["results"]["train"]) == {"deterministic", "stochastic"}
    assert set(summary["results"]["extrapolation"]) == {"deterministic"}
    returns = summary["results"]["train"]["deterministic"]["return"]
    assert set(returns["tasks"]) == {"to_-1", "to_1"} and returns["mean"]["value"] < 0


def test_the_record(straight):
    """A line for every update asked for, evaluations when they were due, and shapes [S], [S, T], [S, T, T]."""
    lines = record.read(straight[0])
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["update"] for line in train] == list(range(1, UPDATES + 1))
    evaluations = [(x["step"], x["split"], x["mode"], x["final"]) for x in lines if x["kind"] == "evaluation"]
    last = UPDATES * STEPS
    assert evaluations == [
        (4 * STEPS, "train", "deterministic", False),
        (last, "train", "deterministic", True),
        (last, "train", "stochastic", True),
        (last, "extrapolation", "deterministic", True),
    ]
    values = train[3]["values"]
    assert values["loss"].shape == values["return"].shape == values["success"].shape == (2, 2)
    assert values["grads/cosine"].shape == (2, 2, 2) and values["learning_rate"].shape == (2,)
    np.testing.assert_array_equal(sum(line["values"]["episodes"] for line in train), [[2 * (64 // 6)] * 2] * 2)


def test_held_out_splits_are_followed_and_change_nothing(straight, tmp_path):
    """As often as the training tasks, into the record and its picture; what is learnt is what is learnt without."""
    config = dataclasses.replace(CONFIG, evaluation_splits=("train", "extrapolation"))
    _train(tmp_path / "run", config)
    lines = [line for line in record.read(tmp_path / "run") if line["kind"] == "evaluation" and not line["final"]]
    assert [(x["step"], x["split"], x["mode"]) for x in lines] == [
        (4 * STEPS, "train", "deterministic"),
        (4 * STEPS, "extrapolation", "deterministic"),
    ]
    assert lines[1]["values"]["return"].shape == (2, 1) and lines[1]["episodes"] == 2
    followed = plots.load(tmp_path / "run").evaluations["extrapolation"]["return"]
    assert followed.steps.tolist() == [4 * STEPS, UPDATES * STEPS]
    assert (tmp_path / "run" / "plots" / "generalisation.png").exists()
    chex.assert_trees_all_equal(_state(tmp_path / "run"), _state(straight[0]))
    lacking = dataclasses.replace(CONFIG, evaluation_splits=("interpolation",))
    with pytest.raises(ValueError, match="evaluation_splits: suite 'run-drift' has no split 'interpolation'; it has"):
        _train(tmp_path / "other", lacking)
    assert not (tmp_path / "other" / "config.json").exists()


def test_both_policies_are_followed_and_their_program_is_compiled_once(straight, tmp_path, no_plots, capsys):
    """One program plays both, whose compilation the screen names; what is learnt is what is learnt without."""
    config = dataclasses.replace(CONFIG, evaluation_modes=("deterministic", "stochastic"))
    run.train(config, tmp_path / "run", video=False, tensorboard=False)
    lines = [line for line in record.read(tmp_path / "run") if line["kind"] == "evaluation" and not line["final"]]
    assert [(x["step"], x["mode"]) for x in lines] == [(4 * STEPS, "deterministic"), (4 * STEPS, "stochastic")]
    chex.assert_trees_all_equal(_state(tmp_path / "run"), _state(straight[0]))
    shown = capsys.readouterr().err
    assert shown.count("compiling the evaluation …") == 1
    assert shown.count("compiling the evaluation on extrapolation …") == 1
    before, _, after = shown.partition("compiled the evaluation in")
    assert "evaluation at" not in before and after.count("evaluation at") == 5


def test_an_evaluation_by_command_starts_simulators_of_its_own(straight, tmp_path, monkeypatch):
    """On the host the seed decides which goals come: not those of the run's own evaluations, and each seed its own."""
    seeds = []

    class Noted(run.Evaluator):
        def __init__(self, *args, seed, **options):
            seeds.append(seed)
            super().__init__(*args, seed=seed, **options)

    monkeypatch.setattr(run, "Evaluator", Noted)
    folder = shutil.copytree(straight[0], tmp_path / "run")  # an evaluation goes into the run's record
    for seed in (0, 1):
        run.evaluate(folder, episodes=2, seed=seed)
    assert len(set(seeds)) == 2 and CONFIG.seed + 1 not in seeds  # that one is the run's (session.py)


def test_the_splits_of_options_are_those_of_suites():
    """The configuration names them itself, since what is read before jax is imported may not import suites."""
    assert training_config.SPLITS == suites.SPLITS


@pytest.mark.parametrize("arrangement, splits", [("independent", {"train"}), ("multi_head", set(suites.SPLITS))])
def test_bodies_with_spaces_of_their_own_train_together(arrangement, splits, tmp_path, no_plots):
    """Three bodies, padded to one size, with an agent each and with a head each: every body learns and is measured."""
    steps = 3 * 2 * 8  # of an update
    small = {"total_steps": 2 * steps, "num_seeds": 1, "evaluate_every": 3 * steps, "final_evaluation_episodes": 2}
    config = options.replace(CONFIG, {"suite": "bodies-control", "arrangement": arrangement, **small})
    summary = _train(tmp_path / "run", config)
    assert set(summary["results"]) == splits  # an agent of its own has nothing to say about another body
    found = summary["results"]["train"]["deterministic"]["return"]["tasks"]
    assert list(found) == [
        "control-cartpole-continuous/default",
        "control-acrobot-continuous/default",
        "control-pendulum/default",
    ]
    assert np.isfinite(list(found.values())).all()
    lines = [line["values"] for line in record.read(tmp_path / "run") if line["kind"] == "train"]
    losses = np.stack([line["loss"] for line in lines])
    assert losses.shape == (2, 1, 3) and np.isfinite(losses).all()


def test_a_run_is_not_overwritten(straight):
    before = (straight[0] / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        _train(straight[0], dataclasses.replace(CONFIG, seed=9))
    assert (straight[0] / "metrics.jsonl").read_bytes() == before and run.load_config(straight[0]) == CONFIG


def test_evaluate_a_saved_run(straight, tmp_path):
    """mtjax-evaluate: any split and mode, on other episodes; the run's checkpoints stay as they are."""
    folder = tmp_path / "copy"
    shutil.copytree(straight[0], folder)
    found = run.evaluate(folder, splits=("train", "extrapolation"), modes=("stochastic",), episodes=3)
    assert found["step"] == UPDATES * STEPS and found["episodes"] == 3
    assert set(found["results"]) == {"train", "extrapolation"}
    assert found["results"]["extrapolation"]["stochastic"]["return"]["tasks"].keys() == {"to_3"}
    assert _lines(folder)[-1]["episodes"] == 3 and not _lines(folder)[-1]["final"]
    chex.assert_trees_all_equal(_state(folder), _state(straight[0]))
    with pytest.raises(ValueError, match="no usable checkpoint 5"):
        run.evaluate(folder, checkpoint=5)
    with pytest.raises(ValueError, match="has no split 'interpolation'; it has"):
        run.evaluate(folder, splits=("train", "interpolation"))
    with pytest.raises(ValueError, match="unknown mode 'determinstic'; did you mean deterministic"):
        run.evaluate(folder, modes=("determinstic",))
    with pytest.raises(ValueError, match="not a run"):
        run.evaluate(tmp_path)


# ------------------------------------------------------------------------------------------------ resume


def test_a_signal_saves_and_resuming_is_bit_for_bit(straight, tmp_path, monkeypatch, no_plots):
    """A pre-empted job loses nothing; a damaged checkpoint costs the updates since the one before, and is named."""
    with monkeypatch.context() as patch:
        patch.setattr(run.Session, "_one_update", kill_after(4, signal.SIGTERM))
        with pytest.raises(run.Interrupted, match=f"stopped at step {5 * STEPS} and saved"):
            _train(tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert _state(tmp_path / "run")[0] == 5 * STEPS
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "run", damaged)
    _train(tmp_path / "run", resume=True)
    _same(tmp_path / "run", straight[0])
    assert _events(tmp_path / "run")[-1] == f"resumed from checkpoint {5 * STEPS}"

    largest = max((damaged / "checkpoints" / str(5 * STEPS)).rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    _train(damaged, resume=True)
    _same(damaged, straight[0])
    assert f"checkpoint {5 * STEPS} is damaged" in _events(damaged)[-2]
    assert _events(damaged)[-1] == f"resumed from checkpoint {4 * STEPS}"


def test_another_configuration_is_not_resumed(straight):
    """Nor does the attempt change what the folder says it is."""
    folder = straight[0]
    before = (folder / "config.json").read_bytes()
    other = dataclasses.replace(CONFIG, num_envs=4, log_every=2)
    with pytest.raises(ValueError, match="cannot be resumed with other options") as found:
        run.train(other, folder, resume=True)
    assert "--num_envs: 2 in the run, 4 asked" in str(found.value) and "log_every" not in str(found.value)
    assert (folder / "config.json").read_bytes() == before


def test_a_signal_during_the_last_evaluation_stops_the_run(straight, tmp_path, monkeypatch, no_plots):
    """Training is over and saved: the run ends at once, and resuming it does only what was left."""
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    (folder / run.SUMMARY).unlink()
    evaluate = run.Session.evaluate

    def signalled(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run.Session, "evaluate", signalled)
        with pytest.raises(run.Interrupted, match=f"stopped at step {UPDATES * STEPS} and saved"):
            _train(folder, resume=True)
    assert not (folder / run.SUMMARY).exists()
    _train(folder, resume=True)
    _same(folder, straight[0])
    assert (folder / run.SUMMARY).exists()


def test_an_extended_run_is_not_done(straight, tmp_path, monkeypatch, no_plots):
    """The old summary must not pass for the longer run's: not while it trains, nor if it diverges."""
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    with monkeypatch.context() as patch:
        patch.setattr(run.Session, "loop", lambda self: self.stop.set() or self._stop_if_asked())
        with pytest.raises(run.Interrupted):
            _train(folder, dataclasses.replace(CONFIG, total_steps=(UPDATES + 1) * STEPS), resume=True)
    assert not (folder / run.SUMMARY).exists()

    # What was measured at the old end is not measured again: it stays, as an evaluation on the way.
    before, after = (
        [line for line in record.read(place) if line["kind"] == "evaluation" and line["step"] == UPDATES * STEPS]
        for place in (straight[0], folder)
    )
    assert len(after) == len(before) > 0 and {line["final"] for line in before} == {True}
    assert {line["final"] for line in after} == {False}
    for one, other in zip(before, after, strict=True):
        assert (one["split"], one["mode"]) == (other["split"], other["mode"])
        np.testing.assert_array_equal(one["values"]["return"], other["values"]["return"])


def test_a_run_whose_last_checkpoint_cannot_be_written_is_not_done(straight, tmp_path, monkeypatch, no_plots):
    """It is written while the last evaluation plays; the summary must not come before it."""
    write = Checkpointer._write

    def full(self, step, *rest):
        if step >= UPDATES * STEPS:
            raise OSError(28, "No space left on device")
        return write(self, step, *rest)

    monkeypatch.setattr(Checkpointer, "_write", full)
    with pytest.raises(CheckpointError):
        _train(tmp_path / "run")
    assert not (tmp_path / "run" / run.SUMMARY).exists()


SCRIPT = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
import jax, test_run
for name, value in eval(sys.argv[3]).items():
    jax.config.update(name, value)
test_run.base._REGISTRY["run-drift"] = test_run.make_suite
test_run.run.Session._one_update = test_run.kill_after(5, signal.SIGKILL)
test_run._train(sys.argv[2])
"""


def test_a_killed_run_resumes_bit_for_bit(straight, tmp_path, setting, no_plots):
    """Nothing is tidied up after SIGKILL: the record is ahead of the checkpoint, and neither may be lost or doubled."""
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, here, str(tmp_path / "run"), repr(setting)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert _lines(tmp_path / "run")[-1]["step"] == 5 * STEPS  # the newest checkpoint is one update older
    _train(tmp_path / "run", resume=True)
    _same(tmp_path / "run", straight[0])
    assert _events(tmp_path / "run") == [f"resumed from checkpoint {4 * STEPS}"]


def test_resume_without_any_checkpoint_starts_again(straight, tmp_path, no_plots):
    """Killed before the first checkpoint: the same command plus --resume still works."""
    shutil.copytree(straight[0], tmp_path / "run", ignore=shutil.ignore_patterns("[0-9]*", "summary.json"))
    _train(tmp_path / "run", resume=True)
    _same(tmp_path / "run", straight[0])
    assert _events(tmp_path / "run") == ["no usable checkpoint: starting from the beginning"]


def test_a_finished_run_without_a_checkpoint_keeps_its_results(straight, tmp_path, no_plots):
    """Its checkpoints were deleted to free the disk, or are damaged: to start again would discard the record."""
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.unlink()
    before = {name: (folder / name).read_bytes() for name in WRITTEN}
    with pytest.raises(ValueError, match=r"finished run without a usable checkpoint \(checkpoint .* choose another"):
        _train(folder, dataclasses.replace(CONFIG, total_steps=2 * CONFIG.total_steps), resume=True)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match="finished run without a usable checkpoint: it cannot be resumed"):
        _train(folder, resume=True)
    assert {name: (folder / name).read_bytes() for name in WRITTEN} == before


WRITTEN = ("config.json", "flags.txt", "suite.json", "versions.json", "metrics.jsonl", "summary.json")


def test_a_run_is_not_continued_on_another_suite(straight, tmp_path, monkeypatch, no_plots):
    """Half a run under one reward and half under another is neither; a refusal changes nothing in the folder."""
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    before = {name: (folder / name).read_bytes() for name in WRITTEN}
    made = make_suite()
    other = dataclasses.replace(made, version=dataclasses.replace(made.version, reward="v2", simulator="new"))
    monkeypatch.setitem(base._REGISTRY, "run-drift", lambda: other)
    changes = "is not as it was when .* was started: reward v1 in the run, v2 now; simulator none in the run, new now"
    with pytest.raises(ValueError, match=f"{changes}; start a new run"):
        _train(folder, dataclasses.replace(CONFIG, log_every=2), resume=True)
    with pytest.warns(UserWarning, match=changes):
        run.evaluate(folder, episodes=1)
    assert {name: (folder / name).read_bytes() for name in WRITTEN if name != "metrics.jsonl"} == {
        name: content for name, content in before.items() if name != "metrics.jsonl"
    }
    infos = tuple(dataclasses.replace(info, name=f"new_{info.name}") for info in made.tasks)
    train = dataclasses.replace(made.splits["train"], infos=infos)
    other = dataclasses.replace(made, splits={**made.splits, "train": train})
    for use in (functools.partial(_train, resume=True), run.evaluate):
        with pytest.raises(ValueError, match="was trained on other tasks than suite 'run-drift' has now: to_-1, to_1"):
            use(folder)


def test_a_newer_simulator_is_no_reason_to_lose_a_run(straight, tmp_path, monkeypatch, no_plots):
    folder, made = tmp_path / "run", make_suite()
    shutil.copytree(straight[0], folder)
    other = dataclasses.replace(made, version=dataclasses.replace(made.version, simulator="new"))
    monkeypatch.setitem(base._REGISTRY, "run-drift", lambda: other)
    with pytest.warns(UserWarning, match="was started: simulator none in the run, new now"):
        _train(folder, dataclasses.replace(CONFIG, log_every=2), resume=True)
    assert json.loads((folder / "suite.json").read_text())["version"]["simulator"] == "new"
    assert "--log_every=2\n" in (folder / "flags.txt").read_text()


def test_a_run_whose_suite_is_not_registered(straight, monkeypatch):
    """A suite of one's own, in a new shell: the nearest built-in name is not what was meant."""
    monkeypatch.delitem(base._REGISTRY, "run-drift")
    with pytest.raises(ValueError, match="trained on suite 'run-drift', which is not registered: .* in MTJAX_SUITES"):
        run.evaluate(straight[0])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has no split 'tain'"):  # one name, not its letters
        run.evaluate(straight[0], splits="tain")


@pytest.mark.parametrize("at_first", ["rollout", "evaluation"])
def test_success_that_is_promised_must_be_reported(at_first, tmp_path, monkeypatch):
    """Zeros in its place would look like a policy that never succeeds."""

    class Silent(Drift):
        def step(self, task, state, action, key):
            state, step = super().step(task, state, action, key)
            return state, step._replace(info={"distance": -step.reward})

    version, splits = suites.Version("1", "none", "v1", 6), make_suite().splits
    suite = suites.from_env("run-drift", Silent(), splits, version=version, has_success=True)
    with pytest.raises(ValueError, match="has_success=True, but .* no entry 'success', only 'distance'"):
        if at_first == "rollout":
            trainer = Trainer(CONFIG, suite)
            jax.eval_shape(trainer.collect, trainer.env, trainer.shapes())
        else:
            trainer = Trainer(CONFIG, dataclasses.replace(suite, has_success=False))
            evaluator = Evaluator(trainer.learner, suite, episodes=2, num_seeds=2, seed=0)
            evaluator(trainer.init().learner, split="train", deterministic=True, key=jax.random.key(0))


# ------------------------------------------------------------------------------------------------ divergence


def test_nan_stops_the_run_and_names_task_step_and_checkpoint(tmp_path, no_plots):
    """Task 2's reward is NaN from its 31st step on: the fourth update. Hours on dead parameters are saved."""
    config = dataclasses.replace(CONFIG, suite="run-breaks", log_every=100, evaluate_every=100 * STEPS)
    with pytest.raises(run.Diverged) as caught:
        _train(tmp_path / "run", config)
    message = str(caught.value)
    assert f"step {4 * STEPS}:" in message and "'to_1' (seed 0)" in message and "'to_1' (seed 1)" in message
    assert "to_-1" not in message and f"last good checkpoint is step {2 * STEPS}" in message
    assert "a reward or observation from the environment of task 'to_1' (seed 0), a" in message  # not the learner
    assert _events(tmp_path / "run") == [message]
    with Checkpointer(tmp_path / "run", read_only=True) as saver:
        assert saver.latest_step == 2 * STEPS


def test_the_first_update_that_is_not_finite_is_told_by_a_call_of_many():
    """Later ones make NaN of what the tasks share, and of every loss."""
    suite = make_suite("run-breaks", horizon=1000, breaks_at=30)
    trainer = Trainer(dataclasses.replace(CONFIG, suite=suite.name), suite)
    state = trainer.init()
    _, _, metrics = trainer.train(trainer.env, state, trainer.no_rollout(state), Part.of(UPDATES))
    np.testing.assert_array_equal(metrics["updates"], [4, 4])
    np.testing.assert_array_equal(metrics["finite"], [[True, False]] * 2)
    assert not metrics["finite_state"].any()
    assert np.isnan(metrics["loss"]).all()  # of the last update


def test_outside_the_main_thread_signals_are_left_alone():
    """A notebook or a sweep may train in a thread, where Python forbids signal handlers."""
    seen = []

    def work():
        with run.stop_signals() as event:
            seen.append(event.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_second_interrupt_does_not_wait():
    """Ctrl-C twice stops at once."""
    with pytest.raises(KeyboardInterrupt), run.stop_signals() as event:
        signal.raise_signal(signal.SIGINT)
        assert event.is_set()
        signal.raise_signal(signal.SIGINT)
