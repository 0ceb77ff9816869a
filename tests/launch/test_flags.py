"""One flag for every option, and back: what is written for a run reads back as that run."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

import mtjax
from mtjax import options
from mtjax.launch import command, flags, train
from mtjax.training.config import RunConfig, flagfile


def parsed(*arguments: str) -> command.FlagValues:
    values = command.FlagValues()
    train.define(values)
    command.parse(values, ["mtjax-train", *arguments])
    return values


def given(*arguments: str) -> dict:
    return flags.given(parsed(*arguments), RunConfig())


def test_help_lists_every_option_with_its_default(command):
    result = command("--help")
    assert result.code == 0 and result.err == ""
    for members in flags.sections(RunConfig()).values():
        for name, fields in members.items():
            switch = all(isinstance(field.default, bool) for field in fields.values())
            assert result.out.count(f"\n  --{'[no]' if switch else ''}{name}\n") == 1
    text = " ".join(result.out.split())
    assert "Step size of Adam. [vmapped] (greater than 0; default 0.0003)" in text
    assert "Discount γ of future reward. [vmapped] (at least 0; at most 1; default 0.99)" in text
    assert "(one of tanh, relu, silu, elu, gelu; default tanh)" in text


def test_help_says_whose_an_option_is(command):
    """Learners share flags of one name; a reader must see which learner takes which, and with which default."""
    titles = {name: title for title, members in flags.sections(RunConfig()).items() for name in members}
    assert titles["discount"] == titles["exploration"] == "Options of every --learner"
    assert "--learner=ppo" in titles["gae_lambda"] and "--learner=sac" not in titles["gae_lambda"]
    assert titles["polyak"] == "Options of --learner=sac and --learner=hipbmdp"
    assert titles["theta_size"] == "Hyper-parameters of HiP-BMDP (--learner=hipbmdp)"
    text = " ".join(command("--help").out.split())
    assert "Adam's epsilon. (greater than 0; default 1e-05 with ppo, distral; default 1e-08 with" in text
    assert "default 1e-08 with sac, hipbmdp)" in text
    assert "Options of --learner=sac and --learner=hipbmdp: --critic_learning_rate" in text


@pytest.mark.parametrize("name", ["help", "helpshort", "helpfull", "h"])
def test_absl_names_of_help_work(command, name):
    assert command(f"--{name}").code == 0


def test_nothing_given_is_nothing_set():
    assert given() == {}


def test_a_run_says_that_it_rounds_its_steps_up(command, training):
    """Whoever compares two learners after 100,000 steps compares them after 131,072 and 100,352."""
    typed = ("--suite=launch-probe", "--num_envs=32", "--rollout_length=512")
    result = command(*typed, "--total_steps=100_000")
    assert "\ntotal_steps 100,000: 131,072, whole updates of 32,768 steps\n" in result.out, result
    assert "whole updates" not in command(*typed, "--total_steps=65_536").out


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("--hidden_sizes=256,128", {"hidden_sizes": (256, 128)}),
        ("--hidden_sizes=(32,)", {"hidden_sizes": (32,)}),
        ("--value_hidden_sizes=", {"value_hidden_sizes": ()}),
        ("--total_steps=1e6", {"total_steps": 1_000_000}),
        ("--total_steps=2_000", {"total_steps": 2000}),
        ("--total_steps=20k", {"total_steps": 20_000}),
        ("--total_steps=4.1M", {"total_steps": 4_100_000}),
        ("--total_steps=2.0G", {"total_steps": 2_000_000_000}),
        ("--learning_rate 3e-4", {"learning_rate": 3e-4}),
        ("--initial_log_scale -1.5", {"initial_log_scale": -1.5}),
        ("--squash", {"squash": True}),
        ("--nonormalize_observations", {"normalize_observations": False}),
        ("--normalize_observations=false", {"normalize_observations": False}),
        ("--discount=1", {"discount": 1.0}),
        ("-seed=4", {"seed": 4}),
    ],
)
def test_values_are_read(typed, expected):
    assert given(*typed.split()) == expected


def test_a_default_that_is_given_counts_as_given():
    """A flag beats the preset even where it says what the default says."""
    assert given("--num_envs=32") == {"num_envs": 32}


@pytest.mark.parametrize("order", [0, 1])
def test_the_command_line_beats_a_flagfile_wherever_it_stands(tmp_path, order):
    (tmp_path / "some.txt").write_text("# settings\n\n--seed=1\n--num_envs=2\n")
    arguments = ["--flagfile=some.txt", "--seed=5"]
    assert given(*(arguments if order else reversed(arguments))) == {"seed": 5, "num_envs": 2}


def test_flagfiles_nest(tmp_path):
    (tmp_path / "inner.txt").write_text("--seed=1\n")
    (tmp_path / "outer.txt").write_text("--flagfile=inner.txt\n--num_envs=2\n")
    assert given("--flagfile", "outer.txt") == {"seed": 1, "num_envs": 2}


def values_of(field: dataclasses.Field) -> st.SearchStrategy:
    """Values that an option may have."""
    bounds, default = field.metadata, field.default
    if bounds["choices"]:
        one = st.sampled_from(tuple(bounds["choices"]))
        return st.lists(one, min_size=1, unique=True).map(tuple) if isinstance(default, tuple) else one
    if isinstance(default, bool):
        return st.booleans()
    low = next((bounds[key] for key in ("low", "above") if bounds[key] is not None), None)
    above = bounds["above"] is not None
    if isinstance(default, int):
        return st.integers(low, bounds["high"])
    if isinstance(default, float):
        return st.floats(low, bounds["high"], exclude_min=above, allow_nan=False, allow_infinity=False)
    if isinstance(default, tuple):
        return st.lists(st.integers(1, 999), min_size=bounds["fewest"], max_size=3).map(tuple)
    return st.sampled_from(["mean", "pcgrad(reduction='mean')", *([""] if default == "" else [])])


def configurations(learner: str) -> st.SearchStrategy:
    """Every option of a run with this learner, each with any value that it may have."""
    parts = (RunConfig(learner=learner), RunConfig(learner=learner).hyper, RunConfig().network)
    fields = [field for part in parts for field in dataclasses.fields(part) if "help" in field.metadata]
    return st.fixed_dictionaries({field.name: values_of(field) for field in fields} | {"learner": st.just(learner)})


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.one_of(configurations("ppo"), configurations("sac")))
def test_every_configuration_survives_its_flagfile_and_its_json(tmp_path_factory, changes):
    """flags.txt and config.json of a run reproduce it, whatever its options are."""
    config = options.replace(RunConfig(), changes)
    path = tmp_path_factory.mktemp("flags") / "flags.txt"
    path.write_text(flagfile(config))
    values = parsed(f"--flagfile={path}")
    asked = flags.given(values, train.Command())
    again = options.replace(RunConfig(), flags.given(values, RunConfig()))
    assert again == config
    assert asked == {"preset": "none"}
    assert options.from_dict(RunConfig(), dataclasses.asdict(config)) == config


def test_a_mistyped_flag_is_answered_without_importing_jax():
    """--help and typing errors answer at once; jax and the simulators take seconds to import."""
    code = (
        "import sys\nfrom mtjax.launch import train, evaluate\n"
        "for main in (train.main, evaluate.main):\n"
        "    for argument in ('--help', '--sede=1'):\n"
        "        try: main(['mtjax-train', argument])\n"
        "        except SystemExit: pass\n"
        "heavy = {'jax', 'mujoco', 'flax', 'numpy'} & set(sys.modules)\n"
        "from mtjax.launch import report, sweep\n"
        "for main, argument in ((sweep.main, '--sweep=learning_rat=1'), (report.main, 'nowhere')):\n"
        "    try: main(['mtjax', argument])\n"
        "    except SystemExit as end: assert end.code == 1\n"
        "heavy |= {'jax'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    root = pathlib.Path(mtjax.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr
