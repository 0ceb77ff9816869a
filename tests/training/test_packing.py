"""Packing: trials that share one program must not notice each other."""

import dataclasses
import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import options, suites
from mtjax.launch import presets
from mtjax.learners.registry import LEARNERS
from mtjax.training import lock, packed, packing, plots, record, run
from mtjax.training.checkpoint import Checkpointer
from mtjax.training.trainer import Trainer

UPDATES, STEPS = 4, 12 * 2 * 8  # of a run, of an update of 12 tasks
BASE = presets.configure(
    "control-cartpole",
    preset="none",
    total_steps=UPDATES * STEPS,
    num_envs=2,
    log_every=1,
    evaluate_every=2 * STEPS,
    checkpoint_every=STEPS,
    evaluation_episodes=2,
    final_evaluation_episodes=2,
    rollout_length=8,
    num_epochs=2,
    num_minibatches=2,
    hidden_sizes=(8,),
)
TRIALS = {  # the first two are one program, too, when they train alone
    "slow": options.replace(BASE, {"learning_rate": 1e-3, "num_seeds": 2}),
    "fast": options.replace(BASE, {"learning_rate": 3e-3, "entropy_cost": 0.1, "seed": 5, "num_seeds": 2}),
    "wild": options.replace(BASE, {"learning_rate": 1e38}),
}
QUIET = {"progress": False, "video": False, "tensorboard": False}


@pytest.fixture(scope="module", autouse=True)
def fast_compiles(tmp_path_factory):
    """Compile fast, and what has been compiled once not again; draw nothing."""
    settings = {
        "jax_disable_most_optimizations": (True, False),
        "jax_compilation_cache_dir": (str(tmp_path_factory.mktemp("cache")), None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
    }
    for name, (value, _) in settings.items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_run", lambda folder: [])
        yield
    for name, (_, value) in settings.items():
        jax.config.update(name, value)


def test_rows_trial_by_trial():
    rows = packing.pack(TRIALS, ("learning_rate", "entropy_cost", "clip"))
    assert rows.seeds == (0, 1, 5, 6, 0) and rows.config.num_seeds == 5
    assert rows.slices == {"slow": slice(0, 2), "fast": slice(2, 4), "wild": slice(4, 5)}
    assert rows.varying == ("learning_rate", "entropy_cost")
    np.testing.assert_allclose(rows.leaves["learning_rate"], [1e-3, 1e-3, 3e-3, 3e-3, 1e38], rtol=1e-6)
    assert packing.alone(BASE).leaves == {} and packing.alone(BASE).config == BASE


def test_another_program_is_not_packed():
    wider = options.replace(BASE, {"hidden_sizes": (16,)})
    with pytest.raises(ValueError, match="'a' and 'b' cannot be packed: they differ in hidden_sizes"):
        packing.pack({"a": BASE, "b": wider}, ("learning_rate",))
    with pytest.raises(ValueError, match="they differ in learning_rate"):
        packing.pack({"a": BASE, "b": TRIALS["fast"]}, ("entropy_cost",))


def test_constants_of_gradient_methods_are_rows():
    """CAGrad's c is a number of the state; how it rescales is code."""
    specs = {"a": "cagrad", "b": "cagrad(c=0.8)", "c": "cagrad(0.1, rescale=None)"}
    trials = {name: options.replace(BASE, {"grads": spec}) for name, spec in specs.items()}
    rows = packing.pack(trials | {"a": options.replace(trials["a"], {"num_seeds": 2})}, ())
    assert rows.varying == ("grads",)
    np.testing.assert_allclose(rows.leaves["grads.c"], [0.4, 0.4, 0.8, 0.1], rtol=1e-6)
    other = options.replace(BASE, {"grads": "cagrad(rescale='1+c')"})
    with pytest.raises(ValueError, match="'a' and 'd' cannot be packed: they differ in grads"):
        packing.pack(trials | {"d": other}, ())


OFF_POLICY = {
    "learner": "sac", "rollout_length": 4, "replay_capacity": 64, "warm_start": 0, "batch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, first, second",
    [
        ({}, {"grads": "cagrad(c=0.1)"}, {"grads": "cagrad(c=0.95)"}),
        (
            {},
            {"grads": "gradnorm(0.1, surrogate='softplus')", "clip": 0.3},
            {"grads": "gradnorm(6.0, surrogate='softplus')"},
        ),
        (
            OFF_POLICY,
            {"grads": "fairgrad(alpha=0.5)", "critic_grads": "gradvac(beta=0.01)"},
            {"grads": "fairgrad(alpha=2.0)", "critic_grads": "gradvac(beta=0.9)"},
        ),
    ],
    ids=["ppo-cagrad", "ppo-gradnorm", "sac-fairgrad-gradvac"],
)
def test_a_packed_constant_gives_what_it_gives_alone(changes, first, second):
    """The second trial's parameters after some updates are, within rounding, those of a run by itself."""
    base = options.replace(BASE, changes)
    trials = {name: options.replace(base, change) for name, change in (("first", first), ("second", second))}
    suite = suites.make(base.suite)
    rows = packing.pack(trials, packing.vmapped_options(Trainer(base, suite).learner))
    together = parameters(Trainer(rows.config, suite, rows))
    alone = parameters(Trainer(trials["second"], suite))
    chex.assert_trees_all_close(packing.rows_of(together, rows.slices["second"]), alone, rtol=2e-4, atol=2e-5)
    moved = jax.tree.map(lambda x: jnp.abs(x[0] - x[1]).max(), together)
    assert max(jax.tree.leaves(moved)) > 1e-4  # they are no copies of one trial


def parameters(trainer):
    """Those of all seeds after four updates."""
    state = trainer.init()
    for _ in range(4):
        state, rollout = trainer.collect(trainer.env, state)
        state, _ = trainer.update(state, rollout)
    return state.learner.params


@pytest.mark.parametrize("name", LEARNERS)
def test_the_learner_says_what_is_a_leaf_of_its_state(name):
    """These are options of the learner, and --help marks them: a sweep packs what it promises to."""
    config = options.replace(BASE, {"learner": name, "num_minibatches": 2} if name == "ppo" else {"learner": name})
    config = options.replace(config, {"replay_capacity": 100} if name in ("sac", "hipbmdp") else {})
    found = packing.vmapped_options(Trainer(config, suites.make(BASE.suite)).learner)
    marked = [f.name for f in dataclasses.fields(config.hyper) if "[vmapped]" in f.metadata["help"]]
    assert sorted(found) == sorted(marked)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """(trials' folder, program's folder, outcome): killed once in the middle, and resumed."""
    folder = tmp_path_factory.mktemp("packed")
    program, trials = folder / "program", folder / "trials"
    one_update = run.Session._one_update

    def killed(self, **options):
        if self.update == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_update(self, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Session, "_one_update", killed)
        with pytest.raises(run.Interrupted):
            packed.train_packed(TRIALS, program, trials, **QUIET)
    assert packing.load_program(program) == packing.pack(TRIALS, ("learning_rate", "entropy_cost"))
    outcome = packed.train_packed(TRIALS, program, trials, resume=True, **QUIET)
    return trials, program, outcome


@pytest.mark.parametrize("name", ["slow", "fast"])
def test_a_packed_trial_is_the_trial_alone(together, tmp_path, name):
    """Within rounding: parameters, what was recorded, evaluations, the summary; and the folder is a run's folder."""
    trials, _, outcome = together
    alone = run.train(TRIALS[name], tmp_path / "alone", **QUIET)
    assert run.load_config(trials / name) == TRIALS[name]
    mine, theirs = state_of(trials / name), state_of(tmp_path / "alone")
    chex.assert_trees_all_close(mine, theirs, rtol=2e-4, atol=2e-5)
    for ours, other in zip(measured(trials / name), measured(tmp_path / "alone"), strict=True):
        assert ours[:3] == other[:3]
        chex.assert_trees_all_close(ours[3], other[3], rtol=2e-3, atol=2e-4)
    saved = json.loads((trials / name / "summary.json").read_text())
    assert saved == json.loads(json.dumps(outcome.summaries[name]))
    assert saved["seeds"] == alone["seeds"] and saved["step"] == alone["step"] == UPDATES * STEPS
    returns = [summary["results"]["train"]["deterministic"]["return"] for summary in (saved, alone)]
    chex.assert_trees_all_close(*(r["tasks"] for r in returns), rtol=1e-3)


def test_a_trial_that_diverges_stops_no_other(together):
    """It keeps its record up to there and the reason; the others' records do not speak of it."""
    trials, program, outcome = together
    assert set(outcome.summaries) == {"slow", "fast"}
    assert outcome.diverged["wild"].startswith("trial wild diverged at step") and "seed 0" in outcome.diverged["wild"]
    assert not (trials / "wild" / "summary.json").exists()
    lines = record.read(trials / "wild")
    assert lines[-1]["message"] == outcome.diverged["wild"]
    assert max(line["step"] for line in lines) < UPDATES * STEPS
    assert not any("diverged" in line.get("message", "") for line in record.read(trials / "slow"))
    assert not (program / "checkpoints").exists() and not list(trials.glob(".*"))
    # Killed between its last deed and the news of it: nothing is done twice.
    again = packed.train_packed(TRIALS, program, trials, resume=True, **QUIET)
    assert again.diverged == outcome.diverged and set(again.summaries) == set(outcome.summaries)


@pytest.mark.parametrize("held", ["program", "trials/slow"])
def test_a_folder_in_use_is_refused_before_anything_is_begun(tmp_path, held):
    """Two calls on one program, or somebody extending a trial, must not delete each other's files."""
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / held).mkdir(parents=True)
    with (tmp_path / held / lock.FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=f"{held} is in use by another process: only one process at a time"):
            packed.train_packed(TRIALS, tmp_path / "program", tmp_path / "trials", **QUIET)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {lock.FILE}


def test_other_trials_do_not_go_on_in_a_program(together, tmp_path):
    """Rows are told apart by their place: other numbers, or another order, would be given the wrong names."""
    _, program, _ = together
    wild, *others = TRIALS
    changed = {**TRIALS, wild: options.replace(TRIALS[wild], {"learning_rate": 0.123})}
    for trials, message in (
        (changed, f"holds trial {wild} with other options:\n  --learning_rate: .* in the run, 0.123 asked"),
        ({name: TRIALS[name] for name in (*others, wild)}, "holds a program with trials .*, not "),
    ):
        with pytest.raises(ValueError, match=message):
            packed.train_packed(trials, program, tmp_path / "trials", resume=True, **QUIET)


def test_a_program_of_which_nothing_is_left(tmp_path):
    """No trial is lost without a word."""
    trials = {"wild": TRIALS["wild"]}
    outcome = packed.train_packed(trials, tmp_path / "program", tmp_path / "trials", **QUIET)
    assert outcome.summaries == {} and "not finite" in outcome.diverged["wild"]
    assert run.load_config(tmp_path / "trials" / "wild") == TRIALS["wild"]


def test_a_packed_trial_goes_on_alone(together, tmp_path):
    """Its checkpoint is a run's: it can be evaluated and extended."""
    trials, _, _ = together
    found = run.evaluate(trials / "fast", episodes=2)
    assert found["step"] == UPDATES * STEPS
    longer = dataclasses.replace(TRIALS["fast"], total_steps=(UPDATES + 1) * STEPS)
    assert run.train(longer, trials / "fast", resume=True, **QUIET)["step"] == (UPDATES + 1) * STEPS


def state_of(folder):
    trainer = Trainer(run.load_config(folder), suites.make(BASE.suite))
    with Checkpointer(folder, read_only=True) as saver:
        step, state, _ = saver.restore(jax.eval_shape(trainer.init))
    assert step == UPDATES * STEPS
    learner = jax.tree.map(lambda x: x, state.learner)
    assert jnp.issubdtype(state.keys.dtype, jax.dtypes.prng_key)
    return [x for x in jax.tree.leaves(learner) if jnp.issubdtype(x.dtype, jnp.floating)]


def measured(folder):
    """(kind, step, split, values) of a record, without clocks."""
    for line in record.read(folder):
        if line["kind"] in ("train", "evaluation"):
            values = {k: v for k, v in line["values"].items() if not k.startswith(("seconds", "steps_per"))}
            yield line["kind"], line["step"], line.get("split"), values
