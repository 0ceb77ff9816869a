"""Suites of third-party environments: any of gymnasium's or EnvPool's."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from mtjax.envs.base import ActionSpec
from mtjax.envs.envpool import EnvPool, quiet, require_envpool, require_opengl, threads_per_pool
from mtjax.envs.gymnasium import PICTURES, GymnasiumPool, draws, make_env, require_gymnasium
from mtjax.envs.host import HostVectorEnv
from mtjax.envs.spaces import action_spec
from mtjax.suites.base import Split, Suite, TaskInfo, Version
from mtjax.suites.render import film

SUCCESS_ENTRIES = ("success", "is_success")  # simulators' names of success in info
FRAMES_PER_SECOND = 30.0  # for environments that do not specify it
FRAME_STEPS = 3  # steps between EnvPool's pictures: drawing one takes far longer than a step
PICTURE = {"render_mode": PICTURES, "render_width": 320, "render_height": 240}
RESERVED = {"num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_episode_steps"}


class TaskSpec(NamedTuple):
    """An environment's description of itself.

    Attributes:
        observation_size: numbers in its flattened observation.
        action: its action space.
        horizon: its own time limit, None if it has none.
        success: the info entry that indicates success, None if there is none.
        draws: True if it can draw itself.
    """

    observation_size: int
    action: ActionSpec
    horizon: int | None
    success: str | None
    draws: bool = False


def from_gymnasium(
    name: str,
    tasks: Mapping[str, str | Callable[[], Any]],
    *,
    interpolation: Mapping[str, str | Callable[[], Any]] | None = None,
    extrapolation: Mapping[str, str | Callable[[], Any]] | None = None,
    horizon: int | None = None,
    descriptions: Mapping[str, str] | None = None,
) -> Suite:
    """Make a suite of gymnasium environments, which are stepped in this process, one after another.

    Args:
        name: the suite's name.
        tasks: task name -> an id for ``gymnasium.make``, or a function that makes the environment, called without
            arguments or, for drawing, with ``render_mode``. One of each is made now, to inspect its spaces.
        interpolation, extrapolation: held-out tasks, likewise.
        horizon: steps after which an episode is truncated; by default the environments' own time limit,
            which still applies if it is shorter.
        descriptions: task name -> a sentence about it.

    Returns:
        The suite. Box actions are rescaled from [-1, 1]; ``info["success"]`` (or "is_success") is
        passed on if every task has it. The suite can be drawn if every task has the render mode "rgb_array".

    Raises:
        ImportError: gymnasium is not installed.
        ValueError: the tasks differ in their spaces or time limits, or have spaces that mtjax does not support.
    """
    require_gymnasium()
    splits = _splits(tasks, interpolation, extrapolation, descriptions)
    return _suite(
        name,
        splits,
        _look_at_gymnasium,
        lambda count: GymnasiumPool,
        horizon,
        f"gymnasium {_installed('gymnasium')}",
        film_gymnasium,
    )


def from_envpool(
    name: str,
    tasks: Mapping[str, str],
    *,
    interpolation: Mapping[str, str] | None = None,
    extrapolation: Mapping[str, str] | None = None,
    horizon: int | None = None,
    descriptions: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Suite:
    """Make a suite of EnvPool environments (gym MuJoCo, dm_control, …), stepped on threads in C++.

    Args:
        name: the suite's name.
        tasks: task name -> EnvPool's id, one of ``envpool.list_all_envs()``.
        interpolation, extrapolation: held-out tasks, likewise.
        horizon: steps after which an episode is truncated; by default EnvPool's ``max_episode_steps``.
        descriptions: task name -> a sentence about it.
        options: further options of ``envpool.make`` for every task.

    Returns:
        The suite, with actions and success as in :func:`from_gymnasium`. EnvPool draws it, with OpenGL.

    Raises:
        ImportError: EnvPool is not installed.
        ValueError: an id is unknown, an option is one that mtjax sets itself, or the tasks differ in their spaces
            or time limits, or have spaces that mtjax does not support.
    """
    require_envpool()
    if reserved := RESERVED.intersection(options or {}):
        raise ValueError(f"mtjax sets {sorted(reserved)} itself (horizon= sets the time limit)")
    splits = _splits(tasks, interpolation, extrapolation, descriptions)
    options = dict(options or {})

    def make_pool(num_tasks: int):
        return functools.partial(EnvPool, num_threads=threads_per_pool(num_tasks), options=options)

    look = functools.partial(_look_at_envpool, options=options)
    draw = functools.partial(film_envpool, options=options)
    return _suite(name, splits, look, make_pool, horizon, f"envpool {_installed('envpool')}", draw)


def _suite(name, splits, look, make_pool, horizon, simulator, draw) -> Suite:
    """Check that the tasks share their spaces, and assemble the suite.

    ``look(source) -> TaskSpec``; ``make_pool(T)(source, num_envs, seed=, info_names=) -> Pool``;
    ``draw(source, policy, seed=, steps=) -> (frames, frames per second)``.
    """
    names = [info.name for split in splits.values() for info in split.infos]
    for task in names:
        if names.count(task) > 1:
            raise ValueError(f"suite {name!r} has two tasks named {task!r}; a name stands for one task in all splits")
    specs = {
        info.name: look(source)
        for split in splits.values()
        for info, source in zip(split.infos, split.tasks, strict=True)
    }
    shared = _shared(specs, horizon)
    info_names = {"success": shared.success} if shared.success else {}

    def make_vector_env(split: Split, num_envs: int, *, seed: int) -> HostVectorEnv:
        make = make_pool(len(split))
        pools = tuple(
            functools.partial(make, source, seed=(seed, index), info_names=info_names)
            for index, source in enumerate(split.tasks)
        )
        return HostVectorEnv(pools, num_envs, shared.observation_size, shared.action, shared.horizon, tuple(info_names))

    def render(split: Split, task_index: int, policy: Callable, *, seed: int, steps: int) -> tuple[np.ndarray, float]:
        seeds, steps = (seed, task_index), min(steps, shared.horizon)
        return draw(split.tasks[task_index], policy, seed=seeds, steps=steps)

    return Suite(
        name=name,
        version=Version(
            suite="1",
            simulator=simulator,
            reward="the environments' own",
            horizon=shared.horizon,
            goals="the environments' own",
            success=f"info[{shared.success!r}]" if shared.success else "none",
        ),
        observation_size=shared.observation_size,
        action=shared.action,
        horizon=shared.horizon,
        splits=splits,
        make_vector_env=make_vector_env,
        has_success=bool(info_names),
        on_device=False,
        render=render if shared.draws else None,
    )


def film_gymnasium(
    source: str | Callable[..., Any], policy: Callable, *, seed: tuple[int, int], steps: int
) -> tuple[np.ndarray, float]:
    """Draw one episode of a gymnasium environment; see :class:`mtjax.suites.base.Render`."""
    pool = GymnasiumPool(functools.partial(make_env, source, render_mode=PICTURES), 1, seed=seed)
    (env,) = pool.envs
    try:
        frames = film(pool, env.render, policy, seed=seed[0], steps=steps)
    finally:
        pool.close()
    return frames, float(env.metadata.get("render_fps") or FRAMES_PER_SECOND)


def film_envpool(
    source: str, policy: Callable, *, seed: tuple[int, int], steps: int, options: Mapping[str, Any]
) -> tuple[np.ndarray, float]:
    """Draw one episode of an EnvPool environment; see :class:`mtjax.suites.base.Render`.

    EnvPool does not report the duration of a step, so the frame rate assumes ``FRAMES_PER_SECOND`` steps per second.
    """
    require_opengl(source)
    pool = EnvPool(source, 1, seed=seed, num_threads=1, options={**PICTURE, **options})
    frames = film(pool, lambda: pool.pool.render()[0], policy, seed=seed[0], steps=steps, every=FRAME_STEPS)
    return frames, FRAMES_PER_SECOND / FRAME_STEPS


def _splits(tasks, interpolation, extrapolation, descriptions) -> dict[str, Split]:
    parts = {"train": tasks, "interpolation": interpolation, "extrapolation": extrapolation}
    described = descriptions or {}

    def split(part):
        infos = (TaskInfo(task, described.get(task, _sentence(source))) for task, source in part.items())
        return Split(tuple(infos), tuple(part.values()))

    if not tasks:
        raise ValueError("a suite needs at least one task")
    return {label: split(part) for label, part in parts.items() if part}


def _sentence(source: str | Callable) -> str:
    """A default description: the environment's id, or its factory's docstring summary and arguments."""
    if isinstance(source, str):
        return source
    if isinstance(source, functools.partial):
        given = [*map(str, source.args), *(f"{name}={value}" for name, value in source.keywords.items())]
        return f"{_sentence(source.func).removesuffix('.')}: {', '.join(given)}"
    own = source if inspect.isroutine(source) or inspect.isclass(source) else type(source)
    lines = inspect.cleandoc(own.__doc__ or "").strip().splitlines()  # not inherited, e.g. from gymnasium's base class
    return lines[0] if lines else own.__name__


def _shared(specs: Mapping[str, TaskSpec], horizon: int | None) -> TaskSpec:
    """The TaskSpec that all tasks share; ``horizon``, if given, overrides their time limits."""
    for field in ("observation_size", "action"):
        _same(field.replace("_", " "), {task: getattr(spec, field) for task, spec in specs.items()})
    limits = {task: spec.horizon for task, spec in specs.items()}
    if horizon is None:
        horizon = _same("time limit (give horizon=)", limits)
    if horizon is None:
        raise ValueError("the environments have no time limit of their own; give horizon=")
    first = next(iter(specs.values()))
    success = {spec.success for spec in specs.values()}
    draws = all(spec.draws for spec in specs.values())
    return TaskSpec(first.observation_size, first.action, horizon, success.pop() if len(success) == 1 else None, draws)


def _same(what: str, values: Mapping[str, Any]):
    (first, value), *rest = values.items()
    for task, other in rest:
        if other != value:
            raise ValueError(
                f"all tasks of a suite must have the same {what}: {first!r} has {value}, {task!r} has {other}"
            )
    return value


def _look_at_gymnasium(source: str | Callable[[], Any]) -> TaskSpec:
    gymnasium = require_gymnasium()
    try:
        env = make_env(source)
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium cannot make {source!r}: {error}") from error
    try:
        action = action_spec(env.action_space, str(source))
        size = gymnasium.spaces.flatdim(env.observation_space)
        env.action_space.seed(0)
        env.reset(seed=0)
        info = env.step(env.action_space.sample())[-1]  # success is often missing from reset's info
    finally:
        env.close()
    limit = env.spec.max_episode_steps if env.spec else None
    return TaskSpec(size, action, limit, _success_entry(info), draws(env, source))


def _look_at_envpool(source: str, *, options: Mapping[str, Any]) -> TaskSpec:
    envpool = require_envpool()
    known = envpool.list_all_envs()
    if source not in known:
        near = difflib.get_close_matches(source, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see envpool.list_all_envs()"
        raise ValueError(f"EnvPool {_installed('envpool')} has no environment {source!r}{hint}")
    with quiet():
        spec = envpool.make_spec(source, **options)
        action = action_spec(spec.gymnasium_action_space, source)
    arrays = spec.state_array_spec
    size = sum(math.prod(array.shape) for key, array in arrays.items() if key.split(":")[0] == "obs")
    info = [key.removeprefix("info:") for key in arrays]
    return TaskSpec(size, action, spec.config.max_episode_steps, _success_entry(info), draws=True)


def _success_entry(info) -> str | None:
    return next((entry for entry in SUCCESS_ENTRIES if entry in info), None)


def _installed(package: str) -> str:
    return metadata.version(package)
