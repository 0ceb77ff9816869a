"""Gymnasium environments as a :class:`~mtjax.envs.host.Pool`: stepped one after another in this process."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtjax.envs.host import PoolStep
from mtjax.envs.spaces import native_action

PICTURES = "rgb_array"  # gymnasium's render mode that returns a picture


class GymnasiumPool:
    """N gymnasium environments of one task.

    Observations are flattened as gymnasium flattens them: a ``Dict`` is joined, a ``Discrete`` becomes
    one-hot.

    Args:
        make: a function that makes one environment, or a registered id.
        num_envs: N.
        seed: the seeds of the first episodes derive from it; each is independent of ``num_envs``.
        info_names: mtjax's name of an info entry -> the environment's name, e.g. {"success": "is_success"};
            an entry that is missing from a step counts as 0.
    """

    def __init__(
        self,
        make: str | Callable[[], Any],
        num_envs: int,
        *,
        seed: int | Sequence[int],
        info_names: Mapping[str, str] | None = None,
    ):
        self.envs = [make_env(make) for _ in range(num_envs)]
        self._seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(num_envs)]
        self._info_names = info_names or {}
        self._actions = self._indices = None

    def send(self, actions: np.ndarray) -> None:
        self._actions = native_action(self.envs[0].action_space, actions)

    def close(self) -> None:
        """Close every environment, even if closing another one fails, and with it its renderer."""
        with contextlib.ExitStack() as stack:
            for env in self.envs:
                stack.callback(env.close)

    def receive(self) -> PoolStep:
        answers = [env.step(action) for env, action in zip(self.envs, self._actions, strict=True)]
        observation, reward, terminated, truncated, info = zip(*answers, strict=True)
        named = {
            name: np.array([float(one.get(entry, 0.0)) for one in info], np.float32)
            for name, entry in self._info_names.items()
        }
        flat = np.stack([self._flatten(one) for one in observation])
        return PoolStep(flat, np.array(reward), np.array(terminated), np.array(truncated), named)

    def send_reset(self, indices: np.ndarray) -> None:
        self._indices = indices

    def receive_reset(self) -> np.ndarray:
        return np.stack([self._flatten(self._reset(index)) for index in self._indices])

    def _reset(self, index: int):
        seed, self._seeds[index] = self._seeds[index], None  # only the first episode is seeded
        return self.envs[index].reset(seed=seed)[0]

    def _flatten(self, observation) -> np.ndarray:
        return require_gymnasium().spaces.flatten(self.envs[0].observation_space, observation)


def make_env(make: str | Callable[..., Any], **options: Any):
    """Make one gymnasium environment from its registered id or from a function.

    Args:
        make: the id or the function.
        options: keyword arguments that are passed on, e.g. ``render_mode``.
    """
    return require_gymnasium().make(make, **options) if isinstance(make, str) else make(**options)


def draws(env: Any, make: str | Callable[..., Any]) -> bool:
    """True if ``make_env(make, render_mode="rgb_array")`` makes an environment that returns pictures.

    Args:
        env: an environment made by ``make``.
        make: a registered id; or a function, which must take ``render_mode``.
    """
    modes = (env.metadata or {}).get("render_modes") or ()
    return PICTURES in modes and (isinstance(make, str) or _takes(make, "render_mode"))


def _takes(function: Callable[..., Any], name: str) -> bool:
    """True if the function accepts a keyword argument of this name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some C functions have no signature
        return False
    named = name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    return named or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def require_gymnasium():
    """Import gymnasium.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("these environments need gymnasium: pip install gymnasium") from error
    return gymnasium
