"""Flags generated from configuration dataclasses: one per option, with its help, bounds and default."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

from absl import flags

from mtjax import options
from mtjax.options import as_text

FlagValues = flags.FlagValues
Fields = Mapping[str, dataclasses.Field]  # one option's dataclass fields, by the kind of part that has it


OTHER_VALUES = {"cuda": "gpu", "nvidia": "gpu"}  # what other programs call a value, and what it is called here
UNITS = {"k": 3, "K": 3, "M": 6, "G": 9}  # powers of ten of the units that the progress bar prints


class OptionParser(flags.ArgumentParser):
    """Parses one option's value; errors explain the problem in one line.

    An option that several kinds of a part share is refused here only if none of them accepts the value. Whether the
    selected kind accepts it is checked when the configuration is assembled.

    Args:
        fields: the option's dataclass fields, by kind.
        empty: whether empty text is accepted where it is the default. It is for a run's options, which its flagfile
            lists even when empty; for a command's own flags, it more likely means an unset shell variable.
    """

    def __init__(self, fields: Mapping[str, dataclasses.Field], *, empty: bool = False):
        self.fields = list(fields.values())
        self.field = self.fields[0]
        self.empty = empty and self.field.default == ""
        self.syntactic_help = ""

    def parse(self, argument: Any) -> Any:
        """Parse the option's value. Raises ValueError with what was expected and the nearest valid choice."""
        value = argument.strip() if isinstance(argument, str) else argument
        if isinstance(value, str) and (value or not self.empty):
            value = _read(self.field.default, value)
        problems = [options.explain(field, value) for field in self.fields]
        if all(problems):
            choices = self.field.metadata["choices"] or ()
            meant = OTHER_VALUES.get(value.lower()) if isinstance(value, str) else None
            if meant in choices:
                raise ValueError(f"{value!r} is not one of {', '.join(choices)}; did you mean {meant!r}?")
            raise ValueError(max(problems, key=len))  # the longest message names the most choices
        return value

    def flag_type(self) -> str:
        """Name of the type, for the help."""
        default = self.field.default
        if isinstance(default, tuple):
            return f"comma-separated {options.element_type(default).__name__}s"
        return type(default).__name__


def _read(default: Any, text: str) -> Any:
    """Convert ``text`` to the type of the default."""
    if isinstance(default, bool):
        return _read_bool(text)
    if isinstance(default, int):
        return _read_int(text)
    if isinstance(default, float):
        return _read_float(text)
    if isinstance(default, tuple):
        parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
        if options.element_type(default) is not int:
            return tuple(parts)
        try:
            return tuple(_read_int(part) for part in parts)
        except ValueError as error:
            raise ValueError(f"{error}; separate numbers by commas, e.g. {as_text(default) or '256,256'}") from None
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
    """Read a whole number: 1e6, 1_000_000 and, as the progress bar prints numbers, 1M are accepted; 1.5 is not."""
    try:
        return int(text)
    except ValueError:
        exponent = f"{text[:-1]}e{UNITS[text[-1]]}" if text[-1:] in UNITS and "e" not in text else text
        try:
            number = float(exponent)  # not a product with 1e6, which makes 4.1M no whole number
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
    if not number.is_integer():
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


def _read_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


# ------------------------------------------------------------------------------- definition and help


def define_options(values: FlagValues, config: Any, *, empty: bool = False) -> None:
    """Define one flag for every option of a configuration and its parts; None means "not given".

    Args:
        values: where the flags are defined.
        config: the configuration.
        empty: see :class:`OptionParser`.
    """
    for title, members in sections(config).items():
        for name, fields in members.items():
            parser = OptionParser(fields, empty=empty)
            boolean = isinstance(parser.field.default, bool)
            flag = flags.Flag(parser, None, name, None, describe(fields), boolean=boolean)
            flags.DEFINE_flag(flag, values, module_name=title)


class OrWord(OptionParser):
    """Parser of an option that also accepts a special word, which the command replaces by a value."""

    def __init__(self, parser: OptionParser, word: str):
        super().__init__({str(index): field for index, field in enumerate(parser.fields)})
        self.word = word

    def parse(self, argument: Any) -> Any:
        """The word, or the option's value."""
        return self.word if argument == self.word else super().parse(argument)


def also(values: FlagValues, name: str, word: str, help: str) -> None:
    """Let an option's flag also accept a special word."""
    flag = values[name]
    flag.parser, flag.help = OrWord(flag.parser, word), f"{flag.help}; {help}"


def sections(config: Any) -> dict[str, dict[str, Fields]]:
    """The sections of the help: by title, then by option name, the option's fields by kind.

    An option of a part without kinds has the single kind "". Where an option selects the kind of a part, options that
    the same kinds share form one section, and the options of each kind alone form another.
    """
    found = {_title(type(config)): {field.name: {"": field} for field in _own_options(config)}}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "by" in field.metadata:
            found |= _sections_of_kinds(field.metadata["by"], field.metadata["kinds"])
        elif dataclasses.is_dataclass(value):
            found |= sections(value)
    return found


def _sections_of_kinds(by: str, kinds: Mapping[str, type]) -> dict[str, dict[str, Fields]]:
    by_name: dict[str, dict[str, dataclasses.Field]] = {}
    for kind, part in kinds.items():
        for field in _own_options(part):
            by_name.setdefault(field.name, {})[kind] = field
    found: dict[str, dict[str, Fields]] = {}
    for name, fields in by_name.items():
        types = {type(field.default) for field in fields.values()}
        if len(types) > 1:
            raise TypeError(f"option {name!r} has several types: {', '.join(t.__name__ for t in types)}")
        owners = " and ".join(f"--{by}={kind}" for kind in fields)
        if len(fields) == 1:
            title = f"{_title(kinds[next(iter(fields))])} ({owners})"
        else:
            title = f"Options of every --{by}" if len(fields) == len(kinds) else f"Options of {owners}"
        found.setdefault(title, {})[name] = fields
    return found


def _title(part: type) -> str:
    """The first sentence of a dataclass's docstring, without the full stop."""
    return (part.__doc__ or part.__name__).split("\n")[0].split(". ")[0].rstrip(".")


def describe(fields: Fields) -> str:
    """Help of one option: its sentence, bounds and default, each stated once if all kinds agree."""
    kinds: dict[str, list[str]] = {}
    for kind, field in fields.items():
        kinds.setdefault(field.metadata["help"], []).append(kind)
    if len(kinds) == 1:
        sentence = next(iter(kinds))
    else:
        sentence = " ".join(f"[{', '.join(names)}] {text}" for text, names in kinds.items())
    notes = _agreed({kind: _bounds(field) for kind, field in fields.items()})
    notes += _agreed({kind: _default(field) for kind, field in fields.items()})
    return sentence + (f" ({'; '.join(notes)})" if notes else "")


def _bounds(field: dataclasses.Field) -> str:
    bounds = field.metadata
    notes = [f"one of {', '.join(bounds['choices'])}"] if bounds["choices"] else []
    return "; ".join(notes + [f"{words} {bounds[key]}" for key, words in _BOUNDS.items() if bounds[key] is not None])


def _default(field: dataclasses.Field) -> str:
    return "" if field.default == "" else f"default {as_text(field.default) or 'empty'}"


def _agreed(notes: Mapping[str, str]) -> list[str]:
    """The note if all kinds agree on it, else each note with the kinds that it applies to."""
    kinds: dict[str, list[str]] = {}
    for kind, note in notes.items():
        kinds.setdefault(note, []).append(kind)
    if len(kinds) == 1:
        return [note for note in kinds if note]
    return [f"{note} with {', '.join(members)}" for note, members in kinds.items() if note]


_BOUNDS = {"low": "at least", "above": "greater than", "high": "at most"}


def _own_options(part: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(part) if "help" in field.metadata]


class HelpFlag(flags.BooleanFlag):
    """Prints every flag with its help, grouped by part of the configuration, and exits with 0."""

    def __init__(self, name: str, values: FlagValues, usage: str):
        super().__init__(name, False, "show this help")
        self.flag_values, self.usage = values, usage

    def parse(self, argument: Any) -> None:
        """Called when the flag is encountered on the command line."""
        if self._parse(argument):
            print(help_text(self.flag_values, self.usage))
            raise SystemExit(0)


HELP = ("help", "helpshort", "helpfull", "h")  # absl's names of --help, and -h


def define_help(values: FlagValues, usage: str) -> None:
    """Define ``--help`` and its other names."""
    for name in HELP:
        flags.DEFINE_flag(HelpFlag(name, values, usage), values, module_name="Help")


def help_text(values: FlagValues, usage: str) -> str:
    """The text of ``usage``, then every flag with its help, grouped."""
    lines = [textwrap.dedent(usage).strip()]
    for group, members in values.flags_by_module_dict().items():
        lines += ["", f"{group}:"] if group != "Help" else [""]
        for flag in members:
            if flag.name not in HELP[1:]:
                switch = flag.boolean and group != "Help"
                lines.append(f"  --[no]{flag.name}" if switch else f"  --{flag.name}")
                lines += textwrap.wrap(flag.help, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- values


def given(values: FlagValues, config: Any) -> dict[str, Any]:
    """The options that the command line or a flagfile sets, by name, whichever learner they belong to."""
    names = [name for members in sections(config).values() for name in members]
    return {name: values[name].value for name in names if values[name].value is not None}
