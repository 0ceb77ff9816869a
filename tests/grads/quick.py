"""`jit` for tests of many small programs: LLVM's optimiser is half of their compile time, and changes no result."""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def each(names: Iterable[Hashable], call: Callable[[Any], Any]) -> dict[Any, Any]:
    """`call` of each, for one program that holds them all, which compiles faster than one for each does."""
    results = {}
    for name in names:
        try:
            results[name] = call(name)
        except Exception as error:
            error.add_note(f"in {name}")
            raise
    return results
