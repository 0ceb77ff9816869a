"""Options: one dataclass field with its default, help and bounds. Flags and validation are made from it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, Sequence


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field that documents and bounds itself.

    Args:
        default: the value if nobody says otherwise; its type is the option's type. Tuples of ints are
            written on the command line as "256,256".
        help: one sentence; becomes the flag's help.
        low: smallest value allowed.
        above: the value must be greater than this.
        high: largest value allowed.
        choices: the only strings allowed.
    """
    metadata = {"help": help, "low": low, "above": above, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def validate(config: Any) -> None:
    """Check every option of a configuration dataclass against its bounds.

    Raises:
        ValueError: one line with the option, the value, what was expected and the nearest valid choice.
    """
    for field in dataclasses.fields(config):
        if "help" in field.metadata:
            problem = explain(field, getattr(config, field.name))
            if problem:
                raise ValueError(f"{field.name}: {problem}")


def explain(field: dataclasses.Field, value: Any) -> str | None:
    """Say what is wrong with ``value`` for this option, or None if nothing is."""
    bounds = field.metadata
    if bounds["choices"] is not None and value not in bounds["choices"]:
        near = difflib.get_close_matches(str(value), bounds["choices"], n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{value!r} is not one of {', '.join(bounds['choices'])}{hint}"
    for number in value if isinstance(value, tuple) else (value,):
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
