"""``mtjax-sweep``: many runs at once, from axes of options to a folder with their results."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from mtjax.launch import command, environment, flags, presets, resolve, show
from mtjax.options import option
from mtjax.sweeps import ledger, plan, schedule, space
from mtjax.training.config import RunConfig

SWEEPS = Path("sweeps")
LAUNCHERS = ("local", "slurm", "ray")

USAGE = """
    mtjax-sweep trains many configurations. Every flag of mtjax-train holds for all of them; --sweep varies one.

      mtjax-sweep --suite=gridworld-two-rooms --sweep=grads=mean,pcgrad --sweep=learning_rate=log:1e-4:1e-2:5
      mtjax-sweep --suite=hidden-hopper --sweep=grads='cagrad(c=0.1),cagrad(c=0.4)' --num_seeds=10 --name=cagrad
      mtjax-sweep --sweep=learning_rate=log:1e-5:1e-2 --search=random --max_runs=20 --plan_only
      mtjax-sweep --resume=sweeps/cagrad

    Values: a list (a,b,c), log:LOW:HIGH:NUMBER, linear:LOW:HIGH:NUMBER or range:START:STOP:STEP. Trials that
    differ only in seeds and in options marked [vmapped] train as rows of one compiled program.
    Exit codes: 0 done, 1 bad input, 4 some trials failed or diverged, 75 saved after a signal (--resume).
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """The sweep: what is tried, and where."""

    name: str = option("", "The sweep is kept in sweeps/NAME; without it, in sweeps/<suite>-<date>-<time>.")
    search: str = option(
        "grid",
        "Which combinations of the axes are trials: all (grid), the first values of all axes, then the second "
        "ones … (zip), or draws (random).",
        choices=space.SEARCHES,
    )
    max_runs: int = option(0, "Most trials of a grid, number of draws of a random search; 0 is no limit.", low=0)
    search_seed: int = option(0, "Seed of a random search's draws.", low=0, high=2**31 - 1)
    pack: int = option(64, "Most agents (trials × seeds) in one program; 1 gives every trial its own.", low=1)
    jobs: int = option(0, "Programs at once; 0 is one a device, or one for four cores where there is none.", low=0)
    launcher: str = option("local", "Where programs run.", choices=LAUNCHERS)
    slurm: str = option(
        "",
        "Options of SLURM jobs: partition=gpu,gpus_per_node=1,cpus_per_task=8,timeout_min=240; any other is one of "
        "sbatch.",
    )
    retries: int = option(0, "Times that a program which fails is started again.", low=0)
    plan_only: bool = option(False, "Print the plan and exit.")
    resume: str = option("", "Folder of a sweep: run exactly what it is missing.")
    retry_failed: bool = option(False, "With --resume: try those again, too, that have failed.")
    preset: str = option(
        "auto",
        "Settings for a family of suites: 'auto' takes the longest pattern that matches the suite.",
        choices=presets.CHOICES,
    )
    config_from: str = option("", "Folder of a run whose configuration is taken over; flags override it.")
    platform: str = option("auto", "Kind of device to run on.", choices=environment.PLATFORMS)
    compilation_cache: str = option(
        "auto", "Folder in which compiled programs are kept and shared: 'auto' is the user's, 'none' keeps none."
    )
    video: bool = option(False, "Draw an episode of every task after training.")
    tensorboard: bool = option(True, "Write TensorBoard files beside metrics.jsonl.")


# What may stand beside --resume: how what is missing runs, not what it is.
WITH_RESUME = ("resume", "retry_failed", "retries", "jobs", "launcher", "slurm")
PROCESS = ("platform", "compilation_cache", "video", "tensorboard")  # kept in the plan


def define(values: command.FlagValues) -> None:
    """Define the command's flags and one for every option of a run."""
    absl_flags.DEFINE_multi_string(
        "sweep",
        [],
        "An option and its values: NAME=a,b,c or NAME=log:LOW:HIGH:NUMBER. May be given for several options.",
        flag_values=values,
        module_name=next(iter(flags.sections(Command()))),
    )
    flags.define_options(values, Command())
    flags.define_options(values, RunConfig())
    flags.define_help(values, USAGE)


def run(values: command.FlagValues) -> int:
    """Do what the flags say. Returns the exit code; bad input raises ValueError."""
    asked = Command(**flags.given(values, Command()))
    environ = dict(os.environ)  # of the programs: this process keeps off their devices
    environment.prepare()
    if asked.resume:
        made, folder = reopen(asked, values), Path(asked.resume)
    else:
        made, folder = make(asked, flags.given(values, RunConfig()), values["sweep"].value)
        if asked.plan_only:
            return command.OK
    launcher = make_launcher(asked, made, folder, environ)
    if not asked.resume:
        plan.save(made, folder)
    print(f"{'resuming' if asked.resume else 'sweep folder'}: {folder}", flush=True)
    policy = schedule.Policy(asked.retries, asked.retry_failed)
    started = time.monotonic()
    state = schedule.run(folder, made, launcher, policy, report=lambda line: print(line, flush=True))
    print(show.sweep_end(made, state, folder, time.monotonic() - started), flush=True)
    return command.OK if state.count()[ledger.DONE] == len(made.trials) else command.INCOMPLETE


def make(asked: Command, given: Mapping[str, Any], sweep: Sequence[str]) -> tuple[plan.Plan, Path]:
    """Make the plan of a new sweep and print it.

    Raises:
        ValueError: an unknown option, a value that it cannot take, a trial that cannot be trained, or a folder
            that is in use.
    """
    if asked.retry_failed:
        raise ValueError("--retry_failed goes with --resume: it tries the failed trials of a sweep again")
    known, parse = readable()
    axes = [space.parse_axis(text, known, parse) for text in sweep]
    for axis in axes:
        if axis.name in given:
            raise ValueError(f"--{axis.name} is given and swept; leave one of them out")
    suite = given.get("suite", RunConfig().suite)
    folder = choose_folder(asked.name, suite)
    trials = []
    for changes in space.combine(axes, asked.search, most=asked.max_runs, seed=asked.search_seed):
        values = {**given, **changes}
        resolved = resolve.resolve(values, preset=asked.preset, config_from=asked.config_from or None)
        trials.append((changes, resolved.config))
    devices = local_slots(asked)
    environment.choose_platform("cpu")
    made = plan.make_plan(
        folder.name,
        trials,
        explained(plan.inspector()),
        most_rows=asked.pack,
        slots=devices,
        process={name: getattr(asked, name) for name in PROCESS},
        created=time.time(),
    )
    print(show.sweep_plan(made), flush=True)
    return made, folder


def explained(inspect: Callable[[RunConfig], plan.Facts]) -> Callable[[RunConfig], plan.Facts]:
    """The same, and it refuses gradient methods that do not exist before anything is built."""

    def checked(config: RunConfig) -> plan.Facts:
        from mtjax import grads

        grads.get(config.grads)
        return inspect(config)

    return checked


def readable() -> tuple[dict[str, Any], space.Parse]:
    """Every option of a run, whichever learner it is of, with a default; and what reads a value as its flag would."""
    fields = {name: fields for members in flags.sections(RunConfig()).values() for name, fields in members.items()}
    parsers = {name: flags.OptionParser(kinds) for name, kinds in fields.items()}
    known = {name: parser.field.default for name, parser in parsers.items()}
    return known, lambda name, text: parsers[name].parse(text)


def choose_folder(name: str, suite: str) -> Path:
    """``sweeps/NAME``, or one that nobody uses yet.

    Raises:
        ValueError: the name is no folder's name, or the folder is in use.
    """
    if name and (not re.fullmatch(r"[\w.=+-]+", name) or name.startswith(".")):
        raise ValueError(f"--name={name}: use letters, digits and _ . = + -, with no dot at the beginning")
    if name:
        folder = SWEEPS / name
        if folder.exists() and any(folder.iterdir()):
            remedy = f"--resume={folder}, or choose" if (folder / plan.MANIFEST).is_file() else "choose"
            raise ValueError(f"--name={name}: {folder} is not empty; {remedy} another name")
        return folder
    stem = SWEEPS / f"{suite}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder, number = stem, 2
    while folder.exists():
        folder, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return folder


def reopen(asked: Command, values: command.FlagValues) -> plan.Plan:
    """The plan of the sweep that is resumed.

    Raises:
        ValueError: it is no sweep, or a flag besides that would make another one.
    """
    given = [*flags.given(values, Command()), *flags.given(values, RunConfig())]
    given += ["sweep"] if values["sweep"].value else []
    for name in given:
        if name not in WITH_RESUME:
            raise ValueError(f"--{name} has no place beside --resume: a sweep goes on as it was planned")
    return plan.load(asked.resume)


def local_slots(asked: Command) -> int:
    """How many programs will run at once, as far as that is known before the start."""
    if asked.launcher != "local":
        return max(1, asked.jobs)
    from mtjax.sweeps import local

    devices = local.usable_devices(asked.platform)
    if asked.platform == "gpu" and not devices:
        raise ValueError("--platform=gpu: this machine shows no NVIDIA GPU (nvidia-smi, CUDA_VISIBLE_DEVICES)")
    return len(local.share(asked.jobs, local.usable_cores(), devices))


def make_launcher(asked: Command, made: plan.Plan, folder: Path, environ: Mapping[str, str]) -> schedule.Launcher:
    """The launcher that --launcher names.

    Raises:
        ImportError: its extra is not installed.
        ValueError: it cannot work here, or its options are wrong.
    """
    from mtjax.sweeps import local, slurm

    if asked.slurm and asked.launcher != "slurm":
        raise ValueError("--slurm is for --launcher=slurm")
    if asked.launcher == "slurm":
        return slurm.SlurmLauncher(folder, asked.jobs, slurm.parse_options(asked.slurm))

    return local.LocalLauncher(folder, asked.jobs, made.process["platform"], environ)


def exits(error: BaseException) -> int | None:
    """Exit codes of what a sweep can end with."""
    return command.PREEMPTED if isinstance(error, schedule.Stopped) else None


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    command.launch(define, run, argv, exits=exits)


if __name__ == "__main__":
    main()
