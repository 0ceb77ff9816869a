"""The trainer: a run's pure functions, compiled. ``collect`` and ``update`` are all that training consists of."""

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
    init_finished,
    init_running,
    over_seeds,
    traceable,
)

# Of the metrics: what tells whether a seed, and which of its tasks, is still finite, and after how many updates.
FLAGS = ("finite", "finite_state", "updates")

# Streams of randomness folded into a run's key: adding one never changes another.
STREAM_INIT, STREAM_ENV, STREAM_ROLLOUT, STREAM_UPDATE, STREAM_EVALUATION = range(5)


class TrainState(NamedTuple):
    """Everything that training needs to go on; leaves lead with [S].

    Attributes:
        learner: the learner's state.
        carry: environments, their last observation, episode statistics.
        keys: [S] typed keys that never change; all randomness is folded from them.
        updates: [S] int32, updates done.
    """

    learner: Any
    carry: Carry
    keys: Array
    updates: Array


class Part(NamedTuple):
    """What a call of :attr:`Trainer.train` does; int32 numbers, so that one program does all of it.

    Attributes:
        count: how often.
        collects, updates: 1, or 0 to leave that half out.
    """

    count: Array
    collects: Array
    updates: Array

    @classmethod
    def of(cls, count: int, *, collects: bool = True, updates: bool = True) -> Part:
        """From Python numbers."""
        return cls(*(np.int32(number) for number in (count, collects, updates)))


class Trainer:
    """The pure functions of one run, jitted. Holds no state that training changes.

    ``train`` is ``collect`` and ``update`` over and over, in ONE compiled loop that never goes back to Python. Which a
    run calls is said in :mod:`mtjax.training.program`.

    Args:
        config: of the run.
        suite: which it names.
        rows, placement: see below; those of one run on one device if None.
        begin: step at which this process begins. Simulators on the host, which cannot be put back to where they were,
            then draw other episodes than those of the beginning.

    Attributes:
        rows: who is who along the seed axis.
        placement: where arrays lie.
        learner: the learner.
        contexts: [N, D] float32 by split: embeddings of the tasks' descriptions, D = 0 if nobody reads them.
        env: the training environments.
        collect: (env, state) -> (state, rollout [H, T, E, ...] of every seed, [S, ...]); the state is donated.
        update: (state, rollout) -> (state, metrics [S, ...]); the state is donated.
        train: (env, state, rollout, Part) -> (state, rollout, metrics): both, over and over; state and rollout are
            donated.
        report: state -> (state, averages [S, T] of the training episodes that ended); the state is donated.
        shardings: of a state's parts on a mesh.
        steps_per_update: environment steps of one seed in one update (a Python int: it never overflows).
        num_updates: updates of the whole run.
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
        self.steps_per_update = suite.num_tasks * config.num_envs * config.hyper.rollout_length
        self.num_updates = max(1, -(-config.total_steps // self.steps_per_update))
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
        """The state before the first step, for the seeds of the rows: ``seed … seed + S − 1`` of a run."""
        state = self.placement.jit(self._init, gives=self.shardings)(self.env, self._seeds)
        # Leaves that alias cannot be donated; a replay's do not, and there may be no room for two.
        leaves, tree = jax.tree.flatten(state, is_leaf=replay.is_replay)
        copies = iter(jax.jit(lambda x: jax.tree.map(jnp.copy, x))([x for x in leaves if not replay.is_replay(x)]))
        state = jax.tree.unflatten(tree, [x if replay.is_replay(x) else next(copies) for x in leaves])
        return self.placement.place(state, self.shardings)

    def no_rollout(self, state: TrainState) -> Transitions:
        """Zeros in the place of a rollout: where :attr:`train` puts its first one."""
        like = jax.eval_shape(self._collect, self.env, state)[1]
        return self.placement.jit(functools.partial(_zeros, like), gives=self.placement.rollout)()

    @property
    def _seeds(self) -> np.ndarray:
        return np.asarray(self.rows.seeds, np.int32)

    def saved(self, state: TrainState) -> TrainState:
        """What of the state a checkpoint holds: everything, unless the replay is to be left out."""
        buffer = self.learner.replay
        return state if buffer is None or buffer.saved else replay.emptied(state)

    def shapes(self) -> TrainState:
        """Shapes and dtypes of the state, with a replay that checkpoints may be without."""
        with host.shapes_only():  # a function of its own, lest ``init`` be given this trace, which made no simulators
            return jax.eval_shape(lambda *arguments: self._init(*arguments), self.env, self._seeds)

    def abstract(self) -> TrainState:
        """Shapes, dtypes and on a mesh the shardings of a checkpoint."""
        state = jax.eval_shape(self.saved, self.shapes())
        return self.placement.described(state, self.shardings)

    def restored(self, state: TrainState) -> TrainState:
        """The state that a checkpoint's continues with: a replay that was left out is there again, and empty."""
        buffer = self.learner.replay
        if buffer is not None and not buffer.saved:
            state = replay.refilled(state, self.placement.described(self.shapes(), self.shardings))
        return self.placement.place(state, self.shardings)

    def restart(self, state: TrainState) -> TrainState:
        """Start all environments anew: a simulator on the host cannot be put back to where it was."""
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
            carry=Carry(
                env_state, observation, init_running((seeds, tasks, envs)), init_finished((seeds, tasks, envs))
            ),
            keys=keys,
            updates=jnp.zeros((seeds,), jnp.int32),
        )

    def _collect(self, env: VectorEnv, state: TrainState) -> tuple[TrainState, Transitions]:
        """Step all environments for one rollout."""
        _, step = over_seeds(env)

        length = self.config.hyper.rollout_length
        keys = jax.vmap(jax.random.fold_in)(_fold(state.keys, STREAM_ROLLOUT), state.updates)
        planned = None  # its key is none of the steps'
        if self.learner.detours:
            plan = functools.partial(self.learner.detours, length=length)
            planned = jax.vmap(plan)(state.learner, jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, length))

        def act(observation: Array, keys: Array, index: Array):
            actions, extras = jax.vmap(self.learner.act)(state.learner, observation, keys)
            if planned is not None:
                actions, active = jax.vmap(detours.follow, in_axes=(0, None, 0))(planned, index, actions)
                extras = {**extras, "detour": active}
            return actions, extras

        carry, rollout = collect(act, step, state.carry, keys, length=length)
        return state._replace(carry=carry), rollout

    def _update(self, state: TrainState, rollout: Transitions) -> tuple[TrainState, Mapping[str, Array]]:
        """Learn from one rollout."""
        keys = jax.vmap(jax.random.fold_in)(_fold(state.keys, STREAM_UPDATE), state.updates)
        learner, metrics = jax.vmap(self.learner.update)(state.learner, rollout, keys)
        done = state.updates + 1
        metrics = {**metrics, "finite_state": _all_finite(learner), "updates": done}
        return state._replace(learner=learner, updates=done), metrics

    def _train(
        self, env: VectorEnv, state: TrainState, rollout: Transitions, part: Part
    ) -> tuple[TrainState, Transitions, Mapping[str, Array]]:
        """``part.count`` times a rollout and an update, or one of them: the same numbers as call by call.

        The halves are loops of one turn or none. XLA fuses nothing across the edge of a loop and lets its state lie
        where it is, so that neither rounding nor memory hangs on how many updates a call makes.

        Args:
            env: the training environments.
            state: where to start; donated.
            rollout: what to learn from where nothing is collected; donated.
            part: how often, and which half.

        Returns:
            (state, the last rollout, the last metrics). Of a seed for which an update left anything not finite,
            the :data:`FLAGS` are those of the first such update.
        """
        metrics = _zeros(jax.eval_shape(self._update, state, rollout)[1])
        metrics = {**metrics, **{name: jnp.ones_like(metrics[name]) for name in ("finite", "finite_state")}}

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
        """Averages of the episodes that ended since the last report, which are then forgotten."""
        values = averages(state.carry.finished, has_success=self.suite.has_success)
        fresh = init_finished(state.carry.finished.episodes.shape)
        return state._replace(carry=state.carry._replace(finished=fresh)), values


def check_splits(config: RunConfig, suite: Suite) -> None:
    """Refuse evaluations on a split that the suite lacks. Raises ValueError with one line."""
    for name in config.evaluation_splits:
        try:
            suite.split(name)
        except ValueError as error:
            raise ValueError(f"evaluation_splits: {error}") from None


def training_env(config: RunConfig, suite: Suite, begin: int = 0) -> VectorEnv:
    """The environments of training, whose episodes may be shorter than the suite's. Raises ValueError with one line."""
    seed = config.seed if not begin else int(np.random.SeedSequence((config.seed, begin)).generate_state(1)[0] >> 1)
    # Simulators on the host are slow: episodes of one length would otherwise all end at once.
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
        ValueError: a gradient method that does not exist, or sizes that do not fit.
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
    """What the tasks' descriptions say, by split: [N, D] float32; D = 0 if no network asks for it.

    Raises:
        ValueError: a network asks, and there is no embedding for one of the tasks.
    """
    if "context" not in (config.network.told, config.network.of_value().told):
        return {label: jnp.asarray(np.zeros((len(split), 0), np.float32)) for label, split in suite.splits.items()}
    found = descriptions.contexts(suite, config.network.task_embeddings)
    return {label: jnp.asarray(vectors) for label, vectors in found.items()}


def _fold(keys: Array, stream: int) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)


def _first_not_finite(before: Mapping[str, Array], after: Mapping[str, Array]) -> dict[str, Array]:
    """The flags after an update; of a seed that was not finite before, those that it had."""
    fine = before["finite"].all(axis=1) & before["finite_state"]  # [S]
    wide = {name: fine[:, None] if name == "finite" else fine for name in FLAGS}
    return {name: jnp.where(wide[name], after[name], before[name]) for name in FLAGS}


def _zeros(like: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def _all_finite(tree: Any) -> Array:
    """[S] True where every number of a seed's state is finite; its learner looks after what a replay takes in."""
    floats = [leaf for leaf in replay.without(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1) for leaf in floats]).all(axis=0)
