"""Combinators: methods made from methods, and transforms made from transforms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtjax.grads.base import (
    Array,
    Method,
    Number,
    State,
    Transform,
    Weighting,
    check_gram_method,
    check_method,
    check_number,
    check_whole,
    default_float,
    need_losses,
    norms,
    positive,
    presence,
    uniform,
)
from mtjax.grads.explicit import any_mesh, zeros_per_task
from mtjax.grads.gram import accumulator, as_finite, saturated, zeros_of
from mtjax.grads.layout import check_gradients, drop_absent


def every_k(method: Weighting, k: int) -> Weighting:
    """Recomputes a method's weights on one call in k, starting with the first, and reuses them.

    `aggregate` implements this, so that even the Gram is skipped on the calls in between. (Under `vmap`,
    a batched call counter means that the work is done and discarded.) If the mask changes, a task
    that returns has its weight of the last recomputation: 0 if it was absent then.

    Args:
      method: a `Weighting`.
      k: recompute once every k calls; at least 1.

    Raises:
      ValueError: `k` is below 1, or the method is not a `Weighting`.

    Example:
      >>> from mtjax import grads
      >>> tx = grads.aggregate(grads.every_k(grads.nash_mtl(max_norm=1.0), 25), num_tasks=3)
    """
    check_gram_method("every_k", method)
    check_whole("k", k, low=1)
    return method._replace(every=method.every * k)


class SmoothState(NamedTuple):
    """Smoothed weights [T], whether each task has been present yet [T], and the wrapped method's state."""

    weights: Array
    started: Array
    inner: State


def cr_mogm(method: Weighting, alpha: Number = 0.9) -> Weighting:
    """CR-MOGM (Zhou et al., NeurIPS 2022, "On the convergence of stochastic multi-objective
    gradient manipulation and beyond", Algorithm 1): smooths another method's weights.

    λ_t = α λ_{t−1} + (1−α) λ̂_t, with λ̂_t the method's weights on the present gradients and
    λ_0 = 1/T. As α → 1, this removes the bias of a conflict-avoiding method.

    Properties: permutation equivariant where the method is; may conflict. Cost: the method's.

    Use when: gradients are noisy, and a method's weights jump from call to call.

    Args:
      method: a `Weighting`, such as `mgda()`.
      alpha: smoothing; in the paper's theory it rises to 1 as the learning rate falls.

    Raises:
      ValueError: a method that is not a `Weighting`, or `alpha` outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.cr_mogm(grads.mgda(), alpha=0.5)
      >>> weights, _ = method.update(jnp.diag(jnp.array([1.0, 3.0])), method.init(2))
      >>> [round(float(w), 3) for w in weights]
      [0.625, 0.375]
    """
    check_gram_method("cr_mogm", method)
    check_number("alpha", alpha, low=0, high=1)

    def init(num_tasks: int) -> SmoothState:
        weights = jnp.full(num_tasks, 1 / num_tasks, default_float())
        return SmoothState(weights, jnp.zeros(num_tasks, bool), method.init(num_tasks))

    def update(gram, state, *, losses=None, mask=None):
        options = {} if mask is None else {"mask": mask}
        fresh, inner = method.update(gram, state.inner, losses=losses, **options)
        here = presence(gram.shape[-1], mask, gram.dtype)
        before = jnp.where(state.started, state.weights, uniform(gram.shape[-1], mask, gram.dtype))
        mixed = alpha * before + (1 - alpha) * fresh
        weights = jnp.where(here > 0, mixed, state.weights).astype(state.weights.dtype)
        learnt = (here > 0) & jnp.isfinite(mixed)  # a NaN reaches the update, but not the state
        return weights * here, SmoothState(jnp.where(learnt, weights, state.weights), state.started | learnt, inner)

    def observe(losses_after: Array, state: SmoothState) -> SmoothState:
        return state._replace(inner=method.observe(losses_after, state.inner))

    watches = observe if method.observe is not None else None
    return method._replace(init=init, update=update, observe=watches, residual=None)


def normalize(method: Method, by: str = "norm") -> Method:
    """Divides each task's gradient by its norm or its loss before a method sees and combines it.

    The norms are read off the diagonal of the Gram that the method sees. A cross Gram of two samples, which `modo` and
    `sdmgrad` accept, does not have them there.

    Args:
      method: any method.
      by: "norm": ‖g_i‖, so that all gradients have length 1; "loss": L_i, which gives the gradient of
        log L_i (losses ≤ 0 count as 1e-8).

    Raises:
      ValueError: `method` is not a method, or an unknown `by`; from the update with by="loss", no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.normalize(grads.sum_()).update(jnp.diag(jnp.array([1.0, 4.0])), ())
      >>> [float(w) for w in weights]
      [1.0, 0.5]
    """
    check_method("normalize", method)
    if by not in ("norm", "loss"):
        raise ValueError(f'by must be "norm" or "loss", not {by!r}')

    def scales(gram: Array, losses: Array | None) -> Array:
        norm = norms(gram)
        inverse = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
        if by == "norm":
            return inverse
        of_loss = 1 / positive(need_losses('normalize(by="loss")', losses)).astype(gram.dtype)
        longest = jnp.sqrt(jnp.finfo(gram.dtype).max) / (4.0 * gram.shape[-1])  # its square is still finite
        return jnp.where(norm > 0, jnp.minimum(of_loss, longest * inverse), of_loss)

    def of_weighting(gram, state, *, losses=None, mask=None):
        options = {} if mask is None else {"mask": mask}
        scale = scales(gram, losses)
        scaled = gram * scale[:, None] * scale[None, :]
        weights, state = method.update(scaled, state, losses=losses, **options)
        return weights * scale, state

    def of_transform(task_grads, state, gram, *, losses=None, mask=None):
        options = {} if mask is None else {"mask": mask}
        scale = scales(gram(task_grads), losses)
        rows = [scale.reshape((-1,) + (1,) * (g.ndim - 1)).astype(accumulator(g)) for g in task_grads]
        scaled = [saturated(r * g, g.dtype) for r, g in zip(rows, task_grads, strict=True)]
        return method.update(scaled, state, gram, losses=losses, **options)

    if isinstance(method, Transform):
        return Transform(method.init, of_transform)
    return method._replace(update=of_weighting, needs_gram=method.needs_gram or by == "norm", residual=None)


class AccumulateState(NamedTuple):
    """Sums of gradients [T, ...] and losses [T] so far, divided by k; the number of calls in which each task was
    present [T]; the number of calls []; and the wrapped state."""

    task_grads: Any
    losses: Array
    present: Array
    count: Array
    inner: Any


def accumulate(tx: optax.GradientTransformation, k: int, *, num_tasks: int) -> optax.GradientTransformationExtraArgs:
    """Averages each task's gradients over k micro-batches, then takes one step of `tx`.

    `optax.MultiSteps` would lose the task axis. Wrap the whole chain, so that its optimiser also
    steps once every k calls; the calls in between return zero updates.

    With a `mask` [T] (pass one on every call or on none), a task's gradient and loss are averaged over the
    micro-batches in which it is present; a task that was present in none is absent from the step.

    Args:
      tx: a chain that starts with `aggregate`.
      k: micro-batches per step.
      num_tasks: T.

    Raises:
      ValueError: k or T is not a positive integer, a gradient's leading axis is not T, or a `gram` is
        passed: the Gram of a mean is not the mean of the Grams.

    Example:
      >>> import optax
      >>> from mtjax import grads
      >>> tx = optax.chain(grads.aggregate(grads.mgda(), num_tasks=2), optax.adam(1e-3))
      >>> tx = grads.accumulate(tx, 4, num_tasks=2)
    """
    check_whole("k", k, low=1)
    check_whole("num_tasks", num_tasks, low=1)
    tx = optax.with_extra_args_support(tx)

    def init(params: Any) -> AccumulateState:
        zeros = jax.tree.map(lambda p: zeros_per_task(num_tasks, p, accumulator(p)), params)
        losses, present = jnp.zeros((2, num_tasks), default_float())  # two arrays: one used twice cannot be donated
        return AccumulateState(zeros, losses, present, jnp.zeros((), jnp.int32), tx.init(params))

    @any_mesh
    def update(updates, state, params=None, *, losses=None, mask=None, gram=None, **extra):
        if gram is not None:
            raise ValueError(
                "accumulate takes no gram: the mean of Gram matrices is not the Gram matrix of mean gradients"
            )
        losses, mask = (None if x is None else jnp.asarray(x) for x in (losses, mask))
        check_gradients(updates, num_tasks, losses, mask)
        rows, losses = drop_absent(jax.tree.leaves(updates), losses, mask, instead=0)
        rows = jax.tree.unflatten(jax.tree.structure(updates), rows)
        total = jax.tree.map(lambda a, g: as_finite(a + g.astype(a.dtype) / k, a, g), state.task_grads, rows)
        summed = state.losses if losses is None else as_finite(state.losses + losses / k, state.losses, losses)
        present = state.present + presence(num_tasks, mask)

        def step() -> tuple[Any, AccumulateState]:
            grown, given = (total, summed), dict(extra)
            if mask is not None:
                seldom = k / jnp.maximum(present, 1)
                share = lambda a: seldom.reshape((-1,) + (1,) * (a.ndim - 1)).astype(a.dtype)  # noqa: E731
                grown = jax.tree.map(lambda a: as_finite(a * share(a), a), grown)
                given["mask"] = present > 0
            mean = jax.tree.map(lambda a, g: saturated(a, g.dtype), grown[0], updates)
            if losses is not None:
                given["losses"] = grown[1]
            new, inner = tx.update(mean, state.inner, params, **given)
            blank = jax.tree.map(jnp.zeros_like, (total, summed, present, state.count))
            return new, AccumulateState(*blank, inner)

        def wait() -> tuple[Any, AccumulateState]:
            zero = jax.tree.map(zeros_of, jax.eval_shape(step)[0])
            return zero, AccumulateState(total, summed, present, state.count + 1, state.inner)

        return lax.cond(state.count + 1 == k, step, wait)

    return optax.GradientTransformationExtraArgs(init, update)
