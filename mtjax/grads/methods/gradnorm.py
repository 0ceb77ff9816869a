"""GradNorm: balancing training rates by gradient norms."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtjax.grads.base import (
    Array,
    Number,
    State,
    Weighting,
    check_number,
    check_optimizer,
    default_float,
    keep_absent,
    need_losses,
    norms,
    per_task,
    positive,
    presence,
    safe_divide,
)

_SURROGATES = {None: positive, "softplus": jax.nn.softplus}


class GradNormState(NamedTuple):
    """Weights [T], which sum to T; initial losses L(0) [T]; whether each is known [T]; the optimiser's state."""

    weights: Array
    initial_losses: Array
    started: Array
    optimizer: State


def gradnorm(
    alpha: Number = 1.5,
    optimizer: optax.GradientTransformation | None = None,
    *,
    initial_losses: Sequence[float] | None = None,
    surrogate: str | Callable[[Array], Array] | None = None,
    leaves: Callable[[str], bool] | str | None = None,
) -> Weighting:
    """GradNorm (Chen et al., ICML 2018, arXiv 1711.02257, Algorithm 1).

    With n_i = ‖∇_W L_i‖ on the last shared layer W: G_i = w_i n_i, L̃_i = L_i/L_i(0), r_i = L̃_i /
    mean(L̃), and the weights minimise Σ_i |G_i − sg(mean(G) r_i^α)|. As the target is held constant, the
    gradient has a closed form: ∂/∂w_i = n_i sign(G_i − target_i). After each step the weights are
    clamped above 0 and renormalised to sum to T. A call returns w(t) and stores w(t+1) in the state
    for the next call.

    Properties: permutation equivariant; not invariant to scaling; may conflict. A NaN loss counts as the
      initial one. Cost: O(T) beyond the Gram.

    Use when: tasks train at different speeds; choose a higher α if the tasks differ more (the paper: 1.5
    for scene understanding, 0.12 for its toy example with ten tasks).

    Args:
      alpha: strength of the restoring force.
      optimizer: for the weights; by default Adam with the paper's learning rate of 0.025.
      initial_losses: L(0) [T], if known (log C for cross-entropy); by default the first losses seen.
      surrogate: how losses are made positive, since L̃^α has no meaning for an RL actor's L ≤ 0: None
        clamps them at 1e-8 (a loss ≤ 0 counts as learnt); "softplus" is log(1 + e^L), monotone for
        every L; or a function.
      leaves: predicate over leaf paths that selects W, the last shared layer: `lambda path:
        "trunk/dense_2" in path`; or "all" for every shared leaf, which is NOT the paper's choice. None requires
        that a single leaf is shared, since only the caller knows which layer is the last. (The learners of
        `mtjax.learners` select it themselves.)

    Raises:
      ValueError: an argument out of bounds; from `aggregate` and `lean`, several shared leaves and no `leaves`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.gradnorm(alpha=0.12)
      >>> state = method.init(2)
      >>> gram = jnp.diag(jnp.array([1.0, 100.0]))
      >>> for _ in range(3):
      ...     weights, state = method.update(gram, state, losses=jnp.ones(2))
      >>> bool(weights[0] > weights[1]), round(float(weights.sum()), 4)
      (True, 2.0)
    """
    check_number("alpha", alpha, low=0)
    if isinstance(leaves, str) and leaves != "all":
        raise ValueError(f'leaves must be a function of the path, "all" or None, not {leaves!r}')
    optimizer = optimizer or optax.adam(0.025)
    check_optimizer(optimizer)
    rectify = surrogate if callable(surrogate) else _SURROGATES.get(surrogate)
    if rectify is None:
        raise ValueError(f'surrogate must be None, "softplus" or a function, not {surrogate!r}')

    def usable(losses: Array) -> Array:
        """The losses after the surrogate, which may underflow to 0 or overflow, clamped so that no ratio is NaN."""
        kind, value = jnp.finfo(losses.dtype), rectify(losses)
        return jnp.where((value >= 0) & (value < kind.tiny), kind.tiny, jnp.minimum(value, kind.max))

    def init(num_tasks: int) -> GradNormState:
        weights = jnp.ones(num_tasks, default_float())
        given = per_task("initial_losses", 1.0 if initial_losses is None else initial_losses, num_tasks, weights.dtype)
        first = jnp.broadcast_to(given, weights.shape)
        started = jnp.full(num_tasks, initial_losses is not None)
        return GradNormState(weights, usable(first), started, optimizer.init(weights))

    def update(gram: Array, state: GradNormState, *, losses=None, mask=None) -> tuple[Array, GradNormState]:
        losses = usable(need_losses("gradnorm", losses).astype(state.weights.dtype))
        here = presence(losses.shape[0], mask)
        known = ~jnp.isnan(losses)  # a NaN, which would spoil all weights, counts as the initial loss
        initial = jnp.where(state.started | (here == 0) | ~known, state.initial_losses, losses)
        ratios = jnp.where(known, losses, initial) / initial
        target, norm = target_norms(state.weights, norms(gram), ratios, alpha, here)
        gradient = here * norm * jnp.sign(state.weights * norm - target)
        step, inner = optimizer.update(gradient, state.optimizer, state.weights)
        moved = renormalise(optax.apply_updates(state.weights, step), state.weights, here)
        new = GradNormState(moved, initial, state.started | ((here > 0) & known), inner)
        return state.weights * here, keep_absent(new, state, here)

    every = leaves == "all"
    return Weighting(init, update, leaves=None if every else leaves, one_layer=not every)


def target_norms(weights: Array, norm: Array, ratios: Array, alpha: Number, here: Array) -> tuple[Array, Array]:
    """Target norms mean(G) r_i^α [T], and the norms n_i [T], both guarded against overflow."""
    big = jnp.finfo(norm.dtype).max ** 0.25
    count = jnp.maximum(jnp.sum(here), 1)
    ratios = jnp.minimum(ratios, big)
    rates = safe_divide(ratios, jnp.sum(here * ratios) / count)
    norm = jnp.minimum(norm, big)
    average = jnp.sum(here * weights * norm) / count
    return average * jnp.minimum(rates**alpha, big), norm


def renormalise(weights: Array, before: Array, here: Array, floor: float = 1e-4) -> Array:
    """Clamps weights [T] above 0, then scales them so that the present tasks keep their sum and all sum to T.

    The present tasks' sum is computed as T minus the absent tasks' weights: their own sum would drift by rounding.
    """
    weights = jnp.maximum(weights, floor)
    sum_to = weights.shape[0] - jnp.sum((1 - here) * before)
    return weights * (sum_to / jnp.maximum(jnp.sum(here * weights), floor))
