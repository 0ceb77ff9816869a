"""How well a trained agent does in unseen tasks, after zero, a few or many episodes in them.

Three protocols, each vmapped over seeds and tasks; every task is treated independently of the others:

* "zero-shot": no episodes; the policy acts with the mean of the training tasks' embeddings.
* "inferred": k episodes of the zero-shot policy, stochastic, then gradient steps on the transition loss with respect to
  the task's θ alone (arXiv 2007.07206).
* "fine-tuned": the whole agent keeps learning for the steps of k full-length episodes, with its usual ratio of gradient
  steps to environment steps.

"zero-shot" is the point k = 0 of both curves. Learners without embeddings have zero-shot and fine-tuned values only.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtjax import options
from mtjax.envs.base import Array, VectorEnv
from mtjax.learners import replay
from mtjax.learners.base import Learner, Transitions, Unseen
from mtjax.learners.replay import Sample, size_text
from mtjax.suites.base import Suite
from mtjax.training import adaptation_plot, files, saved, statistics
from mtjax.training.config import load_config
from mtjax.training.evaluation import Evaluator, unseen_of_split
from mtjax.training.trainer import Trainer

EPISODES = (0, 1, 5, 20)
METHODS = ("inferred", "fine-tuned")


class Settings(NamedTuple):
    """Parameters of the protocols.

    Attributes:
        episodes: numbers of episodes after which to evaluate, ascending from 0.
        evaluation_episodes: episodes of the deterministic policy in each evaluation.
        num_steps, learning_rate, batch_size, prior_cost: for inferring θ (see :func:`mtjax.learners.world.infer`).
    """

    episodes: tuple[int, ...] = EPISODES
    evaluation_episodes: int = 20
    num_steps: int = 300
    learning_rate: float = 3e-2
    batch_size: int = 256
    prior_cost: float = 0.03


class Curves(NamedTuple):
    """Measurements on one split.

    Attributes:
        episodes: [K].
        tasks: [N] names.
        values: by method, then measure ("return", "success_any" …): [K, S, N].
    """

    episodes: tuple[int, ...]
    tasks: tuple[str, ...]
    values: Mapping[str, Mapping[str, np.ndarray]]


def measure(
    learner: Learner,
    suite: Suite,
    states: Any,
    *,
    split: str,
    key: Array,
    contexts: Mapping[str, Array] | None = None,
    methods: Sequence[str] = METHODS,
    settings: Settings | None = None,
) -> Curves:
    """Run the protocols on a split of a suite.

    Args:
        learner: supplies ``adaptation`` and ``fine_tuning``; a method that it lacks is omitted.
        suite: a device suite.
        states: learner states [S, ...].
        split: "interpolation" or "extrapolation".
        key: typed key; equal keys give equal numbers.
        contexts: by split, embeddings of the tasks' descriptions, for learners that read them.
        methods: a subset of ``METHODS``.
        settings: parameters of the protocols; None means the defaults.

    Raises:
        ValueError: the suite runs on the host or lacks the split, the learner has no policy for unseen tasks, the
            split is "train", a method is unknown, the episodes do not ascend from 0, or the replays of all fine-tuned
            agents do not fit into memory.
    """
    settings = settings or Settings()
    _check(learner, suite, split, methods, settings.episodes)
    protocol = _Protocol(learner, suite, split, contexts or {}, settings)
    number = len(jax.tree.leaves(states)[0])
    if "fine-tuned" in methods and learner.fine_tuning:
        protocol.require_memory(number)
    evaluate_key, key = jax.random.split(key)
    keys = jax.random.split(key, (number, 2))
    found: dict[str, list[Mapping[str, Array]]] = {}
    zero = protocol.evaluator(learner, number)(states, split=split, key=evaluate_key)
    if "inferred" in methods and learner.adaptation:
        found["inferred"] = [zero, *protocol.inferred(states, keys[:, 0], evaluate_key)]
    if "fine-tuned" in methods and learner.fine_tuning:
        found["fine-tuned"] = [zero, *protocol.fine_tuned(states, keys[:, 1], evaluate_key)]
    if not found:
        found["zero-shot"] = [zero]
    values = {
        method: {name: np.stack([np.asarray(point[name]) for point in points]) for name in zero}
        for method, points in found.items()
    }
    names = tuple(info.name for info in suite.splits[split].infos)
    return Curves(settings.episodes if found.keys() != {"zero-shot"} else (0,), names, values)


def _check(learner: Learner, suite: Suite, split: str, methods: Sequence[str], episodes: Sequence[int]) -> None:
    if not suite.on_device:
        raise ValueError(f"suite {suite.name!r} runs on the host; adaptation needs a suite on the device")
    if split == "train":
        raise ValueError("split 'train' is the training split; adaptation is measured on held-out tasks")
    suite.split(split)  # raises if there is no such split
    if not learner.generalises:
        raise ValueError("every task has its own network, so there is none for an unseen task")
    for name in methods:
        if name not in METHODS:
            raise ValueError(options.unknown("method", name, METHODS))
    if not episodes or episodes[0] != 0 or list(episodes) != sorted(set(episodes)):
        raise ValueError(f"episodes must ascend from 0; got {tuple(episodes)}")


def able(learner: Learner) -> tuple[str, ...]:
    """The methods in ``METHODS`` that a learner supports."""
    have = (learner.adaptation, learner.fine_tuning)
    return tuple(name for name, function in zip(METHODS, have, strict=True) if function)


class _Protocol:
    """The programs of one split. Each is compiled once."""

    def __init__(self, learner: Learner, suite: Suite, split: str, contexts: Mapping[str, Array], settings: Settings):
        self.learner, self.suite, self.split, self.contexts, self.settings = learner, suite, split, contexts, settings
        self.unseen = unseen_of_split(suite, split, contexts)
        self.number = len(self.unseen.masks)

    def evaluator(self, learner: Learner, num_seeds: int) -> Evaluator:
        """Evaluator of a learner on this split; its states are whatever the learner's ``policy`` takes."""
        episodes = self.settings.evaluation_episodes
        return Evaluator(learner, self.suite, episodes=episodes, num_seeds=num_seeds, seed=0, contexts=self.contexts)

    # --------------------------------------------------------------------------------------- inferred

    def inferred(self, states: Any, keys: Array, evaluate_key: Array) -> list[Mapping[str, Array]]:
        """Evaluation results after each number of episodes but 0."""
        most = self.settings.episodes[-1]
        if not most:
            return []
        env = self.suite.vector_env(most, split=self.split)
        adaptation, settings = self.learner.adaptation, self.settings
        collect_keys, infer_keys = _apart(keys, 2)
        seen, alive = jax.jit(jax.vmap(self._collect, in_axes=(None, 0, 0)))(env, states, collect_keys)

        @jax.jit
        def find(states: Any, seen: Sample, alive: Array, keys: Array, number: Array) -> Array:
            def of_seed(state: Any, seen: Sample, alive: Array, key: Array) -> Array:
                weight = alive * (jnp.arange(most) < number)[:, None]  # [N, K, H]
                flat = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), seen)
                return adaptation.infer(
                    state,
                    adaptation.start(state, self.unseen),
                    flat,
                    weight.reshape(self.number, -1),
                    self.unseen,
                    key=key,
                    num_steps=settings.num_steps,
                    learning_rate=settings.learning_rate,
                    batch_size=settings.batch_size,
                    prior_cost=settings.prior_cost,
                )

            return jax.vmap(of_seed)(states, seen, alive, keys)

        def policy(adapted: Any, observation: Array, key: Array, deterministic: Array, unseen: Unseen) -> Array:
            state, theta = adapted
            return adaptation.policy(state, theta, observation, key, deterministic, unseen)

        evaluate = self.evaluator(self.learner._replace(policy=policy), len(keys))
        thetas = [find(states, seen, alive, infer_keys, jnp.asarray(k)) for k in settings.episodes[1:]]
        return [evaluate((states, theta), split=self.split, key=evaluate_key) for theta in thetas]

    def _collect(self, env: VectorEnv, state: Any, key: Array) -> tuple[Sample, Array]:
        """One episode in each of K environments per task: leaves [N, K, H, ...], and a mask [N, K, H] of its steps."""
        reset_key, key = jax.random.split(key)
        env_state, observation = env.reset(reset_key)

        def advance(carry: Any, index: Array) -> tuple[Any, tuple[Sample, Array]]:
            env_state, observation, alive = carry
            keys = jax.random.split(jax.random.fold_in(key, index))
            action = self.learner.policy(state, observation, keys[0], jnp.asarray(False), self.unseen)
            env_state, step = env.step(env_state, action, keys[1])
            seen = Sample(observation, action, step.reward, step.terminated, step.final_observation)
            going_on = alive * (1.0 - (step.terminated | step.truncated).astype(jnp.float32))
            return (env_state, step.observation, going_on), (seen, alive)

        start = (env_state, observation, jnp.ones(observation.shape[:2]))
        _, seen = jax.lax.scan(advance, start, jnp.arange(self.suite.horizon))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), seen)

    # ------------------------------------------------------------------------------------- fine-tuned

    @property
    def steps(self) -> int:
        """Environment steps of each fine-tuned agent, those of the largest number of episodes."""
        return self.settings.episodes[-1] * self.suite.horizon

    def require_memory(self, num_seeds: int) -> None:
        """Raise ValueError, with a one-line message, if the replays of all N × S agents do not fit into memory."""
        buffer = self.learner.fine_tuning(self.steps).replay if self.steps else None
        agents = num_seeds * self.number
        if buffer and (allowed := buffer.lacking(agents)):
            raise ValueError(
                f"fine-tuning: replay buffers of {buffer.capacity:,} transitions for {agents} agents, one for each of "
                f"{self.number} tasks and {num_seeds} seeds, take {size_text(agents * buffer.bytes)}, but {allowed}; "
                "use fewer episodes"
            )

    def fine_tuned(self, states: Any, keys: Array, evaluate_key: Array) -> list[Mapping[str, Array]]:
        """Evaluation results after the steps of each number of episodes but 0."""
        if not self.steps:
            return []
        tuning, env = self.learner.fine_tuning(self.steps), self.suite.vector_env(1, split=self.split)
        number, horizon = self.number, self.suite.horizon
        each = jax.tree.map(lambda x: x[:, None], self.unseen)  # N tasks, each an Unseen with N = 1
        over_tasks = jax.vmap(tuning.update, in_axes=(0, 0, 0, 0))

        start_keys, reset_keys, update_keys = _apart(keys, 3)

        def start(state: Any, start_key: Array, reset_key: Array) -> Any:
            learning = jax.vmap(tuning.start, in_axes=(None, 0, 0))(state, each, jax.random.split(start_key, number))
            return learning, env.reset(reset_key)

        def act(learning: Any, observation: Array, key: Array) -> tuple[Array, Any]:
            """Actions [N, 1, ...] of N agents at observations [N, 1, obs]."""
            keys = jax.random.split(key, number)
            found = jax.vmap(tuning.act)(learning, each, observation[:, None], keys)
            return jax.tree.map(lambda x: x[:, 0], found)

        def step(learning: Any, carry: Any, key: Array) -> tuple[Any, Transitions]:
            env_state, observation = carry
            keys = jax.random.split(key)
            action, extras = act(learning, observation, keys[0])
            env_state, result = env.step(env_state, action, keys[1])
            known = (observation, result.reward, result.terminated, result.truncated, result.final_observation)
            return (env_state, result.observation), Transitions(*known, extras)

        def update(carry: Any, key: Array) -> Any:
            learning, where = carry
            keys = jax.random.split(key, tuning.rollout_length + 1)
            where, rollout = jax.lax.scan(lambda c, k: step(learning, c, k), where, keys[1:])  # [H, N, 1, ...]
            rollout = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], rollout)  # [N, H, 1, 1, ...]
            learning, _ = over_tasks(learning, each, rollout, jax.random.split(keys[0], number))
            return learning, where

        def policy(learning: Any, observation: Array, key: Array, deterministic: Array, unseen: Unseen) -> Array:
            keys = jax.random.split(key, number)
            found = jax.vmap(tuning.policy, in_axes=(0, 0, 0, 0, None))(
                learning, each, observation[:, None], keys, deterministic
            )
            return found[:, 0]

        evaluate = self.evaluator(self.learner._replace(policy=policy), len(keys))

        @functools.partial(jax.jit, donate_argnums=0)
        def run(carry: Any, keys: Array, first: Array, end: Array) -> Any:
            def of_seed(carry: Any, key: Array) -> Any:
                def once(index: Array, carry: Any) -> Any:
                    return update(carry, jax.random.fold_in(key, index))

                return jax.lax.fori_loop(first, end, once, carry)

            return jax.vmap(of_seed)(carry, keys)

        carry, done, points = jax.jit(jax.vmap(start))(states, start_keys, reset_keys), 0, []
        # Aliased leaves cannot be donated, so copy all but replays: these are not aliased, and two might not fit.
        carry = jax.tree.map(lambda x: x if replay.is_replay(x) else jnp.copy(x), carry, is_leaf=replay.is_replay)
        for episodes in self.settings.episodes[1:]:
            first, done = done, round(episodes * horizon / tuning.rollout_length)
            carry = run(carry, update_keys, np.int32(first), np.int32(done))
            points.append(evaluate(carry[0], split=self.split, key=evaluate_key))
        return points


def _apart(keys: Array, number: int) -> Array:
    """Split keys [S] into [number, S]: each seed's keys for ``number`` purposes."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, number))(keys), 1, 0)


# --------------------------------------------------------------------------------------------------- runs


def measure_run(
    run_dir: str | os.PathLike,
    *,
    splits: Sequence[str] = ("interpolation", "extrapolation"),
    methods: Sequence[str] = METHODS,
    settings: Settings | None = None,
    seed: int = 0,
    checkpoint: int | None = None,
) -> dict[str, Curves]:
    """Measure a saved run on its held-out splits; write ``adaptation.json`` and ``plots/adaptation.png`` to its folder.

    Files of an earlier measurement are replaced. If the folder is not writable (a colleague's), a warning says that
    they are not written.

    Args:
        run_dir: the run's folder.
        splits: the held-out splits to measure.
        methods, settings: as in :func:`measure`.
        seed: seed of the protocols' own randomness.
        checkpoint: step of the checkpoint; None means the newest good one.

    Raises:
        ValueError: as :func:`measure`; or the folder is not a run, or has no usable checkpoint.
    """
    run_dir = pathlib.Path(run_dir)
    config = load_config(run_dir)
    suite = saved.suite_of(run_dir, config)
    trainer = Trainer(config, suite)
    step, state, _ = saved.restore(run_dir, trainer, checkpoint, to_be="adapted")
    curves = {
        split: measure(
            trainer.learner,
            suite,
            state.learner,
            split=split,
            key=jax.random.key(seed),
            contexts=trainer.contexts,
            methods=methods,
            settings=settings,
        )
        for split in splits
    }
    of = {"checkpoint": step, "seed": seed, "evaluation_episodes": (settings or Settings()).evaluation_episodes}
    _write(run_dir, {split: {**of, **as_dict(found)} for split, found in curves.items()})
    return curves


def _write(run_dir: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Write the numbers and the plot; warn if the folder is not writable."""
    try:
        files.write_json(run_dir / "adaptation.json", found)
        (run_dir / "plots").mkdir(exist_ok=True)
        adaptation_plot.draw(found, run_dir / "plots" / "adaptation.png")
    except OSError as error:
        saved.warn_unwritable(error, run_dir, stacklevel=3)


def as_dict(curves: Curves) -> dict[str, Any]:
    """Curves as JSON-serialisable numbers: by method and measure, one entry for each number of episodes.

    An entry is {"mean": over tasks, "tasks": {name: of one task}}; each of these is {"value", "low", "high"}, with the
    interval over seeds (None with one seed).
    """

    def entry(point: np.ndarray) -> dict[str, Any]:
        each = {name: statistics.summarize(point[:, [n]])["mean"] for n, name in enumerate(curves.tasks)}
        return {"mean": statistics.summarize(point)["mean"], "tasks": each}

    values = {
        method: {name: [entry(point) for point in points] for name, points in measures.items()}
        for method, measures in curves.values.items()
    }
    return {"episodes": list(curves.episodes), "tasks": list(curves.tasks), "values": values}
