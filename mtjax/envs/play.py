"""Play one episode of one task on the host, step by step, to draw it."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax

from mtjax.envs.base import Env, Task

_PROGRAMS: collections.OrderedDict[int, tuple[Env, Callable, Callable]] = collections.OrderedDict()


def play(env: Env, task: Task, policy: Callable, *, seed: int, steps: int) -> list[Any]:
    """Play one episode on the CPU and return its states.

    Args:
        env: the environment. Its ``reset`` and ``step`` are compiled once for all tasks.
        task: one task's parameters.
        policy: a function from (observation [obs], key) to an action.
        seed: of the episode.
        steps: the maximum number of steps.

    Returns:
        The initial state, then one state per step until the episode ends, as NumPy arrays.
    """
    cpu = jax.devices("cpu")[0]
    reset, step = _programs(env)
    with jax.default_device(cpu):
        task = jax.device_put(task, cpu)
        key = jax.device_put(jax.random.key(seed), cpu)  # states and actions share a device, else step compiles twice
        state, observation = reset(task, jax.random.fold_in(key, 0))
        states = [jax.device_get(state)]
        for time in range(1, steps + 1):
            action_key, step_key = jax.random.split(jax.random.fold_in(key, time))
            action = jax.device_put(policy(observation, action_key), cpu)
            state, out = step(task, state, action, step_key)
            observation = out.observation
            states.append(jax.device_get(state))
            if bool(out.terminated | out.truncated):
                break
    return states


def _programs(env: Env) -> tuple[Callable, Callable]:
    """The jitted reset and step of an environment (which need not be hashable), cached for the last 4 of them."""
    if id(env) not in _PROGRAMS:
        _PROGRAMS[id(env)] = env, jax.jit(env.reset), jax.jit(env.step)
        while len(_PROGRAMS) > 4:
            _PROGRAMS.popitem(last=False)
    return _PROGRAMS[id(env)][1:]
