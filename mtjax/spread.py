"""What the devices of a mesh may divide among themselves.

Whoever traces a program says which mesh is meant (:func:`over`). Environments say that they know nothing of each other
(:func:`apart`). A learner says which axis of an array holds environments or transitions, and may be divided, and what
every device must have in whole; these are hints to XLA, which inserts the communication that they take. The numbers are
those of one device, within rounding. Without a mesh all this does nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = jax.Array
SEED, ENV = AXES = ("seed", "env")  # of a mesh

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def over(mesh: Mesh | None) -> Iterator[None]:
    """What is traced inside is meant for this mesh."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def seed_axis() -> str | None:
    """What a vmap over seeds takes as its ``spmd_axis_name``."""
    return None if _MESH.get() is None else SEED


def apart(function: Callable) -> Callable:
    """The function, with no communication between environments.

    XLA alone would let all devices wait for each other wherever environments loop until the last of them is done, as
    those with contacts do.

    Args:
        function: (tasks [T, ...], anything [T, E, ...] …) → anything [T, E, ...], each environment by itself. To be
            called under the vmap over seeds.
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


def divided(x: Array, axis: int) -> Array:
    """``x``, each device along "env" with its share of ``axis``; in whole where they do not divide it."""
    mesh = _MESH.get()
    if mesh is None or mesh.shape[ENV] == 1 or x.shape[axis] % mesh.shape[ENV]:
        return x
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = ENV
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def whole(x: Array) -> Array:
    """``x`` of one seed, in whole on every device along "env". To be called under the vmap over seeds."""
    mesh = _MESH.get()
    if mesh is None or mesh.shape[ENV] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)))
