"""Arrays sharded over a mesh with explicit axes, the default of `jax.make_mesh`.

Under explicit axes, JAX refuses operations whose result could be sharded in several ways, such as the Gram matrix of
sharded gradients. Here they are computed as under automatic axes (`AxisType.Auto`), and the results get explicit
shardings again: a sum over the tasks that of the gradients, without the task axis; a state the one that it had.
Arrays of other meshes, or of none, are computed on as they are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mtjax.grads.base import Array


def mesh_of(tree: Any) -> Any:
    """The mesh of the first array that is sharded over explicit axes, or None."""
    for leaf in jax.tree.leaves(tree):
        mesh = _own(leaf)
        if mesh is not None:
            # Outside jit, a concrete mesh tells jax the devices.
            return mesh if isinstance(leaf, jax.core.Tracer) else leaf.sharding.mesh
    return None


def _own(leaf: Any) -> Any:
    """The (abstract) mesh over whose explicit axes an array is sharded, or None."""
    mesh = jax.typeof(leaf).sharding.mesh if isinstance(leaf, jax.Array) else None
    return mesh if mesh is not None and mesh.explicit_axes else None


def placed(tree: Any, mesh: Any, *, drop: int = 0) -> Any:
    """The sharding of each leaf without its first `drop` axes; replicated if the leaf is not on the mesh."""

    def of(leaf: Any) -> NamedSharding:
        spec = () if _own(leaf) is None else jax.typeof(leaf).sharding.spec
        return NamedSharding(mesh, PartitionSpec(*spec[drop:]))

    return jax.tree.map(of, tree)


def automatic(function: Callable[..., Any], result: Any, *args: Any) -> Any:
    """`function(*args)`, computed under automatic axes; its results get the shardings `result`."""
    leaves, structure = jax.tree.flatten(args)
    traced = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]

    def call(arrays: list[Array]) -> Any:
        rest = iter(arrays)
        every = [next(rest) if flag else leaf for flag, leaf in zip(traced, leaves, strict=True)]
        return function(*jax.tree.unflatten(structure, every))

    arrays = [leaf for flag, leaf in zip(traced, leaves, strict=True) if flag]
    return jax.sharding.auto_axes(call, out_sharding=result)(arrays)


def any_mesh(update: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """An optax update from gradients [T, ...] to updates [...] that also works under explicit axes."""

    @functools.wraps(update)
    def wrapped(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        mesh = mesh_of((updates, state))
        if mesh is None:
            return update(updates, state, params, **extra)
        result = placed(updates, mesh, drop=1), placed(state, mesh)
        return automatic(lambda g, s, p, more: update(g, s, p, **more), result, updates, state, params, extra)

    return wrapped


def zeros_per_task(num_tasks: int, p: Array, dtype: Any) -> Array:
    """Zeros [T, ...] for a parameter [...], with its explicit sharding."""
    shape = (num_tasks, *p.shape)
    if _own(p) is None:
        return jnp.zeros(shape, dtype)
    return jnp.broadcast_to(jnp.where(p == p, 0, 0).astype(dtype), shape)  # depends on p, which brings the devices
