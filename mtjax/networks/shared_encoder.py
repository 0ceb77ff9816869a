"""An encoder shared by value network and policy: it belongs to the value network, and the policy sees its output.

CARE (arXiv 2102.06177) and SAC-AE (arXiv 1910.01741) have one, trained in their authors' code only by the critics'
loss. The shared part is the encoder of the observation and, with CARE, the task's context and the attention. Trunks and
heads stay separate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mtjax.networks.arrangements import Part, make_encoder, merge
from mtjax.networks.base import Network, Parameters, Shape, Weights
from mtjax.networks.care import make_attention
from mtjax.networks.config import NetworkConfig
from mtjax.networks.task import Task
from mtjax.networks.task_encoder import make_task_encoder

Array = jax.Array
ENCODER, REST = "encoder", "rest"  # names in the parameters of a network with a shared encoder


class SharedEncoder(NamedTuple):
    """What a value network and a policy see in place of the observation.

    Attributes:
        init: key -> Parameters.
        apply: (shared, private of ONE task, the task, x [..., in]) -> [..., width].
        diagnose: as in Network.
        width: size of the output.
        last_shared: as in Network.
    """

    init: Callable[[Array], Parameters]
    apply: Callable[[Any, Any, Task, Array], Array]
    diagnose: Callable[[Any, Any, Task, Array], Weights]
    width: int
    last_shared: str


def make_shared_encoder(
    config: NetworkConfig, *, inputs: int, num_tasks: int, contexts: int = 0
) -> SharedEncoder | None:
    """The value network's encoder (for care, including its attention); None if the policy has its own.

    Args:
        config: configuration of policy and value network.
        inputs: size of an observation.
        num_tasks: T.
        contexts: as in make_network.
    """
    if config.policy_encoder == "own":
        return None
    config = config.of_value()
    encoder = make_encoder(config, Shape(inputs, 0, num_tasks, config.hidden_sizes, 1.0, contexts))
    if config.parts.body == "care":
        return _attending(config, encoder, Shape(encoder.width, 0, num_tasks, config.hidden_sizes, 1.0, contexts))

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        return encoder.of("encoder", shared, private, x)

    return SharedEncoder(
        lambda key: encoder.parameters("encoder", key, num_tasks),
        apply,
        lambda shared, private, task, x: {},
        encoder.width,
        encoder.last if encoder.kind == "shared" else "",
    )


def _attending(config: NetworkConfig, encoder: Part, shape: Shape) -> SharedEncoder:
    """An encoder (or none), followed by CARE's encoders and attention."""
    tell = make_task_encoder(config, shape)
    attention = make_attention(config, inputs=shape.inputs, told=tell.size)

    def init(key: Array) -> Parameters:
        encoder_key, encoders_key, tell_key = jax.random.split(key, 3)
        before = encoder.parameters("encoder", encoder_key, shape.num_tasks)
        return merge(before, Parameters({"encoders": attention.init(encoders_key)}, {}), tell.init(tell_key))

    def hear(shared: Any, private: Any, task: Task, x: Array) -> tuple[Array, Weights]:
        context = tell.apply(shared, private, task)
        return attention.apply(shared["encoders"], context, encoder.of("encoder", shared, private, x))

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        return hear(shared, private, task, x)[0]

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        return {**hear(shared, private, task, x)[1], **tell.show(shared, private, task, x)}

    return SharedEncoder(init, apply, diagnose, attention.width, f"encoders/{attention.last}")


def behind(encoder: SharedEncoder | None, config: NetworkConfig) -> NetworkConfig:
    """The configuration of the rest of a network whose encoder is shared: its trunk or body, and its head."""
    if encoder is None:
        return config
    parts = config.parts
    rest = {"encoder": "none", "image_shape": (), "head": parts.head, "task_input": parts.told}
    if parts.body == "care":
        rest |= {"arrangement": "none", "task_input": "none"}  # the encoder's output already includes the context
    return dataclasses.replace(config, **rest)


def through(encoder: SharedEncoder, network: Network) -> Network:
    """A network that sees the output of an encoder. Its parameters are {"encoder": …, "rest": …}."""

    def init(key: Array) -> Parameters:
        keys = jax.random.split(key)
        return pair(encoder.init(keys[0]), network.init(keys[1]))

    def apply(shared: Any, private: Any, task: Task, x: Array) -> Array:
        x = encoder.apply(own(shared), own(private), task, x)
        return network.apply(shared[REST], private[REST], task, x)

    def diagnose(shared: Any, private: Any, task: Task, x: Array) -> Weights:
        known = encoder.diagnose(own(shared), own(private), task, x)
        x = encoder.apply(own(shared), own(private), task, x)
        return {**known, **network.diagnose(shared[REST], private[REST], task, x)}

    return Network(init, apply, diagnose, last_of(encoder, network.last_shared))


def pair(encoder: Parameters, rest: Parameters) -> Parameters:
    """Combine the parameters of an encoder and of the rest of a network into those of the whole."""
    return Parameters(*({ENCODER: first, REST: second} for first, second in zip(encoder, rest, strict=True)))


def last_of(encoder: SharedEncoder, of_rest: str) -> str:
    """Path prefix of the last shared layer of a network that sees the output of an encoder."""
    if of_rest:
        return f"{REST}/{of_rest}"
    return f"{ENCODER}/{encoder.last_shared}" if encoder.last_shared else ""


def see(encoder: SharedEncoder | None, value: Parameters, tasks: Task, observation: Array) -> Array:
    """What the policies of N tasks see of observations [N, B, in]: these, or the output of the value's encoder."""
    if encoder is None:
        return observation
    return jax.vmap(encoder.apply, in_axes=(None, 0, 0, 0))(own(value.shared), own(value.private), tasks, observation)


def own(side: Any) -> Any:
    """The encoder's part of the shared or private parameters of a network with a shared encoder."""
    return side[ENCODER]
