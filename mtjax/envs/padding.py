"""Bodies with different spaces as one VectorEnv: observations padded with zeros, actions cut to size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec, Array, Step, VectorEnv

# Axes are counted from the end, so that leading seed axes (of host simulators) pass through.
_TASKS_OF_VECTOR, _TASKS_OF_SCALAR = -3, -2  # [..., T, E, n] and [..., T, E]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """Groups of tasks concatenated along the task axis; satisfies :class:`~mtjax.envs.base.VectorEnv`.

    A Python loop traces each group once: compile time grows with the number of groups, not of tasks. The state is
    the tuple of the groups' states. Observations are padded with zeros at the end to the largest size. A group uses
    the first entries of a padded action; a discrete choice beyond the group's last one counts as the last one.
    Only ``info`` entries that all groups have are passed on. Groups may differ in their horizons.

    Attributes:
        groups: VectorEnvs with the same number of environments per task and the same kind of action, all on the
            device or all on the host.
    """

    groups: tuple[VectorEnv, ...]

    def __post_init__(self):
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups:
            raise ValueError("Grouped needs at least one group")
        if not all(hasattr(group, "num_envs") for group in self.groups):
            return  # jax also rebuilds pytrees with placeholder leaves
        for what, values in (
            ("number of environments a task", [group.num_envs for group in self.groups]),
            ("kind of action", [group.action.kind for group in self.groups]),
            ("place (all on the device, or all on the host)", [group.on_device for group in self.groups]),
        ):
            if len(set(values)) > 1:
                raise ValueError(f"groups must share their {what}; got {values}")

    def tree_flatten(self):
        """Device groups are pytree children (their tasks are arrays); host simulators are static."""
        return (self.groups, None) if self.on_device else ((), _Constant(self.groups))

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(children if static is None else static.value)

    @property
    def num_tasks(self) -> int:
        return sum(group.num_tasks for group in self.groups)

    @property
    def num_envs(self) -> int:
        return self.groups[0].num_envs

    @property
    def on_device(self) -> bool:
        return self.groups[0].on_device

    @property
    def observation_size(self) -> int:
        return max(group.observation_size for group in self.groups)

    @property
    def action(self) -> ActionSpec:
        return ActionSpec(self.groups[0].action.kind, max(group.action.size for group in self.groups))

    @property
    def action_sizes(self) -> tuple[int, ...]:
        """[T] number of real entries (or choices) of each task's action."""
        return tuple(group.action.size for group in self.groups for _ in range(group.num_tasks))

    def reset(self, key: Array) -> tuple[tuple, Array]:
        """Start every environment. Returns (states of the groups, observation [T, E, obs])."""
        states, observations = zip(
            *(group.reset(self._key(key, index)) for index, group in enumerate(self.groups)), strict=True
        )
        return states, self._join_vectors(observations)

    def step(self, state: tuple, actions: Array, key: Array) -> tuple[tuple, Step]:
        """Advance every environment. ``actions`` are [T, E, size], or [T, E] if discrete."""
        states, steps, start = [], [], 0
        for index, group in enumerate(self.groups):
            chosen = fit_action(self._part(actions, start, group.num_tasks), group.action)
            group_state, step = group.step(state[index], chosen, self._key(key, index))
            states.append(group_state)
            steps.append(step)
            start += group.num_tasks
        return tuple(states), self._join(steps)

    def _part(self, actions: Array, start: int, number: int) -> Array:
        axis = _TASKS_OF_VECTOR if self.action.kind == "continuous" else _TASKS_OF_SCALAR
        return jax.lax.slice_in_dim(actions, start, start + number, axis=axis % jnp.ndim(actions))

    def _key(self, key: Array, index: int) -> Array:
        fold = functools.partial(jax.random.fold_in, data=index)
        for _ in range(jnp.ndim(key)):  # leading seed axes
            fold = jax.vmap(fold)
        return fold(key)

    def _join(self, steps: Sequence[Step]) -> Step:
        shared = set.intersection(*(set(step.info) for step in steps))
        join = functools.partial(jnp.concatenate, axis=_TASKS_OF_SCALAR)
        return Step(
            observation=self._join_vectors([step.observation for step in steps]),
            reward=join([step.reward for step in steps]),
            terminated=join([step.terminated for step in steps]),
            truncated=join([step.truncated for step in steps]),
            final_observation=self._join_vectors([step.final_observation for step in steps]),
            info={name: join([step.info[name] for step in steps]) for name in sorted(shared)},
        )

    def _join_vectors(self, observations: Sequence[Array]) -> Array:
        padded = [pad_observation(observation, self.observation_size) for observation in observations]
        return jnp.concatenate(padded, axis=_TASKS_OF_VECTOR)


def pad_observation(observation: Array, size: int) -> Array:
    """Pad [..., n] with zeros at the end to [..., size]."""
    widths = [(0, 0)] * (jnp.ndim(observation) - 1) + [(0, size - jnp.shape(observation)[-1])]
    return jnp.pad(observation, widths)


def fit_action(action: Array, spec: ActionSpec) -> Array:
    """The real part of a padded action: the first ``spec.size`` of [..., A] numbers, or the choice [...].

    A choice beyond the last real one becomes the last real one.
    """
    if spec.kind == "continuous":
        return action[..., : spec.size]
    return jnp.minimum(action, spec.size - 1)


class _Constant:
    """Host simulators as static pytree data, compared by identity."""

    def __init__(self, value: tuple):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Constant)
            and len(self.value) == len(other.value)
            and all(mine is theirs for mine, theirs in zip(self.value, other.value, strict=True))
        )

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.value)))
