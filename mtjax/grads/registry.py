"""Methods by name: `get("cagrad(c=0.4)")`, for flags and configuration files."""

import ast
import difflib
import inspect
import pathlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtjax
from mtjax.grads.base import Array, Method, Transform, Weighting, check_method, default_float
from mtjax.grads.combine import cr_mogm, every_k, normalize
from mtjax.grads.methods.aligned_mtl import aligned_mtl
from mtjax.grads.methods.balancers import dwa, gls, imtl_l, rlw, stch, uncertainty
from mtjax.grads.methods.cagrad import cagrad
from mtjax.grads.methods.config import config
from mtjax.grads.methods.cosine_gate import cosine_gate
from mtjax.grads.methods.famo import famo
from mtjax.grads.methods.graddrop import graddrop
from mtjax.grads.methods.gradnorm import gradnorm
from mtjax.grads.methods.gradvac import gradvac
from mtjax.grads.methods.imtl_g import imtl_g
from mtjax.grads.methods.krum import krum
from mtjax.grads.methods.linear import fixed, mean, sum_
from mtjax.grads.methods.mgda import mgda, mgda_ub
from mtjax.grads.methods.nash_mtl import fairgrad, nash_mtl
from mtjax.grads.methods.pcd import pcd
from mtjax.grads.methods.pcgrad import pcgrad
from mtjax.grads.methods.stochastic import modo, sdmgrad
from mtjax.grads.methods.tracked import db_mtl, excess_mtl, moco
from mtjax.grads.methods.trimmed_mean import trimmed_mean
from mtjax.grads.methods.upgrad import dualproj, upgrad

METHODS: dict[str, Callable[..., Method]] = {
    "sum": sum_,
    **{
        factory.__name__: factory
        for factory in (
            mean, fixed, pcgrad, gradvac, mgda, mgda_ub, cagrad, imtl_g, config, nash_mtl, fairgrad,
            aligned_mtl, upgrad, dualproj, graddrop, moco, sdmgrad, modo, db_mtl, excess_mtl,
            cosine_gate, pcd, trimmed_mean, krum, gradnorm, uncertainty, dwa, rlw, gls, imtl_l, stch, famo,
            cr_mogm, every_k, normalize,
        )
    },
}  # fmt: skip


def names() -> list[str]:
    """The names that `get` knows, sorted.

    Example:
      >>> from mtjax import grads
      >>> "pcgrad" in grads.names()
      True
    """
    return sorted(METHODS)


class Call(NamedTuple):
    """A parsed specification.

    Attributes:
      name: name of the method.
      arguments: all arguments by name, with defaults filled in: literals, or a `Call` for each method passed to a
        combinator.
    """

    name: str
    arguments: dict[str, Any]

    def text(self) -> str:
        """The call as a specification: 'cagrad(c=0.4, rescale=None)'."""
        values = {k: v.text() if isinstance(v, Call) else repr(v) for k, v in self.arguments.items()}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in values.items())})"


def get(spec: str | Method) -> Method:
    """Builds a method from its name, or from a call with literal arguments; combinators nest.

    Args:
      spec: "pcgrad", "nash_mtl(max_norm=1.0)", "every_k(mgda, 5)"; a method is returned unchanged.

    Raises:
      ValueError: for anything else; the message names the nearest method and its arguments.

    Example:
      >>> from mtjax import grads
      >>> method = grads.get('pcgrad(reduction="mean")')
    """
    if not isinstance(spec, str):
        check_method("get", spec)
        return spec
    return build(parse(spec))


def parse(spec: str) -> Call:
    """Parses a specification. Raises ValueError if it is not text or if `get` would, except for values that only the
    method's factory rejects."""
    if not isinstance(spec, str):
        raise ValueError(f"expected a method as a string, such as 'cagrad(c=0.4)', not a {type(spec).__name__}")
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: the text contains a null byte
        raise ValueError(_no_method(spec)) from None
    return _read(tree, spec)


def try_out(spec: str, num_tasks: int) -> None:
    """Traces one update of T tasks, which is quick, as nothing is compiled.

    Raises:
      ValueError: as for `get`, and if an argument fails only when it is used, or does not fit T.
    """
    from mtjax.grads.aggregation import aggregate

    method = get(spec)
    gram = jnp.eye(num_tasks) if getattr(method, "on_representation", False) else None
    tx = aggregate(method, num_tasks=num_tasks)

    def once(task_grads: Array, losses: Array) -> Any:
        return tx.update(task_grads, tx.init(task_grads[0]), losses=losses, gram=gram)

    shapes = ((num_tasks, 1), (num_tasks,))
    try:
        jax.eval_shape(once, *(jax.ShapeDtypeStruct(shape, default_float()) for shape in shapes))
    except (TypeError, ValueError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        name = parse(spec).name
        raise ValueError(f"{spec!r}: {first}{_line_of(error)}; the method is {_signature(name)}") from error


def _line_of(error: BaseException) -> str:
    """Where the user's own code raised the error, as " (file, line n)"; "" if it was raised in a library's code."""
    libraries = [pathlib.Path(module.__file__).parent for module in (mtjax, jax, jnp, optax, np)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(pathlib.Path(frame.filename).is_relative_to(folder) for folder in libraries):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def build(call: Call) -> Method:
    """Builds the method of a call, and those nested in it. Raises ValueError for a value that a factory rejects."""
    arguments = {name: build(v) if isinstance(v, Call) else v for name, v in call.arguments.items()}
    try:
        return METHODS[call.name](**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{call.text()!r}: {error}; the method is {_signature(call.name)}") from error


def _read(node: ast.expr, spec: str) -> Call:
    """The `Call` of a syntax tree that is a name or a call."""
    if isinstance(node, ast.Name):
        return _bind(node.id, [], {}, spec)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"{spec!r}: ** is not allowed")
        arguments = [_value(arg, spec) for arg in node.args]
        keywords = {k.arg: _value(k.value, spec) for k in node.keywords if k.arg}
        return _bind(node.func.id, arguments, keywords, spec)
    raise ValueError(_no_method(spec))


def _no_method(spec: str) -> str:
    near = _nearest(spec)
    hint = f"did you mean {_signature(near)}? " if near else ""
    return f"{spec!r} is not a method: {hint}write NAME or NAME(argument=value)"


def _nearest(name: str) -> str | None:
    """The method whose name is most similar to `name`, which may be spelled as in its paper ("IMTL-G"), or None."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), METHODS, n=1, cutoff=0.4)
    return near[0] if near else None


def _value(node: ast.expr, spec: str) -> object:
    """An argument: a literal, or the `Call` of a method passed to a combinator."""
    if isinstance(node, ast.Name) and node.id not in METHODS:
        raise ValueError(f"{spec!r}: {node.id} is neither a number nor a method; quote strings: {node.id!r}")
    if isinstance(node, ast.Name | ast.Call):
        return _read(node, spec)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(f"{spec!r}: {ast.unparse(node)!r} is not a literal") from None


def _bind(name: str, arguments: list, keywords: dict, spec: str) -> Call:
    """The `Call` of the named method, with all its arguments."""
    if name not in METHODS:
        near = _nearest(name)
        hint = f"did you mean {_signature(near)}? " if near else ""
        own = "a method of your own: name its module in MTJAX_SUITES"
        raise ValueError(f"no method {name!r}: {hint}methods: {', '.join(names())}; {own}")
    try:
        bound = inspect.signature(METHODS[name]).bind(*arguments, **keywords)
    except TypeError as error:
        raise ValueError(f"{spec!r}: {error}; the method is {_signature(name)}") from None
    bound.apply_defaults()
    for argument, value in bound.arguments.items():
        if isinstance(value, Call) and not _takes_method(name, argument):
            quoted = f"{argument}={value.name!r}"
            raise ValueError(
                f"{spec!r}: {value.name} is a method here; quote strings: {quoted}; the method is {_signature(name)}"
            )
    return Call(name, dict(bound.arguments))


def _takes_method(name: str, argument: str) -> bool:
    """Whether an argument may be a method, according to its annotation."""
    hint = inspect.signature(METHODS[name]).parameters[argument].annotation
    return hint is inspect.Parameter.empty or isinstance(hint, str) or hint in (Method, Weighting, Transform)


def _signature(name: str) -> str:
    """ "cagrad(c=0.4, rescale=None)": names and defaults, without annotations."""
    parameters = inspect.signature(METHODS[name]).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return name + str(inspect.Signature(bare))
