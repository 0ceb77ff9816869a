"""Options: one dataclass field with its default, help and bounds. Flags and validation derive from it."""

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
        default: the default value; its type is the option's type. Tuples are written as "256,256" on the command
            line. A tuple of strings needs a non-empty default, from which its element type is inferred.
        help: one sentence; becomes the flag's help.
        low: smallest value allowed.
        above: the value must be greater than this.
        high: largest value allowed.
        choices: the strings allowed (for a tuple, as elements). The collection is read when a value is checked,
            so it may still grow after this call.
        fewest: minimum number of elements of a tuple.
    """
    metadata = {"help": help, "low": low, "above": above, "high": high, "choices": choices, "fewest": fewest}
    return dataclasses.field(default=default, metadata=metadata)


def part(by: str, kinds: Mapping[str, type]) -> Any:
    """A dataclass field that holds one of several configuration dataclasses, selected by an option.

    A dataclass with such a field calls ``fill(self)`` in its ``__post_init__``.

    Args:
        by: name of the selecting option, in the same dataclass.
        kinds: the dataclass for each value of that option. Options that share a name must share a type.
    """
    return dataclasses.field(default=None, metadata={"by": by, "kinds": kinds})


def fill(config: Any) -> None:
    """Fill the parts left out of a new configuration with the defaults of the selected kind."""
    for field in dataclasses.fields(config):
        if "by" in field.metadata and getattr(config, field.name) is None:
            kind = field.metadata["kinds"].get(getattr(config, field.metadata["by"]))
            if kind is not None:  # otherwise the selecting option is invalid, which validate reports
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
    """An option was set that has no effect.

    Attributes:
        option: the option's name.
    """

    def __init__(self, option: str, message: str):
        super().__init__(message)
        self.option = option


def refuse_unused(config: Any, used: Mapping[str, tuple[Any, str]], beside: str = "") -> None:
    """Raise if an option was set that has no effect: the user must have misunderstood it.

    Args:
        config: a configuration dataclass.
        used: for each option, whether anything reads it, and what would read it.
        beside: the setting under which the option has no effect, for the message, e.g. "with arrangement 'one_hot'".

    Raises:
        Unused: one line with the option, its value and where it belongs.
    """
    for field in dataclasses.fields(config):
        value, (takes, where) = getattr(config, field.name), used.get(field.name, (True, ""))
        if value != field.default and not takes:
            why = f"has no effect {beside}".rstrip()
            raise Unused(field.name, f"{field.name}: {value!r} {why}; it needs {where}")


def explain(field: dataclasses.Field, value: Any) -> str | None:
    """Say what is wrong with ``value`` for this option, or None if nothing is."""
    bounds = field.metadata
    elements = value if isinstance(value, tuple) else (value,)
    if isinstance(value, tuple) and len(value) < bounds["fewest"]:
        return f"{as_text(value) or 'empty'} is too short; the minimum length is {bounds['fewest']}"
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
    """Every option of a configuration and its parts, by name: ``{"suite": …, "learning_rate": …}``.

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
    """A copy of a configuration with some options changed, whichever parts they belong to.

    Args:
        config: a configuration dataclass, perhaps with parts that are dataclasses.
        changes: option name to value, flat as in ``flatten``. Lists are converted to tuples and integers to
            floats where the option has that type. Selecting another kind of part starts from its defaults.

    Raises:
        ValueError: an unknown option (the message names the nearest one), an option of a kind that is not
            selected, or a value of another type.
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
    """Rebuild a configuration from the output of ``dataclasses.asdict``, e.g. from a run's config.json.

    Args:
        default: supplies the options that ``values`` does not name (as in a run of an older version).
        values: nested like the configuration.

    Raises:
        ValueError: an unknown key (the message names the nearest one), or a value of another type.
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
                raise ValueError(f"{name}: expected an object of options, got {value!r}")
            changes |= flatten(from_dict(part, value))
        else:
            changes[name] = value
    return replace(default, changes)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The error message for an unknown name: it lists the nearest names, or all of them if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"


def _chosen(config: Any, changes: Mapping[str, Any]) -> Any:
    """The configuration with the kinds of parts that ``changes`` selects; a new part has its defaults."""
    for field in dataclasses.fields(config):
        by, kinds = field.metadata.get("by"), field.metadata.get("kinds")
        if by in changes and changes[by] != getattr(config, by):
            if changes[by] not in kinds:
                raise ValueError(unknown(by, str(changes[by]), kinds))
            config = dataclasses.replace(config, **{by: changes[by], field.name: kinds[changes[by]]()})
    return config


def _not_chosen(config: Any, name: str) -> str | None:
    """The error message for an option of a kind of part that is not selected; None if no kind has the option."""
    for field in dataclasses.fields(config):
        kinds, by = field.metadata.get("kinds", {}), field.metadata.get("by")
        owners = [kind for kind, part in kinds.items() if name in {f.name for f in dataclasses.fields(part)}]
        if owners:
            return f"{name} is an option of {by} {' and '.join(owners)}; the {by} here is {getattr(config, by)}"
    return None


def _convert(name: str, old: Any, new: Any) -> Any:
    """Convert ``new`` to the type of ``old``, or raise ValueError if that would lose information."""
    if isinstance(old, tuple) and isinstance(new, (list, tuple)):
        if all(type(part) is element_type(old) for part in new):
            return tuple(new)
    elif isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    elif type(new) is type(old):
        return new
    raise ValueError(f"{name}: {new!r} is not of type {type(old).__name__}")


def element_type(value: tuple) -> type:
    """The type of a tuple's elements: int or str; int for an empty tuple."""
    return type(value[0]) if value else int


def as_text(value: Any) -> str:
    """Format a value for the command line, such that parsing the text gives an equal value."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
