"""Flags made of configuration dataclasses: one flag for every option, with its help, bounds and default."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from absl import flags

from mtjax import options
from mtjax.launch.resolve import as_text

FlagValues = flags.FlagValues


class OptionParser(flags.ArgumentParser):
    """Reads one option's value; what it refuses, it explains in one line."""

    def __init__(self, field: dataclasses.Field):
        self.field = field
        self.syntactic_help = ""

    def parse(self, argument: Any) -> Any:
        """The option's value. Raises ValueError with what was expected and the nearest valid choice."""
        value = _read(self.field.default, argument.strip()) if isinstance(argument, str) else argument
        problem = options.explain(self.field, value)
        if problem:
            raise ValueError(problem)
        return value

    def flag_type(self) -> str:
        """Name of the type, for the help."""
        default = self.field.default
        return "comma-separated ints" if isinstance(default, tuple) else type(default).__name__


def _read(default: Any, text: str) -> Any:
    """``text`` as a value of the default's type."""
    if isinstance(default, bool):
        return _read_bool(text)
    if isinstance(default, int):
        return _read_int(text)
    if isinstance(default, float):
        return _read_float(text)
    if isinstance(default, tuple):
        return tuple(_read_int(part.strip()) for part in text.strip("()").split(",") if part.strip())
    if not text:
        raise ValueError("the value is empty")
    return text


def _read_bool(text: str) -> bool:
    if text.lower() in ("true", "t", "1", "yes"):
        return True
    if text.lower() in ("false", "f", "0", "no"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _read_int(text: str) -> int:
    """A whole number; 1e6 and 1_000_000 are, 1.5 is not."""
    try:
        return int(text)
    except ValueError:
        number = _read_float(text, "a whole number")
    if not number.is_integer():
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


def _read_float(text: str, expected: str = "a number") -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {expected}") from None


# ------------------------------------------------------------------------------- definition and help


def define_options(values: FlagValues, config: Any) -> None:
    """Define one flag for every option of a configuration and its parts; None means "not given"."""
    for part in parts(config):
        for field in _own_options(part):
            parser = OptionParser(field)
            boolean = isinstance(field.default, bool)
            flag = flags.Flag(parser, None, field.name, None, describe(field), boolean=boolean)
            flags.DEFINE_flag(flag, values, module_name=group(part))


def group(part: Any) -> str:
    """What the help calls a dataclass: the first line of its docstring, without the full stop."""
    return (type(part).__doc__ or type(part).__name__).split("\n")[0].rstrip(".")


def describe(field: dataclasses.Field) -> str:
    """Help of one option: its sentence, its bounds and its default."""
    bounds = field.metadata
    notes = [f"one of {', '.join(bounds['choices'])}"] if bounds["choices"] else []
    notes += [f"{words} {bounds[key]}" for key, words in _BOUNDS.items() if bounds[key] is not None]
    if field.default != "":
        notes.append(f"default {as_text(field.default) or 'empty'}")
    return field.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")


_BOUNDS = {"low": "at least", "above": "greater than", "high": "at most"}


def parts(config: Any) -> Iterator[Any]:
    """The configuration and the dataclasses inside it, outermost first."""
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from parts(value)


def _own_options(part: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(part) if "help" in field.metadata]


class HelpFlag(flags.BooleanFlag):
    """Prints every flag with its help, a group for each part of the configuration, and exits with 0."""

    def __init__(self, name: str, values: FlagValues, usage: str):
        super().__init__(name, False, "show this help")
        self.flag_values, self.usage = values, usage

    def parse(self, argument: Any) -> None:
        """Called when the flag is met on the command line."""
        if self._parse(argument):
            print(help_text(self.flag_values, self.usage))
            raise SystemExit(0)


def define_help(values: FlagValues, usage: str) -> None:
    """Define ``--help`` and the names that absl knows it by."""
    for name in ("help", "helpshort", "helpfull"):
        flags.DEFINE_flag(HelpFlag(name, values, usage), values, module_name="Help")


def help_text(values: FlagValues, usage: str) -> str:
    """Every flag with its help, grouped; ``usage`` stands on top."""
    lines = [textwrap.dedent(usage).strip()]
    for group, members in values.flags_by_module_dict().items():
        lines += ["", f"{group}:"] if group != "Help" else [""]
        for flag in members:
            if flag.name not in ("helpshort", "helpfull"):
                switch = flag.boolean and group != "Help"
                lines.append(f"  --[no]{flag.name}" if switch else f"  --{flag.name}")
                lines += textwrap.wrap(flag.help, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- values


def given(values: FlagValues, config: Any) -> dict[str, Any]:
    """The options that the command line or a flagfile names, by name."""
    return {name: values[name].value for name in options.flatten(config) if values[name].value is not None}
