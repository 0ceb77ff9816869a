"""Routing and mixing weights as metrics: small arrays with one row per task."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Parameters, Weights
from mtjax.networks.task import Task

Array = jax.Array
OBSERVATIONS = 64  # per task, on which routing is evaluated


def diagnose(network: Any, p: Parameters, tasks: Task, observation: Array, name: str) -> dict[str, Array]:
    """How a network routes or mixes for each task, as metrics.

    Args:
        network: a Network or Policy.
        p: its parameters.
        tasks: leaves [T, ...].
        observation: [T, B, obs]; the first 64 of each task are used.
        name: the network's name in the metrics' names, e.g. "policy".

    Returns:
        "routing/policy", "weights/policy" or "embedding/policy" [T, F], and "routing_entropy/policy" [T], as far as the
        network has them.
    """
    weights = jax.vmap(network.diagnose, in_axes=(None, 0, 0, 0))(
        p.shared, p.private, tasks, observation[:, :OBSERVATIONS]
    )
    found = jax.vmap(summarize)(weights) if weights else {}
    return {f"{kind}/{name}": value for kind, value in found.items()}


def summarize(weights: Weights) -> dict[str, Array]:
    """Average the result of ``Network.diagnose`` for ONE task over a batch.

    Args:
        weights: by name, [B, ...].

    Returns:
        Every entry as one vector [F]; and, if there is routing, "routing_entropy" [], the mean entropy of the
        probabilities as a fraction of its maximum (1: uniform over all sources; 0: a single source each).
    """
    found = {name: value.mean(axis=0).reshape(-1) for name, value in weights.items()}
    if "routing" in weights and weights["routing"].shape[-1] > 1:
        p = weights["routing"]
        entropies = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-12)), axis=-1)
        found["routing_entropy"] = entropies.mean() / math.log(p.shape[-1])
    return found
