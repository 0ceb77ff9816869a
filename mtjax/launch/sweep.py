"""``mtjax-sweep``: many training runs, from axes of options to a folder with their results."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from mtjax import options
from mtjax.launch import command, environment, flags, presets, resolve, show
from mtjax.launch.folder import in_use, unused
from mtjax.options import option
from mtjax.sweeps import ledger, plan, schedule, space, suggest
from mtjax.training import lock
from mtjax.training.config import RunConfig

SWEEPS = Path("sweeps")
LAUNCHERS = ("local", "slurm", "ray")
SUGGESTIONS = 10  # batches in a row without a trainable trial, after which a search ends
REPLAY_SHARE = 0.5  # fraction of the free memory that replays may fill; programs need the rest

USAGE = """
    mtjax-sweep trains many configurations. Options of mtjax-train apply to all of them; --sweep varies one.

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
    """The sweep: what to run, and where."""

    name: str = option("", "The sweep's folder is sweeps/NAME; by default, sweeps/<suite>-<date>-<time>.")
    search: str = option(
        "grid",
        "How the axes are combined into trials: all combinations (grid), the first values of all axes, then the "
        "second ones … (zip), random draws (random), or Optuna's suggestions from earlier results (optuna).",
        choices=space.SEARCHES,
    )
    max_runs: int = option(
        0, "Most trials of grid and zip, number of trials of random and optuna; 0 means no limit.", low=0
    )
    search_seed: int = option(0, "Seed of the random and optuna searches.", low=0, high=2**31 - 1)
    batch: int = option(8, "Trials that Optuna suggests at once, before it sees their results.", low=1)
    pack: int = option(64, "Most agents (trials × seeds) in one program; 1 gives each trial its own.", low=1)
    jobs: int = option(0, "Programs at once; 0 means one per device or, without devices, one per four cores.", low=0)
    launcher: str = option("local", "Where programs run.", choices=LAUNCHERS)
    slurm: str = option(
        "",
        "Options of SLURM jobs, e.g. partition=gpu,gpus_per_node=1,cpus_per_task=8,timeout_min=240; others are "
        "passed to sbatch.",
    )
    ray: str = option(
        "",
        "Resources of each program and Ray's address, e.g. num_gpus=0.5,num_cpus=4,address=auto; without an address, "
        "Ray starts on this machine.",
    )
    retries: int = option(0, "How often a failed program is restarted.", low=0)
    plan_only: bool = option(False, "Print the plan and exit.")
    resume: str = option("", "Folder of a sweep to continue: run the trials that it still lacks.")
    retry_failed: bool = option(False, "With --resume: also retry failed trials.")
    preset: str = option(
        "auto",
        "Settings for a family of suites: 'auto' chooses the longest pattern that matches the suite.",
        choices=presets.CHOICES,
    )
    config_from: str = option("", "Folder of a run to copy the configuration from; flags override it.")
    platform: str = option("auto", "Kind of device to run on.", choices=environment.PLATFORMS)
    compilation_cache: str = option(
        "auto", "Folder for compiled programs: 'auto' is mtjax in the user's cache folder, 'none' disables it."
    )
    video: bool = option(False, "Record a video of every task after training.")
    tensorboard: bool = option(True, "Write TensorBoard files next to metrics.jsonl.")


# Flags allowed with --resume: they decide how the missing trials run, not what the trials are.
WITH_RESUME = ("resume", "retry_failed", "retries", "jobs", "launcher", "slurm", "ray")
PROCESS = ("platform", "compilation_cache", "video", "tensorboard")  # flags that are kept in the plan


def define(values: command.FlagValues) -> None:
    """Define the command's flags and one for every option of a run."""
    text = "An option and its values: NAME=a,b,c or NAME=log:LOW:HIGH:NUMBER. Repeat it for more options."
    section = next(iter(flags.sections(Command())))
    absl_flags.DEFINE_multi_string("sweep", [], text, flag_values=values, module_name=section)
    values["sweep"].help = text  # drop what absl appends
    flags.define_options(values, Command())
    flags.define_options(values, RunConfig(), empty=True)
    flags.define_help(values, USAGE)


def run(values: command.FlagValues) -> int:
    """Run the command. Returns the exit code; bad input raises ValueError."""
    asked = Command(**flags.given(values, Command()))
    asked = dataclasses.replace(asked, resume=os.path.expanduser(asked.resume))
    environ = dict(os.environ)  # the programs' environment: this process changes its own to keep off their devices
    check_launcher(asked)
    environment.prepare()
    if asked.launcher == "ray" and not asked.plan_only:
        from mtjax.sweeps import raycluster

        raycluster.join(raycluster.parse_options(asked.ray))  # starting Ray forks, which is unsafe beside jax's threads
    if asked.resume:
        made, folder = reopen(asked, values), Path(asked.resume)
    else:
        made, folder = make(asked, flags.given(values, RunConfig()), values["sweep"].value)
        if asked.plan_only:
            return command.OK
    launcher = make_launcher(asked, made, folder, environ)
    started = time.monotonic()
    with lock.lock(folder, "sweep"):
        if asked.resume:
            made = plan.load(folder)  # again: before the lock was taken, another launcher may have extended it
        else:
            require_free(folder)  # again: now that this process holds the lock
            plan.save(made, folder)
        print(f"{'resuming' if asked.resume else 'sweep folder'}: {folder}", flush=True)
        state = schedule.run(
            folder,
            made,
            launcher,
            schedule.Policy(asked.retries, asked.retry_failed),
            grow=lambda made, state: grow(folder, made, state),
            report=lambda line: print(line, flush=True),
        )
    made = plan.load(folder)
    print(show.sweep_end(made, state, folder, time.monotonic() - started), flush=True)
    return command.OK if state.count()[ledger.DONE] == len(made.trials) else command.INCOMPLETE


def make(asked: Command, given: Mapping[str, Any], sweep: Sequence[str]) -> tuple[plan.Plan, Path]:
    """Make the plan of a new sweep and print it.

    Raises:
        ValueError: an unknown option, an invalid value, a trial that cannot be trained, or a folder that is in use.
    """
    if asked.retry_failed:
        raise ValueError("--retry_failed needs --resume: it retries the failed trials of an existing sweep")
    usual = Command()
    if asked.batch != usual.batch and asked.search != "optuna":
        raise ValueError(f"--batch is for --search=optuna; the search here is {asked.search}")
    if asked.search_seed != usual.search_seed and asked.search in ("grid", "zip"):
        raise ValueError(f"--search_seed is for --search=random and optuna; the search here is {asked.search}")
    axes = parse_axes(sweep)
    for axis in axes:
        if axis.name in given:
            raise ValueError(f"--{axis.name} is both set and swept; remove one of the two")
    folder = choose_folder(asked.name, given.get("suite", RunConfig().suite))
    if asked.search == "optuna":
        space.require_number(axes, asked.search, asked.max_runs)
        changes = []
    else:
        changes = space.combine(axes, asked.search, most=asked.max_runs, seed=asked.search_seed)
    recipe = {
        "given": dict(given),
        "preset": asked.preset,
        "config_from": asked.config_from and str(Path(asked.config_from).expanduser().absolute()),
        "pack": asked.pack,
        "slots": local_slots(asked),
    }
    recipe["memory"] = replay_memory(asked, recipe["slots"])
    search: dict[str, Any] = {}
    if asked.search == "optuna":
        search = {**recipe, "sweep": list(sweep), "seed": asked.search_seed}
        search |= {"batch": asked.batch, "max_runs": asked.max_runs}
    rest = {
        "process": {name: getattr(asked, name) for name in PROCESS},
        "created": time.time(),
        "search": search,
    }
    if asked.search == "optuna":
        check_names(axes)
        found = plan_suggestions(folder.name, [], asked.max_runs, recipe, **rest)
        assert found is not None  # if nothing can be trained, the first refusal is raised instead
        made = found
    else:
        made = plan_trials(folder.name, changes, recipe, **rest)
    print(show.sweep_plan(made), flush=True)
    return made, folder


def plan_trials(name: str, changes: Sequence[space.Changes], recipe: Mapping[str, Any], **rest: Any) -> plan.Plan:
    """Configure the trials and plan them.

    Args:
        name: the sweep's name.
        changes: the swept values of every trial.
        recipe: "given", "preset" and "config_from" for the configurations; "pack", "slots" and "memory" for the plan.
        rest: further arguments of :func:`mtjax.sweeps.plan.make_plan`.

    Raises:
        ValueError: a trial that cannot be trained.
    """
    from mtjax import grads

    settle = functools.partial(resolve.resolve, preset=recipe["preset"], config_from=recipe["config_from"] or None)
    given = recipe["given"]
    trials = [(change, settle(given, own=change).config) for change in changes]
    used = [options.flatten(config) for _, config in trials]
    if not rest.get("search") and any(all(found.get(name) != given[name] for found in used) for name in given):
        settle({**given, **changes[0]})  # refuse an option that no trial uses; later trials of a search may use it
    environment.choose_platform("cpu")  # planning must not occupy the programs' devices
    import mtjax.suites  # noqa: F401 - imports the user's own modules, which may register methods

    for text in dict.fromkeys(config.grads for _, config in trials):
        grads.get(text)  # refuses an unknown method before a suite is built
    inspect = plan.inspector(recipe["memory"])
    return plan.make_plan(name, trials, inspect, most_rows=recipe["pack"], slots=recipe["slots"], **rest)


def grow(folder: Path, made: plan.Plan, state: ledger.State) -> plan.Plan | None:
    """Extend the plan by the next batch of a search and save it. Returns None if the search has ended."""
    search = made.search
    left = search.get("max_runs", 0) - len(made.trials)
    if left <= 0:
        return None
    known = suggest.tried(folder, made, state)
    best = max((value for _, value in known if value is not None), default=None)
    print(f"{len(known)} of {search['max_runs']} trials tried; best so far: {show.number(best)}", flush=True)
    longer = plan_suggestions(
        made.name, known, left, search, process=made.process, created=made.created, search=search, before=made
    )
    if longer is not None:
        plan.save(longer, folder)
    return longer


def check_names(axes: Sequence[space.Axis]) -> None:
    """Raise ValueError for an unknown method or suite, which a search would otherwise take for a bad trial."""
    environment.choose_platform("cpu")
    from mtjax import grads, suites
    from mtjax.training import packing

    for axis in axes:
        for value in axis.values:
            if axis.name == "suite" and value not in suites.names():
                suites.make(value)  # raises ValueError
            elif axis.name in packing.METHODS and value:
                grads.get(value)


def plan_suggestions(
    name: str, known: Sequence[suggest.Tried], most: int, recipe: Mapping[str, Any], **rest: Any
) -> plan.Plan | None:
    """A plan with the next batch of a search; trials that cannot be trained are left out, and if all are, replaced.

    Args:
        name: the sweep's name.
        known: the trials so far and their values.
        most: number of trials that may still be tried.
        recipe: as for :func:`plan_trials`.
        rest: further arguments of :func:`mtjax.sweeps.plan.make_plan`, with the "search".

    Returns:
        The plan, or None if nothing new can be suggested.

    Raises:
        ValueError: in the first batch of a search, none of the suggestions can be trained (with the first reason), or
            the reason of a refusal names no swept option.
    """
    search = rest["search"]
    axes = parse_axes(search["sweep"])
    refused: list[suggest.Tried] = []
    reason: ValueError | None = None
    for _ in range(SUGGESTIONS):
        changes = suggest.suggest(axes, [*known, *refused], min(search["batch"], most), seed=search["seed"])
        if not changes:
            break
        with contextlib.suppress(ValueError):
            return plan_trials(name, changes, recipe, **rest)
        taken: list[space.Changes] = []
        for change in changes:
            try:
                longer = plan_trials(name, [*taken, change], recipe, **rest)
            except ValueError as error:
                if not known and not any(axis.name in str(error) for axis in axes):
                    raise  # the cause is common to all trials
                reason = reason or error
                refused.append((change, None))
                values = ", ".join(f"{option}={options.as_text(value)}" for option, value in change.items())
                print(f"skipped {values}: {error}", flush=True)
            else:
                taken.append(change)
        if taken:
            return longer
    if reason is not None and not known:
        raise reason
    return None


def parse_axes(sweep: Sequence[str]) -> list[space.Axis]:
    """Parse every --sweep. Raises ValueError that says what is wrong."""
    known, parse = readable()
    return [space.parse_axis(text, known, parse) for text in sweep]


def readable() -> tuple[dict[str, Any], space.Parse]:
    """Every run option of any learner with its default, and a function that parses a value as the flag does."""
    fields = {name: fields for members in flags.sections(RunConfig()).values() for name, fields in members.items()}
    parsers = {name: flags.OptionParser(kinds) for name, kinds in fields.items()}
    known = {name: parser.field.default for name, parser in parsers.items()}
    return known, lambda name, text: parsers[name].parse(text)


def choose_folder(name: str, suite: str) -> Path:
    """``sweeps/NAME``, or an unused folder if no name is given.

    Raises:
        ValueError: the name is not a valid folder name, or the folder is in use.
    """
    if name and (not re.fullmatch(r"[\w.=+-]+", name) or name.startswith(".")):
        raise ValueError(f"--name={name}: use letters, digits and _ . = + -, and do not start with a dot")
    if name:
        folder = SWEEPS / name
        require_free(folder)
        return folder
    return unused(SWEEPS, suite)


def require_free(folder: Path) -> None:
    """Raise ValueError if the folder of a new sweep is in use."""
    if in_use(folder):
        remedy = f"--resume={folder}, or choose" if (folder / plan.MANIFEST).is_file() else "choose"
        raise ValueError(f"--name={folder.name}: {folder} is not empty; {remedy} another name")


def reopen(asked: Command, values: command.FlagValues) -> plan.Plan:
    """The plan of the sweep to resume.

    Raises:
        ValueError: the folder holds no sweep, another flag would change the sweep, or it needs a suite or a method that
            is not registered here.
    """
    given = [*flags.given(values, Command()), *flags.given(values, RunConfig())]
    given += ["sweep"] if values["sweep"].value else []
    for name in given:
        if name not in WITH_RESUME:
            raise ValueError(f"--{name} cannot be combined with --resume: a sweep continues as planned")
    made = plan.load(asked.resume)
    require_registered(asked.resume, unfinished(made, asked))
    return made


def unfinished(made: plan.Plan, asked: Command) -> list[RunConfig]:
    """The configurations of a sweep that resuming will train; of a search that goes on, those of all its trials."""
    state = ledger.fold(made, ledger.read(asked.resume))
    if made.search.get("max_runs", 0) > len(made.trials):
        return [trial.config for trial in made.trials.values()]
    found = []
    for name, program in made.programs.items():
        retried = asked.retry_failed or program.packed or state.programs[name].again
        settled = (ledger.DONE, ledger.DIVERGED, *(() if retried else (ledger.FAILED,)))
        found += [made.trials[trial].config for trial in program.trials if state.trials[trial].state not in settled]
    return found


def require_registered(folder: str, configs: Sequence[RunConfig]) -> None:
    """Raise ValueError for a suite or a gradient method that is not registered: all these trials would fail."""
    if not configs:
        return
    environment.choose_platform("cpu")  # importing suites must not occupy the programs' devices
    from mtjax import grads, suites
    from mtjax.training import packing

    for suite in dict.fromkeys(config.suite for config in configs):
        if suite not in suites.names():
            raise ValueError(f"{folder} trains on suite {suite!r}, {suites.NOT_REGISTERED}")
    flat = [options.flatten(config) for config in configs]
    for text in dict.fromkeys(values[name] for values in flat for name in packing.METHODS if values.get(name)):
        words = [node.id for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Name)]
        missing = [word for word in words if word not in grads.names()]
        if missing:
            raise ValueError(f"{folder} trains with method {missing[0]!r}, {suites.NOT_REGISTERED}")


def local_slots(asked: Command) -> int:
    """Number of programs that will run at once, as far as it is known before the start."""
    if asked.launcher != "local":
        return max(1, asked.jobs)
    from mtjax.sweeps import local

    devices = local.usable_devices(asked.platform)
    if asked.platform == "gpu" and not devices:
        raise ValueError("--platform=gpu: no NVIDIA GPU is visible on this machine (nvidia-smi, CUDA_VISIBLE_DEVICES)")
    return len(local.share(asked.jobs, local.usable_cores(), devices))


def replay_memory(asked: Command, slots: int) -> float | None:
    """Bytes that one program may use for replays, if programs run on this machine's CPU; else None."""
    from mtjax.sweeps import local

    if asked.launcher != "local" or local.usable_devices(asked.platform):
        return None
    environment.choose_platform("cpu")
    from mtjax.learners.replay import free_memory

    free = free_memory()
    return None if free is None else REPLAY_SHARE * free / slots


def check_launcher(asked: Command) -> None:
    """Raise ValueError for options of a launcher that is not chosen, or options that cannot be parsed."""
    from mtjax.sweeps import raycluster, slurm

    for name, read in (("slurm", slurm.parse_options), ("ray", raycluster.parse_options)):
        if getattr(asked, name) and asked.launcher != name:
            raise ValueError(f"--{name} is for --launcher={name}; the launcher here is {asked.launcher}")
        read(getattr(asked, name))


def make_launcher(asked: Command, made: plan.Plan, folder: Path, environ: Mapping[str, str]) -> schedule.Launcher:
    """The launcher that --launcher names.

    Raises:
        ImportError: its extra is not installed.
        ValueError: the launcher cannot work here, or its options are wrong.
    """
    from mtjax.sweeps import local, raycluster, slurm

    if asked.launcher == "ray":
        return raycluster.RayLauncher(folder, asked.jobs, raycluster.parse_options(asked.ray), environ)
    if asked.launcher == "slurm":
        return slurm.SlurmLauncher(folder, asked.jobs, slurm.parse_options(asked.slurm), environ)
    return local.LocalLauncher(folder, asked.jobs, made.process["platform"], environ)


def exits(error: BaseException) -> int | None:
    """Exit codes of the exceptions of a sweep."""
    return command.PREEMPTED if isinstance(error, schedule.Stopped) else None


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    command.launch(define, run, argv, exits=exits)


if __name__ == "__main__":
    main()
