"""``mtjax-train``: one training run, from flags to a folder with its results."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtjax import options
from mtjax.launch import command, environment, flags, folder, presets, resolve, show
from mtjax.options import option
from mtjax.training.config import RunConfig

if TYPE_CHECKING:
    from mtjax.suites import Suite

AUTO = "auto"  # value of --num_envs: choose a number that fits
LESS_MEMORY = "lower --num_envs, --num_seeds or --evaluation_episodes"

USAGE = """
    mtjax-train trains one multi-task agent (or --num_seeds of them) and writes a run folder.

      mtjax-train --suite=gridworld-two-rooms
      mtjax-train --suite=hidden-hopper --grads=mean --num_seeds=8 --run_dir=runs/hopper
      mtjax-train --run_dir=runs/hopper --resume
      mtjax-train --suite=hidden-hopper --platform=gpu --num_seeds=8 --mesh=seed:4,env:2

    The suite's preset or --config_from overrides the defaults, and flags override both. A flag on the command
    line overrides a --flagfile. Options marked [vmapped] are leaves of the state, one value per seed.
    Exit codes: 0 done, 1 bad input or out of memory, 3 diverged, 5 a simulator failed, 75 saved after SIGTERM
    (after 5 and 75, repeat the command with --resume).
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """The command: what to do, and where. None of these options changes what is learnt."""

    run_dir: str = option("", "The run's folder; by default, a new run gets runs/<suite>-<date>-<time>.")
    resume: bool = option(
        False,
        "Continue the run in --run_dir with its own options; --total_steps may extend it. If the folder is empty, "
        "the run starts from the beginning. Without --run_dir: continue the newest run with these options under runs.",
    )
    overwrite: bool = option(False, "Delete the run that --run_dir already holds and start a new one.")
    preset: str = option(
        "auto",
        "Settings for a family of suites and a learner: 'auto' chooses the longest pattern that matches the suite.",
        choices=presets.CHOICES,
    )
    config_from: str = option("", "Folder of a run to copy the configuration from; flags override it.")
    platform: str = option("auto", "Kind of device to run on.", choices=environment.PLATFORMS)
    mesh: str = option(
        "",
        "Devices along the axes seed and env, e.g. seed:4,env:2: seeds and environments are divided among them. "
        "By default, one device.",
    )
    matmul_precision: str = option(
        "auto",
        "Precision of float32 matrix products: 'auto' is float32 on accelerators, 'default' is jax's choice "
        "(TensorFloat-32 on NVIDIA GPUs: faster, but too coarse for some physics).",
        choices=environment.PRECISIONS,
    )
    coordinator: str = option(
        "",
        "HOST:PORT of the first of several processes that train this run together, each with its devices of the "
        "--mesh; 'auto' lets jax detect it (SLURM, Open MPI, TPU pods).",
    )
    num_processes: int = option(0, "Number of processes, with --coordinator=HOST:PORT.", low=0)
    process_id: int = option(-1, "Index of this process, from 0, with --coordinator=HOST:PORT.", low=-1)
    compilation_cache: str = option(
        "auto",
        "Folder for compiled programs, so that the next run starts sooner: 'auto' is mtjax in the user's cache "
        "folder, 'none' disables the cache.",
    )
    video: bool = option(True, "Record a video of every task after training.")
    tensorboard: bool = option(True, "Write TensorBoard files next to metrics.jsonl.")
    progress: bool = option(True, "Show progress on the screen.")
    list_suites: bool = option(False, "Print the suites with their tasks and versions, and exit.")
    list_presets: bool = option(False, "Print the presets with their reasons, and exit.")


def define(values: command.FlagValues) -> None:
    """Define the command's flags and one for every option of a run."""
    flags.define_options(values, Command())
    flags.define_options(values, RunConfig(), empty=True)
    flags.also(values, "num_envs", AUTO, "'auto' chooses a number that suits the device's memory and the run's length")
    flags.define_help(values, USAGE)


def run(values: command.FlagValues) -> int:
    """Run the command. Returns the exit code; bad input raises ValueError."""
    asked = Command(**flags.given(values, Command()))
    if asked.list_presets:
        print(show.presets(presets.PRESETS))
        return command.OK
    environment.prepare()
    if asked.list_suites:
        for line in show.suites():
            print(line, flush=True)
        return command.OK
    given = flags.given(values, RunConfig())
    fit = given.get("num_envs") == AUTO
    if fit:
        del given["num_envs"]
    plan = make_plan(asked, given, fit=fit)
    environment.connect(asked.coordinator, asked.num_processes, asked.process_id)
    environment.choose_platform(asked.platform)
    environment.keep_compiled_programs(asked.compilation_cache)
    precision = environment.set_precision(asked.matmul_precision)
    notes = [show.devices(asked.mesh, precision)]
    if fit and not plan.resume:
        plan, reason = fitted(plan, asked.mesh)
        notes.append(reason)
    import jax

    from mtjax.training import run as training
    from mtjax.training import saved

    if plan.resume:
        saved.require_suite(plan.run_dir, plan.resolved.config)
    suite = check(plan.resolved.config, asked.mesh)
    notes += without_effect(plan.resolved)

    first = jax.process_index() == 0  # only the first of the run's processes writes and prints
    if first:
        print(show.start(plan, suite, notes), flush=True)
    command.stop_if_interrupted()
    try:
        with command.within_memory(LESS_MEMORY), folder.opened(plan) if first else contextlib.nullcontext():
            summary = training.train(
                plan.resolved.config,
                plan.run_dir,
                resume=plan.resume,
                progress=asked.progress,
                video=asked.video,
                tensorboard=asked.tensorboard,
                mesh=asked.mesh,
            )
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not environment.lost_a_process(error):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"mtjax-train: another process of this run was lost ({reason}); restart all processes with --resume",
            file=sys.stderr,
        )
        environment.leave(command.PREEMPTED)
    if first:
        print(show.summary(summary, plan.run_dir), flush=True)
    return command.OK


def make_plan(asked: Command, given: dict, *, fit: bool = False) -> folder.Plan:
    """Resolve the configuration and the run's folder. Imports neither jax nor a simulator.

    Args:
        asked: the command.
        given: the run's options that the user set.
        fit: whether num_envs, which ``given`` lacks, is to be chosen automatically.

    Raises:
        ValueError: options that contradict each other, or a folder that cannot be used.
    """
    if asked.coordinator and not asked.run_dir:
        raise ValueError("--coordinator needs --run_dir: all processes must name the same folder")
    if asked.resume and asked.overwrite:
        raise ValueError("--resume and --overwrite cannot be combined: continue the run, or replace it")
    if asked.overwrite and not asked.run_dir:
        raise ValueError("--overwrite needs --run_dir: without it, a new run gets a folder of its own")
    if asked.resume and asked.run_dir and resolve.is_run(asked.run_dir) and not asked.config_from:
        return folder.plan_continued(given, asked.run_dir, preset=asked.preset)
    resolved = resolve.resolve(given, preset=asked.preset, config_from=asked.config_from or None)
    run_dir = asked.run_dir or None
    if not asked.resume:
        return folder.plan_new(resolved, run_dir, overwrite=asked.overwrite)
    named = {name for name, source in resolved.sources.items() if source != "preset"}
    explicit = {name: value for name, value in options.flatten(resolved.config).items() if name in named}
    return folder.plan_resume(explicit, resolved, run_dir, unknown=("num_envs",) if fit else ())


def fitted(plan: folder.Plan, mesh: str) -> tuple[folder.Plan, str]:
    """The plan with the number of environments that fits this machine, and the reason."""
    from mtjax import suites
    from mtjax.training import memory, meshes, processes

    config = plan.resolved.config
    choice = memory.choose_envs(config, suites.make(config.suite), meshes.parse(mesh))
    config = options.replace(config, {"num_envs": processes.from_first(choice.num_envs)})
    resolved = dataclasses.replace(plan.resolved, config=config, sources={**plan.resolved.sources, "num_envs": AUTO})
    return dataclasses.replace(plan, resolved=resolved), f"num_envs is {choice.num_envs}: {choice.reason}"


def without_effect(resolved: resolve.Resolved) -> list[str]:
    """A note if the gradient method that the user chose has nothing to combine."""
    config, network = resolved.config, resolved.config.network
    apart = all(one.arrangement == "independent" for one in (network, network.of_value()))
    if resolved.sources.get("grads") != "flag" or not apart or config.learner == "hipbmdp":  # its model is shared
        return []
    return [f"note: --grads={config.grads} has no effect: with arrangement=independent, the tasks share no parameters"]


def check(config: RunConfig, mesh: str = "") -> Suite:
    """Build the suite and the trainer to check the options; nothing is compiled. Returns the suite.

    Raises:
        ValueError: an unknown suite or gradient method, sizes that do not fit each other or the memory, or a mesh
            that does not fit.
        ImportError: a required extra is not installed.
    """
    from mtjax import grads, suites
    from mtjax.training import memory, meshes
    from mtjax.training.trainer import Trainer

    layout = meshes.parse(mesh)
    grads.get(config.grads)
    suite = suites.make(config.suite)
    memory.require(Trainer(config, suite, placement=meshes.placed(layout, config, suite)))
    return suite


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    remedy = "to resume, repeat the command with --resume"
    command.launch(define, run, argv, exits=command.exits_of_runs, interrupted=remedy)


if __name__ == "__main__":
    main()
