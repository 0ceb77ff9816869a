"""The data of a report: runs, grouped into methods whose runs differ only in their seeds."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtjax import options
from mtjax.report.folder import SWEEP, kind_of
from mtjax.sweeps import ledger, plan
from mtjax.training import packing, record, series
from mtjax.training.config import OPERATIONAL, PER_ROW, PROTOCOL, SUITE, SUMMARY, RunConfig, load_config
from mtjax.training.series import Run, Series

# Options that do not distinguish methods: seeds, and how often a run is logged, evaluated and saved.
NOT_A_METHOD = (*PER_ROW, *OPERATIONAL)
SHORT = {"learner": "", "grads": "", "learning_rate": "lr", "arrangement": ""}  # shortened names of options in labels


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run, or one trial of a sweep.

    Attributes:
        name: name of its folder.
        config: its configuration.
        state: "done", "diverged", "running", "failed" … ; "unfinished" for another run without a summary.
        error: why it failed, or None.
        lines: its record, as ``record.read`` returns it; empty if nothing is recorded yet.
        folder: folder of its videos and versions.
    """

    name: str
    config: RunConfig
    state: str
    error: str | None
    lines: Sequence[Mapping[str, Any]]
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs that differ only in their seeds, pooled.

    Attributes:
        label: distinguishes it from the other methods of the report.
        config: configuration of its first run.
        entries: its runs.
        run: their records, joined along the seeds.
        final: by split and measure, the values [S, T] of the last deterministic evaluation, of the runs that have one;
            a run that diverged has no final policy.
        diverged: number of runs that diverged.
        complete: True if every run is done.
    """

    label: str
    config: RunConfig
    entries: tuple[Entry, ...]
    run: Run
    final: Mapping[str, Mapping[str, np.ndarray]]
    diverged: int
    complete: bool

    @property
    def seeds(self) -> int:
        """S, the number of seeds that were evaluated."""
        measures = self.final.get("train", {})
        return len(next(iter(measures.values()))) if measures else 0


@dataclasses.dataclass(frozen=True)
class Suite:
    """The methods of one suite and what they share.

    Attributes:
        name: the suite's name.
        tasks: names of the tasks, by split.
        descriptions: descriptions of the tasks, by name.
        methods: the methods, in the order given.
        differing: options that differ between the methods.
        silent: entries without any measurement.
        repeated: entries all of whose seeds other entries of the same method also have; they are not counted.
        agents: number of seeds of all methods together.
        version: the suite's version stamp.
    """

    name: str
    tasks: Mapping[str, Sequence[str]]
    descriptions: Mapping[str, str]
    methods: tuple[Method, ...]
    differing: tuple[str, ...]
    silent: tuple[Entry, ...]
    repeated: tuple[Entry, ...]
    agents: int
    version: Mapping[str, Any]


def gather(folders: Iterable[str | os.PathLike]) -> list[Suite]:
    """Read runs and sweeps.

    Args:
        folders: folders of runs or sweeps, which may still be running. A repeated folder counts once, as does a
            repeated seed of a method, which would be the same agent.

    Returns:
        One Suite for every suite of tasks, and for every version of it with other tasks or another protocol.

    Raises:
        ValueError: a folder is neither a run nor a sweep, or a record is malformed.
    """
    entries: list[Entry] = []
    for folder in map(pathlib.Path, folders):
        entries += of_sweep(folder) if kind_of(folder) == SWEEP else [of_run(folder)]
    entries = list({entry.folder.resolve(): entry for entry in entries}.values())
    by_suite: dict[str, dict[str, list[Entry]]] = {}
    for entry in sorted(entries, key=lambda entry: not (entry.folder / SUITE).is_file()):
        versions = by_suite.setdefault(entry.config.suite, {})
        versions.setdefault(_version(entry, versions), []).append(entry)
    found = []
    for name, versions in by_suite.items():
        for number, members in enumerate(versions.values(), start=1):
            members.sort(key=entries.index)
            found.append(_suite(name if len(versions) == 1 else f"{name} ({number} of {len(versions)})", members))
    return found


def _version(entry: Entry, others: Iterable[str]) -> str:
    """What runs of one suite must share for their numbers to be comparable: tasks and protocol.

    An entry that has not written its suite yet gets the version of another entry with the same tasks; an entry that has
    recorded nothing gets the version of any.
    """
    path = entry.folder / SUITE
    if path.is_file():
        suite = json.loads(path.read_text())
        names = [info["name"] for info in suite["tasks"]["train"]]
        return json.dumps([names, [suite["version"].get(part) for part in PROTOCOL]])
    names = list(record.task_names(entry.lines))
    return next((other for other in others if not names or json.loads(other)[0] == names), json.dumps([names, None]))


def of_run(folder: pathlib.Path) -> Entry:
    """The entry of a run's folder."""
    lines, state, error = _record(folder), "unfinished", None
    if (folder / SUMMARY).is_file():
        state = ledger.DONE
    elif lines and lines[-1]["kind"] == "event" and lines[-1]["message"].startswith(record.DIVERGED):
        state, error = ledger.DIVERGED, lines[-1]["message"]
    return Entry(folder.name, load_config(folder), state, error, lines, folder)


def of_sweep(folder: pathlib.Path) -> list[Entry]:
    """The entries of a sweep: trials with a folder of their own, and rows of programs that are still training."""
    made = plan.load(folder)
    state = ledger.fold(made, ledger.read(folder))
    entries = []
    for program in made.programs.values():
        own = plan.program_dir(folder, program.name)
        shared = _record(own) if program.packed else []
        rows = packing.load_program(own) if shared else None
        for name in program.trials:
            trial, progress = made.trials[name], state.trials[name]
            place = plan.trial_dir(folder, name)
            lines = _record(place)
            if not lines and rows is not None:
                lines = packing.lines_of(shared, rows, name)
            entries.append(Entry(name, trial.config, progress.state, progress.error, lines, place))
    return entries


def _record(folder: pathlib.Path) -> list[dict[str, Any]]:
    return record.read(folder) if (folder / record.FILE).is_file() else []


def _suite(name: str, entries: Sequence[Entry]) -> Suite:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        flat = {k: v for k, v in options.flatten(entry.config).items() if k not in NOT_A_METHOD}
        groups.setdefault(json.dumps(flat, sort_keys=True), []).append(entry)
    speaking = [distinct([e for e in group if measured(e)]) for group in groups.values()]
    configs = [group[0].config for group in groups.values()]
    differing = differences(configs)
    labels = _labels(configs, differing)
    methods = tuple(_method(label, group) for label, group in zip(labels, speaking, strict=True) if group)
    silent = tuple(entry for entry in entries if not measured(entry))
    counted = {id(entry) for method in methods for entry in method.entries}
    repeated = tuple(entry for entry in entries if measured(entry) and id(entry) not in counted)
    agents = sum(len({seed for entry in group for seed in seeds_of(entry)}) for group in groups.values())
    tasks, descriptions, version = _tasks(entries, methods)
    return Suite(name, tasks, descriptions, methods, differing, silent, repeated, agents, version)


def seeds_of(entry: Entry) -> range:
    """The seeds of an entry's agents, in the order of its rows."""
    return range(entry.config.seed, entry.config.seed + entry.config.num_seeds)


def distinct(entries: Sequence[Entry]) -> list[tuple[Entry, list[int]]]:
    """Entries of one method with their rows of distinct seeds; a repeated seed counts in the more advanced entry."""

    def reached(entry: Entry) -> tuple[bool, float]:
        return entry.state == "done", max(line["step"] for line in entry.lines if "values" in line)

    rows: dict[int, list[int]] = {}
    taken: set[int] = set()
    for place in sorted(range(len(entries)), key=lambda place: reached(entries[place]), reverse=True):
        seeds = seeds_of(entries[place])
        rows[place] = [row for row, seed in enumerate(seeds) if seed not in taken]
        taken.update(seeds)
    return [(entry, rows[place]) for place, entry in enumerate(entries) if rows[place]]


def measured(entry: Entry) -> bool:
    """True if the entry has any measurement."""
    return any("values" in line for line in entry.lines)


def differences(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """Options that differ between configurations, apart from ``NOT_A_METHOD``."""
    flat = [options.flatten(config) for config in configs]
    names = dict.fromkeys(name for values in flat for name in values if name not in NOT_A_METHOD)
    return tuple(name for name in names if any(values.get(name) != flat[0].get(name) for values in flat))


def _labels(configs: Sequence[RunConfig], differing: Sequence[str], *, short: bool = True) -> list[str]:
    """Short labels: the values of the differing options, with the option's name unless the value speaks for itself.

    An option that is the same in all methods of each learner follows from the learner, which the label names.
    ``short`` rounds numbers to six digits; if that gives two methods the same label, all digits are shown.
    """
    if not differing:
        return [config.grads for config in configs]
    labels = []
    if "learner" in differing:
        learners = dict.fromkeys(config.learner for config in configs)
        within = [differences([c for c in configs if c.learner == learner]) for learner in learners]
        differing = [name for name in differing if name == "learner" or any(name in names for names in within)]
    for config in configs:
        flat = options.flatten(config)
        words = []
        for name in differing:
            prefix, value = SHORT.get(name, name), flat.get(name)
            if value is None:
                continue
            text = _short(value) if short or not isinstance(value, float) else repr(value)
            words.append(f"{prefix}={text}" if prefix else text)
        labels.append(" · ".join(words))
    if len(set(labels)) < len(labels) and short:
        return _labels(configs, differing, short=False)
    return labels


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _method(label: str, parts: Sequence[tuple[Entry, list[int]]]) -> Method:
    entries = [entry for entry, _ in parts]
    runs = [_of_rows(series.sort(entry.lines), rows) for entry, rows in parts]
    finals: dict[str, dict[str, list[np.ndarray]]] = {}
    for entry, rows in parts:
        for split, measures in final_values(entry.lines, rows).items() if entry.state != ledger.DIVERGED else ():
            for name, values in measures.items():
                finals.setdefault(split, {}).setdefault(name, []).append(values)
    final = {split: {name: np.concatenate(v) for name, v in measures.items()} for split, measures in finals.items()}
    diverged = sum(entry.state == ledger.DIVERGED for entry in entries)
    complete = all(entry.state == ledger.DONE for entry in entries)
    return Method(label, entries[0].config, tuple(entries), _join(runs), final, diverged, complete)


def _of_rows(run: Run, rows: Sequence[int]) -> Run:
    """A run's record for some of its seeds; series without a seed axis stay as they are."""

    def pick(table: Mapping[str, Series]) -> dict[str, Series]:
        return {name: s.map(lambda x: x[:, rows]) if s.values.ndim > 1 else s for name, s in table.items()}

    return run._replace(
        train=pick(run.train), evaluations={split: pick(table) for split, table in run.evaluations.items()}
    )


def final_values(
    lines: Sequence[Mapping[str, Any]], rows: Sequence[int] | slice = slice(None)
) -> dict[str, dict[str, np.ndarray]]:
    """By split and measure, the values [S, T] of ``rows`` in the final deterministic evaluation.

    Without a final one, that of the largest step: an old checkpoint may have been evaluated since.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if line["kind"] == "evaluation" and line["mode"] == "deterministic":
            before = found.get(line["split"])
            if before is None or (line["final"], line["step"]) >= (before["final"], before["step"]):
                found[line["split"]] = line
    return {split: {k: np.asarray(v, float)[rows] for k, v in line["values"].items()} for split, line in found.items()}


def _join(runs: Sequence[Run]) -> Run:
    """Join runs along the seeds. A run that lacks a series, e.g. as it has just started, contributes nothing to it."""
    if len(runs) == 1:
        return runs[0]
    splits = dict.fromkeys(split for run in runs for split in run.evaluations)
    evaluations = {split: _join_series([run.evaluations.get(split, {}) for run in runs]) for split in splits}
    return runs[0]._replace(train=_join_series([run.train for run in runs]), evaluations=evaluations)


def _join_series(parts: Sequence[Mapping[str, Series]]) -> dict[str, Series]:
    """Series by name, at the steps of the one that reaches furthest, at which the others are interpolated."""
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [part[name] for part in parts if name in part and part[name].values.ndim > 1]
        if not found:
            continue  # no seed axis, e.g. a speed
        furthest = max(found, key=lambda series: (series.steps[-1], len(series.steps)))
        alike = [series for series in found if series.values.shape[2:] == furthest.values.shape[2:]]
        values = np.concatenate([_at(series, furthest.steps) for series in alike], axis=1)
        joined[name] = Series(furthest.steps, values)
    return joined


def _at(part: Series, steps: np.ndarray) -> np.ndarray:
    """A series linearly interpolated at other steps, between known values; NaN before its first and after its last."""
    if np.array_equal(part.steps, steps):
        return part.values

    def between(column: np.ndarray) -> np.ndarray:
        known = np.isfinite(column)
        if not known.any():
            return np.full(len(steps), np.nan)
        return np.interp(steps, part.steps[known], column[known], left=np.nan, right=np.nan)

    columns = [between(column) for column in part.values.reshape(len(part.steps), -1).T]
    return np.stack(columns, axis=1).reshape(len(steps), *part.values.shape[1:])


def _tasks(entries: Sequence[Entry], methods: Sequence[Method]) -> tuple[dict, dict, dict]:
    """Names by split, descriptions and the suite's version, from the first run that has written them."""
    for entry in entries:
        path = entry.folder / SUITE
        if path.is_file():
            suite = json.loads(path.read_text())
            tasks = {split: [info["name"] for info in infos] for split, infos in suite["tasks"].items()}
            words = {info["name"]: info.get("description", "") for infos in suite["tasks"].values() for info in infos}
            return tasks, words, suite["version"]
    return {"train": list(methods[0].run.tasks) if methods else []}, {}, {}


def versions_of(entries: Iterable[Entry]) -> list[Mapping[str, Any]]:
    """The distinct contents of the runs' ``versions.json``."""
    found: list[Mapping[str, Any]] = []
    for entry in entries:
        path = entry.folder / "versions.json"
        if path.is_file():
            value = json.loads(path.read_text())
            if value not in found:
                found.append(value)
    return found
