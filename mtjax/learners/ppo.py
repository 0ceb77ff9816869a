"""Proximal policy optimisation (arXiv 1707.06347) over the whole task axis.

One update, top to bottom: `_targets` turns a rollout into per-task advantages and value targets, `_epochs`
iterates over minibatches, and `_step` computes one loss per task, one gradient per task, combines the gradients of
shared parameters with a transform of :mod:`mtjax.grads`, and applies Adam. There is one code path: plain
averaging is the weighting 1/T, one agent per task is the arrangement that shares nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtjax import grads, sharding
from mtjax.learners import detours, normalization, popart
from mtjax.learners.agent import Agent
from mtjax.learners.base import Learner, TaskSpec, Transitions
from mtjax.learners.config import PPOConfig
from mtjax.learners.descent import clipped_adam, combine, of_network, over_steps
from mtjax.learners.minibatches import Minibatch, check_minibatches, pack, shuffled, task_major, time_major
from mtjax.learners.returns import discounted_sums, generalized_advantages, next_values
from mtjax.learners.scaling import in_deviations
from mtjax.networks.base import Network, Parameters
from mtjax.networks.config import NetworkConfig
from mtjax.networks.diagnostics import OBSERVATIONS, diagnose
from mtjax.networks.shared_encoder import behind, own, through
from mtjax.networks.task import Task

Array = jax.Array


class Hyper(NamedTuple):
    """Hyper-parameters that are leaves of the state, so that they vmap along with the seeds. All [] float32."""

    learning_rate: Array
    discount: Array
    gae_lambda: Array
    clip: Array
    entropy_cost: Array


class PPOState(NamedTuple):
    """State of one seed.

    Attributes:
        params: {"policy": Parameters, "value": Parameters}.
        shared_optimizer, private_optimizer: optax states; the private one leads with [T].
        grads: states of the gradient transforms, by part of the network (see ``PPO._parts``).
        observations: running statistics [T, obs].
        returns: running statistics [T] of discounted returns, by which rewards are scaled.
        return_sums: [T, E] discounted sums of the running episodes' rewards.
        hyper: see Hyper.
        exploration: state of the exploration bonus; None without one.
        rate_factor: [] factor of the adaptive KL rule on the learning rate.
        updates: [] int32, updates so far.
    """

    params: dict[str, Parameters]
    shared_optimizer: Any
    private_optimizer: Any
    grads: dict[str, Any]
    observations: normalization.Statistics
    returns: normalization.Statistics
    return_sums: Array
    hyper: Hyper
    rate_factor: Array
    updates: Array
    exploration: Any = None


class PPO(Agent):
    """The pure functions of one configuration. Holds no state.

    A learner that differs from PPO in its policy, its reward or an additional loss overrides `_make_policy`,
    `_shape_reward` or `_further_loss`.
    """

    teacher = "value"

    def __init__(
        self,
        config: PPOConfig,
        network: NetworkConfig,
        method: Any,
        spec: TaskSpec,
        *,
        num_envs: int,
        num_updates: int,
    ):
        super().__init__(config, network, spec, num_envs=num_envs)
        self.num_updates = num_updates
        self.both_teach = network.policy_encoder == "both"
        self.policy = self._make_policy(behind(self.encoder, network))
        value = behind(self.encoder, network.of_value())
        self.value: Network = self._make_value(value, inputs=self.view_size, outputs=1)
        if self.encoder:
            self.value = through(self.encoder, self.value)
        if config.return_scaling == "popart":
            self.value = popart.with_unit(self.value, spec.num_tasks)
        self.parts = ("policy", "value") if config.surgery == "separate" else ("all",)
        self.methods = {part: of_network(method, last) for part, last in self._last_shared().items()}
        self.optimizer = clipped_adam(max_grad_norm=config.max_grad_norm, epsilon=config.adam_epsilon)

    def learner(self) -> Learner:
        """These functions as a Learner."""
        planned = self._plan_detours if self.config.detour_share else None
        return Learner(
            self.init, self.act, self.update, self.evaluation_policy, self.generalises, detours=planned, cut=self.cut
        )

    # ------------------------------------------------------------------------------------------ state

    def init(self, key: Array) -> PPOState:
        policy_key, value_key, grads_key = jax.random.split(key, 3)
        params = {"policy": self.policy.init(policy_key), "value": self.value.init(value_key)}
        shared, private = split(params)
        tasks, envs = self.spec.num_tasks, self.num_envs
        config = self.config
        return PPOState(
            params=params,
            shared_optimizer=self.optimizer.init(shared),
            private_optimizer=jax.vmap(self.optimizer.init, axis_size=self.spec.num_tasks)(private),
            grads={
                part: self._transform(part, jax.random.fold_in(grads_key, index)).init(tree)
                for index, (part, tree) in enumerate(self._parts(shared).items())
                if jax.tree.leaves(tree)
            },
            observations=normalization.init(tasks, (self.spec.observation_size,)),
            returns=normalization.init(tasks),
            return_sums=jnp.zeros((tasks, envs), jnp.float32),
            hyper=Hyper(*(jnp.asarray(getattr(config, name), jnp.float32) for name in Hyper._fields)),
            rate_factor=jnp.ones((), jnp.float32),
            updates=jnp.zeros((), jnp.int32),
            exploration=self.exploration.init(jax.random.fold_in(key, 3)) if self.exploration else None,
        )

    def cut(self, state: PPOState) -> PPOState:
        return state._replace(return_sums=jnp.zeros_like(state.return_sums))

    def _parts(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The parameter trees that each have their own Gram matrix: policy and value, or both as one."""
        return {"all": shared} if self.parts == ("all",) else {part: shared[part] for part in self.parts}

    def _last_shared(self) -> dict[str, tuple[str, ...]]:
        """Path prefixes of the last shared layers, for each of ``_parts``."""
        each = {"policy": self.policy.last_shared, "value": (self.value.last_shared,)}
        if self.parts != ("all",):
            return each
        return {"all": tuple(f"{name}/{start}" for name, starts in each.items() for start in starts)}

    def _transform(self, part: str, key: Array | int = 0) -> optax.GradientTransformationExtraArgs:
        tasks = self.spec.num_tasks  # a single task has no conflicts to measure
        return grads.aggregate(self.methods[part], num_tasks=tasks, seed=key, track_gram=tasks > 1)

    # ------------------------------------------------------------------------------------------ acting

    def act(self, state: PPOState, observation: Array, key: Array) -> tuple[Array, Mapping[str, Any]]:
        distribution = self._distribution(state, self._normalize(state.observations, observation))
        family = self.policy.distribution
        keys = jax.random.split(key, self.spec.num_tasks)
        raw = jax.vmap(family.sample)(distribution, self.masks, keys)
        log_prob = jax.vmap(family.log_prob)(distribution, self.masks, raw)
        extras = {"raw_action": raw, "log_prob": log_prob}
        return family.to_action(raw), extras

    def _plan_detours(self, state: PPOState, key: Array, length: int) -> detours.Detours:
        """Draw the detours of a rollout of ``length`` steps."""
        return detours.draw(
            key,
            self.masks,
            self.spec.action,
            share=self.config.detour_share
            * self._remaining(state, self.config.detour_schedule, part=self.config.detour_part),
            longest=self.config.detour_steps,
            length=length,
            num_envs=self.num_envs,
        )

    # ------------------------------------------------------------------------------------------ learning

    def update(self, state: PPOState, rollout: Transitions, key: Array) -> tuple[PPOState, Mapping[str, Array]]:
        rate = self._learning_rate(state)
        exploration, bonus = self._explore(state, rollout)
        batch, returns, return_sums = self._targets(state, rollout, bonus)
        if self.config.return_scaling == "popart":
            value = popart.renewed(state.params["value"], batch.target, self.config.popart_step, batch.weight)
            state = state._replace(params={**state.params, "value": value})
        state, metrics = self._epochs(state, batch, key)
        if self.exploration:
            metrics["exploration/bonus"] = bonus.mean(axis=(0, 2))
        observations = state.observations
        if self.config.normalize_observations:
            observations = normalization.update(observations, rollout.observation, axes=(0, 2))
        (_, missed), (_, total) = (_moments(x, batch.weight) for x in (batch.target - batch.value, batch.target))
        metrics["explained_variance"] = 1.0 - (missed / (total + 1e-8))[:, 0]
        metrics["learning_rate"] = rate
        looked_at = batch.observation[:, :OBSERVATIONS]
        view = self._see(state.params["value"], self.tasks, looked_at)
        metrics |= diagnose(self.policy, state.params["policy"], self.tasks, view, "policy")
        metrics |= diagnose(self.value, state.params["value"], self.tasks, looked_at, "value")
        state = state._replace(
            observations=observations,
            returns=returns,
            return_sums=return_sums,
            exploration=exploration,
            updates=state.updates + 1,
        )
        return state, metrics

    def _explore(self, state: PPOState, rollout: Transitions) -> tuple[Any, Array]:
        """The updated state of the exploration bonus, and the bonus [H, T, E] of a rollout's steps."""
        if self.exploration is None:
            return None, jnp.zeros((), jnp.float32)
        return self.exploration.step(state.exploration, rollout.final_observation)

    def _targets(self, state: PPOState, rollout: Transitions, bonus: Array | float = 0.0):
        """Scale rewards, evaluate the critic, estimate advantages. Returns ([T, H·E] batch, returns, return_sums)."""
        config, hyper = self.config, state.hyper
        reward = rollout.reward * config.reward_scale
        done = rollout.terminated | rollout.truncated
        detour = rollout.extras.get("detour")  # [H, T, E] bool
        returns, return_sums = state.returns, state.return_sums
        if config.return_scaling == "running":
            own = reward if detour is None else jnp.where(detour, 0.0, reward)  # a detour's reward isn't the policy's
            return_sums, sums = discounted_sums(return_sums, own, done, discount=hyper.discount)
            counted = None if detour is None else 1.0 - detour
            returns = normalization.update(returns, sums, axes=(0, 2), weight=counted)
            reward = in_deviations(returns, reward)
        observation = self._normalize(state.observations, task_major(rollout.observation))
        reward = self._shape_reward(state, rollout, observation, reward) + config.exploration_bonus * bonus
        final = sharding.replicated(task_major(rollout.final_observation))  # only few rows of it are gathered
        value = self._values(state.params["value"], observation)
        values = time_major(value, reward.shape)

        def of_final(steps: Array) -> Array:
            chosen = jnp.take_along_axis(final, steps[:, :, None], axis=1, mode="clip")
            chosen = sharding.sharded(chosen, axis=1)
            return self._values(state.params["value"], self._normalize(state.observations, chosen))

        ended = rollout.truncated if detour is None else rollout.truncated | detours.before(detour)
        weight = None if detour is None else 1.0 - task_major(detour)
        advantage, target = generalized_advantages(
            reward,
            values,
            next_values(values, done, of_final),
            rollout.terminated,
            ended,
            discount=hyper.discount,
            gae_lambda=hyper.gae_lambda,
        )
        advantage = task_major(advantage)
        if config.normalize_advantages:
            mean, variance = _moments(advantage, weight)
            advantage = (advantage - mean) / (jnp.sqrt(variance) + 1e-8)
        batch = Minibatch(
            observation=observation,
            raw_action=task_major(rollout.extras["raw_action"]),
            log_prob=task_major(rollout.extras["log_prob"]),
            distribution=self._old_distribution(state, observation),
            advantage=advantage,
            target=task_major(target),
            value=value,
            weight=weight,
        )
        return batch, returns, return_sums

    def _shape_reward(self, state: PPOState, rollout: Transitions, observation: Array, reward: Array) -> Array:
        """The reward to learn from, given the scaled one [H, T, E]; ``observation`` [T, H·E, obs] is normalised."""
        return reward

    def _values(self, p: Parameters, observation: Array) -> Array:
        """Values [T, B] of normalised observations [T, B, obs]."""
        apply = jax.vmap(self.value.apply, in_axes=(None, 0, 0, 0))
        return apply(p.shared, p.private, self.tasks, observation)[..., 0]

    def _old_distribution(self, state: PPOState, observation: Array) -> Any:
        """The distributions that acted; () unless the exact KL penalty needs them."""
        if not self.config.kl_cost:
            return ()
        old = self._distribution(state, observation)
        widen = jax.vmap(lambda leaf, like: jnp.broadcast_to(leaf, like.shape))
        like = jax.tree.leaves(old)[0]
        return jax.tree.map(lambda leaf: widen(leaf[:, None] if leaf.ndim == 2 else leaf, like), old)

    def _epochs(self, state: PPOState, batch: Minibatch, key: Array):
        """Make one step on each of ``num_epochs`` × ``num_minibatches`` minibatches, which hold all tasks."""
        config = self.config
        order_key, loss_key = jax.random.split(key)

        rows, unpack = pack(batch)
        rows = sharding.replicated(rows)  # a minibatch gathers rows from anywhere
        order = shuffled(order_key, batch.advantage.shape[1], config.num_epochs, config.num_minibatches)

        def visit(carry, step):
            state, active = carry
            indices, index = step
            minibatch = unpack(sharding.sharded(jnp.take(rows, indices, axis=1, mode="clip"), axis=1))
            new, metrics = self._step(state, minibatch, jax.random.fold_in(loss_key, index))
            if config.target_kl:
                active = active & (metrics["kl"].mean() <= 1.5 * config.target_kl)  # measured before this step
                new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
            return (new, active), metrics

        steps = (order, jnp.arange(order.shape[0], dtype=jnp.int32))
        (state, _), metrics = jax.lax.scan(visit, (state, jnp.ones((), bool)), steps)
        metrics = over_steps(metrics)
        if config.adaptive_kl:  # a minibatch's own "kl" is measured before its step: at first it is 0
            last = unpack(sharding.sharded(jnp.take(rows, order[-1], axis=1, mode="clip"), axis=1))
            state = state._replace(rate_factor=self._adapt(state.rate_factor, self._divergence(state, last).mean()))
        return state, metrics

    def _divergence(self, state: PPOState, minibatch: Minibatch) -> Array:
        """[T] KL divergence between the policies that acted and these, estimated like the metric "kl"."""
        distribution = self._distribution(state, minibatch.observation)
        log_prob = jax.vmap(self.policy.distribution.log_prob)(distribution, self.masks, minibatch.raw_action)
        log_ratio = log_prob - minibatch.log_prob
        return _moments(jnp.exp(log_ratio) - 1.0 - log_ratio, minibatch.weight)[0][:, 0]

    def _step(self, state: PPOState, minibatch: Minibatch, key: Array):
        """One loss per task, one gradient per task, one update."""
        shared, private = split(state.params)
        remaining = self._remaining(state, self.config.entropy_schedule)
        hyper = state.hyper._replace(entropy_cost=state.hyper.entropy_cost * remaining)
        value_and_grad = jax.value_and_grad(self.task_loss, argnums=(0, 1), has_aux=True)
        (_, aux), (shared_grads, private_grads) = jax.vmap(value_and_grad, in_axes=(None, 0, 0, 0, 0, None, None))(
            shared, private, self.tasks, self.masks, minibatch, hyper, key
        )
        direction, grads_state, diagnostics = self._combine(state.grads, shared, shared_grads, aux)
        step, shared_optimizer = self.optimizer.update(direction, state.shared_optimizer, shared)
        private_step, private_optimizer = jax.vmap(self.optimizer.update, axis_size=self.spec.num_tasks)(
            private_grads, state.private_optimizer, private
        )
        rate = self._learning_rate(state)

        def descend(params: Any, steps: Any) -> Any:
            return jax.tree.map(lambda p, s: p - rate * s, params, steps)

        state = state._replace(
            params=join(descend(shared, step), descend(private, private_step)),
            shared_optimizer=shared_optimizer,
            private_optimizer=private_optimizer,
            grads=grads_state,
        )
        return state, {**aux, **diagnostics}

    def _combine(self, states: Mapping[str, Any], shared: Any, task_grads: Any, losses: Mapping[str, Array]):
        """Combine one gradient per task [T, ...] into one direction, and measure the conflict between gradients."""
        if not states:  # nothing is shared, so nothing can conflict
            return shared, {}, {}  # trees without leaves, and so is the direction
        params, gradients = self._parts(shared), self._parts(task_grads)
        directions = {part: tree for part, tree in params.items() if part not in states}  # empty trees
        of_part = {  # the losses that each part's gradients belong to
            "all": losses["loss"],
            "policy": losses["loss/policy"],
            "value": self.config.value_cost * losses["loss/value"],
        }
        new_states: dict[str, Any] = {}
        diagnostics: dict[str, Array] = {}
        for part in states:
            directions[part], new_states[part], known = combine(
                self._transform(part), gradients[part], states[part], params[part], of_part[part]
            )
            suffix = "" if part in ("all", "policy") else f"/{part}"
            diagnostics |= {f"grads/{name}{suffix}": value for name, value in known.items()}
        direction = directions["all"] if "all" in directions else directions
        return direction, new_states, diagnostics

    def task_loss(
        self,
        shared: Mapping[str, Any],
        private: Mapping[str, Any],
        task: Task,
        mask: Array,
        batch: Minibatch,
        hyper: Hyper,
        key: Array,
    ) -> tuple[Array, Mapping[str, Array]]:
        """The loss of ONE task on its minibatch [B, ...], and its components and other metrics by name."""
        config, family = self.config, self.policy.distribution
        mean = functools.partial(weighted_mean, weight=batch.weight)
        view = batch.observation
        if self.encoder:
            view = self.encoder.apply(own(shared["value"]), own(private["value"]), task, view)
            view = view if self.both_teach else jax.lax.stop_gradient(view)
        p = self.policy.apply(shared["policy"], private["policy"], task, view)
        log_ratio = family.log_prob(p, mask, batch.raw_action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1.0 - hyper.clip, 1.0 + hyper.clip)
        surrogate = -mean(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))
        entropy = mean(family.entropy(p, mask, key))
        policy_loss = surrogate - hyper.entropy_cost * entropy
        if config.bound_cost:
            policy_loss += config.bound_cost * mean(family.excess(p, mask))
        if config.kl_cost:
            policy_loss += config.kl_cost * mean(family.kl(batch.distribution, p, mask))
        further, known = self._further_loss(shared, p, mask, batch, hyper)
        policy_loss += further

        value = self.value.apply(shared["value"], private["value"], task, batch.observation)[..., 0]
        unit = popart.deviation(private["value"])  # unit of this task's values
        error = jnp.square((value - batch.target) / unit)
        if config.value_clip:
            near = batch.value + unit * jnp.clip((value - batch.value) / unit, -config.value_clip, config.value_clip)
            error = jnp.maximum(error, jnp.square((near - batch.target) / unit))
        value_loss = 0.5 * mean(error)
        loss = policy_loss + config.value_cost * value_loss
        return loss, {
            "loss": loss,
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "entropy": entropy,
            "kl": mean(ratio - 1.0 - log_ratio),
            "clip_fraction": mean((jnp.abs(ratio - 1.0) > hyper.clip).astype(jnp.float32)),
            **known,
        }

    def _further_loss(
        self, shared: Mapping[str, Any], p: Any, mask: Array, batch: Minibatch, hyper: Any
    ) -> tuple[Array | float, Mapping[str, Array]]:
        """A loss to add to ONE task's policy loss, given its distribution ``p`` [B, ...], and metrics by name."""
        return 0.0, {}

    def _learning_rate(self, state: PPOState) -> Array:
        remaining = self._remaining(state, self.config.learning_rate_schedule)
        return state.hyper.learning_rate * state.rate_factor * remaining

    def _remaining(self, state: PPOState, schedule: str, part: float = 1.0) -> Array | float:
        """The factor that a schedule applies at this update; it is 0 after the first ``part`` of the run (1: all)."""
        progress = state.updates.astype(jnp.float32) / (part * self.num_updates)
        return {
            "constant": lambda: 1.0 if part == 1.0 else jnp.where(progress < 1.0, 1.0, 0.0),
            "linear": lambda: jnp.maximum(1.0 - progress, 0.0),
            "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(progress, 1.0))),
        }[schedule]()

    def _adapt(self, factor: Array, kl: Array) -> Array:
        """Lower the learning rate after a large KL, raise it after a small one (factor 1.5, within 1/30..30)."""
        lower, upper = kl > 2.0 * self.config.adaptive_kl, kl < 0.5 * self.config.adaptive_kl
        return jnp.clip(factor * jnp.where(lower, 1 / 1.5, jnp.where(upper, 1.5, 1.0)), 1 / 30, 30.0)


def make_ppo(
    config: PPOConfig,
    network: NetworkConfig,
    method: Any,
    spec: TaskSpec,
    *,
    num_envs: int,
    num_updates: int,
) -> Learner:
    """PPO as a Learner.

    Args:
        config: hyper-parameters.
        network: arrangement and sizes of policy and value networks.
        method: a method of mtjax.grads, e.g. ``grads.pcgrad()``.
        spec: tasks and spaces.
        num_envs: E, environments of one task.
        num_updates: updates of the whole run, for learning-rate schedules.

    Raises:
        ValueError: the rollout cannot be divided into the requested minibatches.
    """
    check_minibatches(config, num_envs)
    return PPO(config, network, method, spec, num_envs=num_envs, num_updates=num_updates).learner()


def weighted_mean(x: Array, weight: Array | None) -> Array:
    """Mean [] of the entries of x [B] with weight 1; 0 if there are none."""
    return x.mean() if weight is None else jnp.sum(x * weight) / jnp.maximum(weight.sum(), 1.0)


def _moments(x: Array, weight: Array | None) -> tuple[Array, Array]:
    """Mean and variance [T, 1] of the entries of x [T, B] with weight 1 (0 where there are none)."""
    mean, variance, _ = normalization.moments(x, (1,), weight)
    return mean[:, None], variance[:, None]


def split(params: Mapping[str, Parameters]) -> tuple[dict[str, Any], dict[str, Any]]:
    """{"policy": Parameters, …} → (shared trees by name, private trees by name)."""
    return {k: p.shared for k, p in params.items()}, {k: p.private for k, p in params.items()}


def join(shared: Mapping[str, Any], private: Mapping[str, Any]) -> dict[str, Parameters]:
    """The inverse of :func:`split`."""
    return {k: Parameters(shared[k], private[k]) for k in shared}
