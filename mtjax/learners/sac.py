"""Soft actor-critic (arXiv 1812.05905; discrete actions: 1910.07207) over the whole task axis, i.e. MTSAC.

One update, top to bottom: `_take_in` stores a rollout, `_explore` updates the exploration bonus with it (if there is
one), `_learn` makes gradient steps, and `_step` is one of them: on a batch with equally many transitions of every task,
one loss and one gradient per task for the critics, then for the policy, each combined with a transform of
:mod:`mtjax.grads`; then one temperature per task, and the target critics.

A loss sees ONE task's batch. There is one code path: plain averaging is the weighting 1/T, one agent per task is
the arrangement that shares nothing, and one task is T = 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtjax.learners import critics, normalization, paco
from mtjax.learners.agent import Agent
from mtjax.learners.base import Adaptation, Learner, TaskSpec, Transitions
from mtjax.learners.config import SACConfig
from mtjax.learners.critics import Candidates
from mtjax.learners.descent import (
    Descent,
    DescentState,
    gradient_method,
    of_network,
    optimizer,
    over_steps,
    polyak,
)
from mtjax.learners.replay import GIGABYTE, Buffer, Replay, Sample
from mtjax.learners.scaling import RewardScale, make_reward_scaling
from mtjax.learners.transfer import fine_tuning
from mtjax.networks.base import Parameters
from mtjax.networks.config import NetworkConfig
from mtjax.networks.diagnostics import diagnose
from mtjax.networks.shared_encoder import behind
from mtjax.networks.task import Task

Array = jax.Array
MANY = 2**31 - 1  # beyond it, int32 would turn negative and the initial random actions would start again
OF_TASK = Parameters(None, 0)  # vmap axes of a network: one task gets all shared parameters and its private slice


class Hyper(NamedTuple):
    """Hyper-parameters that are leaves of the state, so that they vmap along with the seeds. All [] float32."""

    learning_rate: Array
    critic_learning_rate: Array
    temperature_learning_rate: Array
    discount: Array
    polyak: Array
    target_entropy_scale: Array
    discrete_entropy_scale: Array


class SACState(NamedTuple):
    """State of one seed.

    Attributes:
        params: {"policy": Parameters, "critic": Parameters}; the critics' leaves are [N, ...] and [T, N, ...].
        targets: Parameters of the target critics.
        log_temperature: [T].
        descent: {"policy": DescentState, "critic": DescentState}; with PaCo's common weights, also "weights".
        temperature_optimizer: optax state.
        observations: running statistics [T, obs].
        rewards: statistics by which each task's rewards are scaled.
        replay: see Replay.
        seen: [] int32, transitions of each task stored so far, overwritten ones included; saturates at 2³¹ − 1.
        hyper: see Hyper.
        updates: [] int32, rollouts learnt from.
        exploration: state of the exploration bonus; None without one.
    """

    params: dict[str, Parameters]
    targets: Parameters
    log_temperature: Array
    descent: dict[str, DescentState]
    temperature_optimizer: Any
    observations: normalization.Statistics
    rewards: RewardScale
    replay: Replay
    seen: Array
    hyper: Hyper
    updates: Array
    exploration: Any = None


class Batch(NamedTuple):
    """Input of a gradient step: leaves are [T, B, ...] outside, [B, ...] inside a loss of one task.

    Attributes:
        observation, next_observation: normalised; the next one is the one before any reset.
        action: the action taken.
        reward: scaled.
        discount: γ; 0 where the step was terminal.
        view, next_view: the policies' inputs at the observations (see ``SAC._see``).
        bonus: weighted exploration bonus; part of the value targets, not of the reward. None without exploration.
    """

    observation: Array
    action: Array
    reward: Array
    discount: Array
    next_observation: Array
    view: Array
    next_view: Array
    bonus: Array | None = None


class Known(NamedTuple):
    """What a loss knows about its task, besides the batch; leaves lead with [T] outside.

    Attributes:
        task: the task.
        mask: [A] real entries (or choices) of the action.
        temperature: [] α.
        weight: [] weight of this task's loss among the others.
        key: [2] for sampling actions: one for the target, one for the policy's loss.
    """

    task: Task
    mask: Array
    temperature: Array
    weight: Array
    key: Array


class SAC(Agent):
    """The pure functions of one configuration. Holds no state."""

    teacher = "critic"

    def __init__(self, config: SACConfig, network: NetworkConfig, method: Any, spec: TaskSpec, *, num_envs: int):
        super().__init__(config, network, spec, num_envs=num_envs)
        self.learns_on = network.generalises and network.of_value().generalises
        arriving = config.rollout_length * num_envs
        self.arriving = arriving
        self.num_steps = max(1, round(config.update_to_data * arriving))
        self.buffer = Buffer(
            spec,
            capacity=config.replay_capacity,
            arriving=arriving,
            limit=config.replay_limit * GIGABYTE,
            saved=config.checkpoint_replay,
        )
        self._check(config, network)
        network = dataclasses.replace(network, squash=True)  # log-probabilities must be those of the executed actions
        self.policy = self._make_policy(behind(self.encoder, network))
        self.head = critics.make_head(
            config.critic_head,
            reduction=config.critic_reduction,
            num_atoms=config.num_atoms,
            value_range=config.value_range,
        )
        self.critic = self._make_critic(network)
        self.rewards = make_reward_scaling(
            config.return_scaling,
            value_range=config.value_range,
            unscaled=config.exploration_bonus if self.exploration else 0.0,
        )
        adam = optimizer(
            max_grad_norm=config.max_grad_norm, epsilon=config.adam_epsilon, weight_decay=config.weight_decay
        )
        if config.critic_grads:
            critic_method = gradient_method(
                config.critic_grads, spec.num_tasks, "critic_grads", losses=self.negative_critic_losses
            )
        else:
            critic_method = method
        self.descent = {
            "policy": Descent(of_network(method, self.policy.last_shared), spec.num_tasks, adam),
            "critic": Descent(of_network(critic_method, self.critic.last_shared), spec.num_tasks, adam),
        }
        self.common = paco.CommonWeights(adam) if config.paco_weights == "shared" else None
        self.temperature_optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    @staticmethod
    def _check(config: SACConfig, network: NetworkConfig) -> None:
        """Reject options that do not fit together. Raises ValueError with a one-line message."""
        if network.policy_encoder == "both":
            raise ValueError(
                "policy_encoder: in SAC only the critics' loss trains the shared encoder; choose own or value"
            )
        weighs = [(one.arrangement, one.told) == ("paco", "none") for one in (network, network.of_value())]
        for name, given, fits in (
            ("paco_threshold", config.paco_threshold, any(weighs)),
            ("paco_weights", config.paco_weights != "own" and config.paco_weights, all(weighs)),
        ):
            if given and not fits:
                raise ValueError(
                    f"{name}: {given!r} has no effect with arrangement {network.arrangement!r} (critics: "
                    f"{network.of_value().arrangement!r}) and task_input {network.told!r}; it needs "
                    "arrangement=paco with task_input=none, where every task has its own weights"
                )
        if config.paco_threshold and config.critic_head == "categorical":
            raise ValueError("paco_threshold: set it to 0; a categorical critic's cross-entropy loss does not explode")

    def _make_critic(self, network: NetworkConfig) -> critics.Critic:
        config, spec = self.config, self.spec
        inputs, outputs = critics.inputs_and_outputs(self.view_size, spec.action, self.head)
        body = self._make_value(behind(self.encoder, network.of_value()), inputs=inputs, outputs=outputs)
        critic = critics.ensemble(body, config.num_critics, spec.action, self.head)
        return critics.through(self.encoder, critic, spec.observation_size) if self.encoder else critic

    def learner(self) -> Learner:
        """These functions as a Learner."""
        return Learner(
            init=self.init,
            act=self.act,
            update=self.update,
            policy=self.evaluation_policy,
            generalises=self.generalises,
            replay=self.buffer,
            adaptation=self.adaptation(),
            fine_tuning=functools.partial(fine_tuning, self) if self.learns_on else None,
            cut=self.cut,
        )

    def adaptation(self) -> Adaptation | None:
        """How an unseen task's dynamics are inferred; None, since nothing in SAC depends on them."""
        return None

    @property
    def negative_critic_losses(self) -> str | None:
        """Why losses of the critics may be negative, for an error message; None if they cannot be."""
        return None

    # ------------------------------------------------------------------------------------------ state

    def init(self, key: Array) -> SACState:
        policy_key, critic_key, *grads_keys = jax.random.split(key, 4)
        params = {"policy": self.policy.init(policy_key), "critic": self.critic.init(critic_key)}
        if self.common:
            params["critic"] = paco.tied(params["critic"], params["policy"])
        tasks, config = self.spec.num_tasks, self.config
        log_temperature = jnp.full((tasks,), jnp.log(config.initial_temperature), jnp.float32)
        return SACState(
            params=params,
            targets=jax.tree.map(jnp.copy, params["critic"]),
            log_temperature=log_temperature,
            descent=self.start_descent(params, grads_keys),
            temperature_optimizer=self.temperature_optimizer.init(log_temperature),
            observations=normalization.init(tasks, (self.spec.observation_size,)),
            rewards=self.rewards.init(tasks, self.num_envs),
            replay=self.buffer.init(),
            seen=jnp.zeros((), jnp.int32),
            hyper=Hyper(*(jnp.asarray(getattr(config, name), jnp.float32) for name in Hyper._fields)),
            updates=jnp.zeros((), jnp.int32),
            exploration=self.exploration.init(jax.random.fold_in(key, 4)) if self.exploration else None,
        )

    def start_descent(self, params: Mapping[str, Parameters], keys: Sequence[Array]) -> dict[str, Any]:
        """The initial states of the descents of policy and critics, with one key for each."""
        parts = zip(("policy", "critic"), keys, strict=True)
        states: dict[str, Any] = {part: self.descent[part].init(self._own(params[part]), key) for part, key in parts}
        return {**states, "weights": self.common.init(params["policy"])} if self.common else states

    def _own(self, parameters: Parameters) -> Parameters:
        """The parameters of a network, or its gradients, without weights that it has in common with another."""
        return paco.apart(parameters) if self.common else parameters

    def cut(self, state: SACState) -> SACState:
        return state._replace(rewards=self.rewards.cut(state.rewards))

    def _see(self, teacher: Parameters, tasks: Task, observation: Array) -> Array:
        """As any agent's, but the policy's loss does not train the encoder."""
        return jax.lax.stop_gradient(super()._see(teacher, tasks, observation))

    def target_entropy(self, hyper: Hyper) -> Array:
        """[T] target entropy of each task's policy: −scale · dim(A), or scale · log(number of choices)."""
        sizes = self.masks.sum(axis=1)
        if self.spec.action.kind == "continuous":
            return -hyper.target_entropy_scale * sizes
        return hyper.discrete_entropy_scale * jnp.log(sizes)

    # ------------------------------------------------------------------------------------------ acting

    def act(self, state: SACState, observation: Array, key: Array) -> tuple[Array, Mapping[str, Any]]:
        family = self.policy.distribution
        distribution = self._distribution(state, self._normalize(state.observations, observation))
        keys = jax.random.split(key, (2, self.spec.num_tasks))
        drawn = family.to_action(jax.vmap(family.sample)(distribution, self.masks, keys[0]))
        anything = jax.vmap(self._any_action, in_axes=(0, 0, None))(keys[1], self.masks, observation.shape[1])
        action = jnp.where(state.seen < self._warm_start, anything, drawn)
        return action, {"action": action}

    @property
    def _warm_start(self) -> int:
        """Transitions of each task before learning starts; at most a full replay, or it would never start."""
        return min(self.config.warm_start, self.buffer.capacity)

    def _any_action(self, key: Array, mask: Array, number: int) -> Array:
        """Uniformly random actions [number, ...] of one task."""
        if self.spec.action.kind == "continuous":
            return jax.random.uniform(key, (number, self.spec.action.size), jnp.float32, -1.0, 1.0) * mask
        logits = jnp.where(mask > 0, 0.0, -jnp.inf)
        return jax.random.categorical(key, logits, shape=(number,)).astype(jnp.int32)

    # ------------------------------------------------------------------------------------------ learning

    def update(self, state: SACState, rollout: Transitions, key: Array) -> tuple[SACState, Mapping[str, Array]]:
        state = self._take_in(state, rollout)
        state, bonus = self._explore(state, rollout)
        state, metrics = self._learn(state, key)
        arrived = jnp.isfinite(rollout.reward) & jnp.isfinite(rollout.final_observation).all(axis=-1)
        arrived = arrived.all(axis=(0, 2))  # flags a NaN's task as it enters the replay, before any sampling
        metrics["finite"] = jnp.where(arrived.all(), metrics["finite"], arrived)
        metrics["replay/size"] = state.replay.size.astype(jnp.float32)
        metrics["learning_rate"] = state.hyper.learning_rate
        if self.exploration:
            metrics["exploration/bonus"] = bonus.mean(axis=(0, 2))
        metrics |= self._routing(state, rollout)
        return state._replace(updates=state.updates + 1), metrics

    def _routing(self, state: SACState, rollout: Transitions) -> dict[str, Array]:
        """Routing and mixing weights of policy and critics for each task, at the rollout's first step."""
        observation = self._normalize(state.observations, rollout.observation[0])  # [T, E, obs]
        view = self._see(state.params["critic"], self.tasks, observation)
        metrics = diagnose(self.policy, state.params["policy"], self.tasks, view, "policy")
        if self.spec.action.kind == "continuous":
            observation = jnp.concatenate([observation, rollout.extras["action"][0]], axis=-1)
        return metrics | diagnose(self.critic, state.params["critic"], self.tasks, observation, "value")

    def _take_in(self, state: SACState, rollout: Transitions) -> SACState:
        """Store a rollout [H, T, E, ...] unchanged, and update the running statistics with it."""
        observations = state.observations
        if self.config.normalize_observations:
            observations = normalization.update(observations, rollout.observation, axes=(0, 2))
        return state._replace(
            observations=observations,
            rewards=self.rewards.update(
                state.rewards,
                rollout.reward * self.config.reward_scale,
                rollout.terminated | rollout.truncated,
                rollout.truncated,
                state.hyper.discount,
            ),
            replay=self.buffer.insert(state.replay, rollout, rollout.extras["action"]),
            seen=jnp.minimum(state.seen, MANY - self.arriving) + self.arriving,
        )

    def _explore(self, state: SACState, rollout: Transitions) -> tuple[SACState, Array | None]:
        """Update the exploration bonus with a rollout. Returns (state, bonus [H, T, E] of its steps, for logging)."""
        if self.exploration is None:
            return state, None
        exploration, bonus = self.exploration.step(state.exploration, rollout.final_observation)
        return state._replace(exploration=exploration), bonus

    def _learn(self, state: SACState, key: Array) -> tuple[SACState, dict[str, Array]]:
        """Make the gradient steps that follow a rollout.

        Until the warm start is over, the steps are discarded: metrics are NaN, and non-finite losses are ignored.
        """
        replay, exploration, config = state.replay, state.exploration, self.config
        ready = replay.size >= self._warm_start

        def visit(state: SACState, key: Array) -> tuple[SACState, dict[str, Array]]:
            sample_key, step_key = jax.random.split(key)
            sample = self.buffer.sample(replay, sample_key, config.batch_size)
            batch = self._prepare(state, sample)
            if self.exploration:
                bonus = self.exploration.bonus(exploration, sample.final_observation)
                batch = batch._replace(bonus=config.exploration_bonus * bonus)
            return self._step(state, batch, step_key)

        before = state._replace(replay=None, exploration=None)  # not needed in the loop, which would copy them
        after, metrics = jax.lax.scan(visit, before, jax.random.split(key, self.num_steps))
        state = jax.tree.map(lambda new, old: jnp.where(ready, new, old), after, before)
        found = over_steps(metrics)
        finite = found.pop("finite") | ~ready
        found = {name: jnp.where(ready, metric, jnp.nan) for name, metric in found.items()}
        return state._replace(replay=replay, exploration=exploration), {**found, "finite": finite}

    def _prepare(self, state: SACState, sample: Sample) -> Batch:
        """Normalise and scale raw transitions with the current statistics."""
        temperature = jnp.exp(state.log_temperature)
        bonus = jnp.abs(temperature * self.target_entropy(state.hyper))
        reward = self.rewards.apply(
            state.rewards, sample.reward * self.config.reward_scale, bonus, state.hyper.discount
        )
        critic = state.params["critic"]
        observation = self._normalize(state.observations, sample.observation)
        next_observation = self._normalize(state.observations, sample.final_observation)
        return Batch(
            observation=observation,
            action=sample.action,
            reward=reward,
            discount=jnp.where(sample.terminated, 0.0, state.hyper.discount),
            next_observation=next_observation,
            view=self._see(critic, self.tasks, observation),
            next_view=self._see(critic, self.tasks, next_observation),
        )

    def _step(self, state: SACState, batch: Batch, key: Array) -> tuple[SACState, dict[str, Array]]:
        """One gradient step of critics, policy and temperatures, then an update of the targets."""
        policy, critic, hyper = state.params["policy"], state.params["critic"], state.hyper
        known = self._known(state, key)
        target = jax.vmap(self.task_target, in_axes=(OF_TASK, OF_TASK, 0, 0))(policy, state.targets, known, batch)

        critic_gradient = jax.vmap(self.critic_gradient, in_axes=(OF_TASK, OF_TASK, 0, 0, 0))
        (losses, critic_metrics), critic_grads = critic_gradient(critic, policy, known, batch, target)
        exploded = self._exploded(critic_metrics["loss/value"])
        critic_grads = paco.without(critic_grads, exploded)
        critic_rate = _or(hyper.critic_learning_rate, hyper.learning_rate)
        critic, critic_descent, critic_conflict = self._descend(
            "critic", state, critic_grads, losses, critic_rate, exploded
        )
        critic_descent = self.descent["critic"].observe(
            critic_descent, lambda: critic_gradient(critic, policy, known, batch, target)[0][0]
        )

        batch = batch._replace(view=self._see(critic, self.tasks, batch.observation))
        policy_grad = jax.value_and_grad(self.policy_loss, has_aux=True)
        (losses, policy_metrics), policy_grads = jax.vmap(policy_grad, in_axes=(OF_TASK, OF_TASK, 0, 0))(
            policy, critic, known, batch
        )
        policy_grads = paco.without(policy_grads, exploded)
        policy, policy_descent, policy_conflict = self._descend(
            "policy", state, policy_grads, losses, hyper.learning_rate, exploded
        )
        descent = {"policy": policy_descent, "critic": critic_descent}
        if self.common:
            policy, descent["weights"] = self.common.step(
                policy, state.descent["weights"], policy_grads, critic_grads, hyper.learning_rate
            )

        log_temperature, temperature_optimizer = self._heat(state, policy_metrics["entropy"], exploded)
        critic = self._tied(critic, policy)
        targets = polyak(state.targets, critic, hyper.polyak)
        if exploded is not None:
            draw_key = jax.random.fold_in(key, 2 * self.spec.num_tasks)  # distinct from the losses' keys
            rows = paco.combinations(draw_key, exploded)
            policy, critic, targets = (paco.redrawn(network, rows) for network in (policy, critic, targets))
            critic = self._tied(critic, policy)  # equal bit for bit
        state = state._replace(
            params={"policy": policy, "critic": critic},
            targets=targets,
            log_temperature=log_temperature,
            descent=descent,
            temperature_optimizer=temperature_optimizer,
        )
        metrics = {**critic_metrics, **policy_metrics, "temperature": known.temperature, "weight": known.weight}
        metrics["loss"] = metrics["loss/policy"] + metrics["loss/value"]
        if exploded is not None:
            metrics["left_out"] = exploded.astype(jnp.float32)
            metrics["loss"] = jnp.where(exploded, 0.0, metrics["loss"])  # however large, it had no effect
        metrics |= {f"grads/{name}": value for name, value in policy_conflict.items()}
        metrics |= {f"grads/{name}/value": value for name, value in critic_conflict.items()}
        return state, metrics

    def _tied(self, critic: Parameters, policy: Parameters) -> Parameters:
        """The critics with copies of the policy's task weights, where PaCo has common ones."""
        return paco.tied(critic, policy) if self.common else critic

    def _descend(
        self,
        part: str,
        state: SACState,
        task_grads: Parameters,
        losses: Array,
        rate: Array,
        exploded: Array | None,
    ) -> tuple[Parameters, DescentState, dict[str, Array]]:
        """Update one network, except for common weights, with its tasks' gradients. Returns as Descent.step."""
        network = state.params[part]
        moved, descent, conflict = self.descent[part].step(
            self._own(network),
            state.descent[part],
            self._own(task_grads),
            losses,
            rate,
            None if exploded is None else ~exploded,
        )
        return (paco.put(moved, network.private[paco.WEIGHTS]) if self.common else moved), descent, conflict

    def _exploded(self, loss: Array) -> Array | None:
        """[T] bool: the critics' loss is above PaCo's threshold or NaN, unless all are; None without a threshold."""
        if not self.config.paco_threshold:
            return None
        above = ~(loss <= self.config.paco_threshold)
        return above & ~above.all()  # if all were left out, nothing would ever be learnt again

    def _known(self, state: SACState, key: Array) -> Known:
        temperature = jnp.exp(state.log_temperature)
        tasks = self.spec.num_tasks
        weights = task_weights(self.config.task_weights, temperature)
        return Known(self.tasks, self.masks, temperature, weights, jax.random.split(key, (tasks, 2)))

    def task_target(self, policy: Parameters, targets: Parameters, known: Known, batch: Batch) -> Array:
        """The targets [B, K'] of ONE task's critics for its transitions [B] (see critics.Head).

        The next action is sampled from the policy at the observation before any reset, so that a truncated step
        bootstraps from the state that it reached; a terminal one does not bootstrap.
        """
        candidates = self._candidates(policy, known, batch.next_view, known.key[0])
        outputs = self.critic.apply(*targets, known.task, batch.next_observation, candidates.action)
        reward = batch.reward if batch.bonus is None else batch.reward + batch.bonus
        return self.head.target(outputs, candidates, known.temperature, reward, batch.discount)

    def critic_gradient(
        self, critic: Parameters, policy: Parameters, known: Known, batch: Batch, target: Array
    ) -> tuple[tuple[Array, dict[str, Array]], Parameters]:
        """The critics' loss and gradient for ONE task: ((loss, metrics by name), gradient)."""
        return jax.value_and_grad(self.critic_loss, has_aux=True)(critic, known, batch, target)

    def critic_loss(
        self, critic: Parameters, known: Known, batch: Batch, target: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The critics' loss of ONE task: a sum over the ensemble, a mean over the batch."""
        continuous = self.spec.action.kind == "continuous"
        outputs = self.critic.apply(*critic, known.task, batch.observation, batch.action if continuous else None)
        outputs = critics.of_action(outputs, self.spec.action, batch.action)
        loss = self.head.loss(outputs, target).mean(axis=1).sum()
        metrics = {"loss/value": loss, "value": self.head.value(outputs).mean()}
        if self.config.critic_head == "categorical":
            metrics["value/at_bounds"] = (target[:, 0] + target[:, -1]).mean()
        return known.weight * loss, metrics

    def policy_loss(
        self, policy: Parameters, critic: Parameters, known: Known, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        """The policy's loss of ONE task: E[Σ π (α log π − Q)] over its observations."""
        candidates = self._candidates(policy, known, batch.view, known.key[1])
        outputs = self.critic.apply(*critic, known.task, batch.observation, candidates.action)
        values = critics.reduce_values(self.head.value(outputs), self.config.critic_reduction)
        cost = candidates.probability * (known.temperature * candidates.log_prob - values)
        loss = cost.sum(axis=1).mean()
        entropy = -(candidates.probability * candidates.log_prob).sum(axis=1).mean()
        return known.weight * loss, {"loss/policy": loss, "entropy": entropy}

    def _candidates(self, policy: Parameters, known: Known, view: Array, key: Array) -> Candidates:
        """The actions over which to take expectations for the policy of ONE task, at its inputs ``view`` [B, ·]."""
        family = self.policy.distribution
        p = self.policy.apply(*policy, known.task, view)
        if self.spec.action.kind == "continuous":
            raw = family.sample(p, known.mask, key)
            log_prob = family.log_prob(p, known.mask, raw)[:, None]
            return Candidates(family.to_action(raw), jnp.ones_like(log_prob), log_prob)
        log_prob = jax.nn.log_softmax(jnp.where(known.mask > 0, p, -1e9), axis=-1)
        # Padded choices have probability 0, and 0 in place of its logarithm.
        return Candidates(None, jnp.exp(log_prob) * known.mask, jnp.where(known.mask > 0, log_prob, 0.0))

    def _heat(self, state: SACState, entropy: Array, exploded: Array | None = None) -> tuple[Array, Any]:
        """Update each task's temperature to bring its entropy [T] to its target: the loss is α (H − H̄), in log α."""
        if not self.config.learn_temperature:
            return state.log_temperature, state.temperature_optimizer
        gradient = jnp.exp(state.log_temperature) * (entropy - self.target_entropy(state.hyper))
        if exploded is not None:
            gradient = jnp.where(exploded, 0.0, gradient)
        step, optimizer = self.temperature_optimizer.update(gradient, state.temperature_optimizer)
        rate = _or(state.hyper.temperature_learning_rate, state.hyper.learning_rate)
        return state.log_temperature - rate * step, optimizer


def task_weights(kind: str, temperature: Array) -> Array:
    """Weights [T] of the tasks' losses, with mean 1, computed from their temperatures [T].

    "exponential" is exp(−α_i) over its mean, as in the text of arXiv 2003.13661 (times T, since losses are averaged);
    "inverse" follows its authors' code, T · softmax(−log α), which is 1/α over its mean.
    """
    if kind == "equal":
        return jnp.ones_like(temperature)
    logits = -temperature if kind == "exponential" else -jnp.log(temperature)
    return temperature.shape[0] * jax.nn.softmax(logits)


def _or(rate: Array, default: Array) -> Array:
    """``rate``, or ``default`` where it is 0."""
    return jnp.where(rate > 0, rate, default)


def make_sac(
    config: SACConfig,
    network: NetworkConfig,
    method: Any,
    spec: TaskSpec,
    *,
    num_envs: int,
    num_updates: int,
) -> Learner:
    """SAC as a Learner.

    Args:
        config: hyper-parameters.
        network: arrangement and sizes of policy and critics. Continuous actions are always squashed.
        method: a method of mtjax.grads, e.g. ``grads.pcgrad()``, for the policy and, unless ``config.critic_grads``
            names another, for the critics.
        spec: tasks and spaces.
        num_envs: E, environments of one task.
        num_updates: updates of the whole run; unused, as there are no schedules.

    Raises:
        ValueError: ``critic_grads`` names no method; ``policy_encoder`` is "both"; ``paco_threshold`` or
            ``paco_weights`` does not fit the arrangement, or ``paco_threshold`` the categorical critic.
    """
    del num_updates
    return SAC(config, network, method, spec, num_envs=num_envs).learner()
