"""The policy of a saved run, to act with: in your own loop, on a robot, behind a server."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtjax import options
from mtjax.learners import replay
from mtjax.learners.base import Learner, Unseen
from mtjax.suites.base import Suite
from mtjax.training import saved, simulators
from mtjax.training.config import load_config
from mtjax.training.evaluation import unseen_of_split
from mtjax.training.trainer import Trainer, TrainState

Array = jax.Array


def load_policy(
    run_dir: str | os.PathLike, *, split: str = "train", seed: int = 0, checkpoint: int | None = None
) -> Policy:
    """Load the policy of a run, which may still be training; nothing on the disk is changed.

    Args:
        run_dir: the run's folder.
        split: the split whose tasks it acts in: the training tasks, or held-out ones, zero-shot.
        seed: index of the run's agent, from 0 to ``num_seeds`` - 1.
        checkpoint: step of the checkpoint; None means the newest good one.

    Raises:
        ValueError: the folder is not a run or has no usable checkpoint; there is no such split or agent; or the split
            is held out, and every training task has its own network, so that unseen tasks have none.

    Example:
        >>> policy = load_policy("runs/mine")  # doctest: +SKIP
        >>> action = policy(observation, task="reach")  # doctest: +SKIP
    """
    config = load_config(pathlib.Path(run_dir))
    suite = saved.suite_of(run_dir, config)
    suite.split(split)  # raises if there is no such split
    if not 0 <= seed < config.num_seeds:
        raise ValueError(f"seed is {seed}; the run has {config.num_seeds} seeds, counted from 0")
    trainer = Trainer(config, suite)
    if split != "train" and not trainer.learner.generalises:
        raise ValueError(f"{split}: every task has its own network, so there is none for an unseen task")
    try:
        _, state, _ = saved.restore(run_dir, trainer, checkpoint, to_be="loaded")
    finally:
        simulators.close(trainer.env)
    return of_state(trainer, suite, state, split=split, seed=seed)


def of_state(trainer: Trainer, suite: Suite, state: TrainState, *, split: str = "train", seed: int = 0) -> Policy:
    """The policy of one seed of a trainer's state, in the tasks of a split."""
    learner = jax.tree.map(lambda leaf: leaf[seed], replay.emptied(state.learner))  # indexing would copy the replay
    learner = jax.device_get(learner)  # off the mesh, if any: the policy is to run where the observation is
    unseen = unseen_of_split(suite, split, trainer.contexts)
    names = [info.name for info in suite.split(split).infos]
    return Policy(trainer.learner, learner, names, suite.observation_size, unseen)


class Policy:
    """A trained agent's policy: observations in, actions out. Compiled once for every number of observations.

    Args:
        learner: the learner whose policy this is.
        state: the learner's state, of one seed.
        tasks: names of the tasks.
        observation_size: numbers in an observation.
        unseen: what the learner is told about the tasks if they are held out; None for the training tasks.

    Attributes:
        tasks: names of the tasks it acts in.
        observation_size: numbers in an observation.
    """

    def __init__(
        self, learner: Learner, state: object, tasks: Sequence[str], observation_size: int, unseen: Unseen | None = None
    ):
        self.tasks, self.observation_size = tuple(tasks), observation_size
        self._state = state  # host arrays, transferred to the observation's device

        def act(state: object, index: Array, observation: Array, key: Array, deterministic: Array) -> Array:
            everywhere = jnp.zeros((len(self.tasks), *observation.shape), jnp.float32).at[index].set(observation)
            return learner.policy(state, everywhere, key, deterministic, unseen)[index]

        self._act = jax.jit(act)

    def __call__(self, observation: Array, task: str | int | None = None, *, key: Array | None = None) -> Array:
        """Act in one task.

        Args:
            observation: [obs], or [E, obs] of E environments, as the suite's environments return it. If training
                normalised observations, so does the policy, by the run's statistics.
            task: its name, or its index in ``tasks``; None if there is only one.
            key: for sampling from the policy's distribution; None returns its mode.

        Returns:
            [...] or [E, ...]: float32 in [-1, 1], or int32 choices.

        Raises:
            ValueError: there is no such task, or several and none is named, or the observation has the wrong shape.
        """
        if task is None:
            if len(self.tasks) > 1:
                raise ValueError(f"which task? The policy has {len(self.tasks)}: {', '.join(self.tasks)}")
            task = 0
        if isinstance(task, str):
            if task not in self.tasks:
                raise ValueError(options.unknown("task", task, self.tasks))
            task = self.tasks.index(task)
        task = int(task)
        if not 0 <= task < len(self.tasks):
            raise ValueError(f"task is {task}; there are {len(self.tasks)} tasks, counted from 0")
        observation = jnp.asarray(observation, jnp.float32)
        if observation.ndim not in (1, 2) or observation.shape[-1] != self.observation_size:
            size = self.observation_size
            raise ValueError(f"observation has shape {observation.shape}; expected ({size},) or (E, {size})")
        rows = observation if observation.ndim == 2 else observation[None]
        drawn = jax.random.key(0) if key is None else key
        actions = self._act(self._state, jnp.asarray(task), rows, drawn, jnp.asarray(key is None))
        return actions if observation.ndim == 2 else actions[0]
