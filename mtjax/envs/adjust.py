"""An environment with other attributes: those of its simulators on the host, the length of its episodes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from mtjax.envs.base import VectorEnv
from mtjax.envs.host import HostVectorEnv
from mtjax.envs.padding import Grouped


def on_host(env: VectorEnv, task_names: Sequence[str] = (), **changes: Any) -> VectorEnv:
    """The environment with other attributes of its simulators on the host; one on the device stays as it is.

    Args:
        env: a HostVectorEnv, groups of such, or anything else.
        task_names: of its T tasks, for messages; none: as they are.
        changes: further attributes of :class:`~mtjax.envs.host.HostVectorEnv`, e.g. ``stagger=True``.
    """
    if isinstance(env, HostVectorEnv):
        return dataclasses.replace(env, task_names=tuple(task_names) or env.task_names, **changes)
    if env.on_device or not isinstance(env, Grouped):
        return env
    ends = list(itertools.accumulate((group.num_tasks for group in env.groups), initial=0))
    own = [task_names[start:end] for start, end in itertools.pairwise(ends)]
    return Grouped(tuple(on_host(group, names, **changes) for group, names in zip(env.groups, own, strict=True)))


def cut_short(env: VectorEnv, horizon: int) -> VectorEnv:
    """The environment with episodes of at most ``horizon`` steps, truncated there.

    Raises:
        ValueError: it is of a kind that has no ``horizon`` to change, or no episode is longer.
    """
    longest = longest_episode(env)
    if horizon >= longest:
        raise ValueError(f"episodes have {longest} steps and are not cut short by {horizon}")
    return _cut_short(env, horizon)


def longest_episode(env: VectorEnv) -> int:
    """Steps after which the last of its episodes is truncated. Raises ValueError if that is not for us to know."""
    if isinstance(env, Grouped):
        return max(map(longest_episode, env.groups))
    if not (dataclasses.is_dataclass(env) and hasattr(env, "horizon")):
        raise ValueError(f"{type(env).__name__} has no horizon that could be changed")
    return env.horizon


def _cut_short(env: VectorEnv, horizon: int) -> VectorEnv:
    if isinstance(env, Grouped):
        return Grouped(tuple(_cut_short(group, horizon) for group in env.groups))
    return dataclasses.replace(env, horizon=min(env.horizon, horizon))
