"""The learner contract, and the experience that flows into it."""

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
    """What a learner must know of the tasks.

    Attributes:
        num_tasks: T.
        observation_size: numbers in one observation.
        action: the action space.
        action_sizes: [T] real sizes of padded actions, or None if no task's action is padded.
        contexts: [T, D] embeddings of the tasks' descriptions, or None if the networks do without.
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
    """What is known of N tasks that were not trained on.

    Attributes:
        contexts: [N, D] embeddings of their descriptions; D = 0 where nobody reads them.
        masks: [N, A] float32, 1 where an entry (or choice) of a padded action is real.
    """

    contexts: Array
    masks: Array


class Transitions(NamedTuple):
    """A rollout: every leaf is [H, T, E, ...] (time, task, environment).

    Attributes:
        observation: [H, T, E, obs] raw observations that were acted on.
        reward: [H, T, E] raw rewards.
        terminated, truncated: [H, T, E] bool, how the step ended, if it did.
        final_observation: [H, T, E, obs] the observation after the step, before any reset.
        extras: what ``act`` returned beside the action (raw action, log-probability …).
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    extras: Mapping[str, Any]


class Adaptation(NamedTuple):
    """How a learner finds out which dynamics an unseen task has, with all that was learnt frozen.

    Attributes:
        start: (state, N) -> θ [N, K] before anything was seen of N tasks.
        infer: (state, θ [N, K], transitions (a replay's Sample) with leaves [N, B, ...], weight [N, B], key=, and
            settings of :func:`mtjax.learners.world.infer`) -> θ [N, K]. A transition of weight 0 does not count.
        policy: (state, θ [N, K], observation [N, E, obs], key, deterministic [], unseen) -> action [N, E, ...].
    """

    start: Callable[[Any, int], Array]
    infer: Callable[..., Array]
    policy: Callable[..., Array]


class FineTuning(NamedTuple):
    """An agent for ONE unseen task that starts as a copy of a trained one; everything of it learns on.

    The task is told as an ``Unseen`` of N = 1. Shapes are a learner's, with T = 1.

    Attributes:
        start: (state of the trained agent, key) -> state.
        act: (state, unseen, observation [1, E, obs], key) -> (action [1, E, ...], extras).
        update: (state, unseen, rollout, key) -> (state, metrics).
        policy: (state, unseen, observation [1, E, obs], key, deterministic []) -> action [1, E, ...].
        rollout_length: H, steps between two updates, of E = 1 environment.
        replay: the replay that its state holds, or None.
    """

    start: Callable[[Any, Array], Any]
    act: Callable[..., tuple[Array, Mapping[str, Any]]]
    update: Callable[..., tuple[Any, Mapping[str, Array]]]
    policy: Callable[..., Array]
    rollout_length: int
    replay: Buffer | None = None


class Learner(NamedTuple):
    """A learner as pure functions of one seed's state; training vmaps them over seeds.

    Attributes:
        init: key -> state.
        act: (state, observation [T, E, obs], key) -> (action [T, E, ...], extras). Explores.
        update: (state, Transitions, key) -> (state, metrics by name: [], [T], [T, T] or [T, F]). "loss" [T] and
            "finite" [T] bool are always there; "finite" is False for the tasks whose loss was not finite when
            that first happened to any.
        policy: (state, observation [N, E, obs], key, deterministic [], unseen) -> action [N, E, ...]. For
            evaluation. ``unseen`` None: N = T training tasks; otherwise N tasks that were never trained on, acted
            for zero-shot.
        generalises: False if the learner has nothing to say about unseen tasks.
        replay: the replay that its state holds, or None: who runs it states its memory before it is taken.
        adaptation: how it infers an unseen task's dynamics, or None.
        fine_tuning: environment steps to come -> how it learns on in an unseen task for at most so many (its replay has
            room for no more), or None.
        detours: (state, key, H) -> Detours [H, T, E, ...] of a rollout, which the environments follow in place of
            ``act``; a rollout's extras then hold "detour" [H, T, E] bool. None: there are none.
        cut: state -> the state after all running episodes were lost: what the next step earns belongs to a new one.
            None: the state holds nothing of running episodes.
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
    """[N, A] float32: 1 in the first ``sizes[n]`` entries."""
    return jnp.asarray((np.arange(action.size)[None] < np.asarray(sizes)[:, None]).astype(np.float32))
