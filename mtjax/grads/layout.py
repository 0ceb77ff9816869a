"""The role of each leaf of a gradient: shared or private, in which group, sharded over which mesh axis."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtjax.grads.base import Array, Method, Transform, default_float, name_of, presence

_GROUPS = {"global": lambda path: "", "leaf": lambda path: path}


class Layout(NamedTuple):
    """The roles of the flattened leaves; Python values only."""

    shared: list[bool]
    seen: list[bool]  # included in the method's Gram (`Weighting.leaves`)
    group: list[int]  # group index of each leaf; 0 for private ones
    num_groups: int
    axes: list[Any]  # mesh axis over which a leaf is sharded, or None


def arrange(tree: Any, method: Method, shared: Any, groups: Any, params_axis: Any) -> tuple[list[Array], Any, Layout]:
    """Flattens a tree and determines the role of each leaf from its path."""
    if not (callable(groups) or (isinstance(groups, str) and groups in _GROUPS)):
        raise ValueError(f'groups must be "global", "leaf" or a function of the path, not {groups!r}')
    leaves, structure = jax.tree.flatten(tree)
    paths, use = shared_leaves(tree, shared)
    sees = getattr(method, "leaves", None) or (lambda path: True)
    seen = [flag and bool(sees(path)) for flag, path in zip(use, paths, strict=True)]
    if not any(seen):
        raise ValueError(f"the method's `leaves` matches no shared leaf; the paths are {paths}")
    naming = groups if callable(groups) else _GROUPS[groups]
    labels = [naming(path) for path in paths]
    names = list(dict.fromkeys(name for name, flag in zip(labels, use, strict=True) if flag))
    index = [names.index(name) if flag else 0 for name, flag in zip(labels, use, strict=True)]
    axes = [params_axis(path) if callable(params_axis) else params_axis for path in paths]
    check_one_layer(method, [path for path, flag in zip(paths, use, strict=True) if flag], len(names))
    plan = Layout(shared=use, seen=seen, group=index, num_groups=len(names), axes=axes)
    return leaves, structure, plan


def shared_leaves(tree: Any, shared: Any) -> tuple[list[str], list[bool]]:
    """The paths of a tree's leaves, and whether each leaf is shared.

    `shared` is None for all leaves, a predicate over paths, or a tree of bools, where one bool may stand for a whole
    branch. Raises ValueError if it selects none.
    """
    paths = leaf_paths(tree)
    if shared is None:
        use = [True] * len(paths)
    elif callable(shared):
        use = [bool(shared(path)) for path in paths]
    else:
        use = [bool(flag) for flag in jax.tree.leaves(jax.tree.broadcast(shared, tree))]
    if not any(use):
        raise ValueError(f"no leaf is shared; the paths are {paths}")
    return paths, use


def leaf_paths(tree: Any) -> list[str]:
    """The path of each leaf, such as "trunk/kernel".

    A variable of Flax NNX counts as its array: `nnx.Optimizer` initialises with variables and updates with arrays.
    """
    paths = []
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_nnx_variable)[0]:
        inside = [own for own, _ in jax.tree_util.tree_flatten_with_path(node)[0]]
        paths += [path + own[1:] if _is_nnx_variable(node) else path + own for own in inside]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def _is_nnx_variable(x: Any) -> bool:
    """Whether x is a `flax.nnx.Variable`, by name, since this package does not import flax."""
    return any(kind.__name__ == "Variable" and kind.__module__.startswith("flax.nnx") for kind in type(x).__mro__)


def check_one_layer(method: Method, shared: list[str], num_groups: int = 1) -> None:
    """Raises ValueError if a one-layer method is not told which of several shared leaves form its layer."""
    if getattr(method, "one_layer", False) and method.leaves is None and len(shared) > num_groups:
        raise ValueError(
            "gradnorm balances the gradients of one layer, the last shared one, but several leaves are shared: "
            f'pass leaves=lambda path: ..., True for those of that layer, or leaves="all"; the paths are {shared}'
        )


def check(tree: Any, num_tasks: int, losses: Any, mask: Any, method: Method, gram: Any) -> None:
    """Raises ValueError if an update's arguments do not fit the number of tasks or the method."""
    check_gradients(tree, num_tasks, losses, mask)
    if gram is not None and jnp.shape(gram) != (num_tasks, num_tasks):
        raise ValueError(f"gram must have shape ({num_tasks}, {num_tasks}), not {jnp.shape(gram)}")
    if gram is not None and isinstance(method, Transform):
        raise ValueError(f"gram is only for methods that use the Gram matrix; {name_of(method)} works on the gradients")
    if getattr(method, "on_representation", False) and gram is None:
        raise ValueError(
            "mgda_ub needs the Gram matrix of the shared representation's gradients: call "
            "tx.update(task_grads, state, gram=gram_matrix(representation_grads))"
        )


def check_gradients(tree: Any, num_tasks: int, losses: Any, mask: Any) -> None:
    """Raises ValueError if gradients are not real numbers, or the shapes of gradients, losses or mask do not fit T."""
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        if isinstance(kind, str) or not jnp.issubdtype(kind, jnp.floating):
            kind = "float0" if kind == jax.dtypes.float0 else kind
            raise ValueError(f"gradients must be real floating-point arrays, but {path or 'the gradient'} is {kind}")
        if leaf.ndim < 1 or leaf.shape[0] != num_tasks:
            raise ValueError(f"every gradient needs a leading task axis of {num_tasks}; one has shape {leaf.shape}")
    if losses is not None and jnp.shape(losses) != (num_tasks,):
        raise ValueError(f"losses must have shape ({num_tasks},), not {jnp.shape(losses)}")
    if mask is not None and jnp.shape(mask) != (num_tasks,):
        raise ValueError(f"mask must have shape ({num_tasks},), not {jnp.shape(mask)}")


def drop_absent(
    leaves: list[Array], losses: Array | None, mask: Array | None, *, instead: float = 1
) -> tuple[list[Array], Array | None]:
    """Zeroes the gradients of absent tasks, which may be NaN, and replaces their losses by `instead`."""
    losses = None if losses is None else lax.stop_gradient(jnp.asarray(losses, default_float()))
    if mask is None:
        return leaves, losses
    here = presence(mask.shape[0], mask) > 0
    rows = [jnp.where(here.reshape((-1,) + (1,) * (g.ndim - 1)), g, 0) for g in leaves]
    return rows, None if losses is None else jnp.where(here, losses, instead)
