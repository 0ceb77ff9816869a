"""Action distributions as pure functions of their parameters, with masks for padded actions.

A learner stores the RAW action (before any squashing) together with its log-probability, so that the
probability of a stored action is never computed through an inverse hyperbolic tangent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec

Array = jax.Array
LOG_2PI = math.log(2 * math.pi)
MIN_LOG_SCALE, MAX_LOG_SCALE = -5.0, 2.0


@jax.custom_vjp
def within_bounds(log_scale: Array) -> Array:
    """Clip a log-scale to its bounds, with a gradient that leads back from beyond them, where that of a clip is 0.

    The gradient is taken to be that of a loss to be minimised: where it would lead further out, it is set to 0.
    """
    return jnp.clip(log_scale, MIN_LOG_SCALE, MAX_LOG_SCALE)


def _forward(log_scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return within_bounds(log_scale), (log_scale > MAX_LOG_SCALE, log_scale < MIN_LOG_SCALE)


def _backward(beyond: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    above, below = beyond
    return (jnp.where((above & (gradient < 0)) | (below & (gradient > 0)), 0, gradient),)


within_bounds.defvjp(_forward, _backward)


class Distribution(NamedTuple):
    """A family of action distributions. ``p`` are its parameters; ``mask`` [size] is 0 for padded actions.

    Attributes:
        sample: (p, mask, key) -> raw action.
        mode: (p, mask) -> raw action.
        log_prob: (p, mask, raw) -> [...].
        entropy: (p, mask, key) -> [...]; exact, except that squashing is corrected for by a one-sample estimate.
        kl: (p, q, mask) -> [...], KL(p ‖ q).
        to_action: raw -> the action that the environment takes.
        excess: (p, mask) -> [...], squared distance of the mode from the range that `to_action` does not clip.
    """

    sample: Callable[[Any, Array, Array], Array]
    mode: Callable[[Any, Array], Array]
    log_prob: Callable[[Any, Array, Array], Array]
    entropy: Callable[[Any, Array, Array], Array]
    kl: Callable[[Any, Any, Array], Array]
    to_action: Callable[[Array], Array]
    excess: Callable[[Any, Array], Array]


class Normal(NamedTuple):
    """Parameters of a diagonal Gaussian: ``mean`` and ``log_scale``, both [..., A]."""

    mean: Array
    log_scale: Array


def gaussian(squash: bool) -> Distribution:
    """A diagonal Gaussian; with ``squash`` its sample goes through tanh, otherwise it is clipped to [-1, 1]."""

    def log_det(raw: Array) -> Array:
        """log(1 − tanh²(raw)), stable for large |raw|."""
        return 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))

    def sample(p: Normal, mask: Array, key: Array) -> Array:
        noise = jax.random.normal(key, p.mean.shape, p.mean.dtype)
        return (p.mean + jnp.exp(p.log_scale) * noise) * mask

    def log_prob(p: Normal, mask: Array, raw: Array) -> Array:
        z = (raw - p.mean) * jnp.exp(-p.log_scale)
        logs = -0.5 * (z * z + LOG_2PI) - p.log_scale
        return jnp.sum((logs - log_det(raw) if squash else logs) * mask, axis=-1)

    def entropy(p: Normal, mask: Array, key: Array) -> Array:
        entropies = jnp.broadcast_to(0.5 * (1.0 + LOG_2PI) + p.log_scale, p.mean.shape)
        if squash:
            entropies = entropies + log_det(sample(p, mask, key))
        return jnp.sum(entropies * mask, axis=-1)

    def kl(p: Normal, q: Normal, mask: Array) -> Array:
        ratio = jnp.exp(2.0 * (p.log_scale - q.log_scale))
        distance = jnp.square((p.mean - q.mean) * jnp.exp(-q.log_scale))
        return jnp.sum((0.5 * (ratio + distance - 1.0) + q.log_scale - p.log_scale) * mask, axis=-1)

    def excess(p: Normal, mask: Array) -> Array:
        return jnp.sum(jnp.square(jax.nn.relu(jnp.abs(p.mean) - 1.0)) * mask, axis=-1)

    def none(p: Normal, mask: Array) -> Array:
        return jnp.zeros(p.mean.shape[:-1], p.mean.dtype)

    return Distribution(
        sample=sample,
        mode=lambda p, mask: p.mean * mask,
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
        to_action=jnp.tanh if squash else lambda raw: jnp.clip(raw, -1.0, 1.0),
        excess=none if squash else excess,
    )


def categorical() -> Distribution:
    """A choice among A actions; ``p`` are logits [..., A]. Masked actions have probability zero."""

    def log_probs(logits: Array, mask: Array) -> Array:
        return jax.nn.log_softmax(jnp.where(mask > 0, logits, -1e9), axis=-1)

    def log_prob(logits: Array, mask: Array, raw: Array) -> Array:
        return jnp.take_along_axis(log_probs(logits, mask), raw[..., None], axis=-1)[..., 0]

    def entropy(logits: Array, mask: Array, key: Array) -> Array:
        del key
        logs = log_probs(logits, mask)
        return -jnp.sum(jnp.exp(logs) * logs * mask, axis=-1)

    def kl(p: Array, q: Array, mask: Array) -> Array:
        logs = log_probs(p, mask)
        return jnp.sum(jnp.exp(logs) * (logs - log_probs(q, mask)) * mask, axis=-1)

    def sample(logits: Array, mask: Array, key: Array) -> Array:
        return jax.random.categorical(key, log_probs(logits, mask), axis=-1).astype(jnp.int32)

    return Distribution(
        sample=sample,
        mode=lambda logits, mask: jnp.argmax(log_probs(logits, mask), axis=-1).astype(jnp.int32),
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
        to_action=lambda raw: raw,
        excess=lambda logits, mask: jnp.zeros(logits.shape[:-1], logits.dtype),
    )


def distribution(action: ActionSpec, *, squash: bool) -> Distribution:
    """The distribution family for an action space."""
    return gaussian(squash) if action.kind == "continuous" else categorical()
