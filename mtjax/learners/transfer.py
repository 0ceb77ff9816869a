"""Fine-tuning: a trained agent of SAC's kind continues to learn in one task that it was not trained on.

The single-task agent starts with all networks of the trained agent. Whatever belonged to single training tasks (heads,
temperatures, statistics) starts as a mean over those that the task is related to (``Unseen.relatives``); the optimisers
and the replay start empty; there is no phase of random actions, and no exploration bonus. With HiP-BMDP, the mean
embedding stands for the task: policy and critics, which see embeddings relative to their mean, get 0 throughout, and
the networks learn what is specific to the task.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mtjax import grads
from mtjax.learners.agent import choose, pooled
from mtjax.learners.base import FineTuning, Transitions, Unseen
from mtjax.learners.descent import Descent
from mtjax.learners.replay import Buffer
from mtjax.learners.scaling import SMALLEST
from mtjax.networks.base import Parameters
from mtjax.networks.task import unseen_tasks

if TYPE_CHECKING:
    from mtjax.learners.sac import SAC, SACState

Array = jax.Array
NUM_ENVS = 1
KNOWN = 1000.0  # largest sample count of the training tasks' statistics, so that the task's own soon prevail


def fine_tuning(agent: SAC, steps: int) -> FineTuning:
    """How a trained SAC or HiP-BMDP agent continues to learn in one unseen task, for at most ``steps`` steps."""
    alone = of_one_task(agent, steps)

    def told(unseen: Unseen) -> SAC:
        one = copy.copy(alone)
        one.tasks, one.masks = unseen_tasks(agent.spec.num_tasks, unseen.contexts, unseen.relatives), unseen.masks
        return one

    def start(state: SACState, unseen: Unseen, key: Array) -> SACState:
        return of_one_state(alone, state, unseen, key)

    def act(state: SACState, unseen: Unseen, observation: Array, key: Array) -> tuple[Array, Mapping[str, Any]]:
        return told(unseen).act(state, observation, key)

    def update(
        state: SACState, unseen: Unseen, rollout: Transitions, key: Array
    ) -> tuple[SACState, Mapping[str, Array]]:
        return told(unseen).update(state, rollout, key)

    def policy(state: SACState, unseen: Unseen, observation: Array, key: Array, deterministic: Array) -> Array:
        one = told(unseen)
        distribution = one._distribution(state, one._normalize(state.observations, observation))
        return choose(one.policy, distribution, one.masks, key, deterministic)

    return FineTuning(start, act, update, policy, rollout_length(agent), alone.buffer)


def rollout_length(agent: SAC) -> int:
    """Steps between two updates: the agent's own or more, so that a nearly whole number of gradient steps is due."""
    ratio = agent.config.update_to_data * NUM_ENVS
    shortest = max(agent.config.rollout_length, math.ceil(1 / ratio))

    def missed(length: int) -> float:
        return abs(round(ratio * length) / (ratio * length) - 1)

    return min(range(shortest, 2 * shortest), key=lambda length: (max(missed(length), 0.03), length))


def of_one_task(agent: SAC, steps: int) -> SAC:
    """The agent's functions for T = 1 and ``steps`` steps, with its networks (whose task codes keep their length)."""
    one = copy.copy(agent)
    one.config = dataclasses.replace(agent.config, warm_start=0)
    one.spec = agent.spec._replace(num_tasks=1, action_sizes=None, contexts=None)
    one.exploration = None
    one.num_envs, one.arriving = NUM_ENVS, rollout_length(agent) * NUM_ENVS
    one.num_steps = max(1, round(agent.config.update_to_data * one.arriving))
    # A capacity above the number of transitions to come would only waste memory: it does not affect sampling.
    one.buffer = Buffer(one.spec, capacity=min(agent.config.replay_capacity, steps), arriving=one.arriving)
    # A single task has no conflicts, and the method may be specific to the training tasks, e.g. weights for each.
    one.descent = {part: Descent(grads.mean(), 1, d.optimizer) for part, d in agent.descent.items()}
    return one


def of_one_state(one: SAC, state: SACState, unseen: Unseen, key: Array) -> SACState:
    """Convert a trained state [T, ...] to the initial state of one unseen task [1, ...]."""
    mean = unseen.average

    def middle(sizes: Array) -> Array:
        """Geometric mean [1] of sizes [T] that may differ a thousandfold: the largest would dominate another mean."""
        return jnp.exp(mean(jnp.log(jnp.maximum(sizes, SMALLEST))))

    def single(parameters: Parameters) -> Parameters:
        return parameters._replace(private=mean(parameters.private))

    params = {part: single(p) for part, p in state.params.items()}
    log_temperature = mean(state.log_temperature)
    observations = pooled(state.observations, unseen)
    rewards = one.rewards.init(1, NUM_ENVS)
    seen = state.rewards.returns
    returns = seen._replace(
        count=jnp.minimum(mean(seen.count), KNOWN), mean=mean(seen.mean), variance=middle(seen.variance)
    )
    rewards = rewards._replace(returns=returns, largest=middle(state.rewards.largest))
    return state._replace(
        params=params,
        targets=single(state.targets),
        log_temperature=log_temperature,
        descent=one.start_descent(params, tuple(jax.random.split(key))),
        temperature_optimizer=one.temperature_optimizer.init(log_temperature),
        observations=observations._replace(count=jnp.minimum(observations.count, KNOWN)),
        rewards=rewards,
        replay=one.buffer.init(),
        seen=jnp.ones((), jnp.int32),
        updates=jnp.zeros((), jnp.int32),
        exploration=None,
    )
