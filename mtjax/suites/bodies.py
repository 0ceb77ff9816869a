"""The bodies suites: different bodies with different observation and action spaces in one suite.

The bodies can have one agent each, or share one policy through padding: observations are padded with zeros
at the end, and ``Suite.action_sizes`` says how many entries of each task's action are real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mtjax.envs.base import ActionSpec, VectorEnv
from mtjax.envs.padding import Grouped, fit_action, pad_observation
from mtjax.suites import base
from mtjax.suites.base import SPLITS, Render, Split, Suite, TaskInfo, Version, register


def combine(name: str, suites: Sequence[Suite], *, tasks_per_suite: int | None = None) -> Suite:
    """Concatenate the tasks of several suites into one; their spaces and horizons may differ.

    Args:
        name: the new suite's name.
        suites: the suites to combine: all on the device or all on the host, with the same kind of action.
        tasks_per_suite: take only this many tasks, the first ones, of each split of each suite. None: all.

    Returns:
        A suite with the splits that all suites have. Tasks are named ``suite/task``. It defines success if all
        suites do, its horizon is the longest one, and each task's episodes last as long as in its own suite.

    Raises:
        ValueError: no suite is given, a name repeats, or the suites cannot be combined; the message says why.
    """
    suites = tuple(suites)
    suite_names = [suite.name for suite in suites]
    if not suites or len(set(suite_names)) != len(suites):
        raise ValueError(f"combine needs different suites, at least one; got {suite_names}")
    if tasks_per_suite is not None and tasks_per_suite < 1:
        raise ValueError(f"tasks_per_suite must be positive; got {tasks_per_suite}")
    for what, values in (
        ("kind of action", {suite.name: suite.action.kind for suite in suites}),
        ("place, device or host", {suite.name: suite.on_device for suite in suites}),
    ):
        if len(set(values.values())) > 1:
            raise ValueError(f"combined suites must share their {what}; got {values}")
    shared = [label for label in SPLITS if all(suite.splits.get(label) for suite in suites)]
    splits = {label: _join_splits(suites, label, tasks_per_suite) for label in shared}

    def make_vector_env(split: Split, num_envs: int, *, seed: int) -> VectorEnv:
        return Grouped(
            tuple(
                suite.make_vector_env(part, num_envs, seed=seed + index)
                for index, (suite, part) in enumerate(zip(suites, split.tasks, strict=True))
            )
        )

    drawn = all(suite.render is not None for suite in suites)
    return Suite(
        name=name,
        version=_join_versions([suite.version for suite in suites]),
        observation_size=max(suite.observation_size for suite in suites),
        action=ActionSpec(suites[0].action.kind, max(suite.action.size for suite in suites)),
        horizon=max(suite.horizon for suite in suites),
        splits=splits,
        make_vector_env=make_vector_env,
        has_success=all(suite.has_success for suite in suites),
        on_device=suites[0].on_device,
        render=_renderer(suites) if drawn else None,
        action_sizes=splits["train"].action_sizes,
    )


def _join_splits(suites: Sequence[Suite], label: str, limit: int | None) -> Split:
    """A split whose ``tasks`` is the tuple of the suites' own splits, each cut to ``limit`` tasks."""
    parts = tuple(_first(suite.splits[label], limit) for suite in suites)
    infos, sizes, origins = [], [], []
    for suite, part in zip(suites, parts, strict=True):
        for info in part.infos:  # parameters get a prefix: gravity of one body is not comparable to another's
            parameters = {f"{suite.name}/{name}": value for name, value in info.parameters.items()}
            infos.append(TaskInfo(f"{suite.name}/{info.name}", info.description, parameters))
        own = part.action_sizes or (suite.action.size,) * len(part)
        sizes += list(own)
        inner = part.origins or ("",) * len(part)
        origins += [f"{suite.name}/{origin}" if origin else suite.name for origin in inner]
    return Split(tuple(infos), parts, tuple(sizes), tuple(origins))


def _first(split: Split, limit: int | None) -> Split:
    """The first tasks of a split: leaves [limit, ...], or the first names of a host suite."""
    if limit is None or limit >= len(split):
        return split
    if any(isinstance(leaf, Split) for leaf in jax.tree.leaves(split.tasks)):
        raise ValueError("tasks_per_suite cannot be applied to a suite that is itself a combination")
    named = isinstance(split.tasks, tuple) and all(np.ndim(x) == 0 for x in jax.tree.leaves(split.tasks))
    tasks = split.tasks[:limit] if named else jax.tree.map(lambda leaf: leaf[:limit], split.tasks)
    sizes = None if split.action_sizes is None else split.action_sizes[:limit]
    return dataclasses.replace(split, infos=split.infos[:limit], tasks=tasks, action_sizes=sizes)


def _join_versions(versions: Sequence[Version]) -> Version:
    def join(values: Sequence[str]) -> str:
        return " + ".join(dict.fromkeys(values))

    return Version(
        suite=join([version.suite for version in versions]),
        simulator=join([version.simulator for version in versions]),
        reward=join([version.reward for version in versions]),
        horizon=max(version.horizon for version in versions),
        goals=join([version.goals for version in versions]),
        success=join([version.success for version in versions]),
        warnings=tuple(dict.fromkeys(text for version in versions for text in version.warnings)),
    )


def _renderer(suites: Sequence[Suite]) -> Render:
    """Draw each task with its own suite, padding the policy's observations and cutting its actions to size."""
    size = max(suite.observation_size for suite in suites)

    def render(split: Split, task_index: int, policy: Callable, *, seed: int, steps: int):
        pairs = zip(suites, split.tasks, strict=True)
        places = [(suite, part, index) for suite, part in pairs for index in range(len(part))]
        suite, part, index = places[task_index]

        def own_policy(observation, key):
            return fit_action(policy(pad_observation(observation, size), key), suite.action)

        return suite.render(part, index, own_policy, seed=seed, steps=min(steps, suite.horizon))

    return render


@register("bodies-control")
def control_bodies() -> Suite:
    """CartPole, Acrobot and Pendulum with continuous actions, one task each. Pure JAX."""
    members = ("control-cartpole-continuous", "control-acrobot-continuous", "control-pendulum")
    return combine("bodies-control", [base.make(member) for member in members], tasks_per_suite=1)


@register("bodies-mjx")
def mjx_bodies() -> Suite:
    """Cartpole swing-up, reacher and hopper on MJX, one task each."""
    members = ("hidden-cartpole-swingup", "hidden-reacher", "hidden-hopper")
    return combine("bodies-mjx", [base.make(member) for member in members], tasks_per_suite=1)
