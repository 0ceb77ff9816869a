"""Components that arrangements are composed of."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu, "silu": nn.silu, "elu": nn.elu, "gelu": nn.gelu}


class Trunk(nn.Module):
    """A multi-layer perceptron of hidden layers, with orthogonal initialisation.

    Attributes:
        sizes: width of every layer.
        activation: name of the non-linearity, a key of ``ACTIVATIONS``.
        layer_norm: normalise before every non-linearity.
    """

    sizes: tuple[int, ...]
    activation: str = "tanh"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., sizes[-1]]."""
        for size in self.sizes:
            x = nn.Dense(size, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = ACTIVATIONS[self.activation](x)
        return x


class Head(nn.Module):
    """A linear output layer with orthogonal initialisation of the given gain."""

    size: int
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., size]."""
        return nn.Dense(self.size, kernel_init=nn.initializers.orthogonal(self.gain))(x)
