"""The search space of a sweep: axes as written on the command line, and the trials they expand to.

An axis is written as one of::

    grads=mean,pcgrad,cagrad(c=0.4)     a list; commas inside brackets and quotes belong to the value
    learning_rate=log:1e-4:1e-3:5       five values, evenly spaced in the logarithm
    discount=linear:0.9:0.99:4          four values, evenly spaced
    num_epochs=range:2:8:2              2, 4, 6: start, stop (left out) and step, as in Python
    learning_rate=log:1e-4:1e-3         without a number of values: an interval, for a search that draws
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtjax import options

SEARCHES = ("grid", "zip", "random", "optuna")
MOST_VALUES = 100_000

Parse = Callable[[str, str], Any]  # (option, text) -> value; raises ValueError
Changes = dict[str, Any]  # option -> value: the swept values of a trial


@dataclasses.dataclass(frozen=True)
class Axis:
    """One swept option.

    Attributes:
        name: the option's name.
        values: values that it takes; empty for an interval.
        interval: (low, high) to draw from, or None for a list.
        log: whether to draw uniformly in the logarithm.
        whole: whether to draw whole numbers.
    """

    name: str
    values: tuple[Any, ...] = ()
    interval: tuple[float, float] | None = None
    log: bool = False
    whole: bool = False

    def draw(self, generator: random.Random) -> Any:
        """Draw a random value."""
        if self.interval is None:
            return generator.choice(self.values)
        low, high = self.interval
        point = generator.random()
        number = low * (high / low) ** point if self.log else low + (high - low) * point
        return min(max(_number(number, self.whole), low), high)


def parse_axis(text: str, known: Mapping[str, Any], parse: Parse) -> Axis:
    """Parse one ``--sweep``.

    Args:
        text: "NAME=VALUES".
        known: every option with its default.
        parse: parses one value of an option, and refuses an invalid one.

    Raises:
        ValueError: one line with the text, what is wrong with it, and the nearest name.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    try:
        if not equals or not name:
            raise ValueError("write NAME=VALUES, e.g. learning_rate=1e-4,1e-3")
        if name not in known:
            raise ValueError(options.unknown("option", name, known))
        return _parse_values(name, values, known[name], lambda value: parse(name, value))
    except ValueError as error:
        raise ValueError(f"--sweep={text}: {error}") from None


def _parse_values(name: str, text: str, default: Any, parse: Callable[[str], Any]) -> Axis:
    kind = text.split(":")[0]
    if kind not in ("log", "linear", "range") or ":" not in text:
        values = tuple(parse(part) for part in split_list(text))
        _refuse_repeated(values)
        return Axis(name, values)
    if isinstance(default, bool) or not isinstance(default, (int, float)):
        raise ValueError(f"{name} is not a numeric option; write a list of values")
    whole = isinstance(default, int)
    numbers = [_read(part) for part in text.split(":")[1:]]
    if kind == "range":
        return Axis(name, _checked(_range(numbers), whole, parse))
    if len(numbers) not in (2, 3):
        raise ValueError(f"write {kind}:LOW:HIGH:NUMBER, or {kind}:LOW:HIGH with --search=random or optuna")
    low, high = numbers[:2]
    if not low < high or (kind == "log" and low <= 0):
        raise ValueError(f"LOW must be {'positive and ' if kind == 'log' else ''}less than HIGH")
    if len(numbers) == 2:
        if whole:
            low, high = math.ceil(low), math.floor(high)
            if not low < high:
                raise ValueError("there must be at least two whole numbers from LOW to HIGH")
        for end in (low, high):
            parse(repr(_number(end, whole)))
        return Axis(name, (), (low, high), kind == "log", whole)
    if numbers[2] != int(numbers[2]) or not 2 <= numbers[2] <= MOST_VALUES:
        raise ValueError("NUMBER must be a whole number of at least 2")
    points = [i / (numbers[2] - 1) for i in range(int(numbers[2]))]
    if kind == "log":
        spaced = [low * (high / low) ** point for point in points]
    else:
        spaced = [low + (high - low) * point for point in points]
    return Axis(name, _checked(spaced, whole, parse))


def split_list(text: str) -> list[str]:
    """Split at commas, but not inside brackets or quotes.

    Raises:
        ValueError: a value is empty, or a bracket or quote is not closed.
    """
    parts, open_brackets, quote = [""], [], ""
    pairs = {"(": ")", "[": "]", "{": "}"}
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in pairs:
            open_brackets.append(pairs[letter])
        elif letter in pairs.values():
            if not open_brackets or open_brackets.pop() != letter:
                raise ValueError(f"unmatched {letter!r}")
        elif letter == "," and not open_brackets:
            parts.append("")
            continue
        parts[-1] += letter
    if quote or open_brackets:
        missing = quote or open_brackets[-1]
        raise ValueError(f"missing {missing!r}")
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise ValueError("a value is empty" if text else "no value is given")
    return parts


def _read(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _range(numbers: Sequence[float]) -> list[float]:
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] <= 0):
        raise ValueError("write range:START:STOP or range:START:STOP:STEP, with a positive STEP")
    start, stop = numbers[:2]
    step = numbers[2] if len(numbers) == 3 else 1.0
    count = max(0, math.ceil((stop - start) / step - 1e-9))
    if not 1 <= count <= MOST_VALUES:
        raise ValueError(f"a range must have 1 to {MOST_VALUES:,} values, not {count:,}")
    return [start + index * step for index in range(count)]


def _checked(numbers: Sequence[float], whole: bool, parse: Callable[[str], Any]) -> tuple[Any, ...]:
    values = tuple(parse(repr(_number(number, whole))) for number in numbers)
    _refuse_repeated(values)
    return values


def _number(number: float, whole: bool) -> float | int:
    """Round to the option's precision: a whole number, or six significant digits."""
    return round(number) if whole else float(f"{number:.6g}")


def _refuse_repeated(values: Sequence[Any]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value} is repeated")


# -------------------------------------------------------------------------------------------- searches


def combine(axes: Sequence[Axis], search: str, *, most: int = 0, seed: int = 0) -> list[Changes]:
    """The trials of a search that does not depend on results.

    Args:
        axes: the swept options.
        search: "grid" (every combination; the last axis varies fastest), "zip" (the first values of all axes,
            then the second ones …) or "random" (``most`` distinct draws).
        most: maximum number of trials; 0 means no limit.
        seed: seed of the draws.

    Raises:
        ValueError: an axis that the search cannot use, too many trials, or too few distinct ones.
    """
    _refuse_repeated_axes(axes)
    names = [axis.name for axis in axes]
    if search == "random":
        return _draws(axes, most, random.Random(seed))
    for axis in axes:
        if axis.interval:
            raise ValueError(
                f"--sweep={axis.name} is an interval, which only --search=random and optuna accept; add the "
                "number of values, e.g. log:1e-4:1e-3:5"
            )
    if search == "zip":
        lengths = {axis.name: len(axis.values) for axis in axes}
        if len(set(lengths.values())) > 1:
            numbers = ", ".join(f"{name} has {number}" for name, number in lengths.items())
            raise ValueError(f"--search=zip needs equally many values on every axis: {numbers}")
        rows = list(zip(*(axis.values for axis in axes), strict=True)) if axes else [()]
    else:
        total = math.prod(len(axis.values) for axis in axes)
        if total > MOST_VALUES:
            raise ValueError(f"the grid has {total:,} trials, more than {MOST_VALUES:,}")
        rows = list(itertools.product(*(axis.values for axis in axes)))
    if most and len(rows) > most:
        raise ValueError(
            f"the {search} has {len(rows)} trials, more than --max_runs={most}: raise it, give fewer values, or use "
            "--search=random"
        )
    return [dict(zip(names, row, strict=True)) for row in rows]


def require_number(axes: Sequence[Axis], search: str, number: int) -> None:
    """Raise ValueError for a search without a limit on its trials or without axes."""
    if not number:
        raise ValueError(f"--search={search} needs --max_runs, the number of trials")
    if not axes:
        raise ValueError(f"--search={search} has nothing to vary; name an option with --sweep")
    _refuse_repeated_axes(axes)


def _refuse_repeated_axes(axes: Sequence[Axis]) -> None:
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--sweep={name} is given {names.count(name)} times; give each option once")


def _draws(axes: Sequence[Axis], number: int, generator: random.Random) -> list[Changes]:
    require_number(axes, "random", number)
    trials: list[Changes] = []
    for _ in range(100 * number):
        trial = {axis.name: axis.draw(generator) for axis in axes}
        if trial not in trials:
            trials.append(trial)
        if len(trials) == number:
            return trials
    raise ValueError(f"there are only {len(trials)} different trials, fewer than --max_runs={number}")
