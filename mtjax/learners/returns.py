"""Returns and advantages. Time leads: every argument is [H, ...], one column an environment."""

from __future__ import annotations

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
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), right at truncation.

    A terminal step has nothing to bootstrap from; a truncated one bootstraps from the value of the
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


def discounted_sums(
    start: Array, reward: Array, done: Array, *, discount: Array | float
) -> tuple[Array, Array]:
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
