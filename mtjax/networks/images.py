"""Convolutional encoders, for observations that are flattened images, possibly followed by other numbers."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtjax.networks.components import ACTIVATIONS, Head, Trunk

Array = jax.Array


class ConvTrunk(nn.Module):
    """3 × 3 convolutions, each but the first halving height and width, then dense layers.

    Attributes:
        image_shape: height, width, channels.
        channels: output channels of every convolution.
        sizes: widths of the dense layers. The numbers after the image are appended before the first of these layers.
        activation: name of the non-linearity.
        layer_norm: normalise before the non-linearity of every dense layer.
    """

    image_shape: tuple[int, ...]
    channels: tuple[int, ...] = (16, 32)
    sizes: tuple[int, ...] = (64,)
    activation: str = "relu"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., H·W·C + rest] to [..., sizes[-1]]."""
        image, rest = jnp.split(x, [math.prod(self.image_shape)], axis=-1)
        image = image.reshape(*x.shape[:-1], *self.image_shape)
        for index, channels in enumerate(self.channels):
            stride = 1 if index == 0 else 2
            image = nn.Conv(channels, (3, 3), strides=stride, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(
                image
            )
            image = ACTIVATIONS[self.activation](image)
        flat = jnp.concatenate([image.reshape(*x.shape[:-1], -1), rest], axis=-1)
        return Trunk(self.sizes, self.activation, self.layer_norm)(flat)


class ImageEncoder(nn.Module):
    """:class:`ConvTrunk`, a linear layer and a normalisation over the features: maps an image to a latent state.

    Attributes:
        size: size of the latent state.
        image_shape, channels, sizes, activation: as in ConvTrunk.
    """

    size: int
    image_shape: tuple[int, ...]
    channels: tuple[int, ...] = (16, 32)
    sizes: tuple[int, ...] = (64,)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., H·W·C + rest] to [..., size]."""
        x = Head(self.size)(ConvTrunk(self.image_shape, self.channels, self.sizes, self.activation)(x))
        return nn.LayerNorm(use_scale=False, use_bias=False)(x)


def check_image(image_shape: tuple[int, ...], inputs: int) -> None:
    """Reject images that are larger than the network's input. Raises ValueError with a one-line message."""
    if math.prod(image_shape) > inputs:
        written = "x".join(map(str, image_shape))
        raise ValueError(
            f"image_shape: an image of {written} has {math.prod(image_shape)} numbers, but an observation has {inputs}"
        )
