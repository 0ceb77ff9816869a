"""Sharding annotations: which computations and array axes may be split across the devices of a mesh.

The code that traces a program sets its mesh (:func:`on_mesh`). Environments declare that they are independent of each
other (:func:`independent`). A learner marks the axis of an array that holds environments or transitions and may be
sharded (:func:`sharded`), and the arrays that every device needs in full (:func:`replicated`); these are hints to XLA,
which inserts the necessary communication. Results equal those of one device, up to rounding. Without a mesh, all this
does nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = jax.Array
SEED, ENV = AXES = ("seed", "env")  # axis names of a mesh

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Context manager: programs traced inside are annotated for this mesh."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def seed_axis() -> str | None:
    """The ``spmd_axis_name`` of a vmap over seeds; None without a mesh."""
    return None if _MESH.get() is None else SEED


def independent(function: Callable) -> Callable:
    """Shard ``function`` over environments, without communication between devices.

    Left to itself, XLA would make all devices wait for each other in every loop that runs until the last environment
    is done, such as the contact solver's.

    Args:
        function: (tasks [T, ...], any arrays [T, E, ...] …) → arrays [T, E, ...]; it must treat every environment
            independently. Call the result under the vmap over seeds.
    """
    mesh = _MESH.get()
    if mesh is None:
        return function

    def call(tasks: Any, *others: Any) -> Any:
        number = jax.tree.leaves(others)[0].shape[1]
        divided = PartitionSpec(None, None if number % mesh.shape[ENV] else ENV)
        specs = (PartitionSpec(), *[divided] * len(others))
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=divided, check_vma=False)(tasks, *others)

    return call


def sharded(x: Array, axis: int) -> Array:
    """Shard ``axis`` of ``x`` over the mesh's "env" axis; ``x`` is unchanged if its size is not divisible."""
    mesh = _MESH.get()
    if mesh is None or mesh.shape[ENV] == 1 or x.shape[axis] % mesh.shape[ENV]:
        return x
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = ENV
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def replicated(x: Array) -> Array:
    """Replicate ``x`` (of one seed) on every device along "env". Call this under the vmap over seeds."""
    mesh = _MESH.get()
    if mesh is None or mesh.shape[ENV] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)))
