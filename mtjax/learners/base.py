"""The learner interface, and the data passed to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtjax.envs.base import ActionSpec

if TYPE_CHECKING:
    from mtjax.learners.replay import Buffer

Array = jax.Array


class TaskSpec(NamedTuple):
    """What a learner must know about the tasks.

    Attributes:
        num_tasks: T.
        observation_size: numbers in one observation.
        action: the action space.
        action_sizes: [T] real sizes of padded actions, or None if no task's action is padded.
        contexts: [T, D] embeddings of the tasks' descriptions, or None if the networks do not use them.
    """

    num_tasks: int
    observation_size: int
    action: ActionSpec
    action_sizes: tuple[int, ...] | None = None
    contexts: Array | None = None

    @property
    def context_size(self) -> int:
        """D, 0 without contexts."""
        return 0 if self.contexts is None else self.contexts.shape[1]


class Unseen(NamedTuple):
    """What a learner is told about N tasks that it was not trained on.

    Attributes:
        contexts: [N, D] embeddings of their descriptions; D = 0 if no network reads them.
        masks: [N, A] float32, 1 where an entry (or choice) of a padded action is real.
        relatives: [N, T] float32, rows that sum to 1: the weights of the training tasks in whatever is averaged over
            them for an unseen task (task code, private parameters, statistics). None: all training tasks equally.
    """

    contexts: Array
    masks: Array
    relatives: Array | None = None

    def average(self, tree: Any) -> Any:
        """The average [N, ...] of leaves [T, ...] over each unseen task's relatives."""
        if self.relatives is None:
            return jax.tree.map(lambda x: jnp.broadcast_to(x.mean(axis=0), (len(self.masks), *x.shape[1:])), tree)
        return jax.tree.map(lambda x: jnp.tensordot(self.relatives, x, axes=1, precision="highest"), tree)


class Transitions(NamedTuple):
    """A rollout: every leaf is [H, T, E, ...] (time, task, environment).

    Attributes:
        observation: [H, T, E, obs] raw observations from which the actions were chosen.
        reward: [H, T, E] raw rewards.
        terminated, truncated: [H, T, E] bool, whether the step ended its episode, and how.
        final_observation: [H, T, E, obs] the observation after the step, before any reset.
        extras: what ``act`` returned besides the action (raw action, log-probability, …).
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    extras: Mapping[str, Any]


class Adaptation(NamedTuple):
    """How a learner infers the dynamics of an unseen task, with all trained parameters frozen.

    Attributes:
        start: (state, unseen) -> initial θ [N, K], before anything has been observed in the N tasks.
        infer: (state, θ [N, K], transitions (a replay's Sample) with leaves [N, B, ...], weight [N, B], unseen, key=,
            and keyword arguments of :func:`mtjax.learners.world.infer`) -> θ [N, K]. Transitions of weight 0 are
            ignored.
        policy: (state, θ [N, K], observation [N, E, obs], key, deterministic [], unseen) -> action [N, E, ...].
    """

    start: Callable[[Any, Unseen], Array]
    infer: Callable[..., Array]
    policy: Callable[..., Array]


class FineTuning(NamedTuple):
    """An agent for ONE unseen task: it starts as a copy of a trained agent, all of which continues to learn.

    The task is given as an ``Unseen`` with N = 1. Shapes are those of a Learner with T = 1.

    Attributes:
        start: (state of the trained agent, unseen, key) -> state.
        act: (state, unseen, observation [1, E, obs], key) -> (action [1, E, ...], extras).
        update: (state, unseen, rollout, key) -> (state, metrics).
        policy: (state, unseen, observation [1, E, obs], key, deterministic []) -> action [1, E, ...].
        rollout_length: H, steps between two updates, in E = 1 environment.
        replay: the Buffer of the replay in its state, or None.
    """

    start: Callable[[Any, Unseen, Array], Any]
    act: Callable[..., tuple[Array, Mapping[str, Any]]]
    update: Callable[..., tuple[Any, Mapping[str, Array]]]
    policy: Callable[..., Array]
    rollout_length: int
    replay: Buffer | None = None


class Learner(NamedTuple):
    """A learner as pure functions of one seed's state; training vmaps them over seeds.

    Attributes:
        init: key -> state.
        act: (state, observation [T, E, obs], key) -> (action [T, E, ...], extras). For training: it explores.
        update: (state, Transitions, key) -> (state, metrics by name: [], [T], [T, T] or [T, F]). "loss" [T] and
            "finite" [T] bool are always included; "finite" is False for the tasks whose loss was not finite the
            first time that any task's loss was not.
        policy: (state, observation [N, E, obs], key, deterministic [], unseen) -> action [N, E, ...]. For
            evaluation. With ``unseen`` None, the N = T training tasks; otherwise N tasks that were never trained
            on, in which the policy acts zero-shot.
        generalises: False if the learner has no policy for unseen tasks.
        replay: the Buffer of the replay in its state, or None; callers report its memory before allocating it.
        adaptation: how it infers an unseen task's dynamics, or None.
        fine_tuning: number of environment steps -> FineTuning for an unseen task over at most that many steps (its
            replay has room for no more), or None.
        detours: (state, key, H) -> Detours [H, T, E, ...] of a rollout; while one is active, its actions replace those
            of ``act``. A rollout's extras then hold "detour" [H, T, E] bool. None: no detours.
        cut: state -> the state after all running episodes were lost: the next reward belongs to a new episode. None:
            the state holds nothing about running episodes.
    """

    init: Callable[[Array], Any]
    act: Callable[[Any, Array, Array], tuple[Array, Mapping[str, Any]]]
    update: Callable[[Any, Transitions, Array], tuple[Any, Mapping[str, Array]]]
    policy: Callable[..., Array]
    generalises: bool = True
    replay: Buffer | None = None
    adaptation: Adaptation | None = None
    fine_tuning: Callable[[int], FineTuning] | None = None
    detours: Callable[[Any, Array, int], Any] | None = None
    cut: Callable[[Any], Any] | None = None


def action_masks(spec: TaskSpec) -> Array:
    """[T, A] float32: 1 where an entry (or choice) of a padded action is real."""
    return masks_of(spec.action_sizes or (spec.action.size,) * spec.num_tasks, spec.action)


def masks_of(sizes: Sequence[int], action: ActionSpec) -> Array:
    """[N, A] float32: 1 in the first ``sizes[n]`` entries of row n."""
    return jnp.asarray((np.arange(action.size)[None] < np.asarray(sizes)[:, None]).astype(np.float32))
