"""Models of one environment step: the next state and the reward, as plain functions of plain arrays.

They are conditioned on a state (or latent state), an action and a vector θ that identifies the dynamics; θ may have
size 0. They assume nothing about how they are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtjax.networks.components import Head, Trunk, join
from mtjax.networks.distributions import MAX_LOG_SCALE, MIN_LOG_SCALE, Normal

Array = jax.Array
TRANSITIONS = ("deterministic", "gaussian", "ensemble")


class Perceptron(nn.Module):
    """Hidden layers and a linear output layer; a linear map if there are no hidden layers.

    Attributes:
        size: number of outputs.
        sizes: widths of the hidden layers.
        activation: name of the non-linearity.
        gain: gain of the output layer's initialisation.
        norm: normalise the outputs to mean 0 and variance 1 over the features.
    """

    size: int
    sizes: tuple[int, ...] = ()
    activation: str = "relu"
    gain: float = 1.0
    norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., in] to [..., size]."""
        x = Head(self.size, self.gain)(Trunk(self.sizes, self.activation)(x))
        return nn.LayerNorm(use_scale=False, use_bias=False)(x) if self.norm else x


class Model(NamedTuple):
    """A model of one step.

    Attributes:
        init: key -> parameters.
        apply: (parameters, latent [..., Z], action [..., A], theta [..., K] or [K]) -> prediction.
    """

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array, Array, Array], Any]


def make_transition(
    kind: str,
    *,
    latent: int,
    action: int,
    theta: int = 0,
    sizes: tuple[int, ...] = (128,),
    activation: str = "relu",
    members: int = 5,
) -> Model:
    """A model of the next latent state: the current one plus a change predicted by a perceptron.

    Args:
        kind: "deterministic"; "gaussian", diagonal, with a scale that depends on state and action; or an "ensemble" of
            such Gaussians that differ in their initialisation.
        latent: Z.
        action: A; discrete actions are one-hot.
        theta: K.
        sizes: widths of the hidden layers; if empty, the model is linear.
        activation: non-linearity of the hidden layers.
        members: M, the size of an ensemble; for other kinds, M is 1.

    Returns:
        A Model whose ``apply`` returns a Normal with leaves [M, ..., Z]. A deterministic model has scale 1, so that
        its negative log-likelihood is half the squared error, up to a constant.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in TRANSITIONS:
        raise ValueError(f"transition model {kind!r} is not one of {', '.join(TRANSITIONS)}")
    certain = kind == "deterministic"
    module = Perceptron(latent if certain else 2 * latent, sizes, activation, gain=0.1)
    number = members if kind == "ensemble" else 1
    blank = np.zeros((latent + action + theta,), np.float32)

    def init(key: Array) -> Any:
        return jax.vmap(lambda k: module.init(k, blank))(jax.random.split(key, number))

    def apply(parameters: Any, z: Array, a: Array, theta: Array) -> Normal:
        out = jax.vmap(module.apply, in_axes=(0, None))(parameters, join(z, a, theta))
        if certain:
            return Normal(z + out, jnp.zeros_like(out))
        change, raw = jnp.split(out, 2, axis=-1)
        # Smoothly bounded: with a scale free to shrink, the likelihood of a state that never changes is unbounded.
        log_scale = MIN_LOG_SCALE + (MAX_LOG_SCALE - MIN_LOG_SCALE) * jax.nn.sigmoid(raw)
        return Normal(z + change, log_scale)

    return Model(init, apply)


def make_reward(
    *, latent: int, action: int, theta: int = 0, sizes: tuple[int, ...] = (128,), activation: str = "relu"
) -> Model:
    """A perceptron that models the reward; ``apply`` returns [...]. Arguments as for :func:`make_transition`."""
    module = Perceptron(1, sizes, activation)
    blank = np.zeros((latent + action + theta,), np.float32)

    def apply(parameters: Any, z: Array, a: Array, theta: Array) -> Array:
        return module.apply(parameters, join(z, a, theta))[..., 0]

    return Model(lambda key: module.init(key, blank), apply)


# ------------------------------------------------------------------------------------- distances and losses


def negative_log_likelihood(prediction: Normal, target: Array) -> Array:
    """½ ((μ − z') / σ)² + log σ, without the constant, averaged over dimensions and members.

    Args:
        prediction: leaves [M, ..., Z].
        target: [..., Z].

    Returns:
        [...].
    """
    error = (prediction.mean - target) * jnp.exp(-prediction.log_scale)
    return (0.5 * jnp.square(error) + prediction.log_scale).mean(axis=-1).mean(axis=0)


def wasserstein(p: Normal, q: Normal) -> Array:
    """W₂ distance of diagonal Gaussians, √(‖Δμ‖² + ‖Δσ‖²), averaged over members: leaves [M, ..., Z] to [...]."""
    means, scales = p.mean - q.mean, jnp.exp(p.log_scale) - jnp.exp(q.log_scale)
    return length(jnp.concatenate([means, scales], axis=-1)).mean(axis=0)


def length(x: Array) -> Array:
    """Euclidean length over the last axis, [..., Z] to [...]; its gradient at 0 is 0."""
    square = jnp.square(x).sum(axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
