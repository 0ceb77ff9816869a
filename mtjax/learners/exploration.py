"""Exploration bonuses, separate for each task: a reward for reaching observations seldom or never seen in this task.

``counts`` (after arXiv 1611.04717, with a plain hash in place of SimHash): 1 / √n, where n is the number of visits to
this observation. For suites whose observations repeat exactly, such as grid worlds.

``rnd``, random network distillation (arXiv 1810.12894): the error of a network that predicts the output of another,
fixed and random, at this observation; divided by its running root mean square, so that a typical bonus is 1. For
continuous suites.

Both use the observation that a step leads to, before any reset. The policy learns from the scaled reward plus
``exploration_bonus`` times the bonus; evaluations and recorded returns exclude it. For learners with a replay, the
bonus is recomputed at sampling time: a transition that was novel when stored may be familiar by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtjax.learners import normalization
from mtjax.learners.config import LearnerConfig
from mtjax.networks.components import Trunk, init_stack

Array = jax.Array
STEPS = 4  # gradient steps of a predictor per rollout
CLIP = 5.0  # bound of normalised observations
MANY = 2**30  # largest count of a bin: past the range of int32 it would turn negative, and the bin count as new


class Exploration(NamedTuple):
    """A bonus as pure functions of one seed's state; leaves of the state that belong to single tasks lead with [T].

    Attributes:
        init: key -> state.
        step: (state, observations reached [H, T, E, obs]) -> (state, bonus [H, T, E] float32, at least 0). The
            observations count as seen from then on.
        bonus: (state, observations [T, B, obs]) -> bonus [T, B] of earlier observations, without learning from them.
    """

    init: Callable[[Array], Any]
    step: Callable[[Any, Array], tuple[Any, Array]]
    bonus: Callable[[Any, Array], Array]


def make_exploration(config: LearnerConfig, *, num_tasks: int, observation_size: int) -> Exploration | None:
    """The bonus that ``config.exploration`` names; None for "none"."""
    sizes = {"num_tasks": num_tasks, "observation_size": observation_size}
    if config.exploration == "counts":
        return counts(bins=config.count_bins, resolution=config.count_resolution, **sizes)
    if config.exploration == "rnd":
        return rnd(layers=config.rnd_sizes, learning_rate=config.rnd_learning_rate, **sizes)
    return None


# ---------------------------------------------------------------------------------------------- counts


class CountState(NamedTuple):
    """Visits [T, bins] int32 of hashed observations, and the odd multipliers [obs] uint32 of the hash."""

    visits: Array
    multipliers: Array


def counts(*, num_tasks: int, observation_size: int, bins: int, resolution: float) -> Exploration:
    """Counts of observations, rounded to multiples of ``resolution`` and hashed into ``bins``.

    Observations that fall into the same bin share a count, so there should be many more bins than distinct
    observations. A rollout's own visits are counted before its bonus is computed.
    """

    def init(key: Array) -> CountState:
        multipliers = jax.random.bits(key, (observation_size,), jnp.uint32) | jnp.uint32(1)
        return CountState(jnp.zeros((num_tasks, bins), jnp.int32), multipliers)

    def bin_of(observation: Array, multipliers: Array) -> Array:
        """Hash observations [..., obs] to bins [...], int32."""
        whole = jnp.round(observation / resolution).astype(jnp.int32).astype(jnp.uint32)
        mixed = jnp.sum(whole * multipliers, axis=-1, dtype=jnp.uint32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the mixing steps of MurmurHash3
            mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
        return ((mixed ^ (mixed >> 16)) % jnp.uint32(bins)).astype(jnp.int32)

    def look(visits: Array, reached: Array) -> Array:
        """Bonus of the bins [...] that ONE task reached, from its visits [bins]."""
        return jax.lax.rsqrt(jnp.maximum(visits[reached], 1).astype(jnp.float32))

    def step(state: CountState, observation: Array) -> tuple[CountState, Array]:
        reached = jnp.moveaxis(bin_of(observation, state.multipliers), 1, 0)  # [T, H, E]

        def of_task(visits: Array, reached: Array) -> tuple[Array, Array]:
            visits = jnp.minimum(visits.at[reached.reshape(-1)].add(1), MANY)
            return visits, look(visits, reached)

        visits, bonus = jax.vmap(of_task)(state.visits, reached)
        return state._replace(visits=visits), jnp.moveaxis(bonus, 0, 1)

    def bonus(state: CountState, observation: Array) -> Array:
        return jax.vmap(look)(state.visits, bin_of(observation, state.multipliers))

    return Exploration(init, step, bonus)


# ---------------------------------------------------------------------------------- network distillation


class RndState(NamedTuple):
    """Of T tasks: parameters of targets and predictors, Adam's state, statistics of observations and of errors."""

    target: Any
    predictor: Any
    optimizer: Any
    observations: normalization.Statistics
    errors: normalization.Statistics


def rnd(*, num_tasks: int, observation_size: int, layers: tuple[int, ...], learning_rate: float) -> Exploration:
    """Random network distillation with a target and a predictor for each task."""
    network = Trunk(layers, "relu", linear_end=True)
    adam = optax.adam(learning_rate)

    def init(key: Array) -> RndState:
        blank = jnp.zeros((observation_size,), jnp.float32)
        target, predictor = (init_stack(lambda k: network.init(k, blank), k, num_tasks) for k in jax.random.split(key))
        return RndState(
            target,
            predictor,
            jax.vmap(adam.init)(predictor),
            normalization.init(num_tasks, (observation_size,)),
            normalization.init(num_tasks),
        )

    def errors_of(predictor: Any, target: Any, x: Array) -> Array:
        """Mean squared error of ONE task's prediction at x [B, obs]: [B]."""
        return jnp.square(network.apply(predictor, x) - network.apply(target, x)).mean(axis=-1)

    def learn(predictor: Any, optimizer: Any, target: Any, x: Array) -> tuple[Any, Any]:
        """Train ONE task's predictor for ``STEPS`` steps on the observations x [B, obs] that the rollout reached."""

        def one(carry: tuple[Any, Any], _: Any) -> tuple[tuple[Any, Any], None]:
            predictor, optimizer = carry
            gradient = jax.grad(lambda p: errors_of(p, target, x).mean())(predictor)
            change, optimizer = adam.update(gradient, optimizer)
            return (optax.apply_updates(predictor, change), optimizer), None

        return jax.lax.scan(one, (predictor, optimizer), None, length=STEPS)[0]

    def in_usual_errors(errors: normalization.Statistics, found: Array) -> Array:
        """Errors [T, B] divided by their running root mean square."""
        return found * jax.lax.rsqrt(errors.variance + jnp.square(errors.mean) + 1e-12)[:, None]

    def step(state: RndState, observation: Array) -> tuple[RndState, Array]:
        observations = normalization.update(state.observations, observation, axes=(0, 2))
        length, tasks, envs = observation.shape[:3]
        x = jnp.moveaxis(observation, 1, 0).reshape(tasks, length * envs, -1)
        x = normalization.normalize(observations, x, clip=CLIP)
        found = jax.vmap(errors_of)(state.predictor, state.target, x)  # [T, B]
        errors = normalization.update(state.errors, found, axes=(1,))
        predictor, optimizer = jax.vmap(learn)(state.predictor, state.optimizer, state.target, x)
        bonus = jnp.moveaxis(in_usual_errors(errors, found).reshape(tasks, length, envs), 0, 1)
        return RndState(state.target, predictor, optimizer, observations, errors), bonus

    def bonus(state: RndState, observation: Array) -> Array:
        x = normalization.normalize(state.observations, observation, clip=CLIP)
        return in_usual_errors(state.errors, jax.vmap(errors_of)(state.predictor, state.target, x))

    return Exploration(init, step, bonus)
