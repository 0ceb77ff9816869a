"""Models of one step of an environment: the next state, and its reward. Plain functions of plain arrays.

They are conditioned on a state (or a latent one), an action and a vector θ that says which dynamics hold; θ may be of
size 0. What they are trained on is no concern of theirs.
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
    """Hidden layers and a linear output layer; linear altogether without hidden layers.

    Attributes:
        size: outputs.
        sizes: widths of the hidden layers.
        activation: name of the non-linearity.
        gain: of the output layer's initialisation.
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
        apply: (parameters, latent [..., Z], action [..., A], theta [..., K] or [K]) -> what it predicts.
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
    """A model of the next latent state: the present one plus a perceptron's change.

    Args:
        kind: "deterministic"; "gaussian", diagonal, whose scale depends on state and action; or an "ensemble" of
            Gaussians which differ in where they start.
        latent: Z.
        action: A; discrete actions come one-hot.
        theta: K.
        sizes: widths of the hidden layers; none is a linear model.
        activation: of those.
        members: M, of an ensemble; otherwise M is 1.

    Returns:
        A Model whose ``apply`` gives a Normal with leaves [M, ..., Z]. A deterministic one has the scale 1, so that
        its log-likelihood is half its squared error.

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
        # Bounded smoothly: a scale that shrinks without end would make the likelihood of a still state infinite.
        log_scale = MIN_LOG_SCALE + (MAX_LOG_SCALE - MIN_LOG_SCALE) * jax.nn.sigmoid(raw)
        return Normal(z + change, log_scale)

    return Model(init, apply)


def make_reward(
    *, latent: int, action: int, theta: int = 0, sizes: tuple[int, ...] = (128,), activation: str = "relu"
) -> Model:
    """A model of the reward: a perceptron. Its ``apply`` gives [...]. Arguments as of :func:`make_transition`."""
    module = Perceptron(1, sizes, activation)
    blank = np.zeros((latent + action + theta,), np.float32)

    def apply(parameters: Any, z: Array, a: Array, theta: Array) -> Array:
        return module.apply(parameters, join(z, a, theta))[..., 0]

    return Model(lambda key: module.init(key, blank), apply)


# ------------------------------------------------------------------------------------- distances and losses


def negative_log_likelihood(prediction: Normal, target: Array) -> Array:
    """½ ((μ − z') / σ)² + log σ, the mean over dimensions and members; without the constant.

    Args:
        prediction: leaves [M, ..., Z].
        target: [..., Z].

    Returns:
        [...].
    """
    error = (prediction.mean - target) * jnp.exp(-prediction.log_scale)
    return (0.5 * jnp.square(error) + prediction.log_scale).mean(axis=-1).mean(axis=0)


def wasserstein(p: Normal, q: Normal) -> Array:
    """W₂ of diagonal Gaussians, √(‖Δμ‖² + ‖Δσ‖²), the mean over members: leaves [M, ..., Z] to [...]."""
    means, scales = p.mean - q.mean, jnp.exp(p.log_scale) - jnp.exp(q.log_scale)
    return length(jnp.concatenate([means, scales], axis=-1)).mean(axis=0)


def length(x: Array) -> Array:
    """Euclidean length over the last axis, [..., Z] to [...]; its gradient at 0 is 0."""
    square = jnp.square(x).sum(axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
