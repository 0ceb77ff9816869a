"""Loss balancers that do not use the gradients: uncertainty, DWA, RLW, GLS, IMTL-L and STCH."""

from collections.abc import Sequence
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
    check_whole,
    default_float,
    keep_absent,
    need_losses,
    per_task,
    positive,
    preferred,
    presence,
    stateless,
    uniform,
)

_LIMIT = 15.0  # bound on a learnt or relative log weight: e¹⁵ is 3·10⁶, beyond useful weights and safe in float32


class LearnedScale(NamedTuple):
    """Log scales s [T] and their optimiser's state."""

    scales: Array
    optimizer: State


def _learned(name: str, optimizer, gradient, weight) -> Weighting:
    """A balancer with one learnt scalar s per task, the weights weight(s) and the gradient gradient(s, L) for s."""
    optimizer = optimizer or optax.sgd(0.1)
    check_optimizer(optimizer)

    def init(num_tasks: int) -> LearnedScale:
        scales = jnp.zeros(num_tasks, default_float())
        return LearnedScale(scales, optimizer.init(scales))

    def update(gram, state, *, losses=None, mask=None):
        losses = need_losses(name, losses).astype(state.scales.dtype)
        here = presence(losses.shape[0], mask)
        slope = here * jnp.clip(gradient(state.scales, losses), -1e6, 1e6)
        step, inner = optimizer.update(slope, state.optimizer, state.scales)
        scales = jnp.clip(optax.apply_updates(state.scales, step), -_LIMIT, _LIMIT)
        return weight(state.scales) * here, keep_absent(LearnedScale(scales, inner), state, here)

    return Weighting(init, update, needs_gram=False)


def uncertainty(optimizer: optax.GradientTransformation | None = None, likelihood: str = "gaussian") -> Weighting:
    """Uncertainty weighting (Kendall et al., CVPR 2018, arXiv 1705.07115, equations 7 and 10).

    With s = log σ² learnt alongside the model, minimises Σ ½e^(−s) L + ½s for regression ("gaussian"), or
    Σ e^(−s) L + ½s for classification ("softmax"). The weights are ½e^(−s) or e^(−s).

    Properties: permutation equivariant; may conflict. Losses below 0 push s down to its limit
    (|s| ≤ 15). Cost: O(T), no Gram.

    Use when: the losses are negative log-likelihoods of supervised tasks.

    Args:
      optimizer: for s; by default SGD with learning rate 0.1. To train s like the model, pass the same optimiser.
      likelihood: "gaussian" or "softmax".

    Raises:
      ValueError: an unknown `likelihood`, or an `optimizer` that is not an optax transform; from the update, no
        losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.uncertainty()
      >>> weights, state = method.update(jnp.eye(2), method.init(2), losses=jnp.array([1.0, 9.0]))
      >>> [float(w) for w in weights], bool(state.scales[1] > state.scales[0])
      ([0.5, 0.5], True)
    """
    if likelihood not in ("gaussian", "softmax"):
        raise ValueError(f'likelihood must be "gaussian" or "softmax", not {likelihood!r}')
    half = 0.5 if likelihood == "gaussian" else 1.0
    return _learned(
        "uncertainty",
        optimizer,
        gradient=lambda s, losses: 0.5 - half * jnp.exp(-s) * losses,
        weight=lambda s: half * jnp.exp(-s),
    )


def imtl_l(optimizer: optax.GradientTransformation | None = None) -> Weighting:
    """IMTL-L (Liu et al., ICLR 2021, "Towards Impartial Multi-task Learning", section 3.2,
    https://openreview.net/forum?id=IMPnRXEWpvr).

    Learns s to minimise Σ e^s L − s, so that at its minimum every scaled loss e^s L is 1. The
    weights are e^s.

    Properties: permutation equivariant; may conflict. L ≤ 0 has no minimum (|s| ≤ 15 bounds it).
    Cost: O(T), no Gram. Use when: positive losses have different scales.

    Args:
      optimizer: for s; by default SGD with learning rate 0.1.

    Raises:
      ValueError: an `optimizer` that is not an optax transform; from the update, no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.imtl_l()
      >>> state = method.init(2)
      >>> for _ in range(200):
      ...     weights, state = method.update(jnp.eye(2), state, losses=jnp.array([0.5, 4.0]))
      >>> [round(float(w), 2) for w in weights]
      [2.0, 0.25]
    """
    return _learned("imtl_l", optimizer, gradient=lambda s, losses: jnp.exp(s) * losses - 1, weight=jnp.exp)


class AveragesState(NamedTuple):
    """Per task [T]: sum and number of losses in the current window, mean losses of the last two windows, and
    windows completed; and the number of calls []."""

    total: Array
    calls: Array
    last: Array
    before: Array
    windows: Array
    count: Array


def dwa(temperature: Number = 2.0, window: int = 1) -> Weighting:
    """Dynamic weight average (Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704, equation 7).

    r_i = L_i(t−1)/L_i(t−2), with L_i(t) the average loss of epoch t; w = T softmax(r/temperature);
    r = 1 in the first two epochs.

    Properties: permutation equivariant; its weights, though not the direction, are invariant to the
    scale of each loss; may conflict. Cost: O(T), no Gram. Losses must be positive; others count as 1e-8.

    Use when: supervised losses fall at different rates, and using the gradients is too expensive.

    Args:
      temperature: larger values make the weights more even; the paper uses 2.
      window: calls per epoch.

    Raises:
      ValueError: `temperature` not above 0, or `window` below 1; from the update, no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.dwa()
      >>> state = method.init(2)
      >>> for losses in ([1.0, 1.0], [0.5, 1.0], [0.5, 1.0]):
      ...     weights, state = method.update(jnp.eye(2), state, losses=jnp.array(losses))
      >>> bool(weights[1] > weights[0])
      True
    """
    check_number("temperature", temperature, above=0)
    check_whole("window", window, low=1)

    def init(num_tasks: int) -> AveragesState:
        zero = jnp.zeros(num_tasks, default_float())
        calls, windows = jnp.zeros((2, num_tasks), jnp.int32)  # two arrays: one used twice cannot be donated
        return AveragesState(zero, calls, zero + 1, zero + 1, windows, jnp.zeros((), jnp.int32))

    def update(gram, state, *, losses=None, mask=None):
        losses = positive(need_losses("dwa", losses)).astype(state.total.dtype)
        here = presence(losses.shape[0], mask)
        rate = jnp.where(state.windows < 2, 1, jnp.minimum(state.last / state.before, 1e6))
        logits = jnp.where(here > 0, rate / temperature, -jnp.inf)
        weights = jnp.sum(here) * jax.nn.softmax(logits)
        total, calls = state.total + here * losses, state.calls + (here > 0)
        average = jnp.minimum(total / jnp.maximum(calls, 1), 1e15)
        over = (state.count + 1) % window == 0
        heard = over & (calls > 0)  # a task that was absent for the whole window keeps its averages
        new = AveragesState(
            total=jnp.where(over, 0, total),
            calls=jnp.where(over, 0, calls),
            last=jnp.where(heard, average, state.last),
            before=jnp.where(heard, state.last, state.before),
            windows=state.windows + heard,
            count=state.count + 1,
        )
        return weights * here, new

    return Weighting(init, update, needs_gram=False)


def rlw(distribution: str = "normal") -> Weighting:
    """Random loss weighting (Lin et al., TMLR 2022, arXiv 2111.10603, Algorithm 2).

    Draws new weights on every call: the softmax of standard normals, or a flat Dirichlet.

    Properties: permutation equivariant in distribution; may conflict; its expectation is the mean.
    Cost: O(T), no Gram. Use when: you want a baseline that any balancer should beat.

    Args:
      distribution: "normal" or "dirichlet".

    Raises:
      ValueError: an unknown `distribution`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> method = grads.rlw()
      >>> weights, _ = method.update(jnp.eye(3), method.init(3))
      >>> round(float(weights.sum()), 4)
      1.0
    """
    if distribution not in ("normal", "dirichlet"):
        raise ValueError(f'distribution must be "normal" or "dirichlet", not {distribution!r}')

    def init(num_tasks: int) -> Array:
        return jax.random.key(0)

    def update(gram, key, *, losses=None, mask=None):
        key, draw = jax.random.split(key)
        if distribution == "normal":
            logits = jax.random.normal(draw, gram.shape[-1:], gram.dtype)
        else:  # a flat Dirichlet is a normalised vector of exponentials
            logits = jnp.log(-jnp.log(jnp.clip(jax.random.uniform(draw, gram.shape[-1:]), 1e-7, 1 - 1e-7)))
        here = presence(gram.shape[-1], mask, gram.dtype)
        return jax.nn.softmax(jnp.where(here > 0, logits, -jnp.inf).astype(gram.dtype)), key

    return Weighting(init, update, needs_gram=False)


def gls() -> Weighting:
    """Geometric loss strategy (Chennupati et al., CVPR workshops 2019, arXiv 1904.08492).

    Minimises (Π L_i)^(1/T); its gradient has weights w_i = (Π L)^(1/T) / (T L_i).

    Properties: permutation equivariant; the direction is invariant to the scale of each loss; may
    conflict. Cost: O(T), no Gram. Losses must be positive; others count as 1e-8.
    (Π L)^(1/T)/L_i is at most e¹⁵.

    Use when: positive losses have different scales, and you want nothing to tune.

    Raises:
      ValueError: from the update, no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.gls().update(jnp.eye(2), (), losses=jnp.array([1.0, 4.0]))
      >>> [round(float(w), 3) for w in weights]
      [1.0, 0.25]
    """

    def update(gram, state, *, losses=None, mask=None):
        logs = jnp.log(positive(need_losses("gls", losses)).astype(gram.dtype))
        average = uniform(gram.shape[-1], mask, gram.dtype)
        return average * jnp.exp(jnp.minimum(jnp.dot(average, logs) - logs, _LIMIT)), state

    return Weighting(stateless, update, needs_gram=False)


def stch(
    mu: Number = 1.0,
    preference: Sequence[float] | Array | None = None,
    ideal: Sequence[float] | Array | None = None,
) -> Weighting:
    """Smooth Tchebycheff scalarisation (Lin et al., ICML 2024, arXiv 2402.19078, g^(STCH)_μ).

    Minimises μ log Σ exp(λ_i (L_i − z_i)/μ); its gradient has weights λ_i softmax(λ (L − z)/μ)_i.
    As μ → 0, only the worst task counts.

    Properties: permutation equivariant with a uniform preference; may conflict. Cost: O(T), no Gram.
    (After a warm-up, the authors train their networks on log(L_i/nadir_i) in place of L_i: to do so, pass
    these losses and their gradients, g_i/L_i.)

    Use when: the worst task matters, or you want the point of a non-convex Pareto front that fits a preference.

    Args:
      mu: smoothing; the paper tries 0.01 to 1.
      preference: λ [T], default 1/T.
      ideal: z [T], the best losses, default 0.

    Raises:
      ValueError: `mu` not above 0; from the update, no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtjax import grads
      >>> weights, _ = grads.stch().update(jnp.eye(2), (), losses=jnp.array([1.0, 1.0]))
      >>> [float(w) for w in weights]
      [0.25, 0.25]
    """
    check_number("mu", mu, above=0)

    def update(gram, state, *, losses=None, mask=None):
        losses = need_losses("stch", losses).astype(gram.dtype)
        here = presence(gram.shape[-1], mask, gram.dtype)
        weight = preferred(preference, gram, mask)
        best = per_task("ideal", 0.0 if ideal is None else ideal, gram.shape[-1], gram.dtype)
        big = jnp.finfo(gram.dtype).max / 16 * jnp.minimum(mu, 1.0)  # so that nothing overflows
        far = jnp.nan_to_num(losses - best, nan=jnp.nan)  # an Inf times a preference of 0 would be NaN
        worth = jnp.clip(weight * far, -big, big) / mu
        return weight * jax.nn.softmax(jnp.where(here > 0, worth, -jnp.inf)), state

    return Weighting(stateless, update, needs_gram=False)
