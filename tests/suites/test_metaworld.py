"""Meta-World: if these fail, results would not be those of the benchmark that the name promises."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax import suites
from mtjax.envs.envpool import require_envpool
from mtjax.suites import metaworld
from mtjax.suites.metaworld_tasks import MT50, OBJECTS

try:
    require_envpool()  # the way mtjax imports it: OpenGL first
except ImportError:
    pass
SKIP = "EnvPool is not installed: pip install 'mtjax[metaworld]'"
HORIZON = 3
SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "metaworld_check.py"
REFERENCE = os.environ.get("MTJAX_METAWORLD_PYTHON")  # the package pins versions that mtjax does not have


def play(env, actions, lead=()):
    """Scan over actions [H, ..., T, E, 4]; returns (first observation, Steps [H, ...]) as NumPy."""

    @jax.jit
    def scan(state, actions):
        return jax.lax.scan(lambda s, a: env.step(s, a, jax.random.key(0)), state, actions)[1]

    key = jax.random.key(0)
    state, first = jax.jit(env.reset)(jax.random.split(key, lead) if lead else key)
    return np.asarray(first), jax.tree.map(np.asarray, scan(state, actions))


def short_env(*tasks, num_envs=2, seed=0):
    """The tasks with a horizon of 3 steps."""
    suite = metaworld.make_suite("some", tasks)
    return dataclasses.replace(suite.vector_env(num_envs, seed=seed), horizon=HORIZON)


def random_actions(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1.5, 1.5, (*shape, 4)), jnp.float32)


def test_all_of_the_benchmarks_are_registered():
    names = [name for name in suites.names() if name.startswith("metaworld-")]
    assert len(names) == 53
    sizes = {name: suites.make(name).num_tasks for name in names}
    assert (sizes["metaworld-mt10"], sizes["metaworld-mt25"], sizes["metaworld-mt50"]) == (10, 25, 50)
    assert sizes["metaworld-mt1-peg-insert-side"] == 1


def test_every_task_has_a_sentence_of_its_own():
    tasks = suites.make("metaworld-mt50").tasks
    sentences = [task.description for task in tasks]
    assert len(set(sentences)) == 50
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)


@pytest.mark.parametrize(("name", "sizes"), [("mt10", (10, 4, 11)), ("mt25", (25, 13, 12))])
def test_held_out_tasks_are_not_trained_on(name, sizes):
    splits = suites.make(f"metaworld-{name}").splits
    train, near, far = ({info.name for info in splits[split].infos} for split in suites.SPLITS)
    assert (len(train), len(near), len(far)) == sizes
    assert not train & near and not train & far and not near & far


def test_tasks_between_are_other_demands_of_a_training_tasks_object():
    """A wall before the button, a hole under the puck: MT10 knows both. Nut, ball and faucet it never met."""
    splits = suites.make("metaworld-mt10").splits
    near, far = ([info.name for info in splits[split].infos] for split in ("interpolation", "extrapolation"))
    assert set(near) >= {"pick-out-of-hole", "pick-place-wall", "button-press-wall", "button-press-topdown-wall"}
    assert set(far) >= {"disassemble", "basketball", "faucet-open", "door-lock", "dial-turn"}


def test_objects_are_of_tasks_that_there_are_and_each_has_one():
    tasks = [task for of_one in OBJECTS.values() for task in of_one]
    assert len(set(tasks)) == len(tasks) and set(tasks) <= set(MT50)


def test_the_stamp_names_the_protocol():
    version = suites.make("metaworld-mt10").version
    assert version.simulator.startswith("envpool ") and version.reward == "v2" and version.horizon == 500
    assert version.goals == "visible, redrawn each episode"


def test_the_stamp_warns_of_the_tasks_it_has_and_no_others(monkeypatch):
    monkeypatch.setattr(metaworld.metadata, "version", lambda package: "1.2.5")
    assert any("dial-turn" in warning for warning in suites.make("metaworld-mt25").version.warnings)
    assert any("dial-turn" in warning for warning in suites.make("metaworld-mt10").version.warnings)  # held out there
    assert not suites.make("metaworld-mt1-reach").version.warnings


def test_an_unchecked_envpool_is_warned_of(monkeypatch):
    monkeypatch.setattr(metaworld.metadata, "version", lambda package: "9.9.9")
    (warning,) = suites.make("metaworld-mt1-reach").version.warnings
    assert "9.9.9" in warning and "metaworld_check.py" in warning


def test_suites_are_made_without_importing_envpool():
    """`mtjax-train --help` and device suites must not need the extra."""
    make = "from mtjax import suites; suites.make('metaworld-mt50')"
    code = f"import sys; {make}; assert 'envpool' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"pip install 'mtjax\[metaworld\]'"):
        suites.make("metaworld-mt10").vector_env(2)


def test_mt10_has_the_promised_shapes():
    pytest.importorskip("envpool", reason=SKIP)
    env = suites.make("metaworld-mt10").vector_env(1, seed=0)
    first, steps = play(env, random_actions(2, 10, 1))
    assert first.shape == (10, 1, 39) and first.dtype == np.float32
    assert steps.observation.shape == (2, 10, 1, 39) and steps.info["success"].shape == (2, 10, 1)
    assert np.isfinite(steps.observation).all() and (steps.reward >= 0).all()


def test_the_answers_are_those_of_envpool():
    """Same seeds and actions, stepped by hand: same observations, rewards, success, ends, next goals."""
    envpool = pytest.importorskip("envpool", reason=SKIP)
    actions = random_actions(7, 2, 2)
    first, steps = play(short_env("reach", "pick-place"), actions)
    for index, task in enumerate(("reach", "pick-place")):
        seeds = np.random.SeedSequence((0, index)).generate_state(2) & 0x7FFFFFFF
        pool = envpool.make_gymnasium(
            metaworld.envpool_id(task),
            num_envs=2,
            env_seed=seeds.tolist(),
            partially_observable=False,
        )
        observation, _ = pool.reset()
        np.testing.assert_array_equal(first[index], observation.astype(np.float32))
        for time in range(7):
            clipped = np.clip(np.asarray(actions[time, index]), -1, 1)
            observation, reward, *_, info = pool.step(clipped)
            np.testing.assert_array_equal(steps.final_observation[time, index], observation.astype(np.float32))
            np.testing.assert_array_equal(steps.reward[time, index], reward.astype(np.float32))
            np.testing.assert_array_equal(steps.info["success"][time, index], info["success"])
            if (time + 1) % HORIZON == 0:
                assert steps.truncated[time].all()
                observation, _ = pool.reset()
            np.testing.assert_array_equal(steps.observation[time, index], observation.astype(np.float32))


def test_goals_are_visible_and_redrawn_each_episode():
    pytest.importorskip("envpool", reason=SKIP)
    first, steps = play(short_env("reach"), random_actions(HORIZON, 1, 2))
    goals = first[0, :, 36:]
    assert (goals[:, 1] > 0.7).all() and not np.array_equal(goals[0], goals[1])
    np.testing.assert_array_equal(steps.final_observation[-1, 0, :, 36:], goals)
    assert (np.abs(steps.observation[-1, 0, :, 36:] - goals).max(-1) > 1e-3).all()


@pytest.mark.parametrize("task", sorted(metaworld.FRESH))
def test_goals_do_not_wander_off(task):
    """EnvPool's own reset adds to the goal of these at each episode; a few metres later nothing is learnt."""
    pytest.importorskip("envpool", reason=SKIP)
    first, steps = play(short_env(task, num_envs=1), random_actions(4 * HORIZON, 1, 1))
    goals = np.concatenate([first[None], steps.observation])[:, 0, 0, 36:]
    assert np.ptp(goals, axis=0).max() < 0.25


def test_a_seed_gives_the_same_whatever_the_number_of_seeds():
    pytest.importorskip("envpool", reason=SKIP)
    actions = random_actions(4, 2, 1, 2)
    many, many_steps = play(short_env("push"), actions, lead=(2,))
    one, one_steps = play(short_env("push"), actions[:, 0])
    np.testing.assert_array_equal(many[0], one)
    np.testing.assert_array_equal(many_steps.observation[:, 0], one_steps.observation)
    assert not np.array_equal(many[0], many[1])
    assert not np.array_equal(play(short_env("push", seed=1), actions[:, 0])[0], one)


@pytest.fixture
def check(monkeypatch):
    """benchmarks/metaworld_check.py, as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("metaworld_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measuring_a_few_tasks_again_replaces_their_rows_alone(check):
    """KNOWN_FAULTS rest on them: a row that is lost, or of another task, would be a fault that nobody is warned of."""
    page = check.PAGE.read_text()
    tasks = check.task_list("button-press, soccer")
    results = [check.Result(task, _episodes(1.0, 500.0), _episodes(0.95, 1000.0)) for task in tasks]
    after = check.updated(page, results, "20, 2 in a row")
    changed = [new for old, new in zip(page.splitlines(), after.splitlines(), strict=True) if old != new]
    assert changed == [f"| {task} | 1.00 | 0.95 | 501 | 1,001 | 20, 2 in a row |" for task in tasks]
    assert results[0].verdict == "**off**" and results[0].fault == "returns are 50% below Meta-World's"
    never = check.Result("soccer", _episodes(0.0, 1000.0), _episodes(1.0, 1000.0))
    assert never.verdict == "**off**" and never.fault == "succeeds in 0% of the episodes, Meta-World's in 100%"
    for task in MT50:
        assert check.updated(page, [check.Result(task, *[_episodes(1.0, 1.0)] * 2)], "20") != page
    with pytest.raises(argparse.ArgumentTypeError, match="unknown task 'box-clsoe'; did you mean box-close"):
        check.task_list("soccer,box-clsoe")


def _episodes(success, returned):
    """Two episodes, so that there is a standard error."""
    return {"success": [success, success], "return": [returned, returned + 2.0]}


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE, reason="MTJAX_METAWORLD_PYTHON names no Python with metaworld 3.1.1")
def test_two_tasks_are_those_of_metaworld(tmp_path):
    """The simulator is another one: Meta-World's scripted policies must succeed in both, with the same returns."""
    pytest.importorskip("envpool", reason=SKIP)
    asked = [f"--metaworld_python={REFERENCE}", "--tasks=reach,plate-slide", "--episodes=6"]
    command = [sys.executable, str(SCRIPT), *asked, f"--output={tmp_path / 'episodes.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "against metaworld 3.1.1" in done.stdout and "\n0 of 2 tasks are off: none\n" in done.stdout, done.stdout
    for found in json.loads((tmp_path / "episodes.json").read_text()):
        for where in ("ours", "theirs"):
            assert len(found[where]["return"]) == 6 and np.mean(found[where]["success"]) == 1.0


def test_an_episode_can_be_drawn():
    pytest.importorskip("envpool", reason=SKIP)
    suite = suites.make("metaworld-mt1-reach")
    try:
        frames, per_second = suite.render(
            suite.splits["train"], 0, lambda observation, key: jnp.ones(4), seed=0, steps=10
        )
    except RuntimeError as error:
        pytest.skip(str(error))
    assert frames.shape == (2, 320, 320, 3) and frames.dtype == np.uint8 and per_second == 8.0
    assert frames.std() > 10 and not np.array_equal(frames[0], frames[1])
