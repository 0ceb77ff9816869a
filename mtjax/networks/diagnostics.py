"""Routing and mixing weights as metrics: small arrays, one row a task."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mtjax.networks.base import Weights

Array = jax.Array


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
