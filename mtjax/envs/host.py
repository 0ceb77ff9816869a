"""Simulators that run on the host (EnvPool, gymnasium) as a :class:`~mtjax.envs.base.VectorEnv`.

One ordered ``io_callback`` per step sends the actions to every task's pool, then receives from each, so that the
simulators' threads work on all tasks at once and XLA can neither reorder nor drop a step.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import logging
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from mtjax.envs.base import ActionSpec, Array, Step

_shapes_only = contextvars.ContextVar("shapes_only", default=False)


class PoolStep(NamedTuple):
    """A pool's result of one step, before any reset.

    Attributes:
        observation: [N, obs].
        reward: [N].
        terminated, truncated: [N] bool, as the simulator reports them; the horizon is enforced elsewhere.
        info: arrays [N] by name.
    """

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: Mapping[str, np.ndarray]


class Pool(Protocol):
    """N environments of ONE task on the host: the interface that a simulator must offer to become a VectorEnv.

    Sending and receiving are separate, so that the pools of all tasks can work at the same time. An environment
    whose episode has ended is always reset before it is stepped again. A pool may also have a method ``close``,
    which is called when the pool is no longer needed.
    """

    def send(self, actions: np.ndarray) -> None:
        """Begin a step of all N environments. ``actions`` are [N, size] in [-1, 1], or [N] int32."""
        ...

    def receive(self) -> PoolStep:
        """Wait for the step that ``send`` began."""
        ...

    def send_reset(self, indices: np.ndarray) -> None:
        """Begin a reset of the environments ``indices`` [n] int32, in increasing order."""
        ...

    def receive_reset(self) -> np.ndarray:
        """Wait for that reset. Returns the initial observations [n, obs] in the order of ``indices``."""
        ...


class SimulatorError(RuntimeError):
    """A simulator raised, or its process died. The message is a line that names the task, then the traceback."""


def failure(error: BaseException) -> str | None:
    """The first line of the SimulatorError that caused a jax error; None if the cause was another one.

    An exception in a callback surfaces as a ``JaxRuntimeError``, which keeps only the exception's text.
    """
    found = re.findall(rf"{SimulatorError.__name__}: (.*)", str(error))
    return found[-1] if found else None


def _is_news(record: logging.LogRecord) -> bool:
    """False for jax's own log record of a SimulatorError, which repeats the exception that follows."""
    return not (record.exc_info and isinstance(record.exc_info[1], SimulatorError))


logging.getLogger("jax._src.callback").addFilter(_is_news)

MakePool = Callable[[int], Pool]  # number of environments N -> their pool


class HostState(NamedTuple):
    """The state on the device; the simulators keep their own state on the host.

    Attributes:
        clock: [S...] int32, counts the calls. A simulator cannot be rewound: the clock lets it reject a
            state that is not the newest (e.g. from a checkpoint) instead of returning a wrong result.
    """

    clock: Array


@dataclasses.dataclass(frozen=True, eq=False)
class HostVectorEnv:
    """T pools of E environments behind one callback per step; satisfies VectorEnv with ``on_device=False``.

    ``reset`` and ``step`` may be called under ``jax.jit`` and ``lax.scan``, but not under ``vmap``: for S seeds,
    pass keys [S] and actions [S, T, E, ...]; every output has the same leading axes. The pools (of S·E
    environments per task) are made when ``reset`` is first traced for that S.

    Randomness comes from the ``seed`` with which the pools are made: keys only determine the leading axes, and a
    second ``reset`` starts new episodes rather than repeating the first ones.

    Attributes:
        make_pools: for each of the T tasks, a function from the number of environments to its pool.
        num_envs: E, environments per task (and seed).
        observation_size, action: the spaces that all tasks share.
        horizon: steps after which an episode is truncated; enforced here, not by the simulator.
        info_names: the entries of ``PoolStep.info`` that become ``Step.info``.
        stagger: shorten the first episode of environment e to ``horizon·(1 − e/E)`` steps, so that from
            then on the episodes of a task end at different times and a short rollout sees all phases of
            an episode. ``Step.info`` then has "whole". For training only; evaluation needs whole episodes.
        task_names: names of the T tasks, for error messages.
    """

    make_pools: tuple[MakePool, ...]
    num_envs: int
    observation_size: int
    action: ActionSpec
    horizon: int
    info_names: tuple[str, ...] = ()
    stagger: bool = False
    task_names: tuple[str, ...] = ()
    on_device: bool = dataclasses.field(default=False, init=False)
    _hosts: dict[tuple[int, ...], _Host] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        if self.num_envs < 1 or self.horizon < 1 or not self.make_pools:
            raise ValueError(
                f"num_envs, horizon and the number of tasks must be positive; got {self.num_envs}, "
                f"{self.horizon} and {len(self.make_pools)}"
            )

    @property
    def num_tasks(self) -> int:
        return len(self.make_pools)

    def reset(self, key: Array) -> tuple[HostState, Array]:
        """Start a new episode in every environment.

        Args:
            key: [S...] PRNG keys; only their leading axes matter.

        Returns:
            (state, observation [S..., T, E, obs] float32).
        """
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        lead = tuple(key.shape if typed else key.shape[:-1])
        self._open(lead)
        shapes = (HostState(_shape(lead, jnp.int32)), self._observation(lead))
        return io_callback(functools.partial(self._reset, lead), shapes, ordered=True)

    def step(self, state: HostState, actions: Array, key: Array) -> tuple[HostState, Step]:
        """Advance every environment by one step; where an episode ends, start the next.

        Args:
            state: the newest state.
            actions: [S..., T, E, size] float in [-1, 1] (clipped), or [S..., T, E] integers if discrete.
            key: not used.

        Returns:
            (state, Step with [S..., T, E, ...] in every field).

        Raises:
            ValueError: the actions have the wrong shape. At run time, if ``state`` is not the newest.
            JaxRuntimeError: at run time, if a simulator fails; see :func:`failure`.
        """
        del key
        lead = tuple(state.clock.shape)
        batch = (*lead, self.num_tasks, self.num_envs)
        if actions.shape != (*batch, *self.action.shape):
            raise ValueError(f"actions are {actions.shape}; expected {(*batch, *self.action.shape)}")
        self._open(lead)
        observation = self._observation(lead)
        flag, number = _shape(batch, jnp.bool_), _shape(batch, jnp.float32)
        info = dict.fromkeys(self.info_names, number) | ({"whole": flag} if self.stagger else {})
        shapes = (
            HostState(_shape(lead, jnp.int32)),
            Step(observation, number, flag, flag, observation, info),
        )
        dtype = jnp.float32 if self.action.kind == "continuous" else jnp.int32
        callback = functools.partial(self._step, lead)
        return io_callback(callback, shapes, state.clock, actions.astype(dtype), ordered=True)

    def close(self) -> None:
        """Close and free the pools and their threads; the next ``reset`` makes new ones."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()

    def _observation(self, lead):
        return _shape((*lead, self.num_tasks, self.num_envs, self.observation_size), jnp.float32)

    def _open(self, lead: tuple[int, ...]) -> None:
        """Make the pools while tracing, so that a simulator that cannot be made fails before compilation."""
        if not _shapes_only.get():
            self._host(lead)

    def _host(self, lead: tuple[int, ...]) -> _Host:
        if lead not in self._hosts:
            self._hosts[lead] = _Host(self, math.prod(lead))
        return self._hosts[lead]

    def _reset(self, lead):
        host = self._host(lead)
        observation = host.reset()
        return HostState(np.full(lead, host.clock, np.int32)), _unfold(observation, lead)

    def _step(self, lead, clock, actions):
        host = self._host(lead)
        if np.any(np.asarray(clock) != host.clock):
            raise ValueError(
                "this environment state is not the newest: a simulator on the host cannot go back in time. "
                "Call reset() (after restoring a checkpoint, too) and step the state it returns."
            )
        actions = np.asarray(actions)
        step = host.step(actions.reshape(-1, *actions.shape[len(lead) :]))
        return HostState(np.full(lead, host.clock, np.int32)), jax.tree.map(lambda x: _unfold(x, lead), step)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Context manager in which tracing a reset or step makes no simulators, for callers that only need shapes."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


class _Host:
    """The host side: T pools of S·E environments, their episode counters and the clock.

    Attributes:
        steps: [S, T, E] steps of the running episodes, counted towards the horizon.
        whole: [S, T, E] False for an episode whose count did not begin at 0.
    """

    def __init__(self, env: HostVectorEnv, num_seeds: int):
        self.env = env
        self.batch = (num_seeds, env.num_tasks, env.num_envs)
        self.pools: Sequence[Pool] = [make(num_seeds * env.num_envs) for make in env.make_pools]
        self.steps = np.zeros(self.batch, np.int32)
        self.whole = np.ones(self.batch, bool)
        self.clock = 0

    def reset(self) -> np.ndarray:
        """Restart every environment. Returns observations [S, T, E, obs]."""
        observation = np.empty((*self.batch, self.env.observation_size), np.float32)
        self._restart(np.ones(self.batch, bool), observation)
        if self.env.stagger:
            self.steps[:] = np.arange(self.env.num_envs) * self.env.horizon // self.env.num_envs
            self.whole[:] = self.steps == 0
        self.clock += 1
        return observation

    def step(self, actions: np.ndarray) -> Step:
        """Apply actions [S, T, E, ...] and restart the episodes that ended. Returns a Step of [S, T, E, ...]."""
        for task, pool in enumerate(self.pools):
            with self._of(task):
                pool.send(np.ascontiguousarray(actions[:, task]).reshape(-1, *self.env.action.shape))
        final = np.empty((*self.batch, self.env.observation_size), np.float32)
        reward = np.empty(self.batch, np.float32)
        terminated, truncated = np.empty(self.batch, bool), np.empty(self.batch, bool)
        info = {name: np.empty(self.batch, np.float32) for name in self.env.info_names}
        for task, pool in enumerate(self.pools):
            with self._of(task):
                answer = pool.receive()
            targets = (final, reward, terminated, truncated, *info.values())
            values = (*answer[:4], *(answer.info[name] for name in info))
            for target, value in zip(targets, values, strict=True):
                part = target[:, task]
                part[...] = np.reshape(value, part.shape)
        if self.env.stagger:
            info["whole"] = self.whole.copy()
        self.steps += 1
        truncated = (truncated | (self.steps >= self.env.horizon)) & ~terminated
        done = terminated | truncated
        observation = final
        if done.any():
            observation = final.copy()
            self._restart(done, observation)
        self.clock += 1
        return Step(observation, reward, terminated, truncated, final, info)

    def close(self) -> None:
        """Close every pool that has a ``close``. Its errors become warnings: they may be why all pools are closed."""
        for task, pool in enumerate(self.pools):
            try:
                with self._of(task):
                    getattr(pool, "close", lambda: None)()
            except SimulatorError as error:
                warnings.warn(f"while closing: {str(error).splitlines()[0]}", stacklevel=3)

    def _restart(self, done: np.ndarray, observation: np.ndarray) -> None:
        """Start new episodes where ``done`` [S, T, E]; write their initial observations into ``observation``."""
        chosen = [np.flatnonzero(done[:, task]).astype(np.int32) for task in range(len(self.pools))]
        for task, (pool, indices) in enumerate(zip(self.pools, chosen, strict=True)):
            if indices.size:
                with self._of(task):
                    pool.send_reset(indices)
        for task, (pool, indices) in enumerate(zip(self.pools, chosen, strict=True)):
            if indices.size:
                with self._of(task):
                    first = pool.receive_reset()
                observation[:, task][done[:, task]] = first
        self.steps[done], self.whole[done] = 0, True

    @contextlib.contextmanager
    def _of(self, task: int) -> Iterator[None]:
        """Context manager that turns an exception into a SimulatorError naming the task."""
        try:
            yield
        except Exception as error:
            name = self.env.task_names[task] if self.env.task_names else task
            why = f"{type(error).__name__}: {'; '.join(str(error).splitlines())}"
            # jax passes on only the text of this exception, not its cause, so the text includes the traceback.
            trace = traceback.format_exc()
            raise SimulatorError(f"the simulator of task {name!r} failed: {why}\n\n{trace}") from error


def _shape(shape, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _unfold(array: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Unfold the first axis into the leading axes: [S, ...] -> [*lead, ...]."""
    return array.reshape(*lead, *array.shape[1:])
