"""The trainer: the pure, jitted functions of a run. Training consists of ``collect`` and ``update`` alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtjax.envs import host
from mtjax.envs.adjust import cut_short, on_host
from mtjax.envs.base import Array, VectorEnv
from mtjax.learners import detours, registry, replay
from mtjax.learners.base import Learner, TaskSpec, Transitions
from mtjax.learners.descent import gradient_method
from mtjax.suites import descriptions
from mtjax.suites.base import Suite
from mtjax.training import meshes, packing
from mtjax.training.config import RunConfig
from mtjax.training.rollout import (
    Carry,
    averages,
    collect,
    compiler_options,
    init_latest,
    init_running,
    over_seeds,
    traceable,
)

# Metrics that detect divergence: whether losses [S, T], states [S], and a rollout's rewards and observations [S, T] are
# finite, and the number of updates [S] made by then.
FLAGS = ("finite", "finite_state", "finite_steps", "updates")

# Random streams, folded into a run's keys, so that adding one never changes another.
STREAM_INIT, STREAM_ENV, STREAM_ROLLOUT, STREAM_UPDATE, STREAM_EVALUATION = range(5)


class TrainState(NamedTuple):
    """Everything needed to continue training; leaves lead with [S].

    Attributes:
        learner: the learner's state.
        carry: environment states, their last observations, and episode statistics.
        keys: [S] typed keys, which never change; all other keys are derived from them by ``fold_in``.
        updates: [S] int32, number of updates done.
    """

    learner: Any
    carry: Carry
    keys: Array
    updates: Array


class Part(NamedTuple):
    """What one call of :attr:`Trainer.train` does, as int32 scalars, so that one compiled program covers every case.

    Attributes:
        count: number of iterations.
        collects, updates: 1, or 0 to skip that half of every iteration.
    """

    count: Array
    collects: Array
    updates: Array

    @classmethod
    def of(cls, count: int, *, collects: bool = True, updates: bool = True) -> Part:
        """Build a Part from Python values."""
        return cls(*(np.int32(number) for number in (count, collects, updates)))


class Trainer:
    """The pure functions of one run, jitted. Holds no state that training changes.

    ``train`` repeats ``collect`` and ``update`` in ONE compiled loop that never returns to Python.
    :mod:`mtjax.training.program` decides which of them a run calls.

    Args:
        config: the run's configuration.
        suite: the suite that ``config`` names.
        rows, placement: see Attributes; None means those of a single run on one device.
        begin: step at which this process starts. If it is not 0, host simulators, whose state cannot be restored, get
            another seed, so that they do not repeat the episodes of the run's beginning.

    Attributes:
        rows: the trial and seed of every index along the seed axis.
        placement: how arrays are placed on the devices.
        learner: the learner.
        contexts: by split, embeddings [N, D] float32 of the tasks' descriptions; D = 0 if no network reads them.
        env: the training environments.
        collect: (env, state) -> (state, rollout [S, H, T, E, ...]); the state is donated.
        update: (state, rollout) -> (state, metrics [S, ...]); the state is donated.
        train: (env, state, rollout, Part) -> (state, rollout, metrics): repeats both; state and rollout are
            donated.
        report: state -> (state, averages [S, T] over the latest training episodes); the state is donated.
        shardings: those of a state's parts on a mesh; None on one device.
        steps_per_update: environment steps of one seed per update (a Python int, which never overflows).
        num_updates: number of updates in the whole run.
    """

    def __init__(
        self,
        config: RunConfig,
        suite: Suite,
        rows: packing.Rows | None = None,
        placement: meshes.Placement | None = None,
        begin: int = 0,
    ):
        config.validate()
        check_splits(config, suite)
        self.config, self.suite, self.rows = config, suite, rows or packing.alone(config)
        self.placement = place = placement or meshes.Placement()
        self.steps_per_update = config.steps_per_update(suite.num_tasks)
        self.num_updates = config.num_updates(suite.num_tasks)
        self.contexts = task_contexts(config, suite)
        self.learner = make_learner(config, suite, num_updates=self.num_updates)
        env = training_env(config, suite, begin)
        self.env: VectorEnv = place.place(traceable(env), place.everywhere)
        self.shardings = TrainState(learner=place.seeds, carry=place.envs, keys=place.seeds, updates=place.seeds)
        state, rollout, metrics = self.shardings, place.rollout, place.everywhere
        self.collect = place.jit(
            self._collect,
            takes=(place.everywhere, state),
            gives=(state, rollout),
            donate=1,
            options=compiler_options(),
        )
        self.update = place.jit(self._update, takes=(state, rollout), gives=(state, metrics), donate=0)
        self.train = place.jit(
            self._train,
            takes=(place.everywhere, state, rollout, place.everywhere),
            gives=(state, rollout, metrics),
            donate=(1, 2),
        )
        self.report = place.jit(self._report, takes=(state,), gives=(state, metrics), donate=0)

    def init(self) -> TrainState:
        """The state before the first step, for the seeds of ``rows``: ``seed … seed + S − 1`` in a single run."""
        state = self.placement.jit(self._init, gives=self.shardings)(self.env, self._seeds)
        # Aliased leaves cannot be donated, so copy all but replays: these are not aliased, and two might not fit.
        leaves, tree = jax.tree.flatten(state, is_leaf=replay.is_replay)
        copies = iter(jax.jit(lambda x: jax.tree.map(jnp.copy, x))([x for x in leaves if not replay.is_replay(x)]))
        state = jax.tree.unflatten(tree, [x if replay.is_replay(x) else next(copies) for x in leaves])
        return self.placement.place(state, self.shardings)

    def no_rollout(self, state: TrainState) -> Transitions:
        """A rollout of zeros, to be donated to the first call of :attr:`train`."""
        like = jax.eval_shape(self._collect, self.env, state)[1]
        return self.placement.jit(functools.partial(_zeros, like), gives=self.placement.rollout)()

    @property
    def _seeds(self) -> np.ndarray:
        return np.asarray(self.rows.seeds, np.int32)

    def saved(self, state: TrainState) -> TrainState:
        """The state as a checkpoint stores it: everything, but an empty replay if replays are not saved."""
        buffer = self.learner.replay
        return state if buffer is None or buffer.saved else replay.emptied(state)

    def shapes(self) -> TrainState:
        """Shapes and dtypes of the state, including a replay that checkpoints may omit."""
        with host.shapes_only():  # lambda: ``init`` must not reuse this cached trace, which made no simulators
            return jax.eval_shape(lambda *arguments: self._init(*arguments), self.env, self._seeds)

    def abstract(self) -> TrainState:
        """Shapes and dtypes, and on a mesh also shardings, of the state that a checkpoint stores."""
        state = jax.eval_shape(self.saved, self.shapes())
        return self.placement.described(state, self.shardings)

    def restored(self, state: TrainState) -> TrainState:
        """The state with which training continues from a checkpoint's: an omitted replay is allocated again, empty."""
        buffer = self.learner.replay
        if buffer is not None and not buffer.saved:
            state = replay.refilled(state, self.placement.described(self.shapes(), self.shardings))
        return self.placement.place(state, self.shardings)

    def restart(self, state: TrainState) -> TrainState:
        """Reset all environments, since the state of a host simulator cannot be restored."""
        reset, _ = over_seeds(self.env)
        env_state, observation = jax.jit(reset)(_fold(state.keys, STREAM_ENV))
        running = init_running(state.carry.running.returns.shape)
        carry = state.carry._replace(env=env_state, observation=observation, running=running)
        learner = jax.vmap(self.learner.cut)(state.learner) if self.learner.cut else state.learner
        return state._replace(carry=carry, learner=learner)

    def _init(self, env: VectorEnv, numbers: Array) -> TrainState:
        keys = jax.vmap(jax.random.key)(numbers)
        tasks, envs, seeds = self.suite.num_tasks, self.config.num_envs, self.config.num_seeds
        reset, _ = over_seeds(env)
        env_state, observation = reset(_fold(keys, STREAM_ENV))
        learner = jax.vmap(self.learner.init)(_fold(keys, STREAM_INIT))
        return TrainState(
            learner=packing.with_leaves(learner, self.rows.leaves),
            carry=Carry(env_state, observation, init_running((seeds, tasks, envs)), init_latest((seeds, tasks, envs))),
            keys=keys,
            updates=jnp.zeros((seeds,), jnp.int32),
        )

    def _collect(self, env: VectorEnv, state: TrainState) -> tuple[TrainState, Transitions]:
        """Step all environments for one rollout."""
        _, step = over_seeds(env)

        length = self.config.hyper.rollout_length
        keys = jax.vmap(jax.random.fold_in)(_fold(state.keys, STREAM_ROLLOUT), state.updates)
        planned = None  # drawn with the key of index ``length``, which no step uses
        if self.learner.detours:
            plan = functools.partial(self.learner.detours, length=length)
            planned = jax.vmap(plan)(state.learner, jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, length))

        def act(observation: Array, keys: Array, index: Array):
            actions, extras = jax.vmap(self.learner.act)(state.learner, observation, keys)
            if planned is not None:
                actions, active = jax.vmap(detours.follow, in_axes=(0, None, 0))(planned, index, actions)
                extras = {**extras, "detour": active}
            return actions, extras

        has_success = self.suite.has_success
        carry, rollout = collect(act, step, state.carry, keys, length=length, has_success=has_success)
        return state._replace(carry=carry), rollout

    def _update(self, state: TrainState, rollout: Transitions) -> tuple[TrainState, Mapping[str, Array]]:
        """Learn from one rollout."""
        keys = jax.vmap(jax.random.fold_in)(_fold(state.keys, STREAM_UPDATE), state.updates)
        learner, metrics = jax.vmap(self.learner.update)(state.learner, rollout, keys)
        done = state.updates + 1
        flags = {"finite_state": _all_finite(learner), "finite_steps": _finite_steps(rollout), "updates": done}
        metrics = {**metrics, **flags}
        return state._replace(learner=learner, updates=done), metrics

    def _train(
        self, env: VectorEnv, state: TrainState, rollout: Transitions, part: Part
    ) -> tuple[TrainState, Transitions, Mapping[str, Array]]:
        """Repeat rollout and update, or only one of them, ``part.count`` times; results equal those of single calls.

        Each half is a loop of one iteration or none: XLA does not fuse across the boundary of a loop and keeps the
        loop's state in place, so that neither rounding nor memory depends on the number of updates per call.

        Args:
            env: the training environments.
            state: the state to start from; donated.
            rollout: the rollout to learn from if none is collected; donated.
            part: how many iterations, and which halves.

        Returns:
            (state, the last rollout, the last metrics). If an update left anything non-finite in a seed, that
            seed's :data:`FLAGS` are those of the first such update.
        """
        metrics = _zeros(jax.eval_shape(self._update, state, rollout)[1])
        metrics = {**metrics, **{name: jnp.ones_like(metrics[name]) for name in FLAGS if name != "updates"}}

        def update(rollout: Transitions, carry: Any) -> Any:
            state, before = carry
            state, after = self._update(state, rollout)
            return state, {**after, **_first_not_finite(before, after)}

        def once(_: Array, carry: Any) -> Any:
            state, rollout, metrics = carry
            state, rollout = jax.lax.fori_loop(
                0, part.collects, lambda _, carry: self._collect(env, carry[0]), (state, rollout)
            )
            state, metrics = jax.lax.fori_loop(
                0, part.updates, lambda _, carry: update(rollout, carry), (state, metrics)
            )
            return state, rollout, metrics

        return jax.lax.fori_loop(0, part.count, once, (state, rollout, metrics))

    def _report(self, state: TrainState) -> tuple[TrainState, Mapping[str, Array]]:
        """Average over the environments' latest episodes, and start to count episodes anew."""
        latest = state.carry.latest
        values = averages(latest, has_success=self.suite.has_success)
        latest = latest._replace(episodes=jnp.zeros_like(latest.episodes))
        return state._replace(carry=state.carry._replace(latest=latest)), values


def check_splits(config: RunConfig, suite: Suite) -> None:
    """Refuse evaluations on a split that the suite lacks. Raises ValueError with a one-line message."""
    for name in config.evaluation_splits:
        try:
            suite.split(name)
        except ValueError as error:
            raise ValueError(f"evaluation_splits: {error}") from None


def training_env(config: RunConfig, suite: Suite, begin: int = 0) -> VectorEnv:
    """The training environments, whose episodes may be shorter than the suite's. Raises a one-line ValueError."""
    seed = config.seed if not begin else int(np.random.SeedSequence((config.seed, begin)).generate_state(1)[0] >> 1)
    # Stagger host simulators: they are slow, and episodes of equal length would otherwise all end at once.
    env = on_host(suite.vector_env(config.num_envs, seed=seed), stagger=True)
    if not config.training_horizon:
        return env
    try:
        return cut_short(env, config.training_horizon)
    except ValueError as error:
        raise ValueError(f"training_horizon: {error}") from None


def make_learner(config: RunConfig, suite: Suite, *, num_updates: int) -> Learner:
    """Build the learner that the configuration names, for the tasks of the suite.

    Raises:
        ValueError: the gradient method does not exist, or sizes do not fit.
    """
    contexts = task_contexts(config, suite)["train"]
    spec = TaskSpec(suite.num_tasks, suite.observation_size, suite.action, suite.action_sizes, contexts)
    method = gradient_method(config.grads, suite.num_tasks)
    return registry.make(
        config.learner,
        config.hyper,
        config.network,
        method,
        spec,
        num_envs=config.num_envs,
        num_updates=num_updates,
    )


def task_contexts(config: RunConfig, suite: Suite) -> dict[str, Array]:
    """Embeddings of the tasks' descriptions by split, [N, D] float32; D = 0 if no network reads them.

    Raises:
        ValueError: a network reads them, and a task has no embedding.
    """
    if "context" not in (config.network.told, config.network.of_value().told):
        return {label: jnp.asarray(np.zeros((len(split), 0), np.float32)) for label, split in suite.splits.items()}
    found = descriptions.contexts(suite, config.network.task_embeddings)
    return {label: jnp.asarray(vectors) for label, vectors in found.items()}


def _fold(keys: Array, stream: int) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)


def _first_not_finite(before: Mapping[str, Array], after: Mapping[str, Array]) -> dict[str, Array]:
    """The flags after an update; a seed that was already non-finite keeps its previous flags."""
    fine = before["finite"].all(axis=1) & before["finite_state"]  # [S]
    wide = {name: fine[:, None] if before[name].ndim == 2 else fine for name in FLAGS}
    return {name: jnp.where(wide[name], after[name], before[name]) for name in FLAGS}


def _finite_steps(rollout: Transitions) -> Array:
    """[S, T] bool: all rewards and observations of a rollout [S, H, T, E, ...] are finite."""
    observations = jnp.isfinite(rollout.final_observation).all(axis=-1)
    return (jnp.isfinite(rollout.reward) & observations).all(axis=(1, 3))


def _zeros(like: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def _all_finite(tree: Any) -> Array:
    """[S] True where all of a seed's state is finite, except replays: learners check what they store there."""
    floats = [leaf for leaf in replay.without(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1) for leaf in floats]).all(axis=0)
