"""Critics: an ensemble of networks, and the two ways in which they represent a return.

A *head* interprets the outputs: ``scalar`` is the mean of the return, ``categorical`` its distribution over
atoms (C51, arXiv 1707.06887). Both treat the actions of a state as C candidates with probabilities: one sampled
action if actions are continuous, all choices if they are discrete. So one loss serves both kinds of actions:

    soft value of a state = Σ_c π(c) (Q(c) − α log π(c))

Shapes here are those of ONE task: N critics, B transitions, C candidates, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec
from mtjax.networks import shared_encoder
from mtjax.networks.base import Network, Parameters, Weights
from mtjax.networks.shared_encoder import REST, SharedEncoder, own
from mtjax.networks.task import Task

Array = jax.Array


class Candidates(NamedTuple):
    """The actions over which an expectation is taken, in B states.

    Attributes:
        action: [B, A] one sampled action; None if actions are discrete, as the candidates are then all choices.
        probability: [B, C] π(c); 1 for a sampled action.
        log_prob: [B, C] log π(c).
    """

    action: Array | None
    probability: Array
    log_prob: Array


class Head(NamedTuple):
    """How the outputs of a critic represent a return.

    Attributes:
        size: K, outputs per candidate.
        value: outputs [..., K] -> mean return [...].
        target: (outputs [N, B, C, K], candidates, temperature [], reward [B], discount [B]) -> [B, K'], the
            critics' targets for the transitions. ``discount`` is 0 at terminal steps.
        loss: (outputs [N, B, K], target [B, K']) -> [N, B].
    """

    size: int
    value: Callable[[Array], Array]
    target: Callable[..., Array]
    loss: Callable[[Array, Array], Array]


def make_head(kind: str, *, reduction: str, num_atoms: int, value_range: float) -> Head:
    """The head named by ``critic_head``; ``reduction`` ("min" or "mean") combines the outputs of the N critics."""
    return scalar(reduction) if kind == "scalar" else categorical(reduction, num_atoms, value_range)


def reduce_values(values: Array, reduction: str) -> Array:
    """Reduce N critics' values [N, ...] to one value [...]: the minimum or the mean."""
    return values.min(axis=0) if reduction == "min" else values.mean(axis=0)


def scalar(reduction: str) -> Head:
    """The mean of the return, trained by squared error (arXiv 1812.05905, eq. 5 and 6)."""

    def target(outputs: Array, candidates: Candidates, temperature: Array, reward: Array, discount: Array) -> Array:
        soft = reduce_values(outputs[..., 0], reduction) - temperature * candidates.log_prob
        return (reward + discount * (candidates.probability * soft).sum(axis=1))[:, None]

    return Head(
        size=1,
        value=lambda outputs: outputs[..., 0],
        target=target,
        loss=lambda outputs, target: 0.5 * jnp.square(outputs[..., 0] - target[:, 0]),
    )


def categorical(reduction: str, num_atoms: int, value_range: float) -> Head:
    """The distribution of the return over equally spaced atoms within ± ``value_range``, trained by cross-entropy.

    "mean" mixes the N distributions; "min" takes, for each candidate, the one with the lowest mean.
    """
    atoms = jnp.linspace(-value_range, value_range, num_atoms, dtype=jnp.float32)

    def value(outputs: Array) -> Array:
        return jax.nn.softmax(outputs, axis=-1) @ atoms

    def one_of(outputs: Array) -> Array:
        """Probabilities [B, C, K]: the distributions of the N critics reduced to one."""
        probabilities = jax.nn.softmax(outputs, axis=-1)
        if reduction == "mean":
            return probabilities.mean(axis=0)
        lowest = jnp.argmin(value(outputs), axis=0)[None, ..., None]
        return jnp.take_along_axis(probabilities, lowest, axis=0)[0]

    def target(outputs: Array, candidates: Candidates, temperature: Array, reward: Array, discount: Array) -> Array:
        bonus = -temperature * candidates.log_prob  # [B, C]
        positions = reward[:, None, None] + discount[:, None, None] * (atoms + bonus[..., None])
        mass = candidates.probability[..., None] * one_of(outputs)  # [B, C, K]
        rows = mass.shape[0]
        return project(positions.reshape(rows, -1), mass.reshape(rows, -1), atoms)

    def loss(outputs: Array, target: Array) -> Array:
        return -(target * jax.nn.log_softmax(outputs, axis=-1)).sum(axis=-1)

    return Head(num_atoms, value, target, loss)


def project(positions: Array, mass: Array, atoms: Array) -> Array:
    """Split mass between adjacent atoms (arXiv 1707.06887, eq. 7), keeping the mean unless positions are clipped.

    Args:
        positions: [B, M] of the mass; clipped to the atoms' range.
        mass: [B, M].
        atoms: [K] equally spaced, ascending.

    Returns:
        Mass [B, K] on the atoms, with the same total.
    """
    number = atoms.shape[0]
    place = (jnp.clip(positions, atoms[0], atoms[-1]) - atoms[0]) / (atoms[1] - atoms[0])
    below = jnp.clip(place.astype(jnp.int32), 0, number - 2)  # in bounds even if a position is NaN
    share = jnp.clip(place - below.astype(place.dtype), 0.0, 1.0)  # that of the atom above
    parts = mass[..., None] * jnp.stack([1.0 - share, share], axis=-1)  # [B, M, 2]; for all atoms it would be [B, M, K]

    def add(below: Array, parts: Array) -> Array:
        pairs = jnp.zeros((number, 2), parts.dtype).at[below].add(parts, mode="promise_in_bounds")
        return pairs[:, 0] + jnp.roll(pairs[:, 1], 1)  # 0 wraps round: no mass lies above the last atom

    return jax.vmap(add)(below, parts)


class Critic(NamedTuple):
    """An ensemble of N critics that share an architecture but no parameters.

    Attributes:
        init: key -> Parameters; shared leaves are [N, ...], private ones [T, N, ...].
        apply: (shared, private of one task, the task, observation [B, obs], action [B, A] or None)
            -> outputs [N, B, C, K].
        diagnose: (shared, private of one task, the task, network input [B, in]) -> what Network's ``diagnose`` says
            of the first critic.
        last_shared: as in Policy.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[..., Array]
    diagnose: Callable[[Any, Any, Task, Array], Weights]
    last_shared: tuple[str, ...]


def inputs_and_outputs(observation_size: int, action: ActionSpec, head: Head) -> tuple[int, int]:
    """Input and output size of a critic's network: a continuous action is an input, discrete ones are outputs."""
    if action.kind == "continuous":
        return observation_size + action.size, head.size
    return observation_size, action.size * head.size


def ensemble(network: Network, number: int, action: ActionSpec, head: Head) -> Critic:
    """An ensemble of ``number`` critics; ``network`` has the sizes given by ``inputs_and_outputs``."""

    def init(key: Array) -> Parameters:
        return jax.vmap(network.init, out_axes=Parameters(0, 1))(jax.random.split(key, number))

    def apply(shared: Any, private: Any, task: Task, observation: Array, taken: Array | None) -> Array:
        x = observation if taken is None else jnp.concatenate([observation, taken], axis=-1)
        outputs = jax.vmap(network.apply, in_axes=(0, 0, None, None))(shared, private, task, x)
        return outputs.reshape(*outputs.shape[:-1], -1, head.size)

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        first = jax.tree.map(lambda leaf: leaf[0], (shared, private))
        return network.diagnose(*first, task, x)

    return Critic(init, apply, diagnose, (network.last_shared,))


def through(encoder: SharedEncoder, critic: Critic, observation_size: int) -> Critic:
    """Critics whose observations pass through one encoder, which the policy uses, too."""

    def init(key: Array) -> Parameters:
        keys = jax.random.split(key)
        return shared_encoder.pair(encoder.init(keys[0]), critic.init(keys[1]))

    def apply(shared: Any, private: Any, task: Task, observation: Array, taken: Array | None) -> Array:
        view = encoder.apply(own(shared), own(private), task, observation)
        return critic.apply(shared[REST], private[REST], task, view, taken)

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        observation, taken = jnp.split(x, [observation_size], axis=-1)
        view = encoder.apply(own(shared), own(private), task, observation)
        known = encoder.diagnose(own(shared), own(private), task, observation)
        rest = critic.diagnose(shared[REST], private[REST], task, jnp.concatenate([view, taken], axis=-1))
        return {**known, **rest}

    return Critic(init, apply, diagnose, tuple(shared_encoder.last_of(encoder, last) for last in critic.last_shared))


def of_action(outputs: Array, action: ActionSpec, taken: Array) -> Array:
    """Select the outputs [N, B, K] of the actions taken from those of all candidates, [N, B, C, K]."""
    if action.kind == "continuous":
        return outputs[:, :, 0]
    return jnp.take_along_axis(outputs, taken[None, :, None, None], axis=2)[:, :, 0]
