"""`aggregate`: a method as an optax transform from per-task gradients [T, ...] to one update [...]."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax.experimental import aggregating

from mtjax.grads import gram as grams
from mtjax.grads.base import (
    Array,
    Method,
    State,
    Transform,
    Weighting,
    check_method,
    check_whole,
    checked,
    continued,
    default_float,
    drop_overflow,
    presence,
    seeded,
    weigh,
)
from mtjax.grads.combine import AccumulateState
from mtjax.grads.explicit import any_mesh
from mtjax.grads.layout import Layout, arrange, check, drop_absent
from mtjax.grads.lean import LeanState


class AggregateState(NamedTuple):
    """State of `aggregate`.

    Attributes:
      count: calls so far, an int32 scalar.
      inner: the method's state; that of a `Weighting` has a leading group axis [K, ...].
      gram: the last Gram matrix over all shared leaves [T, T]; zeros until one is computed.
        `conflict(gram)` reads it.
      group_weights: the last task weights of each group [K, T].
    """

    count: Array
    inner: State
    gram: Array
    group_weights: Array

    @property
    def weights(self) -> Array:
        """The last task weights [T], averaged over the groups."""
        return jnp.mean(self.group_weights, axis=-2)


def aggregate(
    method: Method,
    *,
    num_tasks: int,
    shared: Callable[[str], bool] | Any | None = None,
    groups: str | Callable[[str], Any] = "global",
    seed: int | Array = 0,
    track_gram: bool = False,
    batch_axis: str | Sequence[str] | None = None,
    params_axis: str | Callable[[str], str | None] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Combines the gradients of T tasks into one update by `method`.

    The result is an optax transform (and an `optax.experimental.aggregating.Aggregator`): updates
    come in with a leading task axis and leave without it. It works under jit, and under vmap over seeds.

    `update` also accepts, by keyword: `losses` [T]; `mask` [T], true for the tasks present in the
    batch (the gradients and losses of absent tasks may hold anything, including NaN); `gram` [T, T], a
    Gram matrix that the method sees in place of the gradients' own (a cross Gram of two samples, or
    the Gram of a shared representation's gradients).

    If the Gram of a `Weighting` is computed (for the method, or for `track_gram`), a task whose
    squared gradient norm overflows its dtype (norms beyond about 1e17 in float32) counts as absent in
    that step, also in the state's `gram`, so that one task's blow-up does not reach the others. (Norms below about
    1e-19 underflow in a float32 Gram and count as zero gradients.) A
    `Transform` treats such gradients like any other. Entries of the update that overflow their
    dtype saturate at its largest number, with their sign. A NaN does reach the update: hiding it
    would hide a bug.

    Args:
      method: a `Weighting` or a `Transform`, such as `cagrad(c=0.4)`.
      num_tasks: T.
      shared: which leaves take part: None for all, a predicate over the path of a leaf
        ("head/kernel"), or a tree of bools like the parameters, where one bool may stand for a whole branch. The
        gradients of the other leaves (private heads) are summed over the tasks.
      groups: "global": one Gram over all shared leaves; "leaf": one per leaf; or a function from
        the path of a leaf to the name of its group.
      seed: an int or a key, for random methods. It may be traced: vmap over it to batch seeds.
      track_gram: compute the Gram for the diagnostics even when the method does not need it (mean,
        GradDrop).
      batch_axis: inside `shard_map`, the mesh axes over which the batch is sharded: gradients and
        losses are averaged over them first, since the Gram of the mean is not the mean of the Grams.
        A mask must be the same on all of them.
      params_axis: inside `shard_map`, the mesh axis over which parameters are sharded, or a
        function from a leaf's path to that axis (None for a replicated leaf): partial Grams are
        summed over it.

    Raises:
      ValueError: `method` is not a method, or `groups` is given for a `Transform`; from `init` and `update`, no
        leaf is shared, or several are for GradNorm without `leaves`; from `update`, shapes do not fit T, losses
        that the method needs are missing, or a `gram` is given for a `Transform`, which does not use one.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtjax import grads
      >>> params = {"w": jnp.ones(3)}
      >>> tx = optax.chain(grads.aggregate(grads.pcgrad(), num_tasks=2), optax.sgd(0.1))
      >>> state = tx.init(params)
      >>> task_grads = {"w": jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])}  # [T, ...]
      >>> updates, state = tx.update(task_grads, state, params)
      >>> updates["w"].shape
      (3,)
    """
    check_method("aggregate", method)
    check_whole("num_tasks", num_tasks, low=1)
    if isinstance(method, Transform) and groups != "global":
        raise ValueError("groups apply only to methods that use the Gram matrix; this one works on the gradients")

    def layout(tree: Any) -> tuple[list[Array], Any, Layout]:
        return arrange(tree, method, shared, groups, params_axis)

    def init(params: Any) -> AggregateState:
        leaves, _, plan = layout(params)
        if isinstance(method, Transform):
            mine = [leaf for leaf, flag in zip(leaves, plan.shared, strict=True) if flag]
            inner = seeded(method.init(num_tasks, mine), seed)
        else:
            keys = jax.random.split(seeded(jax.random.key(0), seed), plan.num_groups)
            inner = jax.vmap(lambda key: seeded(method.init(num_tasks), key))(keys)
        return AggregateState(
            count=jnp.zeros((), jnp.int32),
            inner=inner,
            gram=jnp.zeros((num_tasks, num_tasks), default_float()),
            group_weights=jnp.zeros((plan.num_groups, num_tasks), default_float()),
        )

    @any_mesh
    def update(
        updates: Any, state: AggregateState, params: Any = None, *,
        losses: Array | None = None, mask: Array | None = None, gram: Array | None = None, **_: Any,
    ) -> tuple[Any, AggregateState]:  # fmt: skip
        del params
        if not isinstance(state, AggregateState):
            raise ValueError(f"state must be the AggregateState that `init` returned, not a {type(state).__name__}")
        losses, mask = (None if x is None else jnp.asarray(x) for x in (losses, mask))
        check(updates, num_tasks, losses, mask, method, gram)
        leaves, structure, plan = layout(updates)
        leaves, losses = drop_absent(leaves, losses, mask)
        if batch_axis is not None:
            leaves, losses = lax.pmean((leaves, losses), batch_axis)
        step = _transform_step if isinstance(method, Transform) else _weighting_step
        leaves, state = step(method, leaves, state, plan, losses, mask, gram, track_gram)
        return jax.tree.unflatten(structure, leaves), state

    return aggregating.Aggregator(init, update)


def _leaf_grams(leaves: list[Array], axes: list[Any]) -> list[Array]:
    parts = [grams.gram_matrix([g]) for g in leaves]
    return [p if axis is None else lax.psum(p, axis) for p, axis in zip(parts, axes, strict=True)]


class _MeshGram(NamedTuple):
    """The `gram` argument of a `Transform`: sums over leaves and mesh, and the mesh axis of each leaf (or None)."""

    axes: list[Any]

    def __call__(self, task_grads: list[Array]) -> Array:
        return grams.sum_parts(_leaf_grams(task_grads, self.axes))

    def totals(self, leaves: list[Array]) -> Array:
        """The sum of each task's entries [T] in leaves [T, ...]; given squares, norms without the cost of a Gram."""
        parts = [jnp.sum(x.reshape(x.shape[0], -1), axis=1, dtype=grams.accumulator(x)) for x in leaves]
        parts = [p if axis is None else lax.psum(p, axis) for p, axis in zip(parts, self.axes, strict=True)]
        return grams.sum_parts(parts)


def _group_grams(leaves: list[Array], plan: Layout) -> tuple[Array, Array]:
    """The Gram over all shared leaves [T, T], and the Gram that the method sees in each group [K, T, T]."""
    picked = [n for n, flag in enumerate(plan.shared) if flag]
    parts = _leaf_grams([leaves[n] for n in picked], [plan.axes[n] for n in picked])
    every = grams.sum_parts(parts)
    seen = []
    for group in range(plan.num_groups):
        of_group = [p for n, p in zip(picked, parts, strict=True) if plan.group[n] == group and plan.seen[n]]
        seen.append(grams.sum_parts(of_group) if of_group else jnp.zeros_like(every))
    return every, jnp.stack(seen)


def _weighting_step(
    method: Weighting, leaves: list[Array], state: AggregateState, plan: Layout,
    losses: Array | None, mask: Array | None, gram: Array | None, track_gram: bool,
) -> tuple[list[Array], AggregateState]:  # fmt: skip
    """Computes the Gram, then the weights from it, then one weighted sum."""
    num_tasks = state.gram.shape[0]
    computes = gram is not None or method.needs_gram or track_gram

    def one_group(seen: Array, inner: State) -> tuple[Array, State]:
        if computes:
            seen, here = drop_overflow(seen, mask)
            weights, new = weigh(method, seen, inner, losses, mask, here)
        else:
            here = presence(num_tasks, mask) > 0
            options = {} if mask is None else {"mask": here}
            weights, new = method.update(seen, inner, losses=losses, **options)
        weights = jnp.where(here, checked(method, weights, num_tasks), 0).astype(state.group_weights.dtype)
        return weights, continued(method, new, inner)

    def recompute() -> tuple[Array, Array, State]:
        if not computes:  # pass the state's Gram through, so that its buffer is not touched
            every, seen = state.gram, jnp.zeros((plan.num_groups, num_tasks, num_tasks), state.gram.dtype)
        else:
            if gram is None:
                every, seen = _group_grams(leaves, plan)
            else:
                every = jnp.asarray(gram, state.gram.dtype)
                seen = jnp.broadcast_to(every, (plan.num_groups, num_tasks, num_tasks))
            every, _ = drop_overflow(every, mask)
        if plan.num_groups == 1:  # no vmap, which would turn a method's `cond` into a `select`
            alone = one_group(seen[0], jax.tree.map(lambda x: x[0], state.inner))
            return every, *jax.tree.map(lambda x: x[None], alone)
        weights, inner = jax.vmap(one_group)(seen, state.inner)
        return every, weights, inner

    if method.every == 1:
        every, weights, inner = recompute()
    else:
        kept = (state.gram, state.group_weights, state.inner)
        every, weights, inner = lax.cond(state.count % method.every == 0, recompute, lambda: kept)
    ones = presence(num_tasks, mask)
    summed = [grams.weighted_sum(weights[plan.group[n]] if plan.shared[n] else ones, g) for n, g in enumerate(leaves)]
    return summed, _advance(state, inner, every, weights)


def _transform_step(
    method: Transform, leaves: list[Array], state: AggregateState, plan: Layout,
    losses: Array | None, mask: Array | None, gram: Array | None, track_gram: bool,
) -> tuple[list[Array], AggregateState]:  # fmt: skip
    """Lets the method rewrite the shared gradients, then takes the weighted sum."""
    del gram  # `check` has rejected one
    picked = [n for n, flag in enumerate(plan.shared) if flag]
    axes = [plan.axes[n] for n in picked]
    mine = [leaves[n] for n in picked]

    gram_of = _MeshGram(axes)
    options = {} if mask is None else {"mask": mask}
    changed, weights, inner = method.update(mine, state.inner, gram_of, losses=losses, **options)
    inner = continued(method, inner, state.inner)
    ones = presence(state.gram.shape[0], mask)
    weights = jnp.where(ones > 0, checked(method, weights, state.gram.shape[0]), 0).astype(state.group_weights.dtype)
    changes = dict(zip(picked, changed, strict=True))
    summed = [
        grams.saturated(_direction(weights, changes[n]), g.dtype) if n in changes else grams.weighted_sum(ones, g)
        for n, g in enumerate(leaves)
    ]
    every = drop_overflow(gram_of(mine), mask)[0] if track_gram else state.gram
    return summed, _advance(state, inner, every, weights[None])


def _direction(weights: Array, g: Array) -> Array:
    """Weighted sum of a leaf [T, ...] from a `Transform`; Σ w_i times the row if there is only one [1, ...]."""
    if g.shape[0] < weights.shape[0]:
        small, power = grams.divided(jnp.sum(weights)[None])
        return grams.saturated(grams.multiplied(small[0] * g[0].astype(grams.accumulator(g)), power), g.dtype)
    return grams.weighted_sum(weights, g)


def _advance(state: AggregateState, inner: State, gram: Array, weights: Array) -> AggregateState:
    return AggregateState(
        count=optax.safe_increment(state.count),
        inner=inner,
        gram=gram.astype(state.gram.dtype),
        group_weights=weights,
    )


def find_state(state: Any) -> AggregateState:
    """The first `AggregateState` inside an optimiser state, such as that of `optax.chain`.

    Raises:
      ValueError: the state contains none.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtjax import grads
      >>> tx = optax.chain(grads.aggregate(grads.mean(), num_tasks=2), optax.adam(1e-3))
      >>> grads.find_state(tx.init(jnp.ones(3))).weights.shape
      (2,)
    """
    is_mine = lambda x: isinstance(x, AggregateState)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_mine) if is_mine(x)]
    if not found:
        raise ValueError("this optimiser state holds no AggregateState")
    return found[0]


def observe(method: Weighting, state: Any, losses_after: Array) -> Any:
    """Tells a method the losses after the step, on the same batch (FAMO needs them).

    Args:
      method: the method given to `aggregate`.
      state: the optimiser state: an `AggregateState`, a `LeanState` or a tree that contains one.
      losses_after: [T]. With `accumulate`, which compares them with the mean losses of the k micro-batches of a step:
        the mean losses after the step over the same micro-batches.

    Returns:
      The updated state; unchanged for a method without `observe`, under `every_k` after a call that reused the
      weights, and under `accumulate` after a call that took no step.

    Raises:
      ValueError: the arguments are in another order, or the method has `observe`, but the state contains no
        `AggregateState` or `LeanState`, or the losses are not [T].
    """
    if not isinstance(method, Weighting | Transform) or _holds(losses_after, _STATES):
        raise ValueError("observe takes the method, the optimiser state and the losses after the step, in this order")
    if getattr(method, "observe", None) is None:
        return state
    if not _holds(state, _STATES):
        raise ValueError("this optimiser state holds no AggregateState or LeanState")
    losses_after = jnp.asarray(losses_after, default_float())
    return _told(method, state, losses_after, [])


_STATES = (AggregateState, LeanState)


def _holds(tree: Any, kinds: tuple[type, ...]) -> bool:
    is_one = lambda x: isinstance(x, kinds)  # noqa: E731
    return any(map(is_one, jax.tree.leaves(tree, is_leaf=is_one)))


def _told(method: Weighting, state: Any, losses_after: Array, conditions: list[Array]) -> Any:
    """A tree in which every state of `aggregate` or `lean` has seen the losses, if all conditions [] are true."""

    def tell(x: Any) -> Any:
        if isinstance(x, AccumulateState):  # its count is 0 after a step, and only then
            return x._replace(inner=_told(method, x.inner, losses_after, [*conditions, x.count == 0]))
        if not isinstance(x, _STATES):
            return x
        num_tasks = x.weights.shape[-1]
        if losses_after.shape != (num_tasks,):
            raise ValueError(f"losses_after must have shape ({num_tasks},), not {losses_after.shape}")
        see = method.observe if isinstance(x, LeanState) else jax.vmap(method.observe, (None, 0))  # over the groups
        inner = continued(method, see(losses_after, x.inner), x.inner)
        needed = list(conditions)
        if method.every > 1:  # on other calls the method did not see the losses before the step
            needed.append((x.count - 1) % method.every == 0)
        for condition in needed:
            inner = jax.tree.map(lambda new, old, fresh=condition: jnp.where(fresh, new, old), inner, x.inner)
        return x._replace(inner=inner)

    return jax.tree.map(tell, state, is_leaf=lambda x: isinstance(x, (*_STATES, AccumulateState)))
