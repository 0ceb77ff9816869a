"""The page of a report: one self-contained HTML file, which needs no network."""

from __future__ import annotations

import base64
import datetime
import html
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import mtjax
from mtjax import options
from mtjax.report import charts, data, measures, svg
from mtjax.report.data import Suite
from mtjax.training import statistics
from mtjax.training.files import write_atomically

HERE = pathlib.Path(__file__).parent
MEGABYTE = 2**20


def write(
    folders: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    title: str = "",
    video_megabytes: float = 30.0,
) -> pathlib.Path:
    """Write the report of runs and sweeps.

    Args:
        folders: of runs or sweeps.
        output: the HTML file.
        title: the page's title; empty uses the folders' names.
        video_megabytes: videos are embedded up to this total size; the others are linked.

    Raises:
        ValueError: a folder is neither a run nor a sweep, or nothing has been measured yet.
    """
    suites = data.gather(folders)
    if not any(suite.methods for suite in suites):
        raise ValueError(f"nothing has been measured yet in {', '.join(map(str, folders))}")
    title = title or _title([pathlib.Path(folder).resolve().name for folder in folders])
    output = pathlib.Path(output)
    return write_atomically(output, render(suites, title, output.parent, video_megabytes).encode())


def render(suites: Sequence[Suite], title: str, folder: pathlib.Path, video_megabytes: float = 30.0) -> str:
    """The page as text. ``folder`` is where the file will be, for links to videos that are not embedded."""
    budget = [video_megabytes * MEGABYTE]
    unmeasured = [suite for suite in suites if not suite.methods]
    suites = [suite for suite in suites if suite.methods]
    sections, first = [], 0
    for index, suite in enumerate(suites):
        sections.append(_suite(suite, f"s{index}", first, folder, budget))
        first += len(suite.methods)
    entries = [entry for suite in suites for method in suite.methods for entry in method.entries]
    made = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    links = [(f"s{i}", suite.name) for i, suite in enumerate(suites)]
    links += [("unmeasured", "not measured yet")] * bool(unmeasured) + [("versions", "versions")]
    nav = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in links)
    body = (
        f"<header><h1>{html.escape(title)}</h1><p>mtjax {mtjax.__version__}, {made}</p><nav>{nav}</nav></header>"
        f"<main>{''.join(sections)}{_unmeasured(unmeasured)}{_versions(entries)}</main>"
    )
    style, script = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>"
        f"<body>{body}<script>{script}</script></body></html>\n"
    )


MOST_NAMES = 4  # folders that the page's title names


def _title(names: Sequence[str]) -> str:
    """The names of the folders; of many, the first ones."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} more"


def _unmeasured(suites: Sequence[Suite]) -> str:
    """A list of the runs of suites on which no run has measured anything."""
    if not suites:
        return ""
    items = []
    for suite in suites:
        for entry in suite.silent:
            words = f" on {suite.name}: {entry.state}" + (f", {entry.error}" if entry.error else "")
            items.append(f"<li><b>{html.escape(entry.name)}</b>{html.escape(words)}</li>")
    return f'<section id="unmeasured"><h2>Not measured yet</h2><ul class="note">{"".join(items)}</ul></section>'


def _suite(suite: Suite, anchor: str, first: int, folder: pathlib.Path, budget: list[float]) -> str:
    """The section of the page about one suite."""
    measure = measures.primary(suite)
    values = measures.finals(suite, measure)
    scores = measures.common_scale(values, measure)
    table = measures.aggregates(values, scores)
    order = measures.best_first(table)
    looks = charts.styles(suite, order, first)
    name = measures.title(measure)
    blocks = [
        _block(
            "Final results",
            _results_note(measure, bool(scores)),
            charts.results(suite, table, order, looks, measure, scaled=bool(scores)),
        )
        if table
        else "",
        _block("Learning curves", CURVES, charts.learning(suite, looks, measure)),
        _block("Options", OPTIONS, charts.sensitivity(suite, values, looks, measure)),
        _block(
            "Results per task",
            _heat_note(measure),
            charts.heat_map(suite, values, order, measure) + _tasks(suite, values, order, measure),
        ),
        _block("Learning curves per task", "", charts.task_curves(suite, looks, measure)),
        _pair(
            _block("Performance profiles", PROFILES, charts.profile(scores, looks, measure)) if len(scores) else "",
            _block("Probability of improvement", IMPROVEMENT, charts.improvement(values, order)),
        ),
        _block("Gradient conflict", "", charts.conflict(suite, looks)),
        _block("Routing and sharing", SHARING, charts.sharing(suite, looks)),
        _block("Task embeddings", EMBEDDINGS, charts.embeddings(suite, looks)),
        _block(
            "Held-out tasks",
            f"Zero-shot {name} of the final policy.",
            charts.generalisation(suite, looks, measure),
        ),
        _block("Videos", "", _videos(suite, folder, budget)),
        _block("Options that differ", "", _settings(suite, looks)),
    ]
    return (
        f'<section id="{anchor}"><h2>{html.escape(suite.name)}</h2>{_facts(suite)}'
        f"{charts.legend(looks)}{''.join(blocks)}</section>"
    )


CURVES = "Bands are 95% bootstrap intervals of the mean over seeds."
OPTIONS = "Dots are means over seeds, bands are 95% bootstrap intervals."
PROFILES = "Fraction of seeds and tasks with a score above τ, with 95% intervals over seeds; higher is better."
SHARING = (
    "One row per task, one column per expert or module, over the last tenth of training of the first seed: the "
    "darker, the more weight the task gives it. An entropy of 100% means equal weights."
)
EMBEDDINGS = (
    "The first seed's learnt embeddings at the end of training, centred on their mean: the plane of their first two "
    "principal components, and their pairwise cosines in task order (blue: similar, red: opposed)."
)
IMPROVEMENT = (
    "Probability that the row's method beats the column's on a random task; bold where the 95% interval over seeds "
    "excludes 0.5."
)


def _results_note(measure: str, scaled: bool) -> str:
    words = ""
    if scaled and not measure.startswith("success"):
        words = " For the IQM, returns are scaled within each task: 0 is the worst seed on this page, 1 the best."
    return (
        f"The deterministic policy's {measures.title(measure)} after training. Each seed is one agent for all tasks: "
        "mean, median and worst are over its tasks, then averaged over agents, with 95% bootstrap intervals; the "
        f"interquartile mean (IQM) is over all agents and tasks.{words}"
    )


def _heat_note(measure: str) -> str:
    colours = (
        "from 0 to 100%" if measure.startswith("success") else "within each task, from the worst method to the best"
    )
    return f"Final {measures.title(measure)}, mean over seeds; coloured {colours}."


def _block(title: str, note: str, content: str) -> str:
    if not content:
        return ""
    return f"<article><h3>{title}</h3>{f'<p class=note>{note}</p>' if note else ''}{content}</article>"


def _pair(*blocks: str) -> str:
    return f'<div class="pair">{"".join(blocks)}</div>' if any(blocks) else ""


REPEATED = "duplicates the options and seeds of another run and is left out"


def _facts(suite: Suite) -> str:
    """A line of numbers, a chip for every state that entries are in, and a list of errors and warnings."""
    entries = [entry for method in suite.methods for entry in method.entries] + list(suite.silent)
    facts = [
        count(len(suite.methods), "method"),
        count(suite.agents, "agent"),
        count(len(suite.tasks.get("train", ())), "task"),
        f"{_steps(suite)} environment steps per agent",
    ]
    states: dict[str, int] = {}
    for entry in entries:
        states[entry.state] = states.get(entry.state, 0) + 1
    chips = "".join(f'<em class="chip {state}">{number} {state}</em>' for state, number in states.items())
    errors = "".join(
        f"<li><b>{html.escape(entry.name)}</b> {html.escape(entry.error)}</li>" for entry in entries if entry.error
    )
    texts = [*suite.version.get("warnings", ()), *(f"{entry.name}: {REPEATED}" for entry in suite.repeated)]
    warnings = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<p class="facts">{" · ".join(facts)} {chips}</p><ul class="errors">{errors}{warnings}</ul>'


def _steps(suite: Suite) -> str:
    """How far the suite's agents got: a number, or the range from method to method if they differ by more than 1%."""
    methods = [[line["step"] for entry in method.entries for line in entry.lines] for method in suite.methods]
    reached = [max(steps) for steps in methods if steps] or [0]
    low, high = svg.number(min(reached)), svg.number(max(reached))
    return f"{low} to {high}" if max(reached) > 1.01 * min(reached) and low != high else high


def count(number: int, what: str) -> str:
    """A number with its noun: 1 task, 12 tasks."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _tasks(suite: Suite, values: Mapping[str, np.ndarray], order: Sequence[str], measure: str) -> str:
    """The table of tasks, with intervals over seeds."""
    names = suite.tasks.get("train", ())
    if not values or any(values[label].shape[1] != len(names) for label in order):
        return ""
    percent = measure.startswith("success")
    rows = []
    for index, task in enumerate(names):
        columns = [values[label][:, index] for label in order]
        best = np.fmax.reduce([column.mean() for column in columns])
        cells = []
        for column in columns:
            text = svg.number(float(column.mean()), percent)
            between = (
                statistics.bootstrap(column[:, None], statistics.STATISTICS["mean"])
                if np.isfinite(column).all()
                else None
            )
            if between:
                text += f" <small>{svg.number(between[0], percent)} to {svg.number(between[1], percent)}</small>"
            cells.append(
                f'<td class="n">{f"<b>{text}</b>" if column.mean() == best and len(columns) > 1 else text}</td>'
            )
        description = html.escape(suite.descriptions.get(task, ""), quote=True)
        rows.append(f'<tr><th title="{description}">{html.escape(task)}</th>{"".join(cells)}</tr>')
    head = "".join(f"<th>{html.escape(label)}</th>" for label in order)
    table = charts.table_of(f"<th>task</th>{head}", rows)
    return f"<details><summary>Numbers with intervals over seeds</summary>{table}</details>"


def _settings(suite: Suite, looks: Mapping[str, Any]) -> str:
    """A table of the options in which the methods differ, and below it those of one learner and those of all."""
    if not suite.methods:
        return ""
    own = _of_one_learner(suite)
    known = {name for method in suite.methods for name in options.flatten(method.config)}
    differing = [n for n in suite.differing if n in known and not any(n in values for values in own.values())]
    rows = []
    for method in suite.methods:
        flat = options.flatten(method.config)
        cells = "".join(f"<td>{html.escape(_text(flat.get(name)))}</td>" for name in differing)
        dot = f'<i class="dot c{looks[method.label].colour}"></i>'
        where = ", ".join(html.escape(entry.name) for entry in method.entries)
        rows.append(f"<tr><th>{dot}{html.escape(method.label)}</th>{cells}<td class='where'>{where}</td></tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in differing)
    table = charts.table_of(f"<th></th>{head}<th>run</th>", rows, "settings")
    flat = options.flatten(suite.methods[0].config)
    common = {name: value for name, value in flat.items() if name not in suite.differing}
    lists = [_listed(f"Other options of {learner}", values) for learner, values in own.items() if values]
    return f"{table}{''.join(lists)}{_listed('Options in common', common)}"


def _of_one_learner(suite: Suite) -> dict[str, dict[str, Any]]:
    """By learner, the options that not all learners have and that its methods agree on; empty for one learner."""
    configs: dict[str, list[Any]] = {}
    for method in suite.methods:
        configs.setdefault(method.config.learner, []).append(method.config)
    flat = {learner: options.flatten(members[0]) for learner, members in configs.items()}
    vary = {name for members in configs.values() for name in data.differences(members)}
    return {
        learner: {
            name: value
            for name, value in values.items()
            if name not in vary and not all(name in others for others in flat.values())
        }
        for learner, values in flat.items()
    }


def _listed(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_text(value))}</td></tr>" for name, value in values.items()
    )
    table = f'<table class="plain"><tbody>{rows}</tbody></table>'
    return f"<details><summary>{html.escape(title)}</summary>{table}</details>"


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else "–" if value is None else str(value)


def _videos(suite: Suite, folder: pathlib.Path, budget: list[float]) -> str:
    """The videos of every method: embedded while they fit into ``budget[0]`` bytes, linked beyond that."""
    groups = []
    for method in suite.methods:
        found = sorted(path for entry in method.entries for path in entry.folder.glob("videos/**/*.mp4"))
        if found:
            cells = "".join(_video(path, folder, budget) for path in found)
            groups.append(
                f"<details><summary>{html.escape(method.label)}</summary><div class='videos'>{cells}</div></details>"
            )
    return "".join(groups)


def _video(path: pathlib.Path, folder: pathlib.Path, budget: list[float]) -> str:
    size = path.stat().st_size
    if size <= budget[0]:
        budget[0] -= size
        source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    else:
        source = html.escape(urllib.parse.quote(os.path.relpath(path, folder)), quote=True)
    name = html.escape(path.stem)
    video = f'<video controls loop muted playsinline preload="metadata" src="{source}"></video>'
    return f"<figure>{video}<figcaption>{name}</figcaption></figure>"


def _versions(entries: Iterable[data.Entry]) -> str:
    """The software and hardware versions of the runs."""
    tables = []
    for found in data.versions_of(entries):
        flat = {}
        for name, value in found.items():
            if isinstance(value, Mapping):
                flat |= {(k if name == "packages" else f"{name}: {k}"): v for k, v in value.items()}
            else:
                flat[name] = value
        rows = "".join(
            f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>"
            for k, v in flat.items()
            if v not in (None, "")
        )
        tables.append(f'<table class="plain"><tbody>{rows}</tbody></table>')
    return (
        f'<section id="versions"><h2>Versions</h2><div class="pair">{"".join(tables)}</div></section>' if tables else ""
    )
