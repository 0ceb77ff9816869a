"""The figures of a report, each a piece of HTML from a suite's methods; empty if there is nothing to show."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mtjax import options
from mtjax.report import measures, svg
from mtjax.report.data import Method, Suite
from mtjax.report.svg import Curve, Line, Scale, Style
from mtjax.training import series
from mtjax.training.series import Series

COLOURS = 10
SHOWN = 8  # methods that are switched on at first
NAMED = 14  # most tasks for which a heat map shows numbers in its cells
CELLS = 60  # most tasks for which each gets a picture of its own


def styles(suite: Suite, order: Sequence[str], first: int = 0) -> dict[str, Style]:
    """The look of every method: methods that differ only in numeric options share a colour and differ in dashes.

    Args:
        suite: the suite of the methods.
        order: labels, the best first; only the first ``SHOWN`` are switched on.
        first: number of the first method; numbers are unique on the page.
    """
    numeric = measures.numeric_options(suite, least=2)
    families: dict[str, list[str]] = {}
    for method in suite.methods:
        flat = options.flatten(method.config)
        key = repr([flat.get(name) for name in suite.differing if name not in numeric])
        families.setdefault(key, []).append(method.label)
    if len(families) == 1:
        families = {label: [label] for label in next(iter(families.values()), [])}
    found = {}
    for colour, family in enumerate(families.values()):
        for dash, label in enumerate(family):
            hidden = label in order and list(order).index(label) >= SHOWN
            rank = colour // COLOURS + dash
            found[label] = Style(first + len(found), colour % COLOURS, rank % len(svg.DASHES), hidden)
    return found


def legend(looks: Mapping[str, Style]) -> str:
    """The methods with their colours; a click switches one on or off in every picture."""
    items = []
    for label, style in looks.items():
        dash = f' stroke-dasharray="{svg.DASHES[style.dash]}"' if style.dash else ""
        swatch = f'<svg viewBox="0 0 26 10"><line class="l" x1="1" x2="25" y1="5" y2="5"{dash}/></svg>'
        pressed = "false" if style.hidden else "true"
        items.append(
            f'<button class="c{style.colour}" data-m="{style.number}" aria-pressed="{pressed}">{swatch}'
            f"{html.escape(label)}</button>"
        )
    return f'<div class="legend">{"".join(items)}</div>'


def results(
    suite: Suite,
    table: Mapping[str, Mapping],
    order: Sequence[str],
    looks: Mapping[str, Style],
    measure: str,
    *,
    scaled: bool,
) -> str:
    """Mean, median, worst and IQM of every method, with intervals, the best first.

    Args:
        suite: the suite of the methods.
        table: the result of ``measures.aggregates``.
        order: labels of the methods, in the order of the rows.
        looks: styles by label.
        measure: the measure that is aggregated.
        scaled: whether the IQM is of scores from 0 to 1, whatever the measure.
    """
    names = ("mean", "median", "worst", "iqm") if table else ()
    heads = {"mean": "Mean over tasks", "median": "Median task", "worst": "Worst task", "iqm": "IQM"}
    shares = set(names) if measure.startswith("success") else set()
    if scaled and not shares:
        heads["iqm"], shares = "IQM of scaled returns", {"iqm"}
    scales = {}
    for name in names:
        numbers = [x for row in table.values() for x in row[name].values() if x is not None]
        low, high = (0.0, 1.0) if name in shares else svg.span([np.array(numbers or [0.0])])
        scales[name] = Scale(low, high, 0.0, 120.0)
    rows = []
    for label in order:
        method = next(m for m in suite.methods if m.label == label)
        cells = []
        for name in names:
            value = table[label][name]
            shown = name in shares
            text = svg.number(value["value"], shown)
            if value["low"] is not None:
                text += f" <small>{svg.number(value['low'], shown)} to {svg.number(value['high'], shown)}</small>"
            bar = svg.interval(value["value"], value["low"], value["high"], scales[name], looks[label])
            cells.append(f"<td>{bar}<span>{text}</span></td>")
        note = "" if method.complete else ' <em class="chip running">unfinished</em>'
        if method.diverged:
            note = f' <em class="chip diverged">{method.diverged} diverged</em>'
        dot = f'<i class="dot c{looks[label].colour}"></i>'
        rows.append(
            f"<tr><th>{dot}{html.escape(label)}{note}</th><td class='n'>{method.seeds}</td>{''.join(cells)}</tr>"
        )
    head = "".join(f"<th>{heads[name]}</th>" for name in names)
    return table_of(f"<th></th><th>seeds</th>{head}", rows, "results")


def learning(suite: Suite, looks: Mapping[str, Style], measure: str) -> str:
    """The measure over training: mean and worst task in the evaluations, and the mean in training episodes."""
    evaluated, trained = "deterministic evaluation", "during training"
    wanted = [(measure, "mean", evaluated), (measure, "worst", evaluated), (measure, "mean", trained)]
    wanted += [("return", "mean", evaluated)] if measure != "return" else []
    pictures = []
    for name, aggregate, where in wanted:
        lines = []
        for method in suite.methods:
            if where == evaluated:
                line = measures.curve(method.run.evaluations.get("train", {}).get(name), aggregate)
            else:
                line = measures.curve(method.run.train.get(name.removesuffix("_any")), aggregate, measures.SMOOTH)
            if line is not None and len(line.steps):
                dots = where == evaluated and len(line.steps) <= 40
                lines.append(Line(method.label, looks[method.label], line, dots=dots))
        if lines:
            words = "mean over tasks" if aggregate == "mean" else "worst task"
            title = f"{measures.title(name).capitalize()}, {words}, {where}"
            percent = name.startswith("success")
            span = (-0.02, 1.02) if percent else None
            pictures.append(svg.chart(lines, title=title, percent=percent, y_span=span))
    return figures(pictures)


def task_curves(suite: Suite, looks: Mapping[str, Style], measure: str) -> str:
    """A small chart of the deterministic evaluations for every task."""
    names = suite.tasks.get("train", ())
    percent = measure.startswith("success")
    sources = {m.label: m.run.evaluations.get("train", {}).get(measure) for m in suite.methods}
    sources = {label: s for label, s in sources.items() if series.known(s) and s.values.shape[-1] == len(names)}
    if not sources or len(names) < 2 or len(names) > CELLS:
        return ""
    pictures = []
    for index, task in enumerate(names):
        lines = []
        for label, source in sources.items():
            thinned = series.thin(source, 40)
            line = measures.over_seeds(Series(thinned.steps, thinned.values[..., index]))
            if len(line.steps):
                lines.append(Line(label, looks[label], line))
        if lines:
            wanted = (-0.02, 1.02) if percent else None
            bands = len(lines) <= 4
            pictures.append(svg.chart(lines, title=task, percent=percent, y_span=wanted, bands=bands, size=(250, 146)))
    return f'<div class="small">{"".join(pictures)}</div>' if pictures else ""


def heat_map(suite: Suite, values: Mapping[str, np.ndarray], order: Sequence[str], measure: str) -> str:
    """Methods × tasks: the mean over seeds, coloured within each task for returns and from 0 to 1 for success."""
    names = suite.tasks.get("train", ())
    means = {label: values[label].mean(axis=0) for label in order}
    if not means or any(len(mean) != len(names) for mean in means.values()):
        return ""
    percent = measure.startswith("success")
    everything = np.stack(list(means.values()))
    low = np.zeros(len(names)) if percent else np.fmin.reduce(everything)
    high = np.ones(len(names)) if percent else np.fmax.reduce(everything)
    shares = (everything - low) / np.where(high > low, high - low, 1.0)
    numbers = len(names) <= NAMED
    rows = []
    for label, row, share in zip(order, everything, shares, strict=True):
        cells = []
        for task, value, part in zip(names, row, share, strict=True):
            text = svg.number(value, percent)
            title = html.escape(f"{label}, {task}: {text}", quote=True)
            known = math.isfinite(part)
            style = f"--v:{100 * part:.0f}%" if known else ""
            strong = " hot" if known and part > 0.55 else ""
            cells.append(f'<td class="cell{strong}" style="{style}" title="{title}">{text if numbers else ""}</td>')
        rows.append(f"<tr><th>{html.escape(label)}</th>{''.join(cells)}</tr>")
    return table_of(f"<th></th>{_upright(names)}", rows, "heat" if numbers else "heat dense")


def _upright(names: Iterable[str]) -> str:
    """Column heads of a heat map, which run upwards; the whole name shows on hovering if it is cut off."""
    return "".join(
        f'<th><span title="{html.escape(name, quote=True)}">{html.escape(name)}</span></th>' for name in names
    )


def profile(scores: Mapping[str, np.ndarray], looks: Mapping[str, Style], measure: str) -> str:
    """Performance profiles: the share of seeds and tasks above each score."""
    lines = [Line(label, looks[label], curve) for label, curve in measures.profiles(scores).items()]
    if not lines:
        return ""
    scaled = "" if measure.startswith("success") else ", scaled from 0 to 1 within each task"
    label = f"{measures.title(measure)} τ{scaled}"
    title = "Fraction of seeds and tasks above τ"
    return svg.chart(lines, title=title, x_label=label, percent=True, y_span=(-0.02, 1.02))


def improvement(values: Mapping[str, np.ndarray], order: Sequence[str]) -> str:
    """A table of the probability that the row's method beats the column's on a random task."""
    pairs = measures.improvement({label: values[label] for label in order[:SHOWN]})
    labels = [label for label in order[:SHOWN] if any(label in pair for pair in pairs)]
    if len(labels) < 2:
        return ""
    rows = []
    for ours in labels:
        cells = []
        for theirs in labels:
            if ours == theirs:
                cells.append("<td></td>")
                continue
            value = pairs[ours, theirs]
            sure = value["low"] is not None and (value["low"] > 0.5 or value["high"] < 0.5)
            between = f" ({value['low']:.2f} to {value['high']:.2f})" if value["low"] is not None else ""
            title = html.escape(f"P({ours} > {theirs}) = {value['value']:.2f}{between}", quote=True)
            text = f"{value['value']:.2f}"
            side = "win" if value["value"] > 0.5 else "lose"
            style = f"--v:{200 * abs(value['value'] - 0.5):.0f}%"
            cells.append(
                f'<td class="cell {side}" style="{style}" title="{title}">{f"<b>{text}</b>" if sure else text}</td>'
            )
        rows.append(f"<tr><th>{html.escape(ours)}</th>{''.join(cells)}</tr>")
    return table_of(f"<th></th>{_upright(labels)}", rows, "heat")


def sensitivity(suite: Suite, values: Mapping[str, np.ndarray], looks: Mapping[str, Style], measure: str) -> str:
    """The final measure against every numeric option; one line per combination of the other options."""
    pictures = []
    percent = measure.startswith("success")
    for option in measures.numeric_options(suite):
        families: dict[str, list[Method]] = {}
        for method in suite.methods:
            if method.label in values:
                flat = options.flatten(method.config)
                key = " · ".join(str(flat[name]) for name in suite.differing if name != option and name in flat)
                families.setdefault(key, []).append(method)
        lines = []
        for key, methods in families.items():
            methods.sort(key=lambda m: options.flatten(m.config)[option])
            if len(methods) < 2:
                continue
            xs = np.array([options.flatten(m.config)[option] for m in methods], float)
            points = [measures.over_seeds(Series(np.zeros(1), values[m.label].mean(axis=1)[None])) for m in methods]
            known = [i for i, point in enumerate(points) if len(point.steps)]
            middle, low, high = (
                [float(getattr(points[i], part)[0]) for i in known] for part in ("middle", "low", "high")
            )
            style = looks[methods[0].label]._replace(dash=0, hidden=False)
            lines.append(Line(key or option, style, Curve(xs[known], *map(np.array, (middle, low, high))), dots=True))
        if lines:
            numbers = np.concatenate([line.curve.steps for line in lines])
            log = bool(numbers.min() > 0 and numbers.max() / numbers.min() >= 10)
            title = f"Final {measures.title(measure)}, mean over tasks, by {option}"
            span = (-0.02, 1.02) if percent else None
            pictures.append(svg.chart(lines, title=title, x_label=option, percent=percent, x_log=log, y_span=span))
    return figures(pictures)


def conflict(suite: Suite, looks: Mapping[str, Style]) -> str:
    """How far the tasks' gradients agree: over training, and pair by pair at the end."""
    cosines, shares, squares = [], [], []
    for method in suite.methods:
        mean, share = measures.conflict(method)
        look = looks[method.label]
        if mean is not None and share is not None and len(mean.steps):
            cosines.append(Line(method.label, look, mean))
            shares.append(Line(method.label, look, share))
            last = measures.last_cosine(method)
            if last is not None:
                squares.append((method, last))
    if not cosines:
        return ""
    pictures = [
        svg.chart(cosines, title="Cosine between two tasks' gradients, mean over pairs", zero=True),
        svg.chart(shares, title="Fraction of conflicting pairs (cosine < 0)", percent=True),
    ]
    limit = max([0.1, *(float(np.quantile(_pairs(last), 0.98)) for _, last in squares)])
    limit = min(1.0, math.ceil(10 * limit) / 10)
    tiles = [
        f'<figure class="{looks[method.label].classes}">'
        f"{svg.matrix(last, suite.tasks.get('train', ()), method.label, limit=limit)}"
        f"<figcaption>{html.escape(method.label)}</figcaption></figure>"
        for method, last in squares
    ]
    words = (
        "Cosines of pairs of tasks over the last tenth of training, in task order: blue agrees, red conflicts, full "
        f"colour at ±{limit:g}."
    )
    return f'{figures(pictures)}<p class="note">{words}</p><div class="tiles">{"".join(tiles)}</div>'


def sharing(suite: Suite, looks: Mapping[str, Style]) -> str:
    """What tasks share in networks that route or mix: routing entropy over training, and each task's final weights."""
    entropies, tiles = [], []
    for method in suite.methods:
        look = looks[method.label]
        line = measures.curve(method.run.train.get("routing_entropy/policy"), "mean", measures.SMOOTH)
        if line is not None and len(line.steps):
            entropies.append(Line(method.label, look, line))
        for name, last in measures.last_shares(method).items():
            limit = 1.0 if name.startswith("routing") else float(np.fmax.reduce(np.abs(last), axis=None)) or 1.0
            title = f"{method.label}, {name}"
            picture = svg.matrix(last, suite.tasks.get("train", ()), title, limit=limit, square=False)
            tiles.append(
                f'<figure class="{look.classes}">{picture}<figcaption>{html.escape(title)}</figcaption></figure>'
            )
    if not tiles and not entropies:
        return ""
    title = "Routing entropy of the policy, mean over tasks"
    chart = [svg.chart(entropies, title=title, percent=True, y_span=(-0.02, 1.02))] if entropies else []
    return f'{figures(chart)}<div class="tiles">{"".join(tiles)}</div>'


def embeddings(suite: Suite, looks: Mapping[str, Style]) -> str:
    """The learnt task embeddings: their first two principal components, and their cosines."""
    pictures, tiles, names = [], [], suite.tasks.get("train", ())
    for method in suite.methods:
        look = looks[method.label]
        for network, vectors in measures.last_embeddings(method).items():
            points, share = measures.plane(vectors)
            title = f"{method.label}, {network}"
            pictures.append(svg.scatter(points, names, f"{title}: {100 * share:.0f}% of the variance", look))
            picture = svg.matrix(measures.cosines(vectors), names, title)
            tiles.append(
                f'<figure class="{look.classes}">{picture}<figcaption>{html.escape(title)}</figcaption></figure>'
            )
    return f'{figures(pictures)}<div class="tiles">{"".join(tiles)}</div>' if pictures else ""


def _pairs(matrix: np.ndarray) -> np.ndarray:
    """Absolute values of the finite off-diagonal entries of [T, T]; a single 0 if there are none."""
    pairs = matrix[~np.eye(len(matrix), dtype=bool)]
    return np.abs(pairs[np.isfinite(pairs)]) if np.isfinite(pairs).any() else np.zeros(1)


def generalisation(suite: Suite, looks: Mapping[str, Style], measure: str) -> str:
    """A table of the mean and worst task of every split, trained on or held out."""
    splits = [split for split in suite.tasks if measures.finals(suite, measure, split)]
    if len(splits) < 2:
        return ""
    percent = measure.startswith("success")
    head = "".join(f"<th>{html.escape(split)}, mean</th><th>{html.escape(split)}, worst</th>" for split in splits)
    rows = []
    for method in suite.methods:
        cells = []
        for split in splits:
            value = method.final.get(split, {}).get(measure)
            for reduce in (np.mean, np.min):
                text = "–" if value is None else svg.number(float(reduce(value, axis=1).mean()), percent)
                cells.append(f'<td class="n">{text}</td>')
        dot = f'<i class="dot c{looks[method.label].colour}"></i>'
        rows.append(f"<tr><th>{dot}{html.escape(method.label)}</th>{''.join(cells)}</tr>")
    return table_of(f"<th></th>{head}", rows)


def figures(pictures: Sequence[str]) -> str:
    """Pictures side by side."""
    return f'<div class="figures">{"".join(pictures)}</div>' if pictures else ""


def table_of(head: str, rows: Sequence[str], kind: str = "") -> str:
    """A table that scrolls when it is wider than the page."""
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
