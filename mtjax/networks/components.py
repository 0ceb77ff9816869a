"""The components of arrangements: layers, trunks, heads, and stacks of identical modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtjax.networks.config import NetworkConfig

Array = jax.Array
ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu, "silu": nn.silu, "elu": nn.elu, "gelu": nn.gelu}


class Trunk(nn.Module):
    """A multi-layer perceptron of hidden layers, with orthogonal initialisation.

    Attributes:
        sizes: width of every layer.
        activation: name of the non-linearity, a key of ``ACTIVATIONS``.
        layer_norm: normalise before every non-linearity.
        linear_end: leave the last layer without normalisation and non-linearity.
        norm_scale: layer normalisation has a learnt scale and bias.
    """

    sizes: tuple[int, ...]
    activation: str = "tanh"
    layer_norm: bool = False
    linear_end: bool = False
    norm_scale: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., in] to [..., sizes[-1]]."""
        for index, size in enumerate(self.sizes):
            x = nn.Dense(size, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(x)
            if self.linear_end and index == len(self.sizes) - 1:
                return x
            if self.layer_norm:
                x = nn.LayerNorm(use_scale=self.norm_scale, use_bias=self.norm_scale)(x)
            x = ACTIVATIONS[self.activation](x)
        return x


class ResidualTrunk(nn.Module):
    """BroNet (arXiv 2405.16158): a normalised input layer, then residual blocks of two normalised layers each.

    Attributes:
        width: width of every layer.
        blocks: number of residual blocks.
        activation: name of the non-linearity.
        norm_scale: as in Trunk.
    """

    width: int
    blocks: int
    activation: str = "relu"
    norm_scale: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., in] to [..., width]."""
        activation = ACTIVATIONS[self.activation]

        def layer(x: Array) -> Array:
            x = nn.Dense(self.width, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(x)
            return nn.LayerNorm(use_scale=self.norm_scale, use_bias=self.norm_scale)(x)

        x = activation(layer(x))
        for _ in range(self.blocks):
            x = x + layer(activation(layer(x)))
        return x


class Head(nn.Module):
    """An output layer with orthogonal initialisation of the given gain, optionally after hidden layers.

    Attributes:
        size: number of outputs.
        gain: gain of the output layer's initialisation.
        hidden: widths of the hidden layers.
        activation, layer_norm: of the hidden layers, as in Trunk.
    """

    size: int
    gain: float = 1.0
    hidden: tuple[int, ...] = ()
    activation: str = "tanh"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., in] to [..., size]."""
        for size in self.hidden:
            x = nn.Dense(size, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(x)
            x = ACTIVATIONS[self.activation](nn.LayerNorm()(x) if self.layer_norm else x)
        return nn.Dense(self.size, kernel_init=nn.initializers.orthogonal(self.gain))(x)


def make_trunk(config: NetworkConfig, sizes: tuple[int, ...], *, norm_scale: bool = True) -> nn.Module:
    """The trunk that ``config.trunk`` names, with hidden layers of these sizes."""
    if config.trunk == "residual" and sizes:
        return ResidualTrunk(sizes[0], len(sizes), config.activation, norm_scale)
    return Trunk(sizes, config.activation, config.layer_norm, norm_scale=norm_scale)


def last_layer(config: NetworkConfig, sizes: tuple[int, ...]) -> str:
    """The name of the last dense layer of :func:`make_trunk`'s trunk within its parameters."""
    return f"Dense_{2 * len(sizes) if config.trunk == 'residual' else len(sizes) - 1}/"


# ------------------------------------------------------------------------------- plain layers and stacks


def init_dense(key: Array, inputs: int, size: int, gain: float = math.sqrt(2)) -> dict[str, Array]:
    """Parameters of a linear layer: orthogonal kernel [inputs, size], zero bias [size]."""
    kernel = nn.initializers.orthogonal(gain)(key, (inputs, size), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((size,), jnp.float32)}


def dense(p: Any, x: Array) -> Array:
    """Apply a linear layer: [..., in] to [..., size]."""
    return x @ p["kernel"] + p["bias"]


def init_stack(init: Callable[[Array], Any], key: Array, number: int) -> Any:
    """Parameters of ``number`` identical modules, each initialised independently: leaves [number, ...]."""
    return jax.vmap(init)(jax.random.split(key, number))


def join(x: Array, *vectors: Array) -> Array:
    """Append vectors to x [..., in], broadcast over those leading axes that they do not have."""
    wide = [jnp.broadcast_to(v, (*x.shape[:-1], v.shape[-1])) for v in vectors if v.shape[-1]]
    return jnp.concatenate([x, *wide], axis=-1) if wide else x
