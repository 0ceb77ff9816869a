"""Rollouts of all seeds, tasks and environments at once, and the statistics of the episodes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax import sharding
from mtjax.envs.base import Array, Step, VectorEnv
from mtjax.learners.base import Transitions


class Running(NamedTuple):
    """Statistics of the running episodes; every leaf is [S, T, E]."""

    returns: Array
    length: Array
    success: Array  # 1 once the episode has succeeded at any step


class Latest(NamedTuple):
    """Each environment's latest complete episode; every leaf is [S, T, E], NaN before the first.

    Averages over all environments are taken of these, and not of the episodes that have just ended: short episodes end
    more often, and where all environments start together, at first only the quick successes have ended, and all
    failures end in the same step.

    Attributes:
        episodes: how many have ended since the last report; 0 before the first.
        returns, length, success_any, success_last: of the latest.
    """

    episodes: Array
    returns: Array
    length: Array
    success_any: Array
    success_last: Array


def compiler_options() -> Mapping[str, str] | None:
    """XLA compiler options for a program that steps simulators; None means XLA's defaults.

    Since jaxlib 0.11, XLA's CPU backend computes every sum by a separate library call, which is slow for MJX and its
    many small sums (benchmarks/small_sums.py). These options leave only dot products to the library. Long sums are
    faster there, as the library fuses them with the computation of their terms, so learners keep XLA's defaults.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


def init_running(shape: tuple[int, ...]) -> Running:
    """Statistics before the first step. ``shape`` is (S, T, E)."""
    # Three separate arrays: a donated state must not contain the same buffer twice.
    return Running(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def init_latest(shape: tuple[int, ...]) -> Latest:
    """Before any episode has ended. ``shape`` is (S, T, E)."""
    return Latest(jnp.zeros(shape, jnp.float32), *(jnp.full(shape, jnp.nan, jnp.float32) for _ in Latest._fields[1:]))


def success_of(step: Step, *, required: bool) -> Array:
    """Whether each environment succeeds in this step, [...] as its reward; 0 where success is not defined.

    Raises:
        ValueError: ``required`` (the suite has ``has_success``), but the environment does not report it.
    """
    if required and "success" not in step.info:
        found = ", ".join(map(repr, step.info)) or "nothing"
        raise ValueError(
            "the suite says has_success=True, but Step.info of its environment has no entry 'success', only "
            f"{found}; report it at every step, or leave has_success out"
        )
    return step.info.get("success", jnp.zeros_like(step.reward))


def account(running: Running, latest: Latest, step: Step, *, has_success: bool = False) -> tuple[Running, Latest]:
    """Account for one step [S, T, E]: extend the running episodes, and note complete ones that end here."""
    success = success_of(step, required=has_success)
    done = step.terminated | step.truncated
    running = Running(running.returns + step.reward, running.length + 1, jnp.maximum(running.success, success))

    counts = done & step.info.get("whole", jnp.ones_like(done))

    ended = Latest(latest.episodes + 1, running.returns, running.length, running.success, success)
    latest = jax.tree.map(lambda new, old: jnp.where(counts, new, old).astype(jnp.float32), ended, latest)
    running = jax.tree.map(lambda x: jnp.where(done, jnp.zeros_like(x), x), running)
    return running, latest


def averages(latest: Latest, *, has_success: bool) -> Mapping[str, Array]:
    """Means [S, T] per task over its environments' latest episodes; and "episodes", the number that have ended.

    NaN until every environment of the task has completed one.
    """
    values = {
        "return": latest.returns.mean(axis=-1),
        "length": latest.length.mean(axis=-1),
        "episodes": latest.episodes.sum(axis=-1),
    }
    if has_success:
        values["success"] = latest.success_any.mean(axis=-1)
    return values


def over_seeds(env: VectorEnv) -> tuple[Callable, Callable]:
    """``reset`` and ``step`` of an environment with a leading seed axis.

    A device environment is vmapped; a host simulator itself takes [S, T, E, ...], in one callback.

    Returns:
        (reset: keys [S] → (state, observation [S, T, E, obs]), step: (state, actions, keys [S]) → …).
    """
    if not env.on_device:
        return env.reset, env.step
    axis = sharding.seed_axis()
    return jax.vmap(env.reset, spmd_axis_name=axis), jax.vmap(env.step, spmd_axis_name=axis)


def traceable(env: VectorEnv) -> VectorEnv:
    """Make an environment a valid argument of jitted functions: its arrays are traced, the rest is static.

    An environment that is not a pytree (a host simulator) becomes one without leaves.
    """
    if jax.tree_util.all_leaves([env]):
        jax.tree_util.register_static(type(env))
    return env


class Carry(NamedTuple):
    """What is carried from step to step of a rollout."""

    env: Any
    observation: Array
    running: Running
    latest: Latest


def collect(
    act: Callable, step: Callable, carry: Carry, keys: Array, *, length: int, has_success: bool = False
) -> tuple[Carry, Transitions]:
    """Step every environment ``length`` times.

    Args:
        act: (observation [S, T, E, obs], keys [S], index of the step) → (actions, extras): the policy, with its
            state closed over.
        step: (environment state, actions, keys [S]) → (environment state, Step).
        carry: the state to start from.
        keys: [S] typed keys, used for this rollout only.
        length: H.
        has_success: whether every step must report success.

    Returns:
        (carry after the last step, Transitions with leaves [S, H, T, E, ...]).

    Raises:
        ValueError: as :func:`success_of`.
    """

    def advance(carry: Carry, index: Array) -> tuple[Carry, Transitions]:
        act_keys, env_keys = _two(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index))
        actions, extras = act(carry.observation, act_keys, index)
        env_state, result = step(carry.env, actions, env_keys)
        running, latest = account(carry.running, carry.latest, result, has_success=has_success)
        transition = Transitions(
            observation=carry.observation,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            final_observation=result.final_observation,
            extras=extras,
        )
        return Carry(env_state, result.observation, running, latest), transition

    carry, transitions = jax.lax.scan(advance, carry, jnp.arange(length, dtype=jnp.int32))
    return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), transitions)


def _two(keys: Array) -> tuple[Array, Array]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]
