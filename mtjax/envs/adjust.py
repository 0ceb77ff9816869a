"""Copies of an environment with other attributes: those of its host simulators, or the episode length."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from mtjax.envs.base import VectorEnv
from mtjax.envs.host import HostVectorEnv
from mtjax.envs.padding import Grouped


def on_host(env: VectorEnv, task_names: Sequence[str] = (), **changes: Any) -> VectorEnv:
    """A copy with other attributes of its host simulators; an environment without any is returned as it is.

    Args:
        env: a HostVectorEnv, a Grouped of them, or any other environment.
        task_names: names of its T tasks, for error messages; if empty, the old names are kept.
        changes: other attributes of :class:`~mtjax.envs.host.HostVectorEnv`, e.g. ``stagger=True``.
    """
    if isinstance(env, HostVectorEnv):
        return dataclasses.replace(env, task_names=tuple(task_names) or env.task_names, **changes)
    if env.on_device or not isinstance(env, Grouped):
        return env
    ends = list(itertools.accumulate((group.num_tasks for group in env.groups), initial=0))
    own = [task_names[start:end] for start, end in itertools.pairwise(ends)]
    return Grouped(tuple(on_host(group, names, **changes) for group, names in zip(env.groups, own, strict=True)))


def cut_short(env: VectorEnv, horizon: int) -> VectorEnv:
    """A copy whose episodes are truncated after at most ``horizon`` steps.

    Raises:
        ValueError: the environment has no ``horizon`` to change, or none of its episodes is longer.
    """
    longest = longest_episode(env)
    if horizon >= longest:
        raise ValueError(f"a horizon of {horizon} steps cuts nothing short: the longest episode has {longest}")
    return _cut_short(env, horizon)


def longest_episode(env: VectorEnv) -> int:
    """Steps after which the longest episode is truncated. Raises ValueError if the environment has no ``horizon``."""
    if isinstance(env, Grouped):
        return max(map(longest_episode, env.groups))
    if not (dataclasses.is_dataclass(env) and hasattr(env, "horizon")):
        raise ValueError(f"{type(env).__name__} has no horizon that could be changed")
    return env.horizon


def _cut_short(env: VectorEnv, horizon: int) -> VectorEnv:
    if isinstance(env, Grouped):
        return Grouped(tuple(_cut_short(group, horizon) for group in env.groups))
    return dataclasses.replace(env, horizon=min(env.horizon, horizon))
