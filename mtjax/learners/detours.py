"""Detours: random actions held for a while, which lead where the policy's own noise never would.

Noise that is new at every step is undone by the next action of the policy; a hand that rests before a handle never
gets behind it. Temporally extended ε-greedy (Dabney, Ostrovski and Barreto, arXiv 2006.01782, section 4) holds one
random action for a random time instead. On-policy learners do not learn from a detour's steps, for which no policy of
theirs is to thank; an advantage ends where a detour begins, as at a truncation, so that a detour is no more than
another state to start from.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec

Array = jax.Array


class Detours(NamedTuple):
    """Which steps of a rollout are on a detour, and what is done there.

    Attributes:
        active: [H, T, E] bool.
        action: [H, T, E, A] float32 within [-1, 1], or [H, T, E] int32; meaningless where not active.
    """

    active: Array
    action: Array


def draw(
    key: Array, masks: Array, action: ActionSpec, *, share: Array | float, longest: int, length: int, num_envs: int
) -> Detours:
    """Detours of one rollout, each environment's own: lengths uniform in 1 … ``longest``, actions uniform.

    Args:
        key: of this rollout alone.
        masks: [T, A] 1 for the real actions (or choices) of each task.
        action: the action space.
        share: of all steps, on average.
        longest: steps.
        length: H.
        num_envs: E.
    """
    # A detour may be under way when the rollout begins, so that every step has the same share: `longest` earlier steps.
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
    """(what is done at step ``index`` in place of the policy's ``action`` [T, E, ...], active [T, E])."""
    active, other = detours.active[index], detours.action[index]
    return jnp.where(active.reshape(active.shape + (1,) * (action.ndim - active.ndim)), other, action), active


def before(active: Array) -> Array:
    """[H, T, E] bool: the next step is on a detour, so that no advantage reaches over it."""
    return jnp.concatenate([active[1:], jnp.zeros_like(active[:1])])
