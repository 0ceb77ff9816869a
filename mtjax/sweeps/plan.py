"""The plan of a sweep: its trials, and the few programs that train them.

The folder of a sweep holds::

    sweep.json   ledger.jsonl   trials/<trial>/   programs/<program>/{log.txt, outcome.json, …}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mtjax import options
from mtjax.sweeps.space import Changes
from mtjax.training import files
from mtjax.training.config import PER_ROW, RunConfig

MANIFEST, TRIALS, PROGRAMS = "sweep.json", "trials", "programs"
LONGEST_NAME = 96  # characters of the name of a trial's folder


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration of a sweep.

    Attributes:
        name: name of its folder; unique in the sweep.
        changes: the swept options and their values.
        config: the whole configuration.
        steps: environment steps over all its seeds.
    """

    name: str
    changes: Changes
    config: RunConfig
    steps: int = 0

    @property
    def id(self) -> str:
        """A hash of everything that determines its result."""
        text = json.dumps(options.flatten(self.config), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Program:
    """Trials that train in one process, as the rows of one compiled program: the unit of launching and retrying.

    Attributes:
        name: name of its folder.
        trials: names of its trials.
    """

    name: str
    trials: tuple[str, ...]

    @property
    def packed(self) -> bool:
        """True if it has several trials."""
        return len(self.trials) > 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, as ``sweep.json`` holds it.

    Attributes:
        name: the sweep's name.
        trials: trials by name, in order.
        programs: programs by name, in order.
        swept: options that vary, in order.
        packed: swept options of which at least some values share a program as rows; others need separate programs.
        process: how its processes run: platform, video …
        created: seconds since 1970.
        search: settings of a search that suggests trials from earlier results; else empty.
    """

    name: str
    trials: Mapping[str, Trial]
    programs: Mapping[str, Program]
    swept: tuple[str, ...]
    packed: tuple[str, ...]
    process: Mapping[str, Any]
    created: float = 0.0
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rows(self, program: Program) -> int:
        """Number of agents that a program trains."""
        return sum(self.trials[name].config.num_seeds for name in program.trials)

    def steps(self, program: Program) -> int:
        """Environment steps over all agents of a program."""
        return sum(self.trials[name].steps for name in program.trials)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What planning needs to know about a configuration.

    Attributes:
        steps: environment steps of one seed.
        vmapped: options that are leaves of the learner's state.
        packable: False where simulators run on the host: a row's episodes would depend on the other rows.
        most_rows: number of agents whose replays fit into memory, or None if unknown.
        code: for options that hold both code and leaves, the code alone.
    """

    steps: int
    vmapped: tuple[str, ...] = ()
    packable: bool = True
    most_rows: int | None = None
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)


def make_plan(
    name: str,
    trials: Iterable[tuple[Changes, RunConfig]],
    inspect: Callable[[RunConfig], Facts],
    *,
    most_rows: int,
    slots: int = 1,
    process: Mapping[str, Any] | None = None,
    created: float = 0.0,
    search: Mapping[str, Any] | None = None,
    before: Plan | None = None,
) -> Plan:
    """Name the trials and pack them into programs.

    Args:
        name: the sweep's name.
        trials: swept values and complete configuration of each trial.
        inspect: returns the facts of a configuration, or refuses one that cannot be trained.
        most_rows: most agents in one program; 1 packs nothing.
        slots: programs that run at once; if there are fewer programs, packs are split until every slot has one.
        process: stored in the plan.
        created: seconds since 1970.
        search: stored in the plan.
        before: an earlier plan that these trials extend.

    Raises:
        ValueError: a trial cannot be trained, or two trials are the same.
    """
    earlier = dict(before.trials) if before else {}
    named, facts, ids = {}, {}, {trial.id: name for name, trial in earlier.items()}
    for number, (changes, config) in enumerate(trials, start=len(earlier) + 1):
        label = f"{number:03d}" + "".join(f"_{option}={_text(value)}" for option, value in changes.items())
        trial_name = re.sub(r"[^\w.=+-]+", "-", label)[:LONGEST_NAME].rstrip("-._")
        found = inspect(config)
        trial = Trial(trial_name, changes, config, found.steps * config.num_seeds)
        if trial.id in ids:
            raise ValueError(f"trials {ids[trial.id]} and {trial_name} are the same: every option has the same value")
        named[trial_name], facts[trial_name], ids[trial.id] = trial, found, trial_name
    if not named:
        raise ValueError("the sweep has no trials")
    groups = _groups(named, facts, most_rows)
    while len(groups) < slots and max(map(len, groups)) > 1:
        largest = max(groups, key=len)
        half = (len(largest) + 1) // 2
        at = groups.index(largest)
        groups[at : at + 1] = [largest[:half], largest[half:]]
    programs = dict(before.programs) if before else {}
    for group in groups:
        label = f"p{len(programs) + 1:03d}"
        programs[label] = Program(label, tuple(group))
    named, groups = {**earlier, **named}, [program.trials for program in programs.values()]
    swept = tuple(dict.fromkeys(option for trial in named.values() for option in trial.changes))
    rows = tuple(option for option in swept if any(_differs(option, group, named) for group in groups))
    return Plan(name, named, programs, swept, rows, dict(process or {}), created, dict(search or {}))


def halved(made: Plan, name: str) -> tuple[Plan, tuple[str, str]]:
    """The plan with a packed program replaced by two with half of its trials each, and the names of the two.

    Names show where programs come from and are never reused: p003 becomes p003a and p003b.
    """
    members = made.programs[name].trials
    middle = (len(members) + 1) // 2
    halves = {f"{name}a": members[:middle], f"{name}b": members[middle:]}
    programs: dict[str, Program] = {}
    for other, program in made.programs.items():
        parts = {label: Program(label, part) for label, part in halves.items()}
        programs |= parts if other == name else {other: program}
    return dataclasses.replace(made, programs=programs), (f"{name}a", f"{name}b")


def _groups(trials: Mapping[str, Trial], facts: Mapping[str, Facts], most_rows: int) -> list[Sequence[str]]:
    """Names of the trials of each program, with at most ``most_rows`` agents in one program."""
    groups: dict[str, list[list[str]]] = {}
    for name, trial in trials.items():
        found = facts[name]
        seeds = trial.config.num_seeds
        values = options.flatten(trial.config) | found.code
        static = {k: v for k, v in values.items() if k not in (*found.vmapped, *PER_ROW)}
        key = json.dumps(static, sort_keys=True) if found.packable else name
        packs = groups.setdefault(key, [[]])
        most = most_rows if found.most_rows is None else min(most_rows, found.most_rows)
        if packs[-1] and sum(trials[n].config.num_seeds for n in packs[-1]) + seeds > most:
            packs.append([])
        packs[-1].append(name)
    return [pack for packs in groups.values() for pack in packs]


def _differs(option: str, names: Iterable[str], trials: Mapping[str, Trial]) -> bool:
    """True if the option takes more than one value among these trials."""
    return len({repr(trials[name].changes.get(option)) for name in names}) > 1


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def inspector(memory: float | None = None) -> Callable[[RunConfig], Facts]:
    """A function that finds a configuration's facts by building its suite (once) and trainer; it compiles nothing.

    Args:
        memory: bytes of a device that a program may fill with replays, if the configuration sets no limit.
    """
    from mtjax import suites
    from mtjax.training import packing
    from mtjax.training.trainer import Trainer

    made: dict[str, Any] = {}
    vmapped: dict[str, tuple[str, ...]] = {}

    def inspect(config: RunConfig) -> Facts:
        if config.suite not in made:
            made[config.suite] = suites.make(config.suite)
        suite = made[config.suite]
        trainer = Trainer(config, suite)
        if config.learner not in vmapped:
            vmapped[config.learner] = packing.vmapped_options(trainer.learner)
        steps = trainer.num_updates * trainer.steps_per_update
        replay = trainer.learner.replay
        limit = (replay.limit or memory) if replay else None
        if limit is not None:  # else the memory where programs run is unknown
            replay.require_memory(config.num_seeds)
        room = None if limit is None else max(1, int(limit / replay.bytes))
        code = packing.method_code(options.flatten(config))
        return Facts(steps, vmapped[config.learner], suite.on_device, room, code)

    return inspect


# -------------------------------------------------------------------------------------------- the file


def save(plan: Plan, folder: str | os.PathLike) -> None:
    """Write ``sweep.json`` atomically."""
    trials = {
        name: {"id": t.id, "changes": t.changes, "steps": t.steps, "config": dataclasses.asdict(t.config)}
        for name, t in plan.trials.items()
    }
    programs = {name: list(program.trials) for name, program in plan.programs.items()}
    files.write_json(
        pathlib.Path(folder) / MANIFEST,
        {
            "name": plan.name,
            "created": plan.created,
            "swept": list(plan.swept),
            "packed": list(plan.packed),
            "process": dict(plan.process),
            "search": dict(plan.search),
            "programs": programs,
            "trials": trials,
        },
    )


def load(folder: str | os.PathLike) -> Plan:
    """The plan of the sweep in a folder.

    Raises:
        ValueError: the folder holds no sweep, or one that cannot be read.
    """
    path = pathlib.Path(folder) / MANIFEST
    if not path.is_file():
        what = f"it has no {MANIFEST}" if pathlib.Path(folder).is_dir() else "there is no such folder"
        raise ValueError(f"{folder} is not a sweep: {what}")
    try:
        saved = json.loads(path.read_text())
        trials = {}
        for name, values in saved["trials"].items():
            config = options.from_dict(RunConfig(), values["config"])
            flat = options.flatten(config)
            changes = {option: flat[option] for option in values["changes"]}
            trials[name] = Trial(name, changes, config, values["steps"])
        programs = {name: Program(name, tuple(names)) for name, names in saved["programs"].items()}
        swept, packed = tuple(saved["swept"]), tuple(saved["packed"])
        process, created, search = (saved[key] for key in ("process", "created", "search"))
        return Plan(saved["name"], trials, programs, swept, packed, process, created, search)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def trial_dir(folder: str | os.PathLike, trial: str) -> pathlib.Path:
    """Folder of a trial's results; a packed trial has one only when its program has ended."""
    return pathlib.Path(folder) / TRIALS / trial


def program_dir(folder: str | os.PathLike, program: str) -> pathlib.Path:
    """Folder of a program's log and outcome and, if it is packed, its record."""
    return pathlib.Path(folder) / PROGRAMS / program


def swept_values(plan: Plan) -> dict[str, Sequence[Any]]:
    """Every value that each swept option takes, in order."""
    values: dict[str, list[Any]] = {}
    for trial in plan.trials.values():
        for option, value in trial.changes.items():
            if value not in values.setdefault(option, []):
                values[option].append(value)
    return values
