"""Whatever a user mistypes gets one clear message, the nearest valid choice, exit code 1 and no traceback."""

from __future__ import annotations

import numpy as np
import pytest

from mtjax import options
from mtjax.launch import evaluate, report, sweep, train, watch
from mtjax.training.config import RunConfig

PASS_HELP = "\nPass --help to see the flags."
COMMAS = "separate numbers by commas, e.g. 256,256"

# What was typed (words apart by spaces), and the whole message after "mtjax-train: ".
FLAGS = {
    "--learning_rat=1": "Unknown command line flag 'learning_rat'. "
    "Did you mean: learning_rate, learning_rate_schedule ?" + PASS_HELP,
    "--sute=x": "Unknown command line flag 'sute'. Did you mean: suite, resume ?" + PASS_HELP,
    "--zzz=x": "Unknown command line flag 'zzz'" + PASS_HELP,
    "--sede=1": "Unknown command line flag 'sede'. Did you mean: seed, selection ?" + PASS_HELP,
    "--discount=1.5": "flag --discount=1.5: 1.5 is too large; it must be at most 1" + PASS_HELP,
    "--discount=nan": "flag --discount=nan: nan is not a finite number" + PASS_HELP,
    "--learning_rate=0": "flag --learning_rate=0: 0.0 is too small; it must be greater than 0" + PASS_HELP,
    "--learning_rate=fast": "flag --learning_rate=fast: 'fast' is not a number" + PASS_HELP,
    "--num_envs=0": "flag --num_envs=0: 0 is too small; it must be at least 1" + PASS_HELP,
    "--num_envs=1.5": "flag --num_envs=1.5: '1.5' is not a whole number" + PASS_HELP,
    "--num_envs=many": "flag --num_envs=many: 'many' is not a whole number" + PASS_HELP,
    "--num_envs=": "flag --num_envs=: '' is not a whole number" + PASS_HELP,
    "--num_envs=inf": "flag --num_envs=inf: 'inf' is not a whole number" + PASS_HELP,
    "--evaluation_splits=train,extrapolate": "flag --evaluation_splits=train,extrapolate: 'extrapolate' is not one of "
    "train, interpolation, extrapolation; did you mean 'extrapolation'?" + PASS_HELP,
    "--evaluation_modes=stochastic,stochastic": "evaluation_modes: stochastic,stochastic; expected one or more of "
    "deterministic, stochastic, each once",
    "--evaluation_splits=train,train": "evaluation_splits: train,train; expected one or more of train, interpolation, "
    "extrapolation, each once",
    "--seed=-1": "flag --seed=-1: -1 is too small; it must be at least 0" + PASS_HELP,
    "--seed=2147483648": "flag --seed=2147483648: 2147483648 is too large; it must be at most 2147483647" + PASS_HELP,
    "--seed=2147483647 --num_seeds=2": "seed: 2 seeds from 2147483647 on exceed the largest seed, 2147483647",
    "--total_steps=20x": "flag --total_steps=20x: '20x' is not a whole number" + PASS_HELP,
    "--total_steps=1.5e-1k": "flag --total_steps=1.5e-1k: '1.5e-1k' is not a whole number" + PASS_HELP,
    "--seeds=3": "Unknown command line flag 'seeds'. Did you mean: num_seeds, seed ?" + PASS_HELP,
    "--lr=1e-3": "Unknown command line flag 'lr'. Did you mean: learning_rate ?" + PASS_HELP,
    "--platform=cuda": "flag --platform=cuda: 'cuda' is not one of auto, cpu, gpu, tpu; did you mean 'gpu'?"
    + PASS_HELP,
    "--hidden_sizes=256x256": f"flag --hidden_sizes=256x256: '256x256' is not a whole number; {COMMAS}" + PASS_HELP,
    "--hidden_sizes=[256,256]": f"flag --hidden_sizes=[256,256]: '[256' is not a whole number; {COMMAS}" + PASS_HELP,
    "--hidden_sizes=64,x": f"flag --hidden_sizes=64,x: 'x' is not a whole number; {COMMAS}" + PASS_HELP,
    "--hidden_sizes=64,0": "flag --hidden_sizes=64,0: (64, 0) is too small; it must be at least 1" + PASS_HELP,
    "--arrangement=context --context_sizes=": "flag --context_sizes=: empty is too short; the minimum length is 1"
    + PASS_HELP,
    "--exploration=rnd --rnd_sizes=": "flag --rnd_sizes=: empty is too short; the minimum length is 1" + PASS_HELP,
    "--activation=relo": "flag --activation=relo: 'relo' is not one of tanh, relu, silu, elu, gelu; "
    "did you mean 'relu'?" + PASS_HELP,
    "--learner=ppp": "flag --learner=ppp: 'ppp' is not one of ppo, distral, sac, hipbmdp; did you mean 'ppo'?"
    + PASS_HELP,
    "--polyak=0.1": "polyak is an option of learner sac and hipbmdp; the learner here is ppo",
    "--learner=sac --gae_lambda=0.9": "gae_lambda is an option of learner ppo and distral; the learner here is sac",
    "--learner=sac --return_scaling=popart": "return_scaling: 'popart' is not one of running, range, none",
    "--return_scaling=range": "return_scaling: 'range' is not one of running, popart, none; did you mean 'running'?",
    "--learner=sac --theta_size=3": "theta_size is an option of learner hipbmdp; the learner here is sac",
    "--learner=hipbmdp --transition_model=gausian": "flag --transition_model=gausian: 'gausian' is not one of "
    "deterministic, gaussian, ensemble; did you mean 'gaussian'?" + PASS_HELP,
    "--learner=hipbmdp --transition_cost=0": "theta_size: 8 needs transition_cost above 0 to train the "
    "embeddings; or set it to 0",
    "--image_shape=7,17": "image_shape: expected height,width,channels and an encoder; got (7, 17)",
    "--image_shape=7,17,3 --encoder=none": "image_shape: expected height,width,channels and an encoder; got "
    "encoder=none",
    "--conv_channels=8": "conv_channels: (8,) has no effect with arrangement 'one_hot'; it needs image_shape",
    "--learner=hipbmdp --transition_members=3": "transition_members: 3 has no effect; it needs "
    "transition_model=ensemble",
    "--learner=hipbmdp --state_encoder=identity --auxiliary_gate=weighted": "auxiliary_gate: 'weighted' has no effect; "
    "it needs state_encoder=mlp and an auxiliary loss",
    "--learner=hipbmdp --auxiliary_gate=cosine": "flag --auxiliary_gate=cosine: 'cosine' is not one of none, "
    "unweighted, weighted; did you mean 'none'?" + PASS_HELP,
    "--preset=deepmdp": "preset 'deepmdp' is for --learner=hipbmdp; the learner here is ppo",
    "--preset=brc": "preset 'brc' is for --learner=sac; the learner here is ppo",
    "--platform=gpus": "flag --platform=gpus: 'gpus' is not one of auto, cpu, gpu, tpu; did you mean 'gpu'?"
    + PASS_HELP,
    "--squash=maybe": "flag --squash=maybe: 'maybe' is neither true nor false" + PASS_HELP,
    "--nosquash=1": "--nosquash=1 does not take an argument",
    "--suite": "missing value for --suite" + PASS_HELP,
    "--suite=": "flag --suite=: the value is empty" + PASS_HELP,
    "--run_dir= --resume": "flag --run_dir=: the value is empty" + PASS_HELP,
    "hidden-hopper": "unexpected argument 'hidden-hopper'; write every option as a flag, --name=value",
    "--seed=1 --seed=2": "--seed is given twice; give it once",
    "--seed 1 --seed=1 -seed=1": "--seed is given 3 times; give it once",
    "--squash --nosquash": "--squash is given twice; give it once",
    "--flagfile=missing.txt": "Unable to open flagfile: [Errno 2] No such file or directory: 'missing.txt'" + PASS_HELP,
    "--flagfile": "--flagfile with no argument" + PASS_HELP,
    "--preset=gridword-*": "flag --preset=gridword-*: 'gridword-*' is not one of auto, none, gridworld-*, "
    "control-*, hidden-*, hidden-hopper, goals-*, bodies-*, metaworld-*, *, gridworld-two-rooms-pixels, deepmdp, "
    "sac_ae, popart, metaworld-quick, brc; "
    "did you mean 'gridworld-*'?" + PASS_HELP,
    "--resume --overwrite": "--resume and --overwrite cannot be combined: continue the run, or replace it",
    "--overwrite": "--overwrite needs --run_dir: without it, a new run gets a folder of its own",
    "--config_from=nowhere": "nowhere is not a run: there is no such folder",
    "--resume": "nothing to resume: no run with these options under runs; name a run with --run_dir",
    "--resume --run_dir=nowhere --total_steps=9": "nothing to resume: there is no folder nowhere; to start a run "
    "there, give its --suite",
}


@pytest.mark.parametrize("typed", FLAGS)
def test_flags_are_refused_with_one_message(command, typed):
    result = command(*typed.split())
    assert (result.code, result.err) == (1, f"mtjax-train: {FLAGS[typed]}\n")
    assert result.out == ""


@pytest.mark.parametrize("name, main", [("evaluate", evaluate.main), ("train", train.main)])
def test_a_folder_without_its_flag(command, tmp_path, name, main):
    """mtjax-report takes folders without one; these two say what the flag is."""
    (tmp_path / "runs").mkdir()
    result = command("runs", main=main, program=f"mtjax-{name}")
    assert result.err == f"mtjax-{name}: unexpected argument 'runs'; did you mean --run_dir=runs?\n"


def test_interrupted_where_nothing_can_be_resumed(command, training, monkeypatch):
    """Only mtjax-train has something that --resume could go on with."""

    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "kind_of", interrupt)
    result = command("runs", main=report.main, program="mtjax-report")
    assert (result.code, result.err) == (130, "mtjax-report: interrupted\n")


def test_unknown_suite_names_the_nearest(command, training):
    result = command("--suite=lunch-probe")
    assert result.code == 1
    own = "A suite of your own: name its module in MTJAX_SUITES"
    assert result.err == f"mtjax-train: unknown suite 'lunch-probe'; did you mean launch-probe? {own}\n"
    assert not training.calls


def test_unknown_gradient_method_names_the_nearest(command, training):
    result = command("--suite=launch-probe", "--grads=pcgard")
    assert result.code == 1
    assert result.err.startswith("mtjax-train: no method 'pcgard': did you mean pcgrad(")
    assert result.err.endswith("; a method of your own: name its module in MTJAX_SUITES\n")
    assert result.err.count("\n") == 1


def test_gradient_method_with_a_wrong_argument(command, training):
    result = command("--suite=launch-probe", "--grads=pcgrad(reduce='mean')")
    assert result.code == 1
    assert result.err.startswith("mtjax-train: \"pcgrad(reduce='mean')\": got an unexpected keyword argument")


def test_nothing_is_left_behind_by_bad_input(command, training, tmp_path):
    command("--suite=launch-probe", "--grads=pcgard", "--run_dir=run")
    assert not (tmp_path / "run").exists()


def test_flagfile_with_something_else_in_it(command, tmp_path):
    (tmp_path / "flags.txt").write_text("learning_rate=3\n")
    result = command("--flagfile=flags.txt")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: a line of the flagfile is not a flag: 'learning_rate=3'; write --name=value\n",
    )


def test_flagfile_that_repeats_a_flag(command, tmp_path):
    (tmp_path / "flags.txt").write_text("--seed=3\n\n# a comment\n--seed=4\n")
    result = command("--flagfile", "flags.txt")
    assert (result.code, result.err) == (1, "mtjax-train: --seed is given twice; give it once\n")


def test_platform_that_the_machine_lacks(command, training):
    import jax

    if jax.default_backend() != "cpu":
        pytest.skip("this machine has an accelerator")
    result = command("--suite=launch-probe", "--platform=tpu", "--run_dir=run")
    assert result.code == 1
    assert result.err.startswith("mtjax-train: --platform=tpu: no TPU that jax can use (")
    assert result.err.endswith("Use --platform=cpu or leave --platform out.\n")
    assert not training.calls


def test_bad_input_that_training_finds_has_no_traceback(command, training):
    training.work = lambda: options.replace(RunConfig(), {"num_env": 1})
    result = command("--suite=launch-probe")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: unknown option 'num_env'; did you mean num_envs or num_seeds?\n",
    )


@pytest.mark.parametrize("mistake", [lambda: np.zeros(3).reshape(2), lambda: int("x"), lambda: [][1]])
def test_a_defect_keeps_its_traceback(training, mistake):
    """A ValueError that is ours to mend must not look like the user's."""
    from mtjax.launch import train

    training.work = mistake
    with pytest.raises((ValueError, IndexError)):
        train.main(["mtjax-train", "--suite=launch-probe"])


def test_missing_extra_says_how_to_install_it(command, training):
    def work():
        raise ModuleNotFoundError("No module named 'envpool'", name="envpool")

    training.work = work
    result = command("--suite=launch-probe")
    assert (result.code, result.err) == (
        1,
        "mtjax-train: No module named 'envpool'; install it with: pip install 'mtjax[metaworld]'\n",
    )


def test_full_disk_is_one_line(command, training):
    def work():
        raise OSError(28, "No space left on device", "runs/x")

    training.work = work
    result = command("--suite=launch-probe")
    assert (result.code, result.err) == (1, "mtjax-train: runs/x: No space left on device\n")


EVALUATE = {
    "": "--run_dir is required: the folder of a run",
    "--run_dir=nowhere": "nowhere is not a run: there is no such folder",
    "--run_dir=.": ". is not a run: it has no config.json",
    "--episodes=0": "flag --episodes=0: 0 is too small; it must be at least 1" + PASS_HELP,
    "--run_dirs=x": "Unknown command line flag 'run_dirs'. Did you mean: run_dir ?" + PASS_HELP,
    "--run_dir=run --splits=trian": "--splits=trian: unknown split 'trian'; did you mean train?",
    "--run_dir=run --splits=train,train": "--splits=train,train: expected one or more of train, "
    "interpolation, extrapolation, each once",
    "--run_dir=run --modes=greedy": "--modes=greedy: unknown mode 'greedy'; known: deterministic, stochastic",
    "--run_dir=run --splits=extrapolation": "suite 'launch-probe' has no split 'extrapolation'; it has train",
}


@pytest.mark.parametrize("typed", EVALUATE)
def test_evaluate_refuses_with_one_message(command, training, typed):
    command("--suite=launch-probe", "--run_dir=run")
    result = command(*typed.split(), main=evaluate.main, program="mtjax-evaluate")
    assert (result.code, result.err) == (1, f"mtjax-evaluate: {EVALUATE[typed]}\n")


SWEEP = {
    "--seach=zip": "Unknown command line flag 'seach'. Did you mean: search, search_seed ?" + PASS_HELP,
    "--search=gird": "flag --search=gird: 'gird' is not one of grid, zip, random, optuna; did you mean 'grid'?"
    + PASS_HELP,
    "--launcher=slrm": "flag --launcher=slrm: 'slrm' is not one of local, slurm, ray; did you mean 'slurm'?"
    + PASS_HELP,
    "--max_runs=-1": "flag --max_runs=-1: -1 is too small; it must be at least 0" + PASS_HELP,
    "--pack=0": "flag --pack=0: 0 is too small; it must be at least 1" + PASS_HELP,
    "--jobs=two": "flag --jobs=two: 'two' is not a whole number" + PASS_HELP,
    "--sweep": "missing value for --sweep" + PASS_HELP,
    "runs": "unexpected argument 'runs'; write every option as a flag, --name=value",
    "--sweep=learning_rate": "--sweep=learning_rate: write NAME=VALUES, e.g. learning_rate=1e-4,1e-3",
    "--sweep=learning_rat=1": "--sweep=learning_rat=1: unknown option 'learning_rat'; "
    "did you mean learning_rate or rnd_learning_rate?",
    "--sweep=learning_rate=": "--sweep=learning_rate=: no value is given",
    "--sweep=learning_rate=1e-3,,1e-2": "--sweep=learning_rate=1e-3,,1e-2: a value is empty",
    "--sweep=learning_rate=1e-3,fast": "--sweep=learning_rate=1e-3,fast: 'fast' is not a number",
    "--sweep=learning_rate=1e-3,1e-3": "--sweep=learning_rate=1e-3,1e-3: 0.001 is repeated",
    "--sweep=learning_rate=0": "--sweep=learning_rate=0: 0.0 is too small; it must be greater than 0",
    "--sweep=discount=linear:0.9:1.1:3": "--sweep=discount=linear:0.9:1.1:3: 1.1 is too large; it must be at most 1",
    "--sweep=learning_rate=log:0:1:3": "--sweep=learning_rate=log:0:1:3: LOW must be positive and less than HIGH",
    "--sweep=learning_rate=log:1e-4:1:1": "--sweep=learning_rate=log:1e-4:1:1: NUMBER must be a whole number of "
    "at least 2",
    "--sweep=learning_rate=log:1e-4": "--sweep=learning_rate=log:1e-4: write log:LOW:HIGH:NUMBER, or log:LOW:HIGH with "
    "--search=random or optuna",
    "--sweep=learning_rate=log:1e-4:1": "--sweep=learning_rate is an interval, which only --search=random and "
    "optuna accept; add the number of values, e.g. log:1e-4:1e-3:5",
    "--sweep=seed=range:5:5": "--sweep=seed=range:5:5: a range must have 1 to 100,000 values, not 0",
    "--sweep=seed=range:0:5:0": "--sweep=seed=range:0:5:0: write range:START:STOP or range:START:STOP:STEP, with a "
    "positive STEP",
    "--sweep=grads=log:1:2:3": "--sweep=grads=log:1:2:3: grads is not a numeric option; write a list of values",
    "--sweep=grads=cagrad(c=0.4": "--sweep=grads=cagrad(c=0.4: missing ')'",
    "--sweep=grads=cagrad)c=0.4": "--sweep=grads=cagrad)c=0.4: unmatched ')'",
    "--sweep=seed=1,2 --sweep=seed=3": "--sweep=seed is given 2 times; give each option once",
    "--sweep=seed=1,2 --seed=3": "--seed is both set and swept; remove one of the two",
    "--sweep=seed=1,2,3 --max_runs=2": "the grid has 3 trials, more than --max_runs=2: raise it, give fewer values, "
    "or use --search=random",
    "--sweep=seed=1,2 --sweep=num_envs=4,8,16 --search=zip": "--search=zip needs equally many values on every axis: "
    "seed has 2, num_envs has 3",
    "--sweep=seed=1,2 --search=random": "--search=random needs --max_runs, the number of trials",
    "--search=random --max_runs=3": "--search=random has nothing to vary; name an option with --sweep",
    "--sweep=seed=1,2 --search=random --max_runs=3": "there are only 2 different trials, fewer than --max_runs=3",
    "--name=../x": "--name=../x: use letters, digits and _ . = + -, and do not start with a dot",
    "--resume=nowhere": "nowhere is not a sweep: there is no such folder",
    "--resume=x --sweep=grads=mean": "--sweep cannot be combined with --resume: a sweep continues as planned",
    "--resume=x --num_seeds=3": "--num_seeds cannot be combined with --resume: a sweep continues as planned",
    "--retry_failed": "--retry_failed needs --resume: it retries the failed trials of an existing sweep",
    "--batch=4 --search=random": "--batch is for --search=optuna; the search here is random",
    "--search_seed=1": "--search_seed is for --search=random and optuna; the search here is grid",
    "--search_seed=1 --search=zip": "--search_seed is for --search=random and optuna; the search here is zip",
    "--platform=gpu": "--platform=gpu: no NVIDIA GPU is visible on this machine (nvidia-smi, CUDA_VISIBLE_DEVICES)",
    "--slurm=partition=gpu": "--slurm is for --launcher=slurm; the launcher here is local",
    "--launcher=slurm --slurm=gpu": "--slurm=gpu: write NAME=VALUE,…, e.g. partition=gpu,timeout_min=240, not 'gpu'",
    "--launcher=ray --ray=num_gpu=1": "--ray=num_gpu=1: unknown option 'num_gpu'; did you mean num_gpus or num_cpus?",
    "--launcher=ray --ray=num_gpus=x": "--ray=num_gpus=x: num_gpus: 'x' is not a number",
}
REPORT = {
    "": "name the folders of runs or sweeps: mtjax-report FOLDER ...",
    "nowhere": "nowhere is neither a run nor a sweep: there is no such folder",
    ".": ". is neither a run nor a sweep: it has neither config.json nor sweep.json",
    "--outptu=x": "Unknown command line flag 'outptu'. Did you mean: output ?" + PASS_HELP,
    "--video_megabytes=-1 .": "flag --video_megabytes=-1: -1.0 is too small; it must be at least 0" + PASS_HELP,
    "--output=. nowhere": "--output=. is a folder; name a file",
}
WATCH = {
    "": "name the folder of one sweep: mtjax-watch SWEEP",
    "one two": "name the folder of one sweep: mtjax-watch SWEEP",
    "nowhere": "nowhere is not a sweep: there is no such folder",
    ".": ". is not a sweep: it has no sweep.json",
    "--interval=0 x": "flag --interval=0: 0.0 is too small; it must be greater than 0" + PASS_HELP,
    "--intervall=1 x": "Unknown command line flag 'intervall'. Did you mean: interval ?" + PASS_HELP,
}
OTHERS = [
    *(("sweep", sweep.main, typed, message) for typed, message in SWEEP.items()),
    *(("report", report.main, typed, message) for typed, message in REPORT.items()),
    *(("watch", watch.main, typed, message) for typed, message in WATCH.items()),
]


@pytest.mark.parametrize("name, main, typed, message", OTHERS, ids=[f"{name} {typed}" for name, _, typed, _ in OTHERS])
def test_the_other_commands_refuse_with_one_message(command, monkeypatch, tmp_path, name, main, typed, message):
    """Before a plan is printed, and leaving nothing behind."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = command(*typed.split(), main=main, program=f"mtjax-{name}")
    assert (result.code, result.out, result.err) == (1, "", f"mtjax-{name}: {message}\n")
    assert list(tmp_path.iterdir()) == []
