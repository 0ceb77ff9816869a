"""Convolutional encoders in networks of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjax.networks.arrangements import make_network
from mtjax.networks.config import NetworkConfig
from mtjax.networks.images import ConvTrunk, ImageEncoder
from mtjax.networks.task import training_tasks

SHAPE = (4, 6, 3)


def test_an_image_is_read_as_it_is_laid_out():
    """Against a convolution by hand: height, then width, then channels; what follows the image joins later."""
    module = ConvTrunk(SHAPE, channels=(2,), sizes=(), activation="relu")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4 * 6 * 3 + 2)), jnp.float32)
    p = module.init(jax.random.key(0), x[0])
    found = np.asarray(module.apply(p, x))
    image = np.pad(np.asarray(x[:, :72]).reshape(5, *SHAPE), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(p["params"]["Conv_0"]["kernel"])  # [3, 3, in, out]
    expected = np.zeros((5, 4, 6, 2))
    for row in range(4):
        for column in range(6):
            window = image[:, row : row + 3, column : column + 3]
            expected[:, row, column] = np.einsum("bijc,ijco->bo", window, kernel)
    np.testing.assert_allclose(found[:, :48], np.maximum(expected, 0).reshape(5, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[:, 48:], x[:, 72:])


@pytest.mark.parametrize(("arrangement", "where"), [("one_hot", "shared"), ("independent", "private")])
def test_networks_of_images(arrangement, where):
    """Without a further flag an arrangement gets a convolutional encoder, shared unless everything is private."""
    config = NetworkConfig(arrangement=arrangement, image_shape=SHAPE, hidden_sizes=(8,))
    config.check()
    network = make_network(config, inputs=72 + 2, outputs=3, num_tasks=2, sizes=(8,), gain=1.0)
    parameters = network.init(jax.random.key(0))
    assert "Conv_0" in getattr(parameters, where)["encoder"]["params"]
    tasks = training_tasks(2)
    apply = jax.jit(jax.vmap(network.apply, in_axes=(None, 0, 0, 0)))
    out = apply(parameters.shared, parameters.private, tasks, jnp.ones((2, 7, 74)))
    assert out.shape == (2, 7, 3)
    assert network.last_shared == ("head/params/Dense_0/" if where == "shared" else "")


def test_the_last_shared_layer_of_an_image_without_a_trunk_is_the_encoders():
    config = NetworkConfig(arrangement="multi_head", image_shape=SHAPE, hidden_sizes=(), encoder_sizes=(8, 4))
    network = make_network(config, inputs=72, outputs=3, num_tasks=2, sizes=(), gain=1.0)
    shared = jax.eval_shape(network.init, jax.random.key(0)).shared
    paths = [
        jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(shared)
    ]
    found = [path for path in paths if path.startswith(network.last_shared)]
    assert found == [f"encoder/params/Trunk_0/Dense_1/{name}" for name in ("bias", "kernel")]


def test_a_latent_state_of_an_image_is_normalised():
    module = ImageEncoder(6, SHAPE, channels=(2, 3), sizes=(5,))
    x = jax.random.normal(jax.random.key(0), (4, 72))
    z = module.apply(module.init(jax.random.key(1), x[0]), x)
    np.testing.assert_allclose(z.mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(z.var(axis=1), 1.0, atol=1e-2)


def test_an_image_larger_than_the_observation_is_refused():
    config = NetworkConfig(image_shape=SHAPE)
    with pytest.raises(ValueError, match="an image of 4x6x3 has 72 numbers, but an observation has 71"):
        make_network(config, inputs=71, outputs=1, num_tasks=1, sizes=(8,), gain=1.0)
