"""Methods whose constants are leaves of their state: one compiled program for many values, also under vmap.

A method's numbers, such as CAGrad's c, are normally compiled into the program. `tunable` moves them into the state, so
that programs that differ only in these numbers become one program with different states:

>>> from mtjax import grads
>>> grads.tunable("cagrad(c=0.2)").init(2).constants
{'c': Array(0.2, dtype=float32)}

A constant can be moved if the signature of the method's factory says that it may be an `Array`
(`mtjax.grads.base.Number`): `update` and `observe` may read it, `init` may not. The rest of a specification is code.
"""

import contextlib
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from mtjax.grads import registry
from mtjax.grads.base import Array, Method, State, Transform, default_float
from mtjax.grads.registry import Call

Value = float | Sequence[float]


class TunableState(NamedTuple):
    """The wrapped method's state, and the constants by name.

    `inner` comes first, so that the constants do not shift the leaf positions from which `seeded` derives random keys.
    A constant is [], or [N] if it consists of N numbers.
    """

    inner: State
    constants: dict[str, Array]


def tunable(spec: str, prefix: str = "") -> Method:
    """Builds the method of a specification with its constants in its state; without constants, the same as `get`.

    Args:
      spec: as for `get`, but only as text.
      prefix: prepended to the names of the constants, to tell apart those of two methods in one state.

    Raises:
      ValueError: as for `get`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.tunable("cagrad(c=0.4)")
      >>> many = grads.TunableState((), {"c": jnp.array([0.0, 0.5])})
      >>> weights, _ = jax.vmap(method.update, (None, 0))(jnp.eye(2), many)  # [2 values, T]
      >>> [[round(float(w), 3) for w in row] for row in weights]
      [[0.5, 0.5], [0.75, 0.75]]
    """
    call = registry.parse(spec)
    plain, values = registry.build(call), of(spec)
    if not values:
        return plain

    def with_constants(state: TunableState, dtype: Any) -> Method:
        return registry.build(_map(call, lambda path, _: state.constants[prefix + path].astype(dtype)))

    def init(*sizes: Any) -> TunableState:
        arrays = {prefix + path: jnp.asarray(value, default_float()) for path, value in values.items()}
        return TunableState(plain.init(*sizes), arrays)

    def of_weighting(gram: Array, state: TunableState, **known: Any) -> tuple[Array, TunableState]:
        weights, inner = with_constants(state, gram.dtype).update(gram, state.inner, **known)
        return weights, state._replace(inner=inner)

    def of_transform(task_grads: list[Array], state: TunableState, gram: Any, **known: Any) -> tuple[Any, ...]:
        method = with_constants(state, default_float())
        changed, weights, inner = method.update(task_grads, state.inner, gram, **known)
        return changed, weights, state._replace(inner=inner)

    def observe(losses_after: Array, state: TunableState) -> TunableState:
        method = with_constants(state, default_float())
        return state._replace(inner=method.observe(losses_after, state.inner))

    if isinstance(plain, Transform):
        return Transform(init, of_transform)
    # A residual does not see the state, and therefore not the constants.
    return plain._replace(init=init, update=of_weighting, observe=plain.observe and observe, residual=None)


def of(spec: str) -> dict[str, Value]:
    """The numbers of a specification that `tunable` moves into the state, by name.

    Example:
      >>> from mtjax.grads import constants
      >>> constants.of("cr_mogm(cagrad, alpha=0.5)")
      {'method.c': 0.4, 'alpha': 0.5}
    """
    found: dict[str, Value] = {}
    _map(registry.parse(spec), found.setdefault)
    return found


def code(spec: str) -> str:
    """A specification with those numbers blanked out: methods with the same code are the same program.

    Example:
      >>> from mtjax.grads import constants
      >>> constants.code("cagrad"), constants.code("cagrad(c=0.2)") == constants.code("cagrad(0.7)")
      ('cagrad(c=*, rescale=None)', True)
    """
    return _map(registry.parse(spec), lambda _, value: _Blank(value)).text()


class _Blank:
    """Placeholder for a number (*), or for a sequence of N numbers (*N)."""

    def __init__(self, value: Value):
        self.text = f"*{len(value)}" if isinstance(value, tuple | list) else "*"

    def __repr__(self) -> str:
        return self.text


def _map(call: Call, change: Callable[[str, Value], Any], prefix: str = "") -> Call:
    """The call with every constant, also those of nested calls, replaced by `change(path, value)`."""
    movable = _movable(registry.METHODS[call.name])

    def new(name: str, value: Any) -> Any:
        if isinstance(value, Call):
            return _map(value, change, f"{prefix}{name}.")
        return change(prefix + name, value) if name in movable and _is_numeric(value) else value

    return Call(call.name, {name: new(name, value) for name, value in call.arguments.items()})


def _movable(factory: Callable[..., Method]) -> set[str]:
    """Names of the arguments that may be arrays, according to the factory's signature."""
    hints: dict[str, Any] = {}
    with contextlib.suppress(NameError):  # an annotation that only a type checker can resolve
        hints = typing.get_type_hints(factory)
    return {name for name, hint in hints.items() if hint is Array or Array in typing.get_args(hint)}


def _is_numeric(value: Any) -> bool:
    """Whether `value` is a number or a non-empty sequence of numbers."""
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_is_numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)
