"""Options: one dataclass field with its default, help and bounds. Flags and validation are made from it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Collection[str] | None = None,
    fewest: int = 0,
) -> Any:
    """A dataclass field that documents and bounds itself.

    Args:
        default: the value if nobody says otherwise; its type is the option's type. Tuples are written on the
            command line as "256,256"; those of strings have a default that is not empty.
        help: one sentence; becomes the flag's help.
        low: smallest value allowed.
        above: the value must be greater than this.
        high: largest value allowed.
        choices: the only strings allowed, of a tuple for each element, as they are when a value is checked.
        fewest: elements that a tuple must have.
    """
    metadata = {"help": help, "low": low, "above": above, "high": high, "choices": choices, "fewest": fewest}
    return dataclasses.field(default=default, metadata=metadata)


def part(by: str, kinds: Mapping[str, type]) -> Any:
    """A dataclass field that holds one of several configuration dataclasses; an option says which.

    A dataclass with such a field calls ``fill(self)`` in its ``__post_init__``.

    Args:
        by: name of the option, of the same dataclass, that chooses.
        kinds: the dataclasses by the option's value. Options of equal name must have one type.
    """
    return dataclasses.field(default=None, metadata={"by": by, "kinds": kinds})


def fill(config: Any) -> None:
    """Put the defaults of the chosen kind into the parts of a new configuration that were left out."""
    for field in dataclasses.fields(config):
        if "by" in field.metadata and getattr(config, field.name) is None:
            kind = field.metadata["kinds"].get(getattr(config, field.metadata["by"]))
            if kind is not None:  # else the choice itself is wrong, and validate says so
                object.__setattr__(config, field.name, kind())


def validate(config: Any) -> None:
    """Check every option of a configuration dataclass against its bounds, then ``config.check()`` if it has one.

    Raises:
        ValueError: one line with the option, the value, what was expected and the nearest valid choice.
    """
    for field in dataclasses.fields(config):
        if "help" in field.metadata:
            problem = explain(field, getattr(config, field.name))
            if problem:
                raise ValueError(f"{field.name}: {problem}")
    for field in dataclasses.fields(config):
        if "by" in field.metadata:
            choice, value = getattr(config, field.metadata["by"]), getattr(config, field.name)
            wanted = field.metadata["kinds"][choice]
            if type(value) is not wanted:
                raise ValueError(
                    f"{field.name}: {field.metadata['by']} {choice!r} takes a {wanted.__name__}, "
                    f"not a {type(value).__name__}"
                )
    if hasattr(config, "check"):
        config.check()


class Unused(ValueError):
    """An option was set that nothing reads.

    Attributes:
        option: its name.
    """

    def __init__(self, option: str, message: str):
        super().__init__(message)
        self.option = option


def refuse_unused(config: Any, used: Mapping[str, tuple[Any, str]], beside: str = "") -> None:
    """Refuse options that were set and change nothing: a misunderstanding.

    Args:
        config: a configuration dataclass.
        used: by option, whether something reads it, and what would.
        beside: for the message, the choice for which nothing reads it, e.g. "with arrangement 'one_hot'".

    Raises:
        Unused: one line with the option, its value and where it belongs.
    """
    for field in dataclasses.fields(config):
        value, (takes, where) = getattr(config, field.name), used.get(field.name, (True, ""))
        if value != field.default and not takes:
            why = f"has no effect {beside}".rstrip()
            raise Unused(field.name, f"{field.name}: {value!r} {why}; it belongs to {where}")


def explain(field: dataclasses.Field, value: Any) -> str | None:
    """Say what is wrong with ``value`` for this option, or None if nothing is."""
    bounds = field.metadata
    elements = value if isinstance(value, tuple) else (value,)
    if isinstance(value, tuple) and len(value) < bounds["fewest"]:
        return f"{as_text(value) or 'empty'} is too short; it must have at least {bounds['fewest']}"
    for element in elements if bounds["choices"] is not None else ():
        if element not in bounds["choices"]:
            near = difflib.get_close_matches(str(element), bounds["choices"], n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{element!r} is not one of {', '.join(bounds['choices'])}{hint}"
    for number in elements:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if not math.isfinite(number):
            return f"{value} is not a finite number"
        if bounds["low"] is not None and number < bounds["low"]:
            return f"{value} is too small; it must be at least {bounds['low']}"
        if bounds["above"] is not None and number <= bounds["above"]:
            return f"{value} is too small; it must be greater than {bounds['above']}"
        if bounds["high"] is not None and number > bounds["high"]:
            return f"{value} is too large; it must be at most {bounds['high']}"
    return None


def flatten(config: Any) -> dict[str, Any]:
    """Every option of a configuration and of its parts, by name: ``{"suite": …, "learning_rate": …}``.

    Names are unique over all parts, so that flags and presets need no prefixes.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = flatten(value) if dataclasses.is_dataclass(value) else {field.name: value}
        repeated = values.keys() & inner.keys()
        if repeated:
            raise TypeError(f"option {sorted(repeated)[0]!r} is defined by two parts of {type(config).__name__}")
        values |= inner
    return values


def replace(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a configuration with some options changed, whichever part they are of.

    Args:
        config: a configuration dataclass, perhaps with parts that are dataclasses.
        changes: option name to value, flat as in ``flatten``. Lists become tuples and whole numbers floats
            where the option is one. An option that chooses another kind of part brings that kind's defaults.

    Raises:
        ValueError: an unknown option, with the nearest one; an option of a kind that is not chosen; or a
            value of another type.
    """
    config = _chosen(config, changes)
    known = flatten(config)
    for name in changes:
        if name not in known:
            raise ValueError(_not_chosen(config, name) or unknown("option", name, known))

    def rebuild(part: Any) -> Any:
        new = {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                new[field.name] = rebuild(value)
            elif field.name in changes:
                new[field.name] = _convert(field.name, value, changes[field.name])
        return dataclasses.replace(part, **new)

    return rebuild(config)


def from_dict(default: Any, values: Mapping[str, Any]) -> Any:
    """Rebuild a configuration of what ``dataclasses.asdict`` made of it, e.g. of a run's config.json.

    Args:
        default: what holds for options that ``values`` does not name (a run of an older version).
        values: nested like the configuration.

    Raises:
        ValueError: an unknown key, with the nearest one; or a value of another type.
    """
    default = _chosen(default, values)
    names = [field.name for field in dataclasses.fields(default)]
    changes = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(unknown("option", name, names))
        part = getattr(default, name)
        if dataclasses.is_dataclass(part):
            if not isinstance(value, Mapping):
                raise ValueError(f"{name}: expected an object with its options, not {value!r}")
            changes |= flatten(from_dict(part, value))
        else:
            changes[name] = value
    return replace(default, changes)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest ones if any is near, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"


def _chosen(config: Any, changes: Mapping[str, Any]) -> Any:
    """The configuration with the kinds of parts that ``changes`` choose, new ones with their defaults."""
    for field in dataclasses.fields(config):
        by, kinds = field.metadata.get("by"), field.metadata.get("kinds")
        if by in changes and changes[by] != getattr(config, by):
            if changes[by] not in kinds:
                raise ValueError(unknown(by, str(changes[by]), kinds))
            config = dataclasses.replace(config, **{by: changes[by], field.name: kinds[changes[by]]()})
    return config


def _not_chosen(config: Any, name: str) -> str | None:
    """The message for an option of a kind of part that is not the chosen one; None if it is of no kind."""
    for field in dataclasses.fields(config):
        kinds, by = field.metadata.get("kinds", {}), field.metadata.get("by")
        owners = [kind for kind, part in kinds.items() if name in {f.name for f in dataclasses.fields(part)}]
        if owners:
            return f"{name} is an option of {by} {' and '.join(owners)}; the {by} here is {getattr(config, by)}"
    return None


def _convert(name: str, old: Any, new: Any) -> Any:
    """``new`` as the type of ``old``, where nothing is lost by it."""
    if isinstance(old, tuple) and isinstance(new, (list, tuple)):
        if all(type(part) is element_type(old) for part in new):
            return tuple(new)
    elif isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    elif type(new) is type(old):
        return new
    raise ValueError(f"{name}: {new!r} is not a {type(old).__name__}")


def element_type(value: tuple) -> type:
    """The type of a tuple's elements: int or str; of an empty one it is int."""
    return type(value[0]) if value else int


def as_text(value: Any) -> str:
    """A value as it is written on the command line, such that it reads back equal."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
