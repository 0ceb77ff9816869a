"""A run's compiled training: rollouts and updates in one loop, or as two programs that Python calls in turn."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from mtjax.training import memory
from mtjax.training.trainer import Part, Trainer, TrainState


class Program:
    """A run's training, compiled on construction. Its only state is the rollout between a collection and an update.

    Learners with a replay make many short updates, so they get one loop (:attr:`Trainer.train`), in which a call makes
    any number of updates. The updates of other learners take longer than calls from Python, so they get two programs:
    inside a loop, XLA's CPU backend overlaps fewer of their operations. The results are the same.

    Args:
        trainer: the trainer whose functions are compiled.
        state: a state with the shapes to compile for.

    Attributes:
        loops: whether a call may make more than one update.
        rollout: the last rollout; with two programs, None unless it still awaits its update.
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
    def memory(self) -> memory.Footprint | None:
        """Memory of the largest compiled part, as one runs at a time; None if the compiler does not report it."""
        known = [found for found in map(memory.of_program, self._compiled) if found]
        return max(known, key=lambda found: found.total, default=None)

    def collect(self, state: TrainState) -> TrainState:
        """Collect one rollout; ``state`` is donated."""
        if self.loops:
            return self._looped(state, Part.of(1, updates=False))[0]
        state, self.rollout = self._collect(state)
        return state

    def update(self, state: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        """Make one update from the collected rollout; ``state`` is donated. Returns (state, metrics)."""
        if self.loops:
            return self._looped(state, Part.of(1, collects=False))
        rollout, self.rollout = self.rollout, None
        return self._update(state, rollout)

    def __call__(self, state: TrainState, updates: int = 1) -> tuple[TrainState, Mapping[str, Any]]:
        """Make ``updates`` rollouts, each with its update; only 1 unless ``loops``. Returns (state, last metrics)."""
        if self.loops:
            return self._looped(state, Part.of(updates))
        if updates != 1:
            raise ValueError(f"separate rollout and update programs make one update per call, not {updates}")
        return self.update(self.collect(state))

    def _looped(self, state: TrainState, part: Part) -> tuple[TrainState, Mapping[str, Any]]:
        state, self.rollout, metrics = self._train(state, self.rollout, part)
        return state, metrics
