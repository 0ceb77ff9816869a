"""Returns and advantages. Time is the leading axis: arrays are [H, ...], one column per environment."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def generalized_advantages(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    *,
    discount: Array | float,
    gae_lambda: Array | float,
) -> tuple[Array, Array]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), correct at truncation.

    A terminal step does not bootstrap; a truncated one bootstraps from the value of the
    observation BEFORE the reset. The λ-trace is cut at both.

    Args:
        reward: [H, ...].
        value: [H, ...] V(observation).
        next_value: [H, ...] V(final_observation): of the state reached, before any reset.
        terminated, truncated: [H, ...] bool.
        discount: γ.
        gae_lambda: λ.

    Returns:
        (advantages, value targets), both [H, ...]; targets are advantages + value, i.e. TD(λ) returns.
    """
    delta = reward + discount * jnp.where(terminated, 0.0, next_value) - value
    trace = jnp.where(terminated | truncated, 0.0, discount * gae_lambda)

    def backwards(advantage, step):
        delta_t, trace_t = step
        advantage = delta_t + trace_t * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, trace), reverse=True)
    return advantages, advantages + value


def next_values(value: Array, done: Array, evaluate: Callable[[Array], Array]) -> Array:
    """V(final_observation) of every step; only episode ends and the last step need the critic.

    Within an episode, the final observation of a step is the next step's observation, whose value is already known. The
    other steps are evaluated in chunks of at least an eighth of the rollout, as many as needed, mostly one.

    Args:
        value: [H, T, E] V(observation).
        done: [H, T, E] bool, the episode ended with this step.
        evaluate: indices [T, K] int32 into the H·E steps of each task (row h·E + e) → V(final_observation) [T, K]. An
            index of H·E is padding, for which any value may be returned.

    Returns:
        [H, T, E].
    """
    length, tasks, envs = value.shape
    total = length * envs
    piece = max(-(-total // 8), min(2 * envs, total))

    def by_task(x: Array) -> Array:
        return jnp.moveaxis(x, 1, 0).reshape(tasks, total)

    unknown = by_task(done.at[-1].set(True))
    known = by_task(jnp.concatenate([value[1:], value[-1:]]))
    number = unknown.sum(axis=1)
    slots = -(-total // piece) * piece
    place = jnp.where(unknown, jnp.cumsum(unknown, axis=1) - 1, slots)
    rows = jnp.arange(tasks, dtype=jnp.int32)[:, None]
    order = jnp.full((tasks, slots), total, jnp.int32)
    order = order.at[rows, place].set(jnp.arange(total, dtype=jnp.int32), mode="drop")

    def look(carry):
        known, begin = carry
        indices = jax.lax.dynamic_slice_in_dim(order, begin, piece, axis=1)
        return known.at[rows, indices].set(evaluate(indices), mode="drop"), begin + piece

    known, _ = jax.lax.while_loop(lambda carry: (carry[1] < number).any(), look, (known, jnp.int32(0)))
    return jnp.moveaxis(known.reshape(tasks, length, envs), 0, 1)


def discounted_sums(start: Array, reward: Array, done: Array, *, discount: Array | float) -> tuple[Array, Array]:
    """Discounted sums of the rewards so far, restarted after every episode.

    Args:
        start: [...] the sums before the first step.
        reward: [H, ...].
        done: [H, ...] bool, the episode ended with this step.
        discount: γ.

    Returns:
        (sums to carry into the next rollout [...], sums at every step [H, ...]).
    """

    def forwards(total, step):
        reward_t, done_t = step
        total = discount * total + reward_t
        return jnp.where(done_t, 0.0, total), total

    return jax.lax.scan(forwards, start, (reward, done))
