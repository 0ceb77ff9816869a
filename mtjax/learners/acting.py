"""How a policy network acts when it is evaluated: for the tasks it was trained on, and for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.learners import normalization
from mtjax.learners.base import TaskSpec, Unseen, action_masks
from mtjax.networks.base import Parameters, of_unseen_task
from mtjax.networks.policy import Policy
from mtjax.networks.task import Task, training_tasks, unseen_tasks

Array = jax.Array
Normalize = Callable[[normalization.Statistics, Array], Array]
See = Callable[[Task, Array], Array]


def act(
    policy: Policy,
    parameters: Parameters,
    statistics: normalization.Statistics,
    observation: Array,
    key: Array,
    deterministic: Array,
    *,
    spec: TaskSpec,
    normalize: Normalize,
    unseen: Unseen | None,
    see: See | None = None,
) -> Array:
    """Actions [N, E, ...] of N tasks at observations [N, E, obs].

    Args:
        policy, parameters: the policy network.
        statistics: running statistics of the training tasks' observations, [T, obs].
        observation: raw.
        key: for drawing.
        deterministic: [] bool, the mode instead of a sample.
        spec: the training tasks.
        normalize: (statistics [N, obs], observation) -> what the network takes.
        unseen: the N tasks if they were not trained on: each is acted for by the mean of what belongs to single tasks.
        see: (the N tasks, normalised observations [N, E, obs]) -> what the network takes, where that differs.
    """
    tasks, masks, private = training_tasks(spec.num_tasks, spec.contexts), action_masks(spec), parameters.private
    if unseen is not None:
        tasks, masks = unseen_tasks(spec.num_tasks, unseen.contexts), unseen.masks
        private = repeat(of_unseen_task(parameters), len(masks))
        statistics = pooled(statistics, len(masks))
    view = normalize(statistics, observation)
    if see is not None:
        view = see(tasks, view)
    return act_on(policy, parameters._replace(private=private), tasks, masks, view, key, deterministic)


def act_on(
    policy: Policy, parameters: Parameters, tasks: Task, masks: Array, view: Array, key: Array, deterministic: Array
) -> Array:
    """Actions [N, E, ...] of N tasks, each with its own private parameters, at what the network takes, [N, E, ·]."""
    apply: Callable[[Any, Any, Task, Array], Any] = jax.vmap(policy.apply, in_axes=(None, 0, 0, 0))
    distribution = apply(parameters.shared, parameters.private, tasks, view)
    return choose(policy, distribution, masks, key, deterministic)


def choose(policy: Policy, distribution: Any, masks: Array, key: Array, deterministic: Array) -> Array:
    """The mode or a sample of the distributions of N tasks, as actions [N, E, ...]; ``masks`` are [N, A]."""
    family = policy.distribution
    sampled = jax.vmap(family.sample)(distribution, masks, jax.random.split(key, len(masks)))
    mode = jax.vmap(family.mode)(distribution, masks)
    return family.to_action(jnp.where(deterministic, mode, sampled))


def pooled(statistics: normalization.Statistics, number: int) -> normalization.Statistics:
    """The statistics of all training tasks together, for each of ``number`` others: [number, obs]."""
    return repeat(normalization.pooled(statistics), number)


def repeat(tree: Any, number: int) -> Any:
    """Every leaf [...] as [number, ...]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), tree)
