"""Distral (arXiv 1707.04175) with networks: one policy per task, regularised towards a distilled policy π₀.

The paper's policy gradient (section 3, equations 8 to 10), with PPO's clipped surrogate and advantages:

* each task maximises its regularised return, R + c_KL log π₀(a|s) − (c_KL + c_Ent) log π_i(a|s), where c_KL is the
  paper's α/β and c_KL + c_Ent its 1/β;
* π₀ maximises c_KL Σ_i E_{π_i} log π₀(a|s): the states come from each task's own experience, the expectation over
  actions is exact, and the divergence is KL(π_i ‖ π₀), never the reverse;
* with two columns, π_i ∝ π₀^α · exp(β f_i), so that behaviour common to the tasks takes effect at once and f_i learns
  only what is specific to its task (equation 8). For Gaussians, π_i is the product of π₀^α and a Gaussian of the task's
  own, which is again a Gaussian; β is not used, since the task's Gaussian has a scale of its own.

Everything else (advantages, minibatches, gradient surgery on π₀, vmapped seeds) is :mod:`mtjax.learners.ppo`.
`mtjax.learners.distral_tabular` solves the same objective exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.learners.agent import choose, pooled
from mtjax.learners.base import Learner, TaskSpec, Transitions, Unseen
from mtjax.learners.config import DistralConfig
from mtjax.learners.minibatches import Minibatch, check_minibatches, task_major, time_major
from mtjax.learners.ppo import PPO, PPOState, weighted_mean
from mtjax.networks.base import Parameters
from mtjax.networks.config import NetworkConfig
from mtjax.networks.distributions import Normal, within_bounds
from mtjax.networks.policy import Policy, make_policy
from mtjax.networks.task import Task, training_tasks

Array = jax.Array


class Distral(PPO):
    """PPO whose policies are regularised by, and distilled into, a policy that is not told the task."""

    def _make_policy(self, network: NetworkConfig) -> Policy:
        """Parameters: shared {"prior": π₀, "task": what the tasks' networks share}, private {"task": the rest}."""
        spec, alpha, beta = self.spec, self.config.alpha, self.config.beta
        sizes = {"inputs": spec.observation_size, "action": spec.action, "contexts": spec.context_size}
        plain = dataclasses.replace(network, arrangement="none", task_input="auto", encoder="auto", head="auto")
        blind = make_policy(plain, num_tasks=1, **sizes)
        column = make_policy(network, num_tasks=spec.num_tasks, **sizes)
        nobody = jax.tree.map(lambda leaf: leaf[0], training_tasks(1))

        def init(key: Array) -> Parameters:
            prior_key, task_key = jax.random.split(key)
            prior, task = blind.init(prior_key), column.init(task_key)
            of_nobody = jax.tree.map(lambda leaf: leaf[0], prior.private)
            shared = {"prior": {"network": prior.shared, "own": of_nobody}, "task": task.shared}
            return Parameters(shared, {"task": task.private})

        def apply_prior(shared: Any, observation: Array) -> Any:
            return blind.apply(shared["prior"]["network"], shared["prior"]["own"], nobody, observation)

        def apply(shared: Any, private: Any, task: Task, observation: Array) -> Any:
            own = column.apply(shared["task"], private["task"], task, observation)
            if self.config.columns == 1:
                return own
            return product(apply_prior(shared, observation), own, alpha, beta)

        def diagnose(shared: Any, private: Any, task: Task, observation: Array) -> Any:
            return column.diagnose(shared["task"], private["task"], task, observation)

        self.prior = apply_prior
        last = (*(f"prior/network/{start}" for start in blind.last_shared), *(f"task/{s}" for s in column.last_shared))
        return Policy(init, apply, column.distribution, diagnose, last)

    def _shape_reward(self, state: PPOState, rollout: Transitions, observation: Array, reward: Array) -> Array:
        """R + c_KL log π₀(a|s) − (c_KL + c_Ent) log π_i(a|s), evaluated with the policies that acted."""
        shared = state.params["policy"].shared
        prior = jax.vmap(self.prior, in_axes=(None, 0))(shared, observation)
        raw = task_major(rollout.extras["raw_action"])
        log_prior = jax.vmap(self.policy.distribution.log_prob)(prior, self.masks, raw)
        kl, entropy = self.config.distral_kl_cost, self.config.distral_entropy_cost
        log_prior = time_major(log_prior, reward.shape)
        return reward + kl * log_prior - (kl + entropy) * rollout.extras["log_prob"]

    def _further_loss(
        self, shared: Mapping[str, Any], p: Any, mask: Array, batch: Minibatch, hyper: Any
    ) -> tuple[Array, Mapping[str, Array]]:
        """c_KL · KL(π_i ‖ π₀), which trains only π₀: a maximum-likelihood fit to the actions of the task's policy."""
        prior = self.prior(shared["policy"], batch.observation)
        divergence = weighted_mean(self.policy.distribution.kl(jax.lax.stop_gradient(p), prior, mask), batch.weight)
        return self.config.distral_kl_cost * divergence, {"kl/prior": divergence}

    def evaluation_policy(
        self, state: PPOState, observation: Array, key: Array, deterministic: Array, unseen: Unseen | None = None
    ) -> Array:
        """As PPO's; in tasks that were not trained on, π₀ acts."""
        if unseen is None:
            return super().evaluation_policy(state, observation, key, deterministic)
        normalized = self._normalize(pooled(state.observations, unseen), observation)
        prior = jax.vmap(self.prior, in_axes=(None, 0))(state.params["policy"].shared, normalized)
        return choose(self.policy, prior, unseen.masks, key, deterministic)


def product(prior: Any, own: Any, alpha: Array | float, beta: Array | float) -> Any:
    """π_i ∝ π₀^α · exp(β f_i) (equation 8).

    Args:
        prior: parameters of π₀: logits [..., A], or a Normal.
        own: parameters of the task's own column.
        alpha: α in [0, 1]; at 0 only the task's own column counts.
        beta: β, which scales the logits of the own column, and thereby the column's learning speed, since Adam's steps
            do not depend on the scale of the gradient. A Normal is not scaled.
    """
    if not isinstance(own, Normal):
        return alpha * prior + beta * own
    precision_prior = alpha * jnp.exp(-2.0 * prior.log_scale)
    precision_own = jnp.exp(-2.0 * own.log_scale)
    precision = precision_prior + precision_own
    mean = (precision_prior * prior.mean + precision_own * own.mean) / precision
    return Normal(mean, within_bounds(-0.5 * jnp.log(precision)))


def make_distral(
    config: DistralConfig,
    network: NetworkConfig,
    method: Any,
    spec: TaskSpec,
    *,
    num_envs: int,
    num_updates: int,
) -> Learner:
    """Distral as a Learner.

    Args:
        config: hyper-parameters.
        network: sizes of all networks, and the arrangement of the tasks' own policies and values; the paper uses
            "independent". π₀ is one network that is not told the task.
        method: a method of mtjax.grads for the gradients of π₀ (and of whatever else the arrangement shares).
        spec: tasks and spaces.
        num_envs: E, environments of one task.
        num_updates: updates of the whole run, for learning-rate schedules.

    Raises:
        ValueError: the rollout cannot be divided into the requested minibatches; or ``policy_encoder`` is not "own".
    """
    check_minibatches(config, num_envs)
    if network.policy_encoder != "own":
        raise ValueError("policy_encoder: distral supports only 'own'; its policies share no encoder with the values")
    learner = Distral(config, network, method, spec, num_envs=num_envs, num_updates=num_updates).learner()
    # π₀ acts in unseen tasks, whatever the arrangement; without a KL cost nothing trains it.
    return learner._replace(generalises=config.distral_kl_cost > 0)
