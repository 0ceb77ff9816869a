"""Compile variants of one body with MuJoCo, and stack exactly the leaves of their MJX models that differ.

Editing one leaf of a compiled model (``body_mass``, say) would leave what MuJoCo derives from it stale:
subtree masses, inverse weights, actuator accelerations. So every variant is compiled separately.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that the optional package warp is missing
    import mujoco
    from mujoco import mjx

# Static fields that may differ between variants, because no step reads them (no body uses a height field).
_IGNORED = frozenset({"names", "signature", "geom_rbound_hfield"})


def compile_model(xml: str) -> mujoco.MjModel:
    """Compile MJCF.

    Raises:
        ValueError: MuJoCo does not accept it.
    """
    return mujoco.MjModel.from_xml_string(xml)


def stack_models(models: Sequence[mujoco.MjModel]) -> tuple[mjx.Model, dict[str, jax.Array]]:
    """Put V variants of one body on the device.

    Args:
        models: V compiled models that have the same bodies, joints, geoms and actuators.

    Returns:
        The first variant as an MJX model, and the leaves in which the variants differ: a dict from a
        dotted name (e.g. "body_mass", "opt.gravity") to an array [V, ...]; empty if they are all equal.
        Variant i is the model with its leaves replaced: ``model.tree_replace({name: leaf[i], ...})``.

    Raises:
        ValueError: the variants differ in what MJX compiles into the program (structure, geom types …).
    """
    variants = [mjx.put_model(model, impl="jax") for model in models]
    base = variants[0]
    for index, variant in enumerate(variants):
        different = _static_differences(base, variant)
        if different:
            raise ValueError(f"variant {index} differs from variant 0 in static fields {different}")
    names = [_dotted(path) for path, _ in jax.tree_util.tree_flatten_with_path(base)[0]]
    columns = zip(*(jax.tree.leaves(variant) for variant in variants), strict=True)
    leaves = {}
    for name, column in zip(names, columns, strict=True):
        values = [np.asarray(leaf) for leaf in column]
        if any(not np.array_equal(values[0], value) for value in values[1:]):
            leaves[name] = jnp.asarray(np.stack(values))
    return base, leaves


def _dotted(path: Sequence[jax.tree_util.GetAttrKey]) -> str:
    return ".".join(key.name for key in path)


def _static_differences(a, b, prefix: str = "") -> list[str]:
    """Names of the static fields in which two MJX nodes differ, and of the leaves that differ in shape."""
    found = []
    for field in a.fields():
        x, y = getattr(a, field.name), getattr(b, field.name)
        name = prefix + field.name
        if field.name in _IGNORED:
            continue
        if hasattr(x, "fields"):
            found += _static_differences(x, y, name + ".")
        elif isinstance(x, jax.Array):
            found += [name] * (x.shape != y.shape)
        elif isinstance(x, np.ndarray):
            found += [name] * (not np.array_equal(x, y))
        elif x != y:
            found.append(name)
    return found
