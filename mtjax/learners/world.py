"""Parts of a hidden-parameter block MDP (arXiv 2007.07206): encoder φ, task embedding ψ, models of one step.

All functions are pure and need no agent. A vector θ describes the dynamics and rewards of one task; ψ gives one to each
of the T training tasks, and :func:`infer` finds one for an unseen task from its transitions, everything else fixed.

    T(φ(s), a, θ) ≈ φ(s'),    R(φ(s), a, θ) ≈ r,    ‖ψ(i) − ψ(j)‖ ≈ W₂(T(·, ψ(i)), T(·, ψ(j))).

>>> import jax, jax.numpy as jnp
>>> from mtjax.envs.base import continuous
>>> from mtjax.learners.config import HiPBMDPConfig
>>> config = HiPBMDPConfig(latent_size=4, theta_size=2)
>>> world = make_world(config, observation_size=3, action=continuous(1), num_tasks=5)
>>> parameters = world.init(jax.random.key(0))
>>> world.embeddings(parameters).shape
(5, 2)
>>> z, theta = world.encode(parameters, jnp.ones((7, 3))), world.embeddings(parameters)[1]
>>> world.transition(parameters, z, jnp.zeros((7, 1)), theta).mean.shape  # of the members, here one
(1, 7, 4)
>>> world.reward(parameters, z, jnp.zeros((7, 1)), theta).shape
(7,)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtjax.envs.base import ActionSpec
from mtjax.learners.config import HiPBMDPConfig
from mtjax.networks import dynamics
from mtjax.networks.distributions import Normal

Array = jax.Array


class World(NamedTuple):
    """Encoder, embedding and models as pure functions.

    Attributes:
        init: key -> parameters, a dict of "encoder", "embedding", "transition", "reward" and "decoder".
        encode: φ, (parameters, observation [..., obs]) -> latent [..., Z].
        embeddings: ψ, parameters -> [T, K], the θ of every training task.
        transition: (parameters, latent [..., Z], action, θ [K] or [..., K]) -> Normal [M, ..., Z] of the next latent
            state. Actions are as the environment takes them: [..., A], or choices [...].
        reward: as ``transition`` -> [...].
        decode: (parameters, latent [..., Z]) -> observation [..., obs].
        latent_size, theta_size: Z and K.
    """

    init: Callable[[Array], Any]
    encode: Callable[[Any, Array], Array]
    embeddings: Callable[[Any], Array]
    transition: Callable[[Any, Array, Array, Array], Normal]
    reward: Callable[[Any, Array, Array, Array], Array]
    decode: Callable[[Any, Array], Array]
    latent_size: int
    theta_size: int


class Steps(NamedTuple):
    """Transitions of ONE task, leaves [B, ...]; observations are normalised and rewards scaled if the agent's are."""

    observation: Array
    action: Array
    reward: Array
    next_observation: Array


def make_world(
    config: HiPBMDPConfig,
    *,
    observation_size: int,
    action: ActionSpec,
    num_tasks: int,
    encoder: Any = None,
) -> World:
    """Build the parts that a configuration describes.

    Args:
        config: kinds and sizes of the parts. Parts whose cost is 0 have no parameters, and must not be used.
        observation_size: numbers in one observation.
        action: the action space.
        num_tasks: T.
        encoder: a flax module [..., obs] -> [..., latent_size] in place of the perceptron; not with
            ``state_encoder="identity"``.
    """
    identity = config.state_encoder == "identity"
    latent, theta = observation_size if identity else config.latent_size, config.theta_size
    sizes = {"latent": latent, "action": action.size, "theta": theta, "sizes": config.model_sizes}
    if encoder is None:
        encoder = dynamics.Perceptron(latent, config.state_encoder_sizes, norm=True)
    task = dynamics.Perceptron(theta, config.theta_hidden_sizes)
    transition = dynamics.make_transition(config.transition_model, members=config.transition_members, **sizes)
    reward = dynamics.make_reward(**sizes)
    decoder = dynamics.Perceptron(observation_size, config.state_encoder_sizes[::-1])

    def init(key: Array) -> Any:
        names = ("encoder", "table", "task", "transition", "reward", "decoder")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        table = jax.random.normal(keys["table"], (num_tasks, theta), jnp.float32)
        embedding = {"table": table}
        if theta and config.theta_hidden_sizes:
            embedding["perceptron"] = task.init(keys["task"], jnp.zeros((theta,), jnp.float32))
        parts = {
            "encoder": {} if identity else encoder.init(keys["encoder"], jnp.zeros((observation_size,), jnp.float32)),
            "embedding": embedding if theta else {},
            "transition": transition.init(keys["transition"]) if config.transition_cost else {},
            "reward": reward.init(keys["reward"]) if config.reward_cost else {},
            "decoder": {},
        }
        if config.reconstruction_cost:
            parts["decoder"] = decoder.init(keys["decoder"], jnp.zeros((latent,), jnp.float32))
        return parts

    def embeddings(parameters: Any) -> Array:
        if not theta:
            return jnp.zeros((num_tasks, 0), jnp.float32)
        embedding = parameters["embedding"]
        table = embedding["table"]
        return task.apply(embedding["perceptron"], table) if "perceptron" in embedding else table

    def as_vector(taken: Array) -> Array:
        return taken if action.kind == "continuous" else jax.nn.one_hot(taken, action.size)

    return World(
        init=init,
        encode=lambda p, x: x if identity else encoder.apply(p["encoder"], x),
        embeddings=embeddings,
        transition=lambda p, z, a, theta: transition.apply(p["transition"], z, as_vector(a), theta),
        reward=lambda p, z, a, theta: reward.apply(p["reward"], z, as_vector(a), theta),
        decode=lambda p, z: decoder.apply(p["decoder"], z),
        latent_size=latent,
        theta_size=theta,
    )


# ------------------------------------------------------------------------------------------------- losses


def transition_loss(world: World, parameters: Any, steps: Steps, theta: Array) -> Array:
    """[B] −log T(φ(s') | φ(s), a, θ); φ(s') is the target, and has no gradient."""
    target = jax.lax.stop_gradient(world.encode(parameters, steps.next_observation))
    latent = world.encode(parameters, steps.observation)
    return dynamics.negative_log_likelihood(world.transition(parameters, latent, steps.action, theta), target)


def reward_loss(world: World, parameters: Any, steps: Steps, theta: Array) -> Array:
    """[B] ½ (R(φ(s), a, θ) − r)²."""
    latent = world.encode(parameters, steps.observation)
    return 0.5 * jnp.square(world.reward(parameters, latent, steps.action, theta) - steps.reward)


def reconstruction_loss(world: World, parameters: Any, steps: Steps, latent_cost: float = 0.0) -> Array:
    """[B] mean squared error of decoded observations, plus ``latent_cost`` · ½‖φ(s)‖² (arXiv 1910.01741, SAC-AE)."""
    latent = world.encode(parameters, steps.observation)
    error = jnp.square(world.decode(parameters, latent) - steps.observation).mean(axis=-1)
    return error + latent_cost * 0.5 * jnp.square(latent).sum(axis=-1)


def theta_error(world: World, parameters: Any, observation: Array, action: Array, index: Array, other: Array) -> Array:
    """The θ-learning error of pairs of tasks, (‖ψ(i) − ψ(j)‖ − W₂(T(s, a, ψ(i)), T(s, a, ψ(j))))².

    The distance between the predictions has no gradient: ψ is fitted to the models, and this error does not train the
    models or φ. The norm and W₂ are taken per pair.

    Args:
        world, parameters: the models.
        observation: [B, obs] states of task i.
        action: [B, A] or [B], the policy's actions there.
        index: [] or [B] int32, i.
        other: [B] int32, j.

    Returns:
        [B].
    """
    thetas = world.embeddings(parameters)
    mine, yours = thetas[jnp.broadcast_to(index, other.shape)], thetas[other]
    latent = world.encode(parameters, observation)
    apart = dynamics.wasserstein(
        world.transition(parameters, latent, action, mine), world.transition(parameters, latent, action, yours)
    )
    return jnp.square(dynamics.length(mine - yours) - jax.lax.stop_gradient(apart))


# ---------------------------------------------------------------------------------------------- inference


def infer(
    world: World,
    parameters: Any,
    theta: Array,
    steps: Steps,
    weight: Array | None = None,
    *,
    num_steps: int = 200,
    learning_rate: float = 3e-2,
    batch_size: int = 0,
    prior_cost: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Infer θ of a task that was not trained on, by gradient steps on the transition loss; all else is frozen.

    The steps are taken in z, θ = mean + L z, where mean and L Lᵀ are mean and covariance of the training tasks'
    embeddings: a step then has the scale of the differences between tasks, and θ moves only in directions in which it
    varied in training.

    Args:
        world, parameters: the trained models.
        theta: [K] initial θ, e.g. the mean of the training tasks' embeddings.
        steps: transitions of the task, [B, ...].
        weight: [B] weight of every transition, e.g. 0 for padding; None weighs all alike. If all are 0, θ stays.
        num_steps: gradient steps (Adam).
        learning_rate: Adam's, in z.
        batch_size: transitions per gradient step, drawn in proportion to their weights; 0 uses all at every step.
        prior_cost: weight of ½‖z‖² relative to the mean loss of a transition. A small one keeps θ where policies were
            trained; it matters where transitions are uninformative. No effect if all weights are 0.
        key: for drawing batches; may be None if ``batch_size`` is 0.

    Returns:
        [K].
    """
    every = world.embeddings(parameters)
    unit = _root_of_covariance(every)
    origin = jnp.linalg.pinv(unit) @ (theta - every.mean(axis=0))  # z of the initial θ; below, z is relative to it
    weight = jnp.ones(steps.reward.shape) if weight is None else weight
    share = weight / jnp.maximum(weight.sum(), 1e-6)
    # Masked by where, not by multiplication: transitions of weight 0 may be NaN.
    steps = jax.tree.map(lambda x: jnp.where((weight > 0).reshape(-1, *(1,) * (x.ndim - 1)), x, 0), steps)
    latent, target = (world.encode(parameters, x) for x in (steps.observation, steps.next_observation))
    optimizer = optax.adam(learning_rate)

    def loss(z: Array, rows: tuple[Array, Array, Array], share: Array) -> Array:
        latent, action, target = rows
        prediction = world.transition(parameters, latent, action, theta + unit @ z)
        prior = 0.5 * prior_cost * jnp.square(origin + z).sum() * share.sum()
        return (share * dynamics.negative_log_likelihood(prediction, target)).sum() + prior

    def descend(carry: tuple[Array, Any], index: Array) -> tuple[tuple[Array, Any], None]:
        z, state = carry
        rows, own = (latent, steps.action, target), share
        if batch_size:
            draw = jax.random.categorical(jax.random.fold_in(key, index), jnp.log(share), shape=(batch_size,))
            rows = jax.tree.map(lambda x: x[draw], rows)
            own = jnp.full((batch_size,), (weight.sum() > 0) / batch_size)
        change, state = optimizer.update(jax.grad(loss)(z, rows, own), state)
        return (optax.apply_updates(z, change), state), None

    z = jnp.zeros(world.theta_size)
    (z, _), _ = jax.lax.scan(descend, (z, optimizer.init(z)), jnp.arange(num_steps))
    return theta + unit @ z


def _root_of_covariance(thetas: Array) -> Array:
    """L [K, K] such that L Lᵀ is the covariance of embeddings [T, K]; L is 0 if they do not differ."""
    centred = thetas - thetas.mean(axis=0)
    values, vectors = jnp.linalg.eigh(centred.T @ centred / len(thetas))
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))
