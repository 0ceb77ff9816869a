"""The two kinds of method, and the helpers that all methods share.

A method combines T per-task gradients g_i, the rows of the Jacobian J [T, P], into one direction
Jᵀw.

* A `Weighting` sees only the Gram matrix G = J Jᵀ [T, T] (and the losses). Its cost does not depend
  on P.
* A `Transform` needs the gradients themselves: elementwise methods and methods with [T, P] state.

Both are pairs of pure functions, in the manner of optax; `mtjax.grads.aggregate` turns either into
an optax transform.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
State = Any
Number = float | Array  # type of a method's arguments that `tunable` may move into the state


class Weighting(NamedTuple):
    """A method that is a function of the Gram matrix.

    Attributes:
      init: `num_tasks -> state`. Random methods keep a typed key in the state (see `seeded`).
      update: `(gram [T, T], state, *, losses=None, mask=None) -> (weights [T], state)`. `mask` [T] marks the tasks that
        are present and whose gradients do not overflow. A method without that parameter works as long as the caller
        passes no mask.
      observe: optional `(losses_after [T], state) -> state`, for methods that need the losses after the step (FAMO).
      leaves: optional predicate over the path of a leaf ("trunk/dense_1/kernel"): the Gram that
        this method sees is taken over those shared leaves only. The weights still apply to every
        shared leaf (GradNorm's last layer).
      needs_gram: False for methods that ignore the Gram (mean, uncertainty): `aggregate` then skips
        it.
      every: recompute the weights once every `every` calls; set by `every_k`, implemented by
        `aggregate`.
      on_representation: the Gram must come from the gradients of a shared representation (MGDA-UB).
      one_layer: the method balances the gradients of one layer (GradNorm): `aggregate` and `lean` refuse to take its
        Gram over several leaves unless `leaves` selects them.
      residual: optional `(gram, weights, *, losses=None, mask=None) -> []`, for methods with a solver: how far the
        weights are from solving the method's equations (see `mtjax.grads.residual`).
    """

    init: Callable[[int], State]
    update: Callable[..., tuple[Array, State]]
    observe: Callable[[Array, State], State] | None = None
    leaves: Callable[[str], bool] | None = None
    needs_gram: bool = True
    every: int = 1
    on_representation: bool = False
    residual: Callable[..., Array] | None = None
    one_layer: bool = False


class Transform(NamedTuple):
    """A method that needs the gradients themselves.

    Attributes:
      init: `(num_tasks, params) -> state`, with `params` the list of the shared leaves, without a task axis.
      update: `(task_grads, state, gram, *, losses=None, mask=None) -> (task_grads, weights [T], state)`.
        `task_grads` is a list of leaves [T, ...]; `gram` maps such a list to its Gram matrix [T, T], and
        `gram.totals` maps it to the sum of each task's entries [T] (both sum over the mesh if the parameters are
        sharded; `gram.axes` names the mesh axis of each leaf, or None). The direction is the weighted sum of the
        returned gradients; a method that combines the tasks itself returns one row [1, ...], which is multiplied by
        Σ w_i.
    """

    init: Callable[[int, list[Array]], State]
    update: Callable[..., tuple[list[Array], Array, State]]


Method = Weighting | Transform


def default_float() -> jnp.dtype:
    """The dtype of all T×T work: float32, or float64 when x64 is enabled."""
    return jnp.result_type(float)


def stateless(num_tasks: int) -> tuple[()]:
    """The `init` of a method without state."""
    del num_tasks
    return ()


def presence(num_tasks: int, mask: Array | None, dtype: Any = None) -> Array:
    """The mask of the present tasks as floats [T]; all ones if no mask is given."""
    dtype = dtype or default_float()
    return jnp.ones(num_tasks, dtype) if mask is None else jnp.asarray(mask).astype(dtype)


def uniform(num_tasks: int, mask: Array | None, dtype: Any = None) -> Array:
    """1/n for each of the n present tasks, 0 for the others [T]."""
    here = presence(num_tasks, mask, dtype)
    return here / jnp.maximum(jnp.sum(here), 1)


def preferred(preference: Any, gram: Array, mask: Array | None) -> Array:
    """The preference of each task [T], uniform over the present tasks if none is given; 0 for absent tasks."""
    if preference is None:
        return uniform(gram.shape[-1], mask, gram.dtype)
    here = presence(gram.shape[-1], mask, gram.dtype)
    return per_task("preference", preference, gram.shape[-1], gram.dtype) * here


def restrict(weights: Array, here: Array) -> tuple[Array, Array]:
    """The present tasks' `weights` [T], normalised to sum to 1, and their original sum (mass) [].

    A method whose state is a point of the simplex works on this restriction and stores the result
    times the mass, so that absent tasks keep their share. Only the proportions of `weights` matter.
    """
    count = jnp.maximum(jnp.sum(here), 1)
    total = jnp.sum(weights * here)
    inside = jnp.where(total > 0, weights * here / jnp.where(total > 0, total, 1), here / count)
    return inside, jnp.where(total > 0, total, count / here.shape[0])


def keep_absent(new: State, old: State, here: Array) -> State:
    """`new`, with the entries of absent tasks taken from `old`, in every leaf [T, ...] of a state."""

    def keep(a: Array, b: Array) -> Array:
        if jnp.ndim(a) < 1 or jnp.shape(a)[0] != here.shape[0]:
            return a
        return jnp.where(here.reshape((-1,) + (1,) * (jnp.ndim(a) - 1)) > 0, a, b)

    return jax.tree.map(keep, new, old)


def drop_overflow(gram: Array, mask: Array | None) -> tuple[Array, Array]:
    """Drops the tasks whose squared norm overflows or is NaN, so that one task's blow-up does not reach the others.

    Args:
      gram: [T, T].
      mask: [T], true for the tasks present, or None.

    Returns:
      (the Gram with zeros in the rows and columns of dropped tasks; the mask of the remaining tasks [T], bool).
    """
    num_tasks = gram.shape[-1]
    limit = jnp.finfo(gram.dtype).max / (4.0 * num_tasks**2)
    fine = jnp.abs(jnp.diagonal(gram)) <= limit  # False for NaN
    gram = jnp.where(fine[:, None] & fine[None, :], gram, 0)
    return gram, fine if mask is None else fine & (mask > 0)


def weigh(
    method: Weighting, gram: Array, state: State, losses: Array | None, mask: Array | None, left: Array
) -> tuple[Array, State]:
    """The method's weights and new state, given the mask `left` of the remaining tasks (see `drop_overflow`).

    If the caller gave no `mask`, a method without a mask parameter is called without one and sees the
    dropped tasks as zero gradients. If the caller gave one, such a method raises its TypeError. The losses of tasks
    that do not remain, which may be NaN, are replaced by 1.
    """
    losses = None if losses is None else jnp.where(left, losses, 1)
    if mask is None:
        try:
            return method.update(gram, state, losses=losses, mask=left)
        except TypeError as error:
            if "unexpected keyword argument 'mask'" not in str(error):
                raise
            return method.update(gram, state, losses=losses)
    return method.update(gram, state, losses=losses, mask=left)


def checked(method: Method, weights: Any, num_tasks: int) -> Array:
    """The weights [T] that a method's update returned. Raises ValueError for any other shape, which would broadcast."""
    if jnp.shape(weights) != (num_tasks,):
        raise ValueError(f"{name_of(method)} must return weights of shape ({num_tasks},), not {jnp.shape(weights)}")
    return jnp.asarray(weights)


def continued(method: Method, new: State, old: State) -> State:
    """A method's new state with the dtypes of the old one, so that it can be the carry of a scan.

    Raises:
      ValueError: the two differ in structure or shapes, or a cast would drop fractions (a float becomes an integer).
    """

    def as_array(x: Any) -> Array:
        return x if hasattr(x, "dtype") else jnp.asarray(x)

    def kind(dtype: Any) -> int:
        kinds = (jnp.bool_, jnp.integer, jnp.inexact)
        return next((n for n, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)), len(kinds))

    def keep(path: Any, old: Any, new: Any) -> Array:
        (then, was), (now, found) = ((x.shape, x.dtype) for x in map(as_array, (old, new)))
        if then != now or kind(found) > kind(was):
            place = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name_of(method)} must keep the shapes and kinds of its state: state{place} is "
                f"{was}{list(then)} at first and {found}{list(now)} after an update"
            )
        return new if is_key(old) else as_array(new).astype(was)

    (before, after) = (jax.tree.structure(tree) for tree in (old, new))
    if before != after:
        raise ValueError(
            f"{name_of(method)} must keep the structure of its state: it is {before} at first and {after} "
            "after an update"
        )
    return jax.tree_util.tree_map_with_path(keep, old, new)


def name_of(method: Method) -> str:
    """The name of the function that made a method, for messages."""
    return getattr(method.update, "__qualname__", "the method").split(".")[0]


def safe_divide(a: Array, b: Array) -> Array:
    """a / b, elementwise and broadcast, and 0 where b is 0."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def norms(gram: Array) -> Array:
    """Gradient norms d_i = ‖g_i‖ [T] from the Gram matrix; the derivative at a zero gradient is 0, not NaN."""
    return _root(jnp.maximum(jnp.diagonal(gram), 0))


@jax.custom_jvp  # where(x > 0, sqrt(x), 0) would do, but XLA rounds what follows it differently
def _root(x: Array) -> Array:
    return jnp.sqrt(x)


@_root.defjvp
def _slope_of_root(x: tuple[Array], tangent: tuple[Array]) -> tuple[Array, Array]:
    root = _root(x[0])
    return root, tangent[0] * safe_divide(jnp.full_like(root, 0.5), root)


def cosines(gram: Array) -> Array:
    """Cosine matrix C = D⁻¹ G D⁻¹ [T, T]; rows of zero gradients are 0."""
    inverse = safe_divide(jnp.ones_like(norms(gram)), norms(gram))
    return jnp.clip(gram * inverse[:, None] * inverse[None, :], -1, 1)


def check_number(
    name: str,
    value: Number,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> None:
    """Raises ValueError unless `value` is a finite number within bounds. Tracers pass: `tunable` has checked them."""
    if isinstance(value, jax.core.Tracer):
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | Array | np.ndarray | np.generic)
        or np.ndim(value)
    ):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be greater than {above}, got {value}")
    if low is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")


def check_whole(name: str, value: int, *, low: int) -> None:
    """Raises ValueError unless `value` is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")


def check_method(user: str, method: Any) -> None:
    """Raises ValueError, in the name of `user`, unless `method` is a method (not a name or an uncalled factory)."""
    if isinstance(method, Weighting | Transform):
        return
    if callable(method):
        called = getattr(method, "__name__", "")
        raise ValueError(f"{user} takes a method, not the function that makes it: call it, grads.{called}()")
    raise ValueError(f"{user} takes a method such as grads.pcgrad(), not {method!r}; grads.get turns a name into one")


def check_gram_method(user: str, method: Any) -> None:
    """Raises ValueError unless `method` is a `Weighting`."""
    check_method(user, method)
    if isinstance(method, Transform):
        raise ValueError(f"{user} needs a method that uses the Gram matrix; this one works on the gradients")


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError unless `optimizer` is an optax transform."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer must be an optax transform such as optax.adam(0.025), got {optimizer!r}")


def per_task(name: str, value: Any, num_tasks: int, dtype: Any) -> Array:
    """An argument that is one number for all tasks or one per task [T]; raises ValueError for any other shape."""
    given = jnp.asarray(value, dtype)
    if given.shape not in ((), (num_tasks,)):
        raise ValueError(f"{name} has {given.size} numbers for {num_tasks} tasks")
    return given


def need_losses(name: str, losses: Array | None) -> Array:
    """The losses [T]; if there are none, raises a ValueError that says how to pass them."""
    if losses is None:
        raise ValueError(
            f"{name} needs the losses of the tasks: call "
            "tx.update(task_grads, state, params, losses=losses), with losses [T]"
        )
    return jnp.asarray(losses)


def positive(losses: Array, floor: float = 1e-8) -> Array:
    """Losses [T] clamped to at least `floor`, for methods that take their logarithm or a ratio."""
    return jnp.maximum(losses, jnp.asarray(floor, losses.dtype))


def is_key(x: Any) -> bool:
    """Whether `x` is a typed PRNG key."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def seeded(state: State, seed: int | Array) -> State:
    """Replaces every typed key in a method's state with one derived from `seed` (an int, a typed key or a raw one)."""
    base = seed if is_key(seed) else jax.random.wrap_key_data(seed) if jnp.ndim(seed) else jax.random.key(seed)
    leaves, structure = jax.tree.flatten(state)
    fresh = [jax.random.fold_in(base, n) if is_key(x) else x for n, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, fresh)
