"""HiP-BMDP (arXiv 2007.07206) on soft actor-critic: tasks that differ in hidden parameters of their dynamics.

Policy and critics see φ(s), an encoded observation, and θ = ψ(i), the embedding of the task's dynamics; the models of
:mod:`mtjax.learners.world` shape both. These losses train each part:

* φ: the critics' loss and the transition, reward and reconstruction losses. Never the policy's loss (as in SAC-AE).
* ψ: the transition and reward losses and the θ-learning error. Never a value loss: θ stands for the dynamics alone, so
  that one-step prediction suffices to infer it for a task that was never trained on.
* the models: their own prediction losses. φ(s') as a target, and W₂ in the θ-learning error, have no gradient.

Special cases by flags: without θ (``theta_size=0``) this is DeepMDP (arXiv 1906.02736) on SAC; with reconstruction in
place of the models, SAC-AE (arXiv 1910.01741); with the identity for φ and no auxiliary losses, SAC.

All these parameters form one more tree among the critics' shared parameters, "world", so that the target critics have a
slowly moving encoder, as in the authors' code; everything else is :mod:`mtjax.learners.sac`. With ``auxiliary_gate``, a
task's auxiliary losses train φ only as far as their gradients agree with that of its critics (arXiv 1812.02224).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtjax import grads
from mtjax.learners import critics
from mtjax.learners import world as worlds
from mtjax.learners.agent import pooled
from mtjax.learners.base import Adaptation, Learner, TaskSpec, Unseen
from mtjax.learners.config import HiPBMDPConfig
from mtjax.learners.sac import SAC, Batch, Known, SACState
from mtjax.learners.world import Steps, make_world
from mtjax.networks.base import Parameters
from mtjax.networks.components import join
from mtjax.networks.config import NetworkConfig
from mtjax.networks.images import ImageEncoder, check_image
from mtjax.networks.task import Task

Array = jax.Array
Loss = Callable[[Parameters], tuple[Array, dict[str, Array]]]
MAIN = "value"  # name of the critics' loss, which the auxiliary losses are meant to support
SMALLEST_SPREAD = 1e-4  # lower bound of the embeddings' spread; below it they count as equal


class HiPBMDP(SAC):
    """SAC whose critics own an encoder, task embeddings and models."""

    def __init__(self, config: HiPBMDPConfig, network: NetworkConfig, method: Any, spec: TaskSpec, *, num_envs: int):
        if network.policy_encoder != "own":
            raise ValueError(
                "policy_encoder: has no effect with hipbmdp, whose policy and critics always share an encoder"
            )
        sizes = {"observation_size": spec.observation_size, "action": spec.action, "num_tasks": spec.num_tasks}
        self.world = make_world(config, **sizes, encoder=_image_encoder(config, network, spec))
        network = dataclasses.replace(network, image_shape=(), conv_channels=NetworkConfig().conv_channels)
        network.check()  # again: the state encoder takes images, so options of the network's own encoder have no effect
        super().__init__(config, network, method, spec, num_envs=num_envs)

    # -------------------------------------------------------------------------------------- networks

    @property
    def negative_critic_losses(self) -> str | None:
        """As SAC's; here the critics' losses include those of the models, whose log densities may be above 0."""
        likely = self.config.transition_cost and self.config.transition_model != "deterministic"
        return "a likely transition's loss is below 0" if likely else None

    @property
    def view_size(self) -> int:
        return self.world.latent_size + self.world.theta_size

    def _make_critic(self, network: NetworkConfig) -> critics.Critic:
        """SAC's critics on [φ(s), θ]. Parameters: shared {"world", "critic": SAC's}; the private ones are SAC's."""
        inner, spec = super()._make_critic(network), self.spec

        def init(key: Array) -> Parameters:
            own = inner.init(key)  # splits the key into one per critic
            world_key = jax.random.fold_in(key, self.config.num_critics)
            return own._replace(shared={"world": self.world.init(world_key), "critic": own.shared})

        def apply(shared: Any, private: Any, task: Task, observation: Array, taken: Array | None) -> Array:
            told = self.told(shared["world"], self.theta(shared["world"], task))
            view = join(self.world.encode(shared["world"], observation), told)
            return inner.apply(shared["critic"], private, task, view, taken)

        def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Any:
            observation, rest = jnp.split(x, [spec.observation_size], axis=-1)
            told = self.told(shared["world"], self.theta(shared["world"], task))
            view = join(self.world.encode(shared["world"], observation), told)
            theta = {"embedding": join(x[..., :0], told)} if self.world.theta_size else {}
            return {**inner.diagnose(shared["critic"], private, task, join(view, rest)), **theta}

        last = tuple(f"critic/{start}" for start in inner.last_shared)
        return critics.Critic(init, apply, diagnose, last)

    def theta(self, world: Any, task: Task) -> Array:
        """[K] θ of ONE task; for an unseen task, whose code is uniform, the mean over the training tasks."""
        return task.code @ self.world.embeddings(world)

    def thetas(self, critic: Parameters, tasks: Task) -> Array:
        """[N, K] θ of N tasks."""
        return jax.vmap(self.theta, in_axes=(None, 0))(critic.shared["world"], tasks)

    def told(self, world: Any, theta: Array) -> Array:
        """θ [..., K] as policy and critics see it: relative to the training tasks' mean, in units of their spread.

        The θ-learning error gives θ the scale of one step's change, which a network would hardly notice. Value losses
        must not train θ, so there is no gradient.
        """
        if not self.world.theta_size:
            return theta
        every = self.world.embeddings(world)
        mean = every.mean(axis=0)
        spread = jnp.sqrt(jnp.square(every - mean).mean())
        return jax.lax.stop_gradient((theta - mean) / jnp.maximum(spread, SMALLEST_SPREAD))

    # ---------------------------------------------------------------------------------------- acting

    def _see(self, teacher: Parameters, tasks: Task, observation: Array) -> Array:
        """[N, B, Z + K] φ(s) and θ, which the policy's loss does not train."""
        return self._view(teacher, self.thetas(teacher, tasks), observation)

    def _view(self, critic: Parameters, thetas: Array, observation: Array) -> Array:
        world = critic.shared["world"]
        view = jax.vmap(join)(self.world.encode(world, observation), self.told(world, thetas))
        return jax.lax.stop_gradient(view)

    def adapted_policy(
        self, state: SACState, theta: Array, observation: Array, key: Array, deterministic: Array, unseen: Unseen
    ) -> Array:
        """As ``evaluation_policy``, for N tasks that were not trained on, with given θ [N, K]."""

        def of_theta(critic: Parameters, tasks: Task, observation: Array) -> Array:
            return self._view(critic, theta, observation)

        return self.evaluation_policy(state, observation, key, deterministic, unseen, of_theta)

    # -------------------------------------------------------------------------------------- learning

    def critic_gradient(
        self, critic: Parameters, policy: Parameters, known: Known, batch: Batch, target: Array
    ) -> tuple[tuple[Array, dict[str, Array]], Parameters]:
        """The critics' gradient for ONE task, plus those of its auxiliary losses as far as the gate admits them."""
        losses = self.losses(policy, known, batch, target)
        gate = self.config.auxiliary_gate
        if gate == "none" or len(losses) == 1:

            def total(critic: Parameters) -> tuple[Array, dict[str, Array]]:
                found = [loss(critic) for loss in losses.values()]
                return sum(value for value, _ in found), {k: v for _, known in found for k, v in known.items()}

            return jax.value_and_grad(total, has_aux=True)(critic)
        found = [jax.value_and_grad(loss, has_aux=True)(critic) for loss in losses.values()]
        direction, weights = admit([gradient for _, gradient in found], weighted=gate == "weighted")
        admitted = jnp.dot(weights, jnp.stack([value for (value, _), _ in found]))
        metrics = {name: value for (_, known), _ in found for name, value in known.items()}
        gates = {f"gate/{name}": weight for name, weight in zip(losses, weights, strict=True) if name != MAIN}
        return (admitted, metrics | gates), direction

    def losses(self, policy: Parameters, known: Known, batch: Batch, target: Array) -> dict[str, Loss]:
        """The losses of ONE task by name, the critics' first; each is a function of the critics' parameters."""
        config, world = self.config, self.world
        steps = Steps(batch.observation, batch.action, batch.reward, batch.next_observation)

        def auxiliary(name: str, cost: float, each: Callable[[Any, Array], Array]) -> Loss:
            def loss(critic: Parameters) -> tuple[Array, dict[str, Array]]:
                parameters = critic.shared["world"]
                value = each(parameters, self.theta(parameters, known.task)).mean()
                return known.weight * cost * value, {f"loss/{name}": value}

            return loss

        def transition(critic: Parameters) -> tuple[Array, dict[str, Array]]:
            value, metrics = auxiliary(
                "transition", config.transition_cost, lambda p, theta: worlds.transition_loss(world, p, steps, theta)
            )(critic)
            error = self._theta_error(critic, policy, known, batch)
            return value + known.weight * config.theta_cost * error, {**metrics, "loss/theta": error}

        found: dict[str, Loss] = {MAIN: lambda critic: self.critic_loss(critic, known, batch, target)}
        if config.transition_cost:
            found["transition"] = transition
        if config.reward_cost:
            found["reward"] = auxiliary(
                "reward", config.reward_cost, lambda p, theta: worlds.reward_loss(world, p, steps, theta)
            )
        if config.reconstruction_cost:
            found["reconstruction"] = auxiliary(
                "reconstruction",
                config.reconstruction_cost,
                lambda p, theta: worlds.reconstruction_loss(world, p, steps, config.latent_cost),
            )
        return found

    def _theta_error(self, critic: Parameters, policy: Parameters, known: Known, batch: Batch) -> Array:
        """[] mean θ-learning error over states of this task, each with the policy's action and a random other task."""
        tasks = self.spec.num_tasks
        if not (self.config.theta_size and self.config.theta_cost) or tasks == 1:
            return jnp.zeros((), jnp.float32)
        action_key, other_key = jax.random.split(jax.random.fold_in(known.key[0], 1))
        family = self.policy.distribution
        raw = family.sample(self.policy.apply(*policy, known.task, batch.view), known.mask, action_key)
        index = jnp.argmax(known.task.code)
        other = (index + jax.random.randint(other_key, batch.reward.shape, 1, tasks)) % tasks
        errors = worlds.theta_error(
            self.world, critic.shared["world"], batch.observation, family.to_action(raw), index, other
        )
        return errors.mean()

    # ------------------------------------------------------------------------------ tasks never trained on

    def adaptation(self) -> Adaptation | None:
        """How θ of an unseen task is inferred; None if nothing is conditioned on θ."""
        if not self.config.theta_size:
            return None

        def start(state: SACState, unseen: Unseen) -> Array:
            return unseen.average(self.world.embeddings(state.params["critic"].shared["world"]))

        def infer(
            state: SACState,
            theta: Array,
            seen: Any,
            weight: Array,
            unseen: Unseen,
            key: Array | None = None,
            **settings: Any,
        ) -> Array:
            parameters = state.params["critic"].shared["world"]
            statistics = pooled(state.observations, unseen)
            steps = Steps(
                self._normalize(statistics, seen.observation),
                seen.action,
                seen.reward,
                self._normalize(statistics, seen.final_observation),
            )
            keys = jax.random.split(jax.random.key(0) if key is None else key, len(theta))

            def of_task(theta: Array, steps: Steps, weight: Array, key: Array) -> Array:
                return worlds.infer(self.world, parameters, theta, steps, weight, key=key, **settings)

            return jax.vmap(of_task)(theta, steps, weight, keys)

        return Adaptation(start, infer, self.adapted_policy)


def _image_encoder(config: HiPBMDPConfig, network: NetworkConfig, spec: TaskSpec) -> ImageEncoder | None:
    """The state encoder for images; None if observations are not images."""
    if not network.image_shape:
        return None
    if config.state_encoder == "identity":
        raise ValueError("image_shape: has no effect with state_encoder=identity")
    check_image(network.image_shape, spec.observation_size)
    return ImageEncoder(
        config.latent_size, network.image_shape, network.conv_channels, config.state_encoder_sizes, "relu"
    )


def admit(gradients: list[Parameters], *, weighted: bool) -> tuple[Parameters, Array]:
    """Combine the critics' gradient with auxiliary ones (arXiv 1812.02224) on the encoder that they share.

    Args:
        gradients: of the critics' loss, then of each auxiliary loss; each for all critics' parameters, of ONE task.
        weighted: weight an auxiliary gradient by its cosine with the first, or by 0 if that is negative; otherwise keep
            it whole where the cosine is not negative.

    Returns:
        (the gradient, weights [L]). Gradients of parameters outside the encoder, e.g. a model's own, are summed.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    gate = grads.aggregate(
        grads.cosine_gate(0, weighted), num_tasks=len(gradients), shared=lambda path: "world/encoder/" in path
    )
    direction, state = gate.update(stacked, gate.init(gradients[0]))
    return direction, state.weights


def make_hipbmdp(
    config: HiPBMDPConfig,
    network: NetworkConfig,
    method: Any,
    spec: TaskSpec,
    *,
    num_envs: int,
    num_updates: int,
) -> Learner:
    """HiP-BMDP, DeepMDP or SAC-AE as a Learner.

    Args:
        config: hyper-parameters.
        network: arrangement and sizes of policy and critics, which see [φ(s), θ]; the paper uses "none", which
            tells them nothing of the task but θ.
        method: a method of mtjax.grads for the policy's gradients and, unless ``config.critic_grads`` names another,
            those of critics, encoder and models.
        spec: tasks and spaces.
        num_envs: E, environments of one task.
        num_updates: updates of the whole run; unused.

    Raises:
        ValueError: as make_sac; or network options that have no effect because of the state encoder.
    """
    del num_updates
    return HiPBMDP(config, network, method, spec, num_envs=num_envs).learner()
