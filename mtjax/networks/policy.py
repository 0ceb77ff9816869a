"""The policy: an arrangement whose output parameterises an action distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec
from mtjax.networks.arrangements import make_network
from mtjax.networks.base import Network, Parameters, Weights
from mtjax.networks.config import NetworkConfig
from mtjax.networks.distributions import Distribution, Normal, distribution, within_bounds
from mtjax.networks.task import Task

Array = jax.Array


class Policy(NamedTuple):
    """A multi-task policy.

    Attributes:
        init: key -> Parameters.
        apply: (shared, private of one task, task, observation [..., obs]) -> distribution parameters.
        distribution: the family to which those parameters belong.
        diagnose: as in Network.
        last_shared: path prefixes of its last shared layers, as in Network.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task, Array], Any]
    distribution: Distribution
    diagnose: Callable[[Any, Any, Task, Array], Weights]
    last_shared: tuple[str, ...]


def make_policy(config: NetworkConfig, *, inputs: int, action: ActionSpec, num_tasks: int, contexts: int = 0) -> Policy:
    """Build the policy network of ``config`` for a given observation size and action space."""
    family = distribution(action, squash=config.squash)
    free_scale = action.kind == "continuous" and config.scale == "free"
    state_scale = action.kind == "continuous" and config.scale == "state"
    network: Network = make_network(
        config,
        inputs=inputs,
        outputs=action.size * (2 if state_scale else 1),
        num_tasks=num_tasks,
        sizes=config.hidden_sizes,
        gain=0.01,
        contexts=contexts,
    )

    def init(key: Array) -> Parameters:
        parameters = network.init(key)
        if not free_scale:
            return parameters
        log_scale = jnp.full((num_tasks, action.size), config.initial_log_scale, jnp.float32)
        return parameters._replace(private={**parameters.private, "log_scale": log_scale})

    def apply(shared: Any, private: Any, task: Task, observation: Array) -> Any:
        output = network.apply(shared, private, task, observation)
        if action.kind == "discrete":
            return output
        if free_scale:
            return Normal(output, within_bounds(private["log_scale"]))
        mean, log_scale = jnp.split(output, 2, axis=-1)
        return Normal(mean, within_bounds(log_scale + config.initial_log_scale))

    return Policy(init, apply, family, network.diagnose, (network.last_shared,))
