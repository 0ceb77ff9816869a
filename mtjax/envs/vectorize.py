"""``vectorize``: T tasks × E environments of a pure :class:`~mtjax.envs.base.Env`, with auto-reset."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax import sharding
from mtjax.envs.base import ActionSpec, Array, Env, Step, Task


class VectorState(NamedTuple):
    """State of a vectorised environment.

    Attributes:
        env: pytree of [T, E, ...], the environments' own states.
        steps: [T, E] int32, steps taken in the running episode.
    """

    env: Any
    steps: Array


class _Static:
    """The static part of a Vectorized pytree; the environment is compared by identity (it need not be hashable)."""

    def __init__(self, env: Env, sizes: tuple[int, int, int]):
        self.env, self.sizes = env, sizes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.env is other.env and self.sizes == other.sizes

    def __hash__(self) -> int:
        return hash((id(self.env), self.sizes))


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Vectorized:
    """A :class:`~mtjax.envs.base.VectorEnv` made by vmap over tasks and environments. See `vectorize`."""

    env: Env
    tasks: Task
    num_tasks: int
    num_envs: int
    horizon: int
    on_device: bool = True

    def tree_flatten(self):
        """The tasks are data, so one compiled program serves every batch of T tasks of an environment."""
        return (self.tasks,), _Static(self.env, (self.num_tasks, self.num_envs, self.horizon))

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(static.env, *children, *static.sizes)

    @property
    def observation_size(self) -> int:
        return self.env.observation_size

    @property
    def action(self) -> ActionSpec:
        return self.env.action

    def reset(self, key: Array) -> tuple[VectorState, Array]:
        """Start every environment from its own key. Returns (state, observation [T, E, obs])."""
        env_state, observation = self._reset(key)
        return VectorState(env_state, jnp.zeros((self.num_tasks, self.num_envs), jnp.int32)), observation

    def step(self, state: VectorState, actions: Array, key: Array) -> tuple[VectorState, Step]:
        """Advance every environment; where an episode ends, start the next from a fresh reset."""
        step_key, reset_key = jax.random.split(key)
        over_envs = jax.vmap(self.env.step, in_axes=(None, 0, 0, 0))
        over_tasks = sharding.independent(jax.vmap(over_envs))
        returned = over_tasks(self.tasks, state.env, actions, self._keys(step_key))
        env_state, step = self._pair("step", returned, "(state, Step)")
        if not isinstance(step, Step):
            raise ValueError(f"{type(self.env).__name__}.step must return (state, Step), not a {type(step).__name__}")
        step = self._checked(step)
        steps = state.steps + 1
        truncated = (step.truncated | (steps >= self.horizon)) & ~step.terminated
        done = step.terminated | truncated
        fresh_state, fresh_observation = self._reset(reset_key)
        env_state = _select_state(done, fresh_state, env_state)
        step = step._replace(
            observation=_where(done, fresh_observation, step.observation),
            truncated=truncated,
            final_observation=step.observation,
        )
        return VectorState(env_state, jnp.where(done, 0, steps)), step

    def _reset(self, key):
        over_envs = jax.vmap(self.env.reset, in_axes=(None, 0))
        returned = sharding.independent(jax.vmap(over_envs))(self.tasks, self._keys(key))
        state, observation = self._pair("reset", returned, "(state, observation)")
        self._check("reset's observation", observation, (self.observation_size,))
        return jax.tree.map(_strong, state), observation.astype(jnp.float32)

    def _checked(self, step: Step) -> Step:
        """Cast the step to the contract's dtypes; a wrong shape raises while tracing, before compilation."""
        self._check("step's observation", step.observation, (self.observation_size,))
        for field in ("reward", "terminated", "truncated"):
            self._check(f"step's {field}", getattr(step, field), ())
        info = {name: _strong(value) for name, value in step.info.items()}
        if "success" in info:
            self._check("step's info['success']", info["success"], ())
            info["success"] = info["success"].astype(jnp.float32)
        return step._replace(
            observation=step.observation.astype(jnp.float32),
            reward=step.reward.astype(jnp.float32),
            terminated=step.terminated.astype(bool),
            truncated=step.truncated.astype(bool),
            info=info,
        )

    def _pair(self, method: str, returned: Any, wanted: str) -> Any:
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            what = f"{len(returned)} values" if isinstance(returned, tuple | list) else f"a {type(returned).__name__}"
            raise ValueError(f"{type(self.env).__name__}.{method} must return {wanted}, not {what}")
        return returned

    def _check(self, what: str, value: Array, shape: tuple[int, ...]) -> None:
        found = jnp.shape(value)[2:]
        if found != shape:
            raise ValueError(f"{type(self.env).__name__}: {what} has shape {found}, it should be {shape}")

    def _keys(self, key: Array) -> Array:
        return jax.random.split(key, (self.num_tasks, self.num_envs))


def vectorize(env: Env, tasks: Task, num_envs: int, *, horizon: int) -> Vectorized:
    """Step T tasks × ``num_envs`` environments of ``env`` at once, resetting each when its episode ends.

    Args:
        env: a pure, unbatched environment.
        tasks: pytree of task parameters, every leaf [T, ...].
        num_envs: E, environments per task.
        horizon: steps after which an episode is truncated.

    Returns:
        A VectorEnv with observations [T, E, obs].

    Raises:
        ValueError: the leaves of ``tasks`` do not share a leading axis, or a number is not positive. When first
            traced: ``env`` returns a wrong shape, or its ``reset`` and ``step`` return different kinds of state.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(f"every leaf of tasks must lead with the same task axis; found {sorted(lengths)}")
    if num_envs < 1 or horizon < 1:
        raise ValueError(f"num_envs and horizon must be positive; got {num_envs} and {horizon}")
    tasks = jax.tree.map(jnp.asarray, tasks)
    return Vectorized(env, tasks, lengths.pop()[0], num_envs, horizon)


def _strong(value: Array) -> Array:
    """The same array without a weak type, which would make ``jit`` recompile at the second step."""
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return value if is_key else jax.lax.convert_element_type(value, value.dtype)


def _select_state(done: Array, fresh: Any, running: Any) -> Any:
    """Select the fresh state where an episode is over. Both states must agree in structure, shapes and dtypes."""
    kinds = [_kind(fresh), _kind(running)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"reset and step must return states of the same structure, not {kinds[0]} and {kinds[1]}")
    return jax.tree.map(lambda new, old: _strong(_where(done, new, old)), fresh, running)


def _kind(state: Any) -> tuple:
    """Shape and dtype of every leaf of one environment's state, and the tree structure."""
    leaves, tree = jax.tree.flatten(state)
    return [f"{leaf.dtype}{list(leaf.shape[2:])}" for leaf in leaves], tree


def _where(done: Array, new: Array, old: Array) -> Array:
    """Select per environment; ``done`` is [T, E], the others [T, E, ...] (typed keys included)."""
    return jnp.where(done.reshape(done.shape + (1,) * (jnp.ndim(old) - 2)), new, old)
