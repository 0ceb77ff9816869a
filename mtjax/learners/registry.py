"""The learners by name. Does not import jax, so that command lines respond at once: ``make`` imports the learner."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from mtjax.learners.config import DistralConfig, HiPBMDPConfig, PPOConfig, SACConfig
from mtjax.networks.config import NetworkConfig

if TYPE_CHECKING:
    from mtjax.learners.base import Learner, TaskSpec


class Kind(NamedTuple):
    """A kind of learner.

    Attributes:
        config: dataclass of its options, which always include "rollout_length", the steps between two updates.
        maker: "module:function". The function takes the arguments of ``make`` after ``name``.
    """

    config: type
    maker: str


LEARNERS = {
    "ppo": Kind(PPOConfig, "mtjax.learners.ppo:make_ppo"),
    "distral": Kind(DistralConfig, "mtjax.learners.distral:make_distral"),
    "sac": Kind(SACConfig, "mtjax.learners.sac:make_sac"),
    "hipbmdp": Kind(HiPBMDPConfig, "mtjax.learners.hipbmdp:make_hipbmdp"),
}


def make(
    name: str,
    config: Any,
    network: NetworkConfig,
    method: Any,
    spec: TaskSpec,
    *,
    num_envs: int,
    num_updates: int,
) -> Learner:
    """Build a learner.

    Args:
        name: a key of ``LEARNERS``.
        config: the learner's options.
        network: arrangement and sizes of its networks.
        method: a method of mtjax.grads, e.g. ``grads.pcgrad()``.
        spec: tasks and spaces.
        num_envs: E, environments of one task.
        num_updates: updates of the whole run, for schedules.

    Raises:
        ValueError: options or sizes do not fit together.
    """
    module, function = LEARNERS[name].maker.split(":")
    return getattr(importlib.import_module(module), function)(
        config, network, method, spec, num_envs=num_envs, num_updates=num_updates
    )
