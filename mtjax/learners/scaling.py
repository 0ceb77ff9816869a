"""Scaling of each task's rewards, so that tasks whose rewards differ a thousandfold can share a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjax.learners import normalization

Array = jax.Array
MAX_SCALED_REWARD = 10.0  # a sparse task's first success must not swamp a critic that others share
SMALLEST = 1e-6


class RewardScale(NamedTuple):
    """Statistics of rewards: of the running episodes [T, E], and of the tasks [T].

    Attributes:
        sums: [T, E] discounted sum of the episode's rewards so far.
        totals: [T, E] undiscounted sum of the same rewards.
        lengths: [T, E] float32, number of these rewards.
        returns: running statistics [T] of the discounted sums.
        largest: [T] the largest discounted return in absolute value.
    """

    sums: Array
    totals: Array
    lengths: Array
    returns: normalization.Statistics
    largest: Array


class RewardScaling(NamedTuple):
    """A way to scale rewards, as pure functions.

    Attributes:
        init: (T, E) -> RewardScale.
        update: (RewardScale, reward [H, T, E], ended [H, T, E] (terminated or truncated), truncated [H, T, E],
            discount []) -> RewardScale.
        apply: (RewardScale, reward [T, B], bonus [T], discount []) -> scaled reward [T, B]. ``bonus`` is the absolute
            value of the entropy bonus expected per step, temperature times entropy.
        cut: RewardScale -> RewardScale without the running episodes, for when these were lost.
    """

    init: Callable[[int, int], RewardScale]
    update: Callable[..., RewardScale]
    apply: Callable[[RewardScale, Array, Array, Array], Array]
    cut: Callable[[RewardScale], RewardScale]


def in_deviations(returns: normalization.Statistics, reward: Array) -> Array:
    """Rewards [..., T, E] over the deviation of each task's discounted return, clipped to ± ``MAX_SCALED_REWARD``."""
    scaled = reward * jax.lax.rsqrt(returns.variance + 1e-6)[:, None]
    return jnp.clip(scaled, -MAX_SCALED_REWARD, MAX_SCALED_REWARD)


def make_reward_scaling(kind: str, *, value_range: float, unscaled: float = 0.0) -> RewardScaling:
    """The scaling that ``return_scaling`` names: "none", "running" or "range".

    Args:
        kind: the name.
        value_range: the bound to which "range" scales returns.
        unscaled: exploration bonus per step, in units of scaled reward; "range" leaves room for it.

    "range" is the normaliser of arXiv 2505.23150 (eq. 2): rewards are multiplied so that the largest return seen, plus
    half the entropy bonus of an endless episode, comes to ``value_range``. A truncated episode counts as if it had
    continued for ever with its mean reward. Where the paper looks ahead from every step of a finished episode, this
    looks back, with the same geometric weights, so that only the running sums need to be stored.
    """

    def apply(scale: RewardScale, reward: Array, bonus: Array, discount: Array) -> Array:
        if kind == "none":
            return reward
        if kind == "running":
            return in_deviations(scale.returns, reward)
        remaining = jnp.maximum(1.0 - discount, 1e-3)
        endless, room = 0.5 * bonus / remaining, jnp.maximum(value_range - unscaled / remaining, 0.0)
        return reward * (room / jnp.maximum(scale.largest + endless, SMALLEST))[:, None]

    return RewardScaling(_init, _update, apply, _cut)


def _init(num_tasks: int, num_envs: int) -> RewardScale:
    sums, totals, lengths = (jnp.zeros((num_tasks, num_envs), jnp.float32) for _ in range(3))
    return RewardScale(sums, totals, lengths, normalization.init(num_tasks), jnp.zeros((num_tasks,), jnp.float32))


def _cut(scale: RewardScale) -> RewardScale:
    nothing = jnp.zeros_like(scale.sums)
    return scale._replace(sums=nothing, totals=nothing, lengths=nothing)


def _update(scale: RewardScale, reward: Array, ended: Array, truncated: Array, discount: Array) -> RewardScale:
    def forwards(carry: tuple[Array, Array, Array], step: tuple[Array, Array, Array]):
        sums, totals, lengths = carry
        reward, ended, truncated = step
        sums, totals, lengths = discount * sums + reward, totals + reward, lengths + 1.0
        going_on = discount**lengths * totals / lengths / jnp.maximum(1.0 - discount, 1e-3)
        size = jnp.abs(sums + jnp.where(truncated, going_on, 0.0))
        kept = tuple(jnp.where(ended, 0.0, x) for x in (sums, totals, lengths))
        return kept, (sums, size)

    kept, (sums, sizes) = jax.lax.scan(forwards, scale[:3], (reward, ended, truncated))
    return RewardScale(
        *kept,
        returns=normalization.update(scale.returns, sums, axes=(0, 2)),
        largest=jnp.maximum(scale.largest, sizes.max(axis=(0, 2))),
    )
