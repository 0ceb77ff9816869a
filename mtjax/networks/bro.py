"""BroNet (arXiv 2405.16158): a wide residual trunk with layer normalisation, for critics that are to grow."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtjax.networks.arrangements import Network, Parameters
from mtjax.networks.config import NetworkConfig

Array = jax.Array


class BroNet(nn.Module):
    """Dense, normalise, relu; then ``depth`` residual blocks of two dense layers; then a linear output.

    Attributes:
        width: of every layer.
        depth: residual blocks.
        outputs: size of the output.
    """

    width: int
    depth: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., in] to [..., outputs]."""
        x = nn.relu(self._normalized(x))
        for _ in range(self.depth):
            x = x + self._normalized(nn.relu(self._normalized(x)))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(1.0))(x)

    def _normalized(self, x: Array) -> Array:
        return nn.LayerNorm()(nn.Dense(self.width, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(x))


def make_bro(
    config: NetworkConfig, *, inputs: int, outputs: int, num_tasks: int, width: int, depth: int
) -> Network:
    """A BroNet that all tasks share, or one for each task if the arrangement is "independent".

    It is told the task as the arrangement says: by a learned embedding (private to the task), not at all ("none",
    "independent"), or else by its one-hot code.

    Args:
        config: arrangement and embedding options.
        inputs: size of the input.
        outputs: size of the output.
        num_tasks: T.
        width, depth: of the trunk.
    """
    embeds = config.arrangement == "embedding"
    blind = config.arrangement in ("none", "independent")
    known = config.embedding_size if embeds else 0 if blind else num_tasks
    net = BroNet(width, depth, outputs)

    def init(key: Array) -> Parameters:
        net_key, embedding_key = jax.random.split(key)
        x = jnp.zeros((inputs + known,), jnp.float32)
        if config.arrangement == "independent":
            keys = jax.random.split(net_key, num_tasks)
            return Parameters({}, {"bro": jax.vmap(net.init, in_axes=(0, None))(keys, x)})
        shape = (num_tasks, config.embedding_size)
        private = {"embedding": jax.random.normal(embedding_key, shape, jnp.float32)} if embeds else {}
        return Parameters({"bro": net.init(net_key, x)}, private)

    def describe(private: Any, code: Array) -> Array:
        if not embeds:
            return code
        vector = private["embedding"]
        if config.unit_norm_embedding:
            vector = vector / jnp.maximum(jnp.linalg.norm(vector), 1e-6)
        return vector

    def apply(shared: Any, private: Any, code: Array, x: Array) -> Array:
        if known:
            extra = describe(private, code)
            x = jnp.concatenate([x, jnp.broadcast_to(extra, x.shape[:-1] + extra.shape)], axis=-1)
        return net.apply({**shared, **private}["bro"], x)

    return Network(init, apply)
