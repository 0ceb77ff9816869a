"""What PPO and SAC have in common: networks behind an optional shared encoder, and the policy in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.learners import normalization
from mtjax.learners.base import TaskSpec, Unseen, action_masks
from mtjax.learners.exploration import make_exploration
from mtjax.networks.arrangements import make_network
from mtjax.networks.base import Network, Parameters
from mtjax.networks.config import NetworkConfig
from mtjax.networks.policy import Policy, make_policy
from mtjax.networks.shared_encoder import make_shared_encoder, see
from mtjax.networks.task import Task, training_tasks, unseen_tasks

Array = jax.Array
See = Callable[[Parameters, Task, Array], Array]


class Agent:
    """The pure functions of one configuration of a policy and its critic (or value network). Holds no state.

    The agent's state has ``params`` {"policy": Parameters, ``teacher``: Parameters}, and ``observations``, the running
    statistics of observations.
    """

    teacher: str  # key of the parameters that hold the shared encoder, if there is one
    policy: Policy

    def __init__(self, config: Any, network: NetworkConfig, spec: TaskSpec, *, num_envs: int):
        self.config, self.spec, self.num_envs = config, spec, num_envs
        self.generalises = network.generalises
        self.encoder = make_shared_encoder(
            network, inputs=spec.observation_size, num_tasks=spec.num_tasks, contexts=spec.context_size
        )
        self.tasks: Task = training_tasks(spec.num_tasks, spec.contexts)
        self.masks = action_masks(spec)
        self.exploration = make_exploration(config, num_tasks=spec.num_tasks, observation_size=spec.observation_size)

    @property
    def view_size(self) -> int:
        """Input size of the trunks: that of an observation, or of the shared encoder's output."""
        return self.encoder.width if self.encoder else self.spec.observation_size

    def _make_policy(self, network: NetworkConfig) -> Policy:
        """Build the policy; its input is the shared encoder's output, if there is a shared encoder."""
        spec = self.spec
        return make_policy(
            network,
            inputs=self.view_size,
            action=spec.action,
            num_tasks=spec.num_tasks,
            contexts=spec.context_size,
        )

    def _make_value(self, value: NetworkConfig, *, inputs: int, outputs: int) -> Network:
        """Build the body of a value network or critic; ``inputs`` are counted after the shared encoder, if any."""
        return make_network(
            value,
            inputs=inputs,
            outputs=outputs,
            num_tasks=self.spec.num_tasks,
            sizes=value.hidden_sizes,
            gain=1.0,
            contexts=self.spec.context_size,
        )

    def _normalize(self, statistics: normalization.Statistics, observation: Array) -> Array:
        if not self.config.normalize_observations:
            return observation
        return normalization.normalize(statistics, observation, clip=self.config.observation_clip)

    def _see(self, teacher: Parameters, tasks: Task, observation: Array) -> Array:
        """The inputs of the policies of N tasks at normalised observations [N, B, obs]."""
        return see(self.encoder, teacher, tasks, observation)

    def _distribution(self, state: Any, observation: Array) -> Any:
        """The policies' distributions at normalised observations [T, B, obs]."""
        view = self._see(state.params[self.teacher], self.tasks, observation)
        return apply(self.policy, state.params["policy"], self.tasks, view)

    def evaluation_policy(
        self,
        state: Any,
        observation: Array,
        key: Array,
        deterministic: Array,
        unseen: Unseen | None = None,
        through: See | None = None,
    ) -> Array:
        """Actions [N, E, ...] of N tasks at observations [N, E, obs].

        Args:
            state: state of the agent.
            observation: raw observations.
            key: for sampling.
            deterministic: [] bool, return the mode instead of a sample.
            unseen: the N tasks, if they were not trained on: parameters and statistics of single tasks are then
                replaced by their average over the training tasks that each is related to.
            through: replaces ``_see``.
        """
        tasks, masks, statistics = self.tasks, self.masks, state.observations
        policy, private = state.params["policy"], state.params["policy"].private
        if unseen is not None:
            tasks = unseen_tasks(self.spec.num_tasks, unseen.contexts, unseen.relatives)
            masks, private, statistics = unseen.masks, unseen.average(private), pooled(statistics, unseen)
        view = (through or self._see)(state.params[self.teacher], tasks, self._normalize(statistics, observation))
        distribution = apply(self.policy, policy._replace(private=private), tasks, view)
        return choose(self.policy, distribution, masks, key, deterministic)


def apply(policy: Policy, parameters: Parameters, tasks: Task, view: Array) -> Any:
    """The distributions of N tasks, each with its own private parameters, at network inputs ``view`` [N, B, ·]."""
    over_tasks: Callable[[Any, Any, Task, Array], Any] = jax.vmap(policy.apply, in_axes=(None, 0, 0, 0))
    return over_tasks(parameters.shared, parameters.private, tasks, view)


def choose(policy: Policy, distribution: Any, masks: Array, key: Array, deterministic: Array) -> Array:
    """The mode or a sample of the distributions of N tasks, as actions [N, E, ...]; ``masks`` are [N, A]."""
    family = policy.distribution
    sampled = jax.vmap(family.sample)(distribution, masks, jax.random.split(key, len(masks)))
    mode = jax.vmap(family.mode)(distribution, masks)
    return family.to_action(jnp.where(deterministic, mode, sampled))


def pooled(statistics: normalization.Statistics, unseen: Unseen) -> normalization.Statistics:
    """The statistics [N, obs] of unseen tasks, each pooled over the training tasks that it is related to."""
    if unseen.relatives is not None:
        return jax.vmap(normalization.pooled, in_axes=(None, 0))(statistics, unseen.relatives)
    number = len(unseen.masks)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), normalization.pooled(statistics))
