"""``mtjax-train`` and its run folder: nothing is overwritten unasked; a run's own command continues it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import mtjax
from mtjax.launch import train
from mtjax.training.config import RunConfig, flagfile

PROBE = "--suite=launch-probe"
ROOT = pathlib.Path(mtjax.__file__).parents[1]


def test_a_new_run_gets_a_folder_of_its_own(command, training, tmp_path):
    for _ in range(2):
        assert command(PROBE).code == 0
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("launch-probe-") for folder in folders)
    config, run_dir, asked = training.calls[0]
    assert config.suite == "launch-probe" and run_dir.resolve() == folders[0]
    assert asked == {"resume": False, "progress": True, "video": True, "tensorboard": True, "mesh": ""}


def test_the_start_says_what_runs_and_where(command, training):
    out = command(PROBE, "--run_dir=run", "--learning_rate=0.01", "--hidden_sizes=8,8").out
    assert "launch-probe (2 train tasks; v1, no simulator, reward v1, horizon 1)" in out
    assert "warning: task_1 is not what it seems" in out
    assert "run folder: run\n" in out
    words = [line.split() for line in out.splitlines()]
    assert ["learning_rate", "0.01", "flag", "0.0003"] in words
    assert ["hidden_sizes", "8,8", "flag", "256,256"] in words


def test_as_many_environments_as_fit_and_are_of_use(command, training):
    """The number that was chosen is the run's: its flags do not choose again on another machine."""
    result = command(PROBE, "--run_dir=run", "--num_envs=auto", "--total_steps=1_000_000", "--rollout_length=16")
    assert result.code == 0, result.err
    # 2 tasks of 16 steps: 128 environments are 4,096 steps an update, and 244 updates.
    assert "\nnum_envs is 128: 256 would leave only 122 updates in 1,000,000 steps; the minimum is 200" in result.out
    assert ["num_envs", "128", "auto", "32"] in [line.split() for line in result.out.splitlines()]
    assert "; matrix products in " in result.out
    command("--flagfile=run/flags.txt", "--run_dir=again")
    command("--run_dir=run", "--resume", "--num_envs=auto")
    assert [config.num_envs for config, *_ in training.calls] == [128] * 3


def test_a_run_of_as_many_environments_as_fit_is_found_again(command, training):
    """By the same command, which does not say how many those were."""
    typed = (PROBE, "--num_envs=auto", "--total_steps=1_000_000", "--rollout_length=16")
    assert command(*typed).code == 0
    result = command(*typed, "--resume")
    assert result.code == 0, result.err
    (config, folder, _), (again, same, asked) = training.calls
    assert config == again and config.num_envs == 128 and folder == same and asked["resume"]
    assert command(*typed, "--seed=1", "--resume").code == 1


def test_the_run_folder_holds_flags_that_reproduce_it(command, training, tmp_path):
    command(PROBE, "--run_dir=first", "--num_envs=3", "--grads=pcgrad(reduction='mean')")
    command("--flagfile=first/flags.txt", "--run_dir=second")
    command("--config_from=first", "--run_dir=third")
    command("--config_from=first", "--run_dir=fourth", "--num_envs=4")
    configs = [config for config, *_ in training.calls]
    assert configs[0] == configs[1] == configs[2] != configs[3]
    assert configs[0].num_envs == 3 and configs[3].num_envs == 4


def test_a_run_is_not_overwritten(command, training, tmp_path):
    command(PROBE, "--run_dir=run")
    (tmp_path / "run" / "treasure").write_text("weeks of work")
    result = command(PROBE, "--run_dir=run")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: --run_dir=run already holds a run; continue it with --resume, replace it with "
        "--overwrite, or choose another folder\n",
    )
    assert (tmp_path / "run" / "treasure").exists() and len(training.calls) == 1


def test_overwrite_replaces_a_run(command, training, tmp_path):
    command(PROBE, "--run_dir=run")
    (tmp_path / "run" / "old").write_text("")
    assert command(PROBE, "--run_dir=run", "--overwrite").code == 0
    assert not (tmp_path / "run" / "old").exists() and len(training.calls) == 2


def test_overwrite_spares_the_run_if_the_command_is_wrong(command, training, tmp_path):
    command(PROBE, "--run_dir=run")
    (tmp_path / "run" / "old").write_text("")
    assert command(PROBE, "--run_dir=run", "--overwrite", "--grads=pcgard").code == 1
    assert (tmp_path / "run" / "old").exists()


HOLD = (
    "import sys\nfrom mtjax.training import lock\nwith lock.lock(sys.argv[1], 'run'):\n    print(flush=True); input()"
)


@pytest.mark.parametrize("arguments", [("--overwrite",), ("--resume", "--total_steps=999_999_999")])
def test_a_run_that_another_process_trains_is_never_touched(command, training, tmp_path, arguments):
    """Neither deleted nor told another length: the second command is refused before it has changed anything."""
    command(PROBE, "--run_dir=run")
    (tmp_path / "run" / "treasure").write_text("weeks of work")
    before = (tmp_path / "run" / "config.json").read_bytes()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], **pipes) as holder:
        assert holder.stdout.readline()
        result = command(PROBE, "--run_dir=run", *arguments)
        assert result.code == 1 and result.err.count("\n") == 1
        assert result.err.startswith(f"mtjax-train: run is in use by process {holder.pid} on ")
        assert result.err.endswith(": only one process at a time may use a run\n")
        holder.stdin.close()
    assert (tmp_path / "run" / "treasure").exists() and len(training.calls) == 1
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    assert command(PROBE, "--run_dir=run", *arguments).code == 0


def test_a_run_that_came_while_the_command_started_is_not_touched(command, training, tmp_path, monkeypatch):
    """Two equal commands at once, the first of which has already ended."""

    def start(*arguments):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text("theirs")
        return ""

    monkeypatch.setattr(train.show, "start", start)
    result = command(PROBE, "--run_dir=run")
    assert result.code == 1
    assert result.err == ("mtjax-train: --run_dir=run now holds another process's run; choose another folder\n")
    assert (tmp_path / "run" / "config.json").read_text() == "theirs" and not training.calls


def test_a_run_that_cannot_be_written_is_not_resumed(command, training, monkeypatch):
    """A colleague's folder, a read-only file system: said at once, not after compiling."""
    command(PROBE, "--run_dir=run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        result = command("--run_dir=run", "--resume", "--compilation_cache=none")
    assert (result.code, result.err) == (1, "mtjax-train: --run_dir=run is not writable\n")
    assert len(training.calls) == 1


@pytest.mark.parametrize("arguments", [(), ("--overwrite",)])
def test_a_folder_that_is_not_a_run_is_never_touched(command, training, tmp_path, arguments):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    result = command(PROBE, "--run_dir=home", *arguments)
    assert (result.code, result.err) == (
        1,
        "mtjax-train: --run_dir=home is not empty and is not a run; choose another folder\n",
    )
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_file_is_not_a_folder(command, training, tmp_path):
    (tmp_path / "file").write_text("")
    result = command(PROBE, "--run_dir=file")
    assert (result.code, result.err) == (1, "mtjax-train: --run_dir=file is a file, not a folder\n")
    result = command(PROBE, "--run_dir=file/run")
    assert result.code == 1 and "is a file\n" in result.err


def test_an_empty_folder_is_fine(command, training, tmp_path):
    (tmp_path / "run").mkdir()
    assert command(PROBE, "--run_dir=run").code == 0


# ----------------------------------------------------------------------------------------- resume


def test_resume_needs_nothing_but_the_folder(command, training):
    command(PROBE, "--run_dir=run", "--num_envs=3")
    result = command("--run_dir=run", "--resume")
    assert result.code == 0 and "resuming: run\n" in result.out
    (first, _, _), (second, _, asked) = training.calls
    assert first == second and asked["resume"]


def test_resume_takes_the_same_command(command, training):
    typed = (PROBE, "--num_envs=3", "--run_dir=run")
    command(*typed)
    assert command(*typed, "--resume").code == 0
    assert training.calls[0][0] == training.calls[1][0]


def test_resume_without_a_folder_finds_the_run_of_the_same_command(command, training, tmp_path):
    command(PROBE, "--num_envs=3")
    command(PROBE, "--num_envs=4")
    result = command(PROBE, "--num_envs=3", "--resume")
    assert result.code == 0
    assert training.calls[2][1] == training.calls[0][1] and training.calls[2][2]["resume"]
    result = command(PROBE, "--num_envs=5", "--resume")
    assert result.code == 1
    assert result.err.startswith("mtjax-train: nothing to resume: no run with these options under runs; the newest")


def test_a_run_that_failed_before_it_began_does_not_block_its_folder(command, training):
    """An environment with a fault fails while it is traced: once it is mended, the same command goes."""

    def fail():
        raise training.Interrupted("stopped")

    training.work = fail
    assert command(PROBE, "--run_dir=run").code == 75
    record = pathlib.Path("run") / "metrics.jsonl"
    record.write_text('{"kind":"tasks","tasks":["a"]}\n{"kind":"event","step":0}\n')
    assert command(PROBE, "--run_dir=run").code == 75 and not training.calls[-1][2]["resume"]
    record.write_text('{"kind":"tasks","tasks":["a"]}\n{"kind":"train","step":1}\n')
    assert "already holds a run" in command(PROBE, "--run_dir=run").err
    record.unlink()
    training.work = lambda: None
    assert command(PROBE, "--run_dir=run").code == 0
    assert "already holds a run" in command(PROBE, "--run_dir=run").err  # it has a checkpoint


def test_a_method_without_gradients_to_combine(command, training):
    """Two runs that differ in it alone would be the same run; a preset's or the default's is nobody's choice."""
    apart = (PROBE, "--arrangement=independent")
    assert "note: --grads=mgda has no effect" in command(*apart, "--grads=mgda", "--run_dir=a").out
    assert "has no effect" not in command(*apart, "--run_dir=b").out
    assert "has no effect" not in command(PROBE, "--grads=mgda", "--run_dir=c").out


def test_an_interrupt_that_an_import_has_swallowed_still_stops_the_command(command, training, monkeypatch):
    """Python drops an exception that a destructor or a callback of C code raises: the run went on to its end."""
    prepare = train.environment.prepare

    def importing():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        prepare()

    monkeypatch.setattr(train.environment, "prepare", importing)
    result = command(PROBE, "--run_dir=run")
    assert result.code == 130 and not training.calls and "interrupted" in result.err
    monkeypatch.undo()


@pytest.mark.parametrize("first, second", [(100, 200), (200, 100)])
def test_resume_without_a_folder_prefers_the_run_of_as_many_steps(command, training, first, second):
    """One that would have to be extended is taken only if there is no other, however new it is."""
    for steps in (first, second):
        command(PROBE, f"--total_steps={steps}")
    folders = dict(zip((first, second), [call[1] for call in training.calls], strict=True))
    assert command(PROBE, "--total_steps=200", "--resume").code == 0
    assert training.calls[-1][1] == folders[200]
    assert command(PROBE, "--total_steps=300", "--resume").code == 0  # that which was last at work
    assert training.calls[-1][1] == folders[200]


def test_resume_refuses_other_options_with_a_diff(command, training):
    command(PROBE, "--run_dir=run")
    result = command("--run_dir=run", "--resume", "--learning_rate=0.5", "--hidden_sizes=4,4", "--seed=0")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: run cannot be resumed with other options; leave them out, or start a new run in "
        "another --run_dir:\n"
        "  --learning_rate: 0.0003 in the run, 0.5 asked\n"
        "  --hidden_sizes: 256,256 in the run, 4,4 asked\n",
    )


def test_resume_extends_a_run(command, training):
    command(PROBE, "--run_dir=run", "--total_steps=100", "--learning_rate_schedule=linear", "--entropy_schedule=cosine")
    result = command("--run_dir=run", "--resume", "--total_steps=200", "--log_every=5")
    assert result.code == 0
    assert "total_steps extended from 100 to 200\n" in result.out
    stretched = [line for line in result.out.splitlines() if line.endswith("now spans the extended run")]
    assert stretched == [
        f"warning: --{name} now spans the extended run"
        for name in ("learning_rate_schedule=linear", "entropy_schedule=cosine")
    ]
    config = training.calls[1][0]
    assert (config.total_steps, config.log_every) == (200, 5)


@pytest.mark.parametrize("share, part, told", [(0.2, 0.5, True), (0.2, 1.0, False), (0.0, 1.0, False)])
def test_a_longer_run_that_has_detours_again_says_so(command, training, share, part, told):
    command(PROBE, "--run_dir=run", "--total_steps=100", f"--detour_share={share}", f"--detour_part={part}")
    out = command("--run_dir=run", "--resume", "--total_steps=200").out
    assert ("warning: --detour_part=0.5 now spans the extended run\n" in out) is told
    assert out.count("now spans the extended run") == told


def test_resume_may_follow_other_splits(command, training):
    """What is looked at does not decide what is learnt; a split that the suite lacks is refused before it starts."""
    command("--suite=control-pendulum", "--run_dir=run", "--evaluation_splits=train,extrapolation")
    assert command("--run_dir=run", "--resume").code == 0
    assert command("--run_dir=run", "--resume", "--evaluation_splits=interpolation").code == 0
    followed = [config.evaluation_splits for config, *_ in training.calls]
    assert followed == [("train", "extrapolation"), ("train", "extrapolation"), ("interpolation",)]
    result = command(PROBE, "--run_dir=other", "--evaluation_splits=train,interpolation")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: evaluation_splits: suite 'launch-probe' has no split 'interpolation'; it has train\n",
    )


@pytest.mark.parametrize(
    "warm_start, replay, steps, learns",
    [
        (1_000, 10_000, 8_999, False),
        (1_000, 10_000, 9_000, True),
        (5_000, 1_000, 8_999, False),
        (5_000, 1_000, 9_000, True),
    ],
)
def test_a_run_that_ends_in_its_warm_start_is_warned_of(command, training, warm_start, replay, steps, learns):
    """Nine tasks, a warm start of 1,000 steps each: SAC would draw at random to the end and report a policy."""
    result = command(
        "--suite=control-pendulum",
        "--learner=sac",
        f"--warm_start={warm_start}",
        f"--replay_capacity={replay}",
        f"--total_steps={steps}",
        "--run_dir=runs/short",
    )
    assert ("warning: nothing is learnt in" in result.out) is not learns
    assert ("--warm_start takes the first 9,000 (over all 9 tasks)" in result.out) is not learns


def test_resume_does_not_shorten_a_run(command, training):
    command(PROBE, "--run_dir=run", "--total_steps=100")
    result = command("--run_dir=run", "--resume", "--total_steps=50")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: run was started with --total_steps=100; a run can be extended, not shortened to 50\n",
    )


def test_a_run_keeps_its_options_when_a_preset_changes(command, training, tmp_path):
    """Resuming reads the run's configuration, not the presets of a newer version."""
    command("--suite=launch-probe", "--run_dir=run")
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    saved["num_envs"] = 7
    path.write_text(json.dumps(saved))
    command("--suite=launch-probe", "--run_dir=run", "--resume")
    assert training.calls[1][0].num_envs == 7


@pytest.mark.parametrize(
    "content, problem",
    [
        ("{", "Expecting property name enclosed in double quotes"),
        ("[]", "it is not an object"),
        ('{"suit": "x"}', "unknown option 'suit'; did you mean suite?"),
        ('{"ppo": {"discont": 1}}', "unknown option 'discont'; did you mean discount?"),
        ('{"ppo": 3}', "hyper: expected an object of options, got 3"),
        ('{"learner": "sac", "hyper": {"gae_lambda": 1}}', "unknown option 'gae_lambda'"),
        ('{"learner": "spo"}', "unknown learner 'spo'; did you mean ppo?"),
        ('{"num_envs": "many"}', "num_envs: 'many' is not of type int"),
        ('{"num_envs": 0}', "num_envs: 0 is too small; it must be at least 1"),
    ],
)
@pytest.mark.parametrize("arguments", [("--resume", "--run_dir=run"), ("--config_from=run",)])
def test_a_broken_configuration_is_refused(command, training, tmp_path, content, problem, arguments):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    result = command(PROBE, *arguments)
    assert result.code == 1
    assert result.err.startswith(f"mtjax-train: run/config.json cannot be read: {problem}")
    assert result.err.count("\n") == 1 and not training.calls


def test_a_configuration_of_the_first_runs_is_still_read(command, training, tmp_path):
    """PPO's options had a key of their own then; such runs can be resumed, evaluated and varied."""
    command(PROBE, "--run_dir=run", "--gae_lambda=0.5")
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    saved["ppo"] = saved.pop("hyper")
    path.write_text(json.dumps(saved))
    assert command("--run_dir=run", "--resume").code == 0
    assert training.calls[1][0] == training.calls[0][0] and training.calls[1][0].hyper.gae_lambda == 0.5


def test_a_run_of_another_learner_is_resumed_by_its_folder(command, training):
    """Which learner's options are meant, the folder says."""
    sac = (PROBE, "--learner=sac", "--polyak=0.1", "--run_dir=run")
    assert command(*sac).code == 0
    assert command("--run_dir=run", "--resume", "--polyak=0.1").code == 0
    assert command(*sac, "--resume").code == 0
    configs = [config for config, *_ in training.calls]
    assert configs[0] == configs[1] == configs[2] and configs[0].hyper.polyak == 0.1
    result = command("--run_dir=run", "--resume", "--polyak=0.2")
    assert result.code == 1 and "--polyak: 0.1 in the run, 0.2 asked" in result.err
    result = command("--run_dir=run", "--resume", "--learner=ppo")
    assert result.code == 1 and "--learner: sac in the run, ppo asked" in result.err


def test_resume_repeats_options_that_the_default_run_lacks(command, training):
    """Whether an option has an effect, the run's own options decide, not those of the default suite."""
    first = (PROBE, "--run_dir=run", "--preset=none", "--arrangement=experts", "--num_experts=3")
    assert command(*first).code == 0
    assert command("--run_dir=run", "--resume", "--num_experts=3").code == 0
    assert training.calls[1][0] == training.calls[0][0]
    for typed, message in (
        ("--num_experts=2", "--num_experts: 3 in the run, 2 asked"),
        ("--detour_steps=20", "--detour_steps: 40 in the run, 20 asked"),
        ("--polyak=0.1", "polyak is an option of learner sac and hipbmdp; the learner here is ppo"),
    ):
        result = command("--run_dir=run", "--resume", typed)
        assert result.code == 1 and message in result.err, result.err
    assert len(training.calls) == 2


def test_resume_takes_the_preset_of_the_run_and_no_other(command, training):
    """The same command continues the run; a preset that would have made another run is not dropped silently."""
    sac = (PROBE, "--learner=sac", "--preset=brc", "--total_steps=100", "--embedding_size=4")
    assert command(*sac, "--run_dir=run").code == 0
    assert command(*sac, "--run_dir=run", "--resume").code == 0
    assert training.calls[1][0] == training.calls[0][0]
    assert command("--run_dir=run", "--resume", "--preset=none").code == 0  # as in the run's own flags.txt
    for preset, message in (
        ("brc", "--embedding_size is 4 there, 32 in the preset"),
        ("sac_ae", "preset 'sac_ae' is for --learner=hipbmdp; the learner here is sac"),
    ):
        result = command("--run_dir=run", "--resume", f"--preset={preset}")
        assert result.code == 1 and message in result.err and result.err.count("\n") == 1, result.err
    assert len(training.calls) == 3
    command(PROBE, "--learner=sac", "--run_dir=plain")
    assert command(*sac[1:3], "--run_dir=plain", "--resume").err == (
        "mtjax-train: --preset=brc is not what plain was started with: --value_trunk is same there, residual in the "
        "preset; omit --preset to continue the run\n"
    )


def test_config_from_with_another_learner_takes_what_is_common(command, training):
    """Suite, environments and network stay; the new learner's own options start from its defaults."""
    command(PROBE, "--run_dir=run", "--num_envs=3", "--hidden_sizes=8", "--learning_rate=0.5")
    assert command("--config_from=run", "--learner=sac", "--run_dir=other").code == 0
    config = training.calls[1][0]
    assert (config.learner, config.num_envs, config.network.hidden_sizes) == ("sac", 3, (8,))
    assert config.hyper.learning_rate == 3e-4


def test_config_from_says_everything(command, training):
    command(PROBE, "--run_dir=run")
    result = command("--config_from=run", "--preset=control-*")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: --preset has no effect with --config_from: a saved run sets every option\n",
    )


@pytest.mark.parametrize("left", [None, (), (".lock", ".config.json.x.tmp")], ids=["missing", "empty", "begun"])
def test_a_run_killed_at_birth_is_started_by_resume(command, training, tmp_path, left):
    """The one line of a job script: it starts the run, and after any kill, even before config.json, it goes on."""
    if left is not None:
        (tmp_path / "run").mkdir()
        for name in left:
            (tmp_path / "run" / name).write_text("")
    typed = (PROBE, "--num_envs=3", "--run_dir=run", "--resume")
    first, second = command(*typed), command(*typed)
    assert first.code == second.code == 0, first.err + second.err
    said = "nothing to resume in run yet: starting from the beginning\n"
    assert said in first.out and said not in second.out and "resuming: run\n" in second.out
    (config, _, asked), (again, _, asked_again) = training.calls
    assert config == again and config.num_envs == 3
    assert (asked["resume"], asked_again["resume"]) == (False, True)


def test_resume_does_not_start_a_run_among_other_files(command, training, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    result = command(PROBE, "--run_dir=home", "--resume")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: --run_dir=home is not empty and is not a run; choose another folder\n",
    )
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"] and not training.calls


# ------------------------------------------------------------------------------------- memory


def test_environments_that_no_memory_holds_are_refused(command, training, monkeypatch):
    """Before anything is allocated: else the machine swaps, or kills the process without a word."""
    from mtjax.training import memory

    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(memory, "_shapes", lambda trainer: pytest.fail("a rollout that is too large needs no tracing"))
    result = command(PROBE, "--run_dir=run", "--num_envs=100_000_000", "--rollout_length=16", "--num_seeds=2")
    # 2 seeds, 2 tasks, 16 steps: two observations of 1 number, an action of 1 or a choice, a reward
    assert (result.code, result.err) == (
        1,
        "mtjax-train: num_envs=100000000, num_seeds=2: state and rollout take at least 102 GB per device, but only "
        "2 GB is free; lower num_envs or num_seeds\n",
    )
    assert not training.calls


@pytest.mark.parametrize(
    "message, code, err",
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nBufferAssignment: …",
            1,
            "mtjax-train: Out of memory allocating 123 bytes; lower --num_envs, --num_seeds or --evaluation_episodes\n",
        ),
        ("INTERNAL: a defect", None, None),
    ],
)
def test_memory_that_runs_out_is_one_line(command, training, message, code, err):
    import jax

    def work():
        raise jax.errors.JaxRuntimeError(message)

    training.work = work
    if code is None:  # anything else of XLA's keeps its traceback
        with pytest.raises(jax.errors.JaxRuntimeError):
            train.main(["mtjax-train", PROBE])
        return
    result = command(PROBE)
    assert (result.code, result.err) == (code, err)


# ------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "name, code, message",
    [
        ("Interrupted", 75, "SIGTERM: saved at step 5"),
        ("Diverged", 3, "the loss of task_1 is not finite at step 7; last good checkpoint: 5"),
    ],
)
def test_exit_codes(command, training, name, code, message):
    def work():
        raise getattr(training, name)(message)

    training.work = work
    result = command(PROBE)
    assert (result.code, result.err) == (code, f"mtjax-train: {message}\n")


def test_control_c_says_how_to_go_on(command, training):
    def work():
        raise KeyboardInterrupt

    training.work = work
    result = command(PROBE)
    assert result.code == 130
    assert result.err == "mtjax-train: interrupted; to resume, repeat the command with --resume\n"


def test_list_suites_has_a_line_for_every_suite(command, training, monkeypatch):
    from mtjax.suites import base

    def broken():
        raise ImportError("install it with: pip install 'mtjax[mine]'")

    kept = {name: base._REGISTRY[name] for name in ("launch-probe", "metaworld-mt50")} | {"mine": broken}
    monkeypatch.setattr(base, "_REGISTRY", kept)
    result = command("--list_suites")
    assert result.code == 0
    header, *lines = result.out.splitlines()
    assert header.split() == ["suite", "tasks", "interpolation", "extrapolation", "version"]
    assert [line.split()[:4] for line in lines] == [
        ["launch-probe", "2", "0", "0"],
        ["metaworld-mt50", "50", "0", "0"],
        ["mine", "–", "–", "–"],
    ]
    assert lines[2].endswith("not available: install it with: pip install 'mtjax[mine]'")


def test_the_flagfile_names_every_option():
    text = flagfile(RunConfig())
    assert "--preset=none\n" in text and "--hidden_sizes=256,256\n" in text and "run_dir" not in text


def test_the_end_says_what_was_reached_and_where_it_lies(command, training):
    out = command(PROBE, "--run_dir=run").out
    assert "done: 12,345 steps of 2 seeds in 10 s of training (2,469 steps/s); 50 episodes per task:\n" in out
    words = [line.split() for line in out.splitlines()]
    assert ["train", "deterministic", "return", *["0.5", "[0.25,", "0.75]"] * 4] in words
    assert out.splitlines()[-1] == "run folder: run"


def test_a_folder_that_was_killed_at_birth_can_be_used(command, training, tmp_path):
    """Killed before the configuration was whole, a run leaves at most a hidden file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.x.tmp").write_text("{")
    assert command(PROBE, "--run_dir=run").code == 0


def test_warnings_are_one_line(command, training):
    import warnings

    training.work = lambda: warnings.warn("the simulator is old", stacklevel=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "filters", [])
        warnings.simplefilter("default")
        result = command(PROBE)
    assert result.err == "mtjax-train: warning: the simulator is old\n"
