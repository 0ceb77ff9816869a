"""EnvPool (simulators in C++, on threads) as a :class:`~mtjax.envs.host.Pool`."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from mtjax.envs.host import PoolStep
from mtjax.envs.spaces import native_action

_NO_LIMIT = 2**30  # steps; HostVectorEnv enforces the horizon


class EnvPool:
    """N environments of one EnvPool task, without EnvPool's own time limit: HostVectorEnv enforces the horizon.

    Args:
        task_id: EnvPool's name for the task, e.g. "HalfCheetah-v5".
        num_envs: N.
        seed: the environments' seeds derive from it; each is independent of ``num_envs``.
        num_threads: threads of this pool.
        info_names: mtjax's name of an info entry -> EnvPool's name, e.g. {"success": "is_success"}.
        options: further options of ``envpool.make``.
    """

    def __init__(
        self,
        task_id: str,
        num_envs: int,
        *,
        seed: int | Sequence[int],
        num_threads: int,
        info_names: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        envpool = require_envpool()
        seeds = np.random.SeedSequence(seed).generate_state(num_envs) & 0x7FFFFFFF
        with quiet():
            self.pool = envpool.make_gymnasium(
                task_id,
                num_envs=num_envs,
                env_seed=[int(s) for s in seeds],
                num_threads=min(num_threads, num_envs),
                max_episode_steps=_NO_LIMIT,
                **(options or {}),
            )
            self._space = self.pool.action_space
            self.pool.observation_space  # noqa: B018  (EnvPool builds it on first access, with warnings)
        self._info_names = info_names or {}

    def send(self, actions: np.ndarray) -> None:
        self.pool.send(native_action(self._space, actions))

    def receive(self) -> PoolStep:
        observation, reward, terminated, truncated, info = self.pool.recv()
        return PoolStep(
            flatten(observation),
            reward,
            terminated,
            truncated,
            {name: info[entry] for name, entry in self._info_names.items()},
        )

    def send_reset(self, indices: np.ndarray) -> None:
        # Not `reset`, which blocks until this pool is done: the pools of all tasks should work concurrently.
        self.pool._reset(indices)

    def receive_reset(self) -> np.ndarray:
        return flatten(self.pool.recv(reset=True)[0])


class FreshEnvPool:
    """N environments of one EnvPool task whose reset is faulty: every episode gets a new simulator.

    A new simulator starts correctly, but making one takes about 25 ms of one core (Meta-World), none of which
    overlaps with the other tasks. The arguments are those of :class:`EnvPool`; every environment has its own thread.
    """

    def __init__(self, task_id: str, num_envs: int, *, seed: int | Sequence[int], num_threads: int, **options):
        del num_threads
        self._make = functools.partial(EnvPool, task_id, 1, num_threads=1, **options)
        self._seeds = [np.random.default_rng([*np.atleast_1d(seed), index]) for index in range(num_envs)]
        self.pools: list[EnvPool | None] = [None] * num_envs
        self._indices = np.arange(0)
        self._only = np.zeros(1, np.int32)

    def send(self, actions: np.ndarray) -> None:
        for pool, action in zip(self.pools, actions, strict=True):
            pool.send(action[None])

    def receive(self) -> PoolStep:
        return jax.tree.map(lambda *parts: np.concatenate(parts), *(pool.receive() for pool in self.pools))

    def send_reset(self, indices: np.ndarray) -> None:
        self._indices = indices
        for index in indices:
            self.pools[index] = None  # free the old one first
            self.pools[index] = self._make(seed=int(self._seeds[index].integers(2**31)))
            self.pools[index].send_reset(self._only)

    def receive_reset(self) -> np.ndarray:
        return np.concatenate([self.pools[index].receive_reset() for index in self._indices])


def flatten(observation: np.ndarray | Mapping[str, Any]) -> np.ndarray:
    """Join EnvPool's (possibly nested) observation [N, ...] into [N, obs], in the simulator's order."""
    if isinstance(observation, Mapping):
        return np.concatenate([flatten(part) for part in observation.values()], axis=-1)
    return observation.reshape(len(observation), -1)


def threads_per_pool(num_tasks: int) -> int:
    """Number of threads for each of ``num_tasks`` pools, given the cores of this process.

    Twice as many threads as cores in total, and at least two per pool (if there are two cores): step times differ
    between tasks, and with one thread per pool the slowest task keeps one core busy while the others idle. Measured
    on MT10 with 2 cores: 8,500 environment steps/s with two threads per pool, against 4,900 with one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, max(2, math.ceil(2 * cores / num_tasks)))


def require_envpool():
    """Import EnvPool.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    opengl_loaded()
    try:
        import envpool
    except ImportError as error:
        raise ImportError("this suite needs EnvPool: pip install 'mtjax[metaworld]'") from error
    return envpool


@functools.cache
def opengl_loaded() -> bool:
    """Load OpenGL for EnvPool's renderer; False if EnvPool cannot draw.

    Call this before EnvPool is first imported, and check the result before drawing: EnvPool 1.2.5 looks for OpenGL
    on import, and if it found none, a request to draw kills the whole process.
    """
    if sys.platform != "linux":
        return True
    early = "envpool" not in sys.modules or metadata.version("envpool") != "1.2.5"
    try:
        for library in ("libEGL.so.1", "libOpenGL.so.0"):
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return early


def require_opengl(what: str) -> None:
    """Raise if EnvPool cannot draw.

    Raises:
        RuntimeError: OpenGL is not installed, or was loaded too late for EnvPool 1.2.5.
    """
    if not opengl_loaded():
        raise RuntimeError(
            f"cannot draw {what}: OpenGL is missing (Debian has it in libegl1 and libopengl0), or EnvPool 1.2.5 was "
            "imported before mtjax could load it"
        )


@contextlib.contextmanager
def quiet():
    """Suppress gymnasium's warnings about the precision of EnvPool's spaces, which users cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
        yield
