"""Routing and mixing weights as metrics: small arrays, one row a task."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from mtjax.networks.base import Parameters, Weights
from mtjax.networks.task import Task

Array = jax.Array
OBSERVATIONS = 64  # of each task, at which routing is looked at


def diagnose(network: Any, p: Parameters, tasks: Task, observation: Array, name: str) -> dict[str, Array]:
    """How a network routes or mixes for each task, as metrics.

    Args:
        network: a Network or Policy.
        p: its parameters.
        tasks: leaves [T, ...].
        observation: [T, B, obs]; the first 64 are looked at.
        name: of the network in the metrics' names, e.g. "policy".

    Returns:
        "routing/policy", "weights/policy" or "embedding/policy" [T, F], and "routing_entropy/policy" [T], where there
        are such.
    """
    weights = jax.vmap(network.diagnose, in_axes=(None, 0, 0, 0))(
        p.shared, p.private, tasks, observation[:, :OBSERVATIONS]
    )
    found = jax.vmap(summarize)(weights) if weights else {}
    return {f"{kind}/{name}": value for kind, value in found.items()}


def summarize(weights: Weights) -> dict[str, Array]:
    """What ``Network.diagnose`` said of ONE task on a batch, averaged over the batch.

    Args:
        weights: by name, [B, ...].

    Returns:
        Every entry as one vector [F]; and "routing_entropy" [], the mean entropy of the probabilities as a share of
        the greatest (1: everybody listens to all alike; 0: everybody listens to one).
    """
    found = {name: value.mean(axis=0).reshape(-1) for name, value in weights.items()}
    if "routing" in weights and weights["routing"].shape[-1] > 1:
        p = weights["routing"]
        entropies = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-12)), axis=-1)
        found["routing_entropy"] = entropies.mean() / math.log(p.shape[-1])
    return found
