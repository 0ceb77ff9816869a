"""A run's training, compiled: rollouts and updates as one loop, or as two programs that Python calls in turn."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from mtjax.training import memory
from mtjax.training.trainer import Part, Trainer, TrainState


class Program:
    """Compiled when it is made. Holds the rollout that lies between a collection and an update, and nothing else.

    Learners with a replay make many short updates: one loop (:attr:`Trainer.train`), in which a call makes as many as
    it is asked for. For the others, whose updates take longer than calls from Python, two programs: within a loop XLA's
    CPU overlaps fewer of their operations. The numbers are the same.

    Args:
        trainer: whose functions they are.
        state: of the shapes that it will be given.

    Attributes:
        loops: whether a call may make more than one update.
        rollout: the last one; None after an update by two programs.
    """

    def __init__(self, trainer: Trainer, state: TrainState):
        self.loops = trainer.learner.replay is not None
        self.rollout: Any = None
        if self.loops:
            self.rollout = trainer.no_rollout(state)
            compiled = trainer.train.lower(trainer.env, state, self.rollout, Part.of(1)).compile()
            self._train = functools.partial(compiled, trainer.env)
            self._compiled = (compiled,)
        else:
            collect = trainer.collect.lower(trainer.env, state).compile()
            rollout = jax.eval_shape(trainer.collect, trainer.env, state)[1]
            self._update = trainer.update.lower(state, rollout).compile()
            self._collect = functools.partial(collect, trainer.env)
            self._compiled = (collect, self._update)

    @property
    def memory(self) -> memory.Program | None:
        """What the largest part takes, as one runs at a time; None where the compiler does not say."""
        known = [found for found in map(memory.of_program, self._compiled) if found]
        return max(known, key=lambda found: found.total, default=None)

    def collect(self, state: TrainState) -> TrainState:
        """One rollout; ``state`` is donated."""
        if self.loops:
            return self._looped(state, Part.of(1, updates=False))[0]
        state, self.rollout = self._collect(state)
        return state

    def update(self, state: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        """One update, from the rollout that was collected; ``state`` is donated. Returns (state, metrics)."""
        if self.loops:
            return self._looped(state, Part.of(1, collects=False))
        rollout, self.rollout = self.rollout, None
        return self._update(state, rollout)

    def __call__(self, state: TrainState, updates: int = 1) -> tuple[TrainState, Mapping[str, Any]]:
        """So many rollouts, each with its update: 1, unless it loops. Returns (state, metrics) as Trainer.train."""
        if self.loops:
            return self._looped(state, Part.of(updates))
        if updates != 1:
            raise ValueError(f"two programs make one update a call, not {updates}")
        return self.update(self.collect(state))

    def _looped(self, state: TrainState, part: Part) -> tuple[TrainState, Mapping[str, Any]]:
        state, self.rollout, metrics = self._train(state, self.rollout, part)
        return state, metrics
