"""Formats what commands print: suites, the start and summary of a run, evaluations, plans and ends of sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mtjax
from mtjax import options
from mtjax.launch.folder import Plan
from mtjax.launch.presets import Preset
from mtjax.options import as_text
from mtjax.sweeps.ledger import FAILED, State
from mtjax.sweeps.plan import Plan as Sweep
from mtjax.sweeps.plan import program_dir, swept_values
from mtjax.sweeps.worker import LOG
from mtjax.training.config import METRICS, SUMMARY, RunConfig

STATISTICS = ("mean", "median", "worst", "iqm")


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Format a header and rows in columns as wide as their widest cell; columns of numbers are right-aligned."""
    lines = [[] for _ in rows]
    for header, *cells in zip(*rows, strict=True):
        width = max(map(len, (header, *cells)))
        right = all(cell[:1].isdigit() or cell[:1] in "-–" for cell in cells)
        for line, cell in zip(lines, (header, *cells), strict=True):
            line.append(f"{cell:>{width}}" if right else f"{cell:<{width}}")
    return "\n".join(indent + "  ".join(line).rstrip() for line in lines)


def suites() -> Iterator[str]:
    """Yield a header, then one line for every registered suite as soon as it is built."""
    from mtjax import suites as registry

    width = max(map(len, registry.names()))
    row = f"{{:<{width}}}  {{:>5}}  {{:>13}}  {{:>13}}  {{}}".format
    yield row("suite", "tasks", "interpolation", "extrapolation", "version")
    for name in registry.names():
        try:
            suite = registry.make(name)
        except (ImportError, ValueError) as error:  # a missing extra must not hide the other suites
            yield row(name, "–", "–", "–", f"not available: {error}")
            continue
        counts = [len(suite.splits.get(split, ())) for split in registry.SPLITS]
        yield row(name, *counts, version(suite.version))


def version(stamp: Any) -> str:
    """A suite's version stamp in one line, with the version of the reward but not its formula."""
    reward = stamp.reward.split(":")[0]
    return f"v{stamp.suite}, {stamp.simulator}, reward {reward}, horizon {stamp.horizon}"


def presets(all_presets: Iterable[Preset]) -> str:
    """Every preset with its reason and its options as flags."""
    blocks = []
    for preset in all_presets:
        given = " ".join(f"--{name}={as_text(value)}" for name, value in preset.options.items())
        blocks.append(f"{preset.pattern} (--learner={preset.learner}): {preset.reason}\n  {given}")
    return "\n".join(blocks)


def devices(mesh: str, precision: str) -> str:
    """One line on the hardware that a run will use: devices, mesh and precision."""
    import jax

    found, processes = jax.devices(), jax.process_count()
    used = len(found) if mesh else 1
    where = f"{count(used, 'device')} of {count(processes, 'process')}" if processes > 1 else count(used, "device")
    shape = f", mesh {mesh}" if mesh else ""
    idle = f" ({len(found) - used} idle; use --mesh)" if len(found) > used else ""
    return f"{where} ({found[0].device_kind}){shape}{idle}; matrix products in {precision} precision"


def start(plan: Plan, suite: Any, notes: Sequence[str] = ()) -> str:
    """What is about to run: the suite, the options that differ from the defaults, notes, and the folder."""
    config, preset = plan.resolved.config, plan.resolved.preset
    splits = ", ".join(f"{len(split)} {name}" for name, split in suite.splits.items() if len(split))
    lines = [f"mtjax {mtjax.__version__}: {suite.name} ({splits} tasks; {version(suite.version)})"]
    lines += [f"warning: {warning}" for warning in suite.version.warnings]
    if preset:
        lines.append(f"preset {preset.pattern}: {preset.reason}")
    rows = differences(config, plan.resolved.sources)
    lines += [table([("option", "value", "from", "default"), *rows])] if rows else ["all options have their defaults"]
    if plan.extended_from:
        lines.append(f"total_steps extended from {plan.extended_from} to {config.total_steps}")
        lines += [
            f"warning: --{name}={as_text(value)} now spans the extended run"
            for name, value in shares_of_run(config).items()
        ]
    lines += whole_updates(config, suite.num_tasks)
    warm_start = steps_of_warm_start(config) * suite.num_tasks
    if config.total_steps < warm_start:
        lines.append(
            f"warning: nothing is learnt in {config.total_steps:,} steps: --warm_start takes the first {warm_start:,} "
            f"(over all {suite.num_tasks} tasks)"
        )
    lines += notes
    if plan.afresh:
        lines.append(f"nothing to resume in {plan.run_dir} yet: starting from the beginning")
    verb = "resuming" if plan.resume else "replacing" if plan.replace else "run folder"
    return "\n".join([*lines, f"{verb}: {plan.run_dir}"])


def shares_of_run(config: RunConfig) -> dict[str, Any]:
    """Options of schedules over fractions of a run's length; extending a run sets it back to an earlier fraction."""
    values = options.flatten(config)
    found = {name: v for name, v in values.items() if name.endswith("_schedule") and v != "constant"}
    if values.get("detour_share") and values["detour_part"] < 1:
        found["detour_part"] = values["detour_part"]
    return found


def whole_updates(config: RunConfig, num_tasks: int) -> list[str]:
    """A line on the number of steps that a run takes, if ``total_steps`` is not a whole number of updates."""
    update = config.steps_per_update(num_tasks)
    steps = config.num_updates(num_tasks) * update
    if steps == config.total_steps:
        return []
    return [f"total_steps {config.total_steps:,}: {steps:,}, whole updates of {update:,} steps"]


def steps_of_warm_start(config: RunConfig) -> int:
    """Warm-start steps of each task, at most the replay's capacity; 0 for learners without a warm start."""
    values = options.flatten(config)
    return min(values["warm_start"], values["replay_capacity"]) if "warm_start" in values else 0


def differences(config: RunConfig, sources: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Rows of option, value, source and default, for the options that differ from their defaults."""
    defaults = {**options.flatten(RunConfig(learner=config.learner)), "learner": RunConfig().learner}
    return [
        (name, as_text(value) or "empty", sources.get(name, ""), as_text(defaults[name]) or "empty")
        for name, value in options.flatten(config).items()
        if value != defaults[name]
    ]


def number(value: float | None) -> str:
    """Format with four significant digits; None becomes a dash."""
    return "–" if value is None else f"{value:.4g}"


def estimate(statistic: Mapping[str, float | None]) -> str:
    """A value with its interval, if it has one: "0.82 [0.79, 0.85]"."""
    text = number(statistic["value"])
    if statistic.get("low") is None:
        return text
    return f"{text} [{number(statistic['low'])}, {number(statistic['high'])}]"


def summary(result: Mapping[str, Any], run_dir: Path) -> str:
    """The summary of a run: the results on every split with 95% intervals over seeds, and the paths of its files."""
    rows: list[tuple[str, ...]] = [("split", "policy", "measure", *STATISTICS)]
    for split, modes in result["results"].items():
        for mode, measures in modes.items():
            for measure in shown(measures)[:-1]:  # without the length
                cells = [estimate(measures[measure][name]) for name in STATISTICS]
                rows.append((split, mode, measure, *cells))
    seeds = f"{result['seeds']} seed{'s' if result['seeds'] > 1 else ''}"
    lines = [
        f"done: {result['step']:,} steps of {seeds} in {result['seconds_of_training']:,.0f} s of training "
        f"({result['steps_per_second']:,.0f} steps/s); {result['episodes']} episodes per task:",
        table(rows),
        f"run folder: {run_dir}",
    ]
    lines += [f"  {what}: {run_dir / name}" for name, what in FOLDERS.items() if (run_dir / name).exists()]
    return "\n".join(lines)


FOLDERS = {
    SUMMARY: "summary",
    METRICS: "metrics",
    "plots": "plots",
    "videos": "videos",
}


def evaluated(run_dir: str, suite: Any) -> str:
    """What is about to be evaluated."""
    lines = [f"mtjax {mtjax.__version__}: {run_dir}, {suite.name} ({version(suite.version)})"]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in suite.version.warnings)])


def evaluation(result: Mapping[str, Any]) -> str:
    """A table of tasks and aggregates for every split and mode."""
    blocks = []
    for split, modes in result["results"].items():
        for mode, measures in modes.items():
            names = shown(measures)
            rows = [("task", *names)]
            for task in measures[names[0]]["tasks"]:
                rows.append((task, *(number(measures[name]["tasks"][task]) for name in names)))
            for statistic in STATISTICS:
                rows.append((f"({statistic})", *(estimate(measures[name][statistic]) for name in names)))
            title = f"{split}, {mode} policy, checkpoint {result['step']}, {result['episodes']} episodes per task:"
            blocks.append(f"{title}\n{table(rows)}")
    return "\n\n".join(blocks)


def adaptation(found: Mapping[str, Any], run_dir: str, episodes: int) -> str:
    """Tables of performance after some episodes in unseen tasks: for each task and their mean, one row per method."""
    blocks = []
    for split, curves in found.items():
        for name in shown(next(iter(curves["values"].values())))[:-1]:  # without the length
            rows = [("task", "method", *(count(k, "episode") for k in curves["episodes"]))]
            for task in (*curves["tasks"], "(mean)"):
                for method, measures in curves["values"].items():
                    points = [p["tasks"].get(task, p["mean"]) for p in measures[name]]
                    rows.append((task, method, *map(estimate, points)))
            title = (
                f"{split}, {name} by episodes seen in the task; deterministic policy, {episodes} evaluation episodes:"
            )
            blocks.append(f"{title}\n{table(rows)}")
    made = [Path(run_dir, name) for name in ("adaptation.json", "plots/adaptation.png")]
    return "\n\n".join([*blocks, "\n".join(str(path) for path in made if path.exists())])


def shown(measures: Mapping[str, Any]) -> list[str]:
    """The measures of an evaluation in order: success first, where it exists, and episode length last."""
    return [name for name in ("success_any", "success_last", "return", "length") if name in measures]


def sweep_plan(made: Sweep) -> str:
    """The plan of a sweep: its size, the swept options, and the programs with their trials."""
    agents = sum(trial.config.num_seeds for trial in made.trials.values())
    steps = sum(trial.steps for trial in made.trials.values())
    lines = [
        f"sweep {made.name}: {count(len(made.trials), 'trial')}, {count(agents, 'agent')} in "
        f"{count(len(made.programs), 'program')}; {steps:,} environment steps"
    ]
    rows = [("option", "values", "run as")]
    for name, values in swept_values(made).items():
        rows.append((name, _listed(values), _makes(made, name)))
    lines += [table(rows)] if len(rows) > 1 else []
    lines += unequal_steps(made)
    rows = [("program", "trials", "agents", "steps", "settings")]
    for name, program in made.programs.items():
        cells = (str(len(program.trials)), str(made.rows(program)), f"{made.steps(program):,}")
        rows.append((name, *cells, _common(made, program.trials)))
    if len(rows) > MOST_ROWS:
        rows[MOST_ROWS - 1 :] = [("…", "", "", "", f"and {len(rows) - MOST_ROWS + 1} more")]
    return "\n".join([*lines, table(rows)])


MOST_ROWS = 40  # lines of the table of programs


def unequal_steps(made: Sweep) -> list[str]:
    """A line for every total_steps that different learners round up to different numbers of steps."""
    found: dict[int, dict[str, dict[int, None]]] = {}
    for trial in made.trials.values():
        learners = found.setdefault(trial.config.total_steps, {})
        learners.setdefault(trial.config.learner, {})[trial.steps // trial.config.num_seeds] = None
    lines = []
    for total, learners in found.items():
        if len({frozenset(steps) for steps in learners.values()}) > 1:
            each = ", ".join(f"{' or '.join(f'{n:,}' for n in steps)} with {name}" for name, steps in learners.items())
            lines.append(f"  total_steps {total:,}, in whole updates: {each}")
    return lines


def _makes(made: Sweep, option: str) -> str:
    """Whether the values of a swept option become programs or rows of a program."""
    if option not in made.packed:
        return "separate programs"
    trials = made.trials
    values = {frozenset(repr(trials[n].changes.get(option)) for n in p.trials) for p in made.programs.values()}
    return "rows of one program" if len(values) == 1 else f"rows of {len(values)} programs"


def count(number: int, what: str) -> str:
    """A number with its noun: 1 trial, 12 trials."""
    plural = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{plural}"


def _listed(values: Sequence[Any], most: int = 8) -> str:
    texts = [as_text(value) for value in values]
    return ", ".join(texts) if len(texts) <= most else f"{', '.join(texts[:3])} … {texts[-1]} ({len(texts)} values)"


def _common(made: Sweep, names: Sequence[str]) -> str:
    """The swept options of a program: the value where all its trials agree, else "*"."""
    changes = [made.trials[name].changes for name in names]
    words = []
    for option in changes[0]:
        values = list(dict.fromkeys(as_text(change[option]) for change in changes if option in change))
        words.append(f"{option}={values[0] if len(values) == 1 else '*'}")
    return " ".join(words) or names[0]


def sweep_end(made: Sweep, state: State, folder: Path, seconds: float) -> str:
    """The end of a sweep: the number of trials in each state, the errors, and the commands to run next."""
    numbers = state.count()
    said = ", ".join(f"{number} {name}" for name, number in numbers.items() if number)
    lines = [f"{said} of {count(len(made.trials), 'trial')} after {seconds:,.0f} s"]
    for name, program in made.programs.items():
        log = program_dir(folder, name) / LOG
        where = f"; its log: {log}" if state.programs[name].state == FAILED and log.exists() else ""
        errors = {trial: state.trials[trial].error for trial in program.trials}
        lines += [f"  {trial}: {error}{where}" for trial, error in errors.items() if error]
    if numbers[FAILED]:
        lines.append(f"retry the failed trials: mtjax-sweep --resume={folder} --retry_failed")
    return "\n".join([*lines, f"results: {folder / 'trials'}; compare them: mtjax-report {folder}"])
