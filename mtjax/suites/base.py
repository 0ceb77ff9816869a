"""Suites, i.e. named sets of tasks with splits, metadata and version stamp; and the registry of suites."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mtjax.envs.adjust import on_host
from mtjax.envs.base import ActionSpec, Env, Step, Task, VectorEnv
from mtjax.envs.vectorize import vectorize

SPLITS = ("train", "interpolation", "extrapolation")


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """Metadata of one task.

    Attributes:
        name: unique within the suite, e.g. "mass_0.50".
        description: one sentence about the task, which policies may be conditioned on.
        parameters: the numbers that distinguish it from other tasks, by name, for tables and plots.
    """

    name: str
    description: str
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Split:
    """The tasks of one split.

    Attributes:
        infos: metadata of the T tasks, in task order.
        tasks: pytree with leaves [T, ...] for device suites; otherwise whatever ``make_vector_env`` needs
            (e.g. task names).
        action_sizes: [T] like :attr:`Suite.action_sizes`, for the tasks of this split. None: all are real.
        origins: [T] names of the suites that a combined suite took the tasks from: the body, which is known even for
            a held-out task. A policy acts zero-shot with the average over the training tasks of the same origin. None:
            over all training tasks.
    """

    infos: tuple[TaskInfo, ...]
    tasks: Task
    action_sizes: tuple[int, ...] | None = None
    origins: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.infos)


@dataclasses.dataclass(frozen=True)
class Version:
    """The stamp stored with every result, so that only results of the same protocol are compared.

    Attributes:
        suite: revision of the suite's own definition, incremented when its results change.
        simulator: name and version of the physics simulator, e.g. "mujoco-mjx 3.17.0".
        reward: version of the reward function, e.g. "v2".
        horizon: steps per episode.
        goals: "fixed", "redrawn each episode", "none" …
        success: the criterion for the success of an episode, or "none".
        warnings: what a user must know (e.g. tasks that the installed simulator gets wrong).
    """

    suite: str
    simulator: str
    reward: str
    horizon: int
    goals: str = "none"
    success: str = "none"
    warnings: tuple[str, ...] = ()


class MakeVectorEnv(Protocol):
    def __call__(self, split: Split, num_envs: int, *, seed: int) -> VectorEnv: ...


class Render(Protocol):
    """Draws one episode of one task on the host.

    ``policy(observation [obs], key) -> action`` is the (deterministic or stochastic) policy for that task.
    Returns RGB frames [N, height, width, 3] uint8 and the number of frames per second for playback in real time.
    """

    def __call__(
        self, split: Split, task_index: int, policy: Callable, *, seed: int, steps: int
    ) -> tuple[np.ndarray, float]: ...


@dataclasses.dataclass(frozen=True)
class Suite:
    """A named set of tasks.

    Attributes:
        name: what ``--suite`` takes.
        version: the stamp.
        observation_size, action: the spaces that all tasks share (after padding, if any).
        horizon: steps after which an episode is truncated.
        splits: "train", and where the suite has them "interpolation" and "extrapolation".
        make_vector_env: makes the VectorEnv of a split.
        has_success: True if Step.info has "success".
        on_device: True if the environments are pure JAX.
        render: draws an episode; None if the suite cannot be drawn.
        action_sizes: [T] for suites of different bodies: the first ``action_sizes[t]`` entries (or
            choices) of task t's padded action are real. None: all are real.
    """

    name: str
    version: Version
    observation_size: int
    action: ActionSpec
    horizon: int
    splits: Mapping[str, Split]
    make_vector_env: MakeVectorEnv
    has_success: bool = False
    on_device: bool = True
    render: Render | None = None
    action_sizes: tuple[int, ...] | None = None

    @property
    def num_tasks(self) -> int:
        """Number of training tasks, T."""
        return len(self.splits["train"])

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The training tasks' metadata, in task order."""
        return self.splits["train"].infos

    def split(self, name: str) -> Split:
        """Look up a split, which must have tasks.

        Raises:
            ValueError: the suite has no such split, or it is empty.
        """
        if not self.splits.get(name):
            have = [label for label, part in self.splits.items() if part]
            raise ValueError(f"suite {self.name!r} has no split {name!r}; it has {', '.join(have)}")
        return self.splits[name]

    def vector_env(self, num_envs: int, *, split: str = "train", seed: int = 0) -> VectorEnv:
        """Make T × ``num_envs`` environments of a split.

        Args:
            num_envs: E, environments per task.
            split: name of the split.
            seed: used only by host simulators; device suites take their randomness from keys.

        Raises:
            ValueError: the suite has no such split, or it is empty.
        """
        part = self.split(split)
        env = self.make_vector_env(part, num_envs, seed=seed)
        return on_host(env, [info.name for info in part.infos])


def from_env(
    name: str,
    env: Env,
    splits: Mapping[str, Split],
    *,
    version: Version,
    has_success: bool | None = None,
    render: Render | None = None,
) -> Suite:
    """Make a suite from a pure environment and batches of its task parameters.

    Args:
        name: the suite's name.
        env: the environment; every task is one pytree of its parameters.
        splits: by name; each Split's ``tasks`` has leaves [T, ...], and its ``infos`` one entry per task.
        version: the stamp; its ``horizon`` is the episode length.
        has_success: whether the environment reports success; None means to find out, by tracing one step.
        render: draws an episode.

    Returns:
        The suite, ready for ``suite.vector_env(num_envs)``.

    Raises:
        ValueError: there is no "train" split, infos and tasks of a split differ in number, or a task name repeats.
    """
    if "train" not in splits:
        raise ValueError(f"suite {name!r} has no split 'train', only {sorted(splits)}")
    for label, split in splits.items():
        shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(split.tasks)}
        if shapes != {(len(split),)}:
            raise ValueError(
                f"split {label!r} of {name!r} has {len(split)} infos, so every leaf of its tasks must "
                f"lead with [{len(split)}]; found {sorted(map(list, shapes))}"
            )
        task_names = [info.name for info in split.infos]
        if len(set(task_names)) != len(task_names):
            raise ValueError(f"split {label!r} of {name!r} repeats a task name: {task_names}")

    if has_success is None:
        has_success = "success" in _traced_step(env, splits["train"].tasks).info

    def make_vector_env(split: Split, num_envs: int, *, seed: int) -> VectorEnv:
        del seed
        return vectorize(env, split.tasks, num_envs, horizon=version.horizon)

    return Suite(
        name=name,
        version=version,
        observation_size=env.observation_size,
        action=env.action,
        horizon=version.horizon,
        splits=splits,
        make_vector_env=make_vector_env,
        has_success=has_success,
        render=render,
    )


def _traced_step(env: Env, tasks: Task) -> Step:
    """Shapes and dtypes of one step of the first task."""

    def once(tasks: Task, key: jax.Array) -> Step:
        task = jax.tree.map(lambda leaf: leaf[0], tasks)
        state, _ = env.reset(task, key)
        action = jnp.zeros(env.action.shape, jnp.float32 if env.action.kind == "continuous" else jnp.int32)
        return env.step(task, state, action, key)[1]

    return jax.eval_shape(once, tasks, jax.random.key(0))


# ---------------------------------------------------------------------------------------- registry

_REGISTRY: dict[str, Callable[[], Suite]] = {}


def register(name: str, *, replace: bool = False) -> Callable:
    """Decorator: ``@register("my-suite") def _() -> Suite``. The function is called whenever the suite is made.

    Args:
        name: what ``--suite`` and :func:`make` take; the suite must have the same name.
        replace: replace an already registered suite of that name (e.g. when a notebook cell is run again).

    Raises:
        ValueError: the name is taken and ``replace`` is False.
    """

    def add(make: Callable[[], Suite]) -> Callable[[], Suite]:
        if name in _REGISTRY and not replace:
            raise ValueError(f"suite {name!r} is already registered")
        _REGISTRY[name] = make
        return make

    return add


def names() -> list[str]:
    """The registered suites, sorted."""
    return sorted(_REGISTRY)


def make(name: str) -> Suite:
    """Build the suite of that name.

    Raises:
        ValueError: no such suite (the message names the nearest ones), or the suite itself has another name.
    """
    if name not in _REGISTRY:
        typed = name.lower()
        near = sorted((known for known in _REGISTRY if typed in known), key=len)
        near += difflib.get_close_matches(typed, _REGISTRY, n=3, cutoff=0.4)
        near = list(dict.fromkeys(near))[:3]
        own = "suite of your own: name its module in MTJAX_SUITES"
        hint = f"did you mean {' or '.join(near)}? A {own}" if near else f"known suites: {_listing()}; a {own}"
        raise ValueError(f"unknown suite {name!r}; {hint}")
    suite = _REGISTRY[name]()
    if suite.name != name:
        raise ValueError(f"the suite registered as {name!r} calls itself {suite.name!r}; the two must agree")
    return suite


def _listing() -> str:
    """The known names in one line; a family of more than 8 (e.g. metaworld-mt1-*) is one entry."""
    families: dict[str, list[str]] = {}
    for name in names():
        families.setdefault("-".join(name.split("-")[:2]), []).append(name)
    entries = (
        [f"{family}-* ({len(members)})"] if len(members) > 8 else members for family, members in families.items()
    )
    return ", ".join(entry for family in entries for entry in family)


def stack(parameters: Sequence[Mapping[str, Any]]) -> dict[str, jax.Array]:
    """Turn T dicts of numbers into one pytree of tasks with leaves [T, ...] float32.

    Raises:
        ValueError: ``parameters`` is empty, or the dicts have different keys.
    """
    if not parameters:
        raise ValueError("stack needs at least one task")
    for index, entry in enumerate(parameters):
        if entry.keys() != parameters[0].keys():
            raise ValueError(f"task {index} has {sorted(entry)}, task 0 has {sorted(parameters[0])}")
    return {k: jnp.asarray([p[k] for p in parameters], jnp.float32) for k in parameters[0]}
