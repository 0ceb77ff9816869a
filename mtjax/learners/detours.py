"""Detours: random actions held for a while, which reach states that the policy's own noise never would.

Noise drawn anew at every step is undone by the policy's next action; a hand that rests in front of a handle never gets
behind it. Temporally extended ε-greedy (Dabney, Ostrovski and Barreto, arXiv 2006.01782, section 4) instead holds one
random action for a random number of steps. On-policy learners do not learn from a detour's steps, whose actions their
policy did not choose; and an advantage ends where a detour begins, as at a truncation, so that a detour merely provides
another state to start from.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec

Array = jax.Array


class Detours(NamedTuple):
    """Which steps of a rollout are on a detour, and the actions taken there.

    Attributes:
        active: [H, T, E] bool.
        action: [H, T, E, A] float32 within [-1, 1], or [H, T, E] int32; meaningless where not active.
    """

    active: Array
    action: Array


def draw(
    key: Array, masks: Array, action: ActionSpec, *, share: Array | float, longest: int, length: int, num_envs: int
) -> Detours:
    """Draw one rollout's detours, independent per environment: lengths uniform in 1 … ``longest``, actions uniform.

    Args:
        key: used for this rollout only.
        masks: [T, A] 1 for the real actions (or choices) of each task.
        action: the action space.
        share: average share of all steps that are on a detour.
        longest: steps of the longest detour.
        length: H.
        num_envs: E.
    """
    # Simulates `longest` earlier steps: a detour may be under way at the start, so every step has the same share.
    shape = (longest + length, masks.shape[0], num_envs)
    begin_key, steps_key, action_key = jax.random.split(key, 3)
    mean = (1 + longest) / 2
    begins = jax.random.bernoulli(begin_key, share / (share + mean * (1 - share)), shape)
    steps = jax.random.randint(steps_key, shape, 1, longest + 1, jnp.int32)
    if action.kind == "continuous":
        actions = jax.random.uniform(action_key, (*shape, action.size), jnp.float32, -1, 1) * masks[:, None]
    else:
        logits = jnp.where(masks > 0, 0.0, -jnp.inf)[:, None]
        actions = jax.random.categorical(action_key, logits, shape=shape).astype(jnp.int32)

    def advance(carry: tuple[Array, Array], step: tuple[Array, Array, Array]):
        left, held = carry
        begin, number, new = step
        begin &= left == 0
        left = jnp.where(begin, number, left)
        held = jnp.where(begin.reshape(begin.shape + (1,) * (held.ndim - begin.ndim)), new, held)
        return (jnp.maximum(left - 1, 0), held), Detours(left > 0, held)

    start = jnp.zeros(shape[1:], jnp.int32), jnp.zeros_like(actions[0])
    _, detours = jax.lax.scan(advance, start, (begins, steps, actions))
    return jax.tree.map(lambda x: x[longest:], detours)


def follow(detours: Detours, index: Array, action: Array) -> tuple[Array, Array]:
    """(actions at step ``index``, those of detours in place of the policy's ``action`` [T, E, ...]; active [T, E])."""
    active, other = detours.active[index], detours.action[index]
    return jnp.where(active.reshape(active.shape + (1,) * (action.ndim - active.ndim)), other, action), active


def before(active: Array) -> Array:
    """[H, T, E] bool: the next step is on a detour, so the advantage is cut after this one."""
    return jnp.concatenate([active[1:], jnp.zeros_like(active[:1])])
