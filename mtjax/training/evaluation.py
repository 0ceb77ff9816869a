"""Evaluation of whole episodes per task, with fresh environments and keys of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtjax import sharding
from mtjax.envs.base import Array, VectorEnv
from mtjax.learners.base import Learner, Unseen, masks_of
from mtjax.suites.base import Split, Suite
from mtjax.training import simulators
from mtjax.training.meshes import Placement
from mtjax.training.rollout import compiler_options, over_seeds, success_of, traceable


class Evaluator:
    """Evaluates learners on the splits of a suite. Each split's program is compiled once, when first used.

    Args:
        learner: the learner whose policy is evaluated.
        suite: the tasks.
        episodes: E, episodes of each task per round.
        num_seeds: S.
        seed: seed of host simulators; on the device, all randomness comes from the key of a call.
        contexts: by split, embeddings [N, D] of the tasks' descriptions, for learners that read them.
        placement: how arrays are placed on the devices.
        compiling: "the evaluation …" -> a context manager, within which a split's program is compiled.
    """

    def __init__(
        self,
        learner: Learner,
        suite: Suite,
        *,
        episodes: int,
        num_seeds: int,
        seed: int,
        contexts: Mapping[str, Array] | None = None,
        placement: Placement | None = None,
        compiling: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self.learner, self.suite, self.compiling = learner, suite, compiling
        self.placement = placement or Placement()
        self.contexts = contexts or {}
        self.episodes, self.num_seeds, self.seed = episodes, num_seeds, seed
        self._envs: dict[str, VectorEnv] = {}
        self._programs: dict[Any, Callable] = {}
        self._run = self.placement.jit(self._evaluate, gives=self.placement.everywhere, options=compiler_options())

    def __call__(
        self, states: Any, *, split: str = "train", deterministic: bool = True, key: Array, rounds: int = 1
    ) -> Mapping[str, Array]:
        """Run ``rounds`` × ``episodes`` episodes of every task.

        Args:
            states: learner states [S, ...].
            split: the split to evaluate; the policy acts in held-out tasks zero-shot, by their descriptions.
            deterministic: take the policy's mode instead of a sample.
            key: typed key, or [S] of them, one per seed; equal keys give equal episodes on device suites.
            rounds: how often to repeat, with fresh keys.

        Returns:
            "return", "length", "success_any", "success_last": [S, N] means over episodes, float32.
        """
        env = self._env(split)  # raises if there is no such split
        everywhere = self.placement.everywhere
        flag = np.asarray(deterministic)
        unseen = self.placement.place(unseen_of_split(self.suite, split, self.contexts), everywhere)
        keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.num_seeds))
        of_rounds = [jax.vmap(jax.random.fold_in, (0, None))(keys, index) for index in range(rounds)]
        program = self._program(split, env, states, of_rounds[0], flag, unseen)
        results = [program(env, states, keys, flag, unseen) for keys in of_rounds]
        return jax.tree.map(lambda *x: jnp.stack(x).mean(axis=0), *results)

    def close(self) -> None:
        """Free the host simulators; the next evaluation makes new ones."""
        for env in self._envs.values():
            simulators.close(env)
        self._envs.clear()
        self._programs.clear()

    def _program(self, split: str, *arguments: Any) -> Callable:
        """The compiled evaluation, shared by all splits of the same size."""
        leaves, structure = jax.tree.flatten(arguments)
        form = (structure, *((jnp.shape(x), jnp.result_type(x), jax.typeof(x).weak_type) for x in leaves))
        if form not in self._programs:
            with self.compiling("the evaluation" + (f" on {split}" if split != "train" else "")):
                self._programs[form] = self._run.lower(*arguments).compile()
        return self._programs[form]

    def _env(self, split: str) -> VectorEnv:
        if split not in self._envs:
            env = self.suite.vector_env(self.episodes, split=split, seed=self.seed)
            self._envs[split] = self.placement.place(traceable(env), self.placement.everywhere)
        return self._envs[split]

    def _evaluate(self, env: VectorEnv, states: Any, keys: Array, deterministic: Array, unseen: Unseen | None):
        reset, step = over_seeds(env)
        # Each seed uses its own key alone, so that its results do not depend on the other seeds in the program.
        reset_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        env_state, observation = jax.tree.map(lambda x: sharding.sharded(x, axis=2), reset(reset_keys))

        def policy(state: Any, observation: Array, key: Array) -> Array:
            return self.learner.policy(state, observation, key, deterministic, unseen)

        def advance(carry, index):
            env_state, observation, alive, totals = carry
            step_keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, index)))(keys)
            actions = jax.vmap(policy)(states, observation, step_keys[:, 0])
            env_state, result = step(env_state, actions, step_keys[:, 1])
            success = success_of(result, required=self.suite.has_success)
            counted = {
                "return": totals["return"] + result.reward,
                "length": totals["length"] + 1.0,
                "success_any": jnp.maximum(totals["success_any"], success),
                "success_last": success,
            }
            # Select instead of multiplying by ``alive``: values after the end of an episode may be NaN.
            totals = {name: jnp.where(alive > 0, value, totals[name]) for name, value in counted.items()}
            alive = alive * (1.0 - (result.terminated | result.truncated).astype(jnp.float32))
            return (env_state, result.observation, alive, totals), None

        shape = observation.shape[:3]
        zeros = jnp.zeros(shape, jnp.float32)
        totals = dict.fromkeys(("return", "length", "success_any", "success_last"), zeros)
        start = (env_state, observation, jnp.ones(shape, jnp.float32), totals)
        steps = jnp.arange(self.suite.horizon, dtype=jnp.int32)
        (_, _, _, totals), _ = jax.lax.scan(advance, start, steps)
        if not self.suite.has_success:
            totals = {name: totals[name] for name in ("return", "length")}
        return jax.tree.map(lambda x: x.mean(axis=-1), totals)


def unseen_of_split(suite: Suite, split: str, contexts: Mapping[str, Array]) -> Unseen | None:
    """What a learner is told about the tasks of a split; None for the training tasks, which it knows.

    Args:
        suite: the suite.
        split: name of the split.
        contexts: by split, embeddings [N, D] of the tasks' descriptions; D = 0 for a split that is missing.
    """
    if split == "train":
        return None
    part = suite.splits[split]
    sizes = part.action_sizes or (suite.action.size,) * len(part)
    told = contexts.get(split, jnp.zeros((len(part), 0), jnp.float32))
    return Unseen(told, masks_of(sizes, suite.action), _relatives(suite.splits["train"], part))


def _relatives(train: Split, part: Split) -> Array | None:
    """[N, T] weights: evenly over the training tasks of the same origin; over all for a task without any.

    None if no origin is known.
    """
    if train.origins is None or part.origins is None:
        return None
    same = np.asarray([[own == other for other in train.origins] for own in part.origins], np.float32)
    same[~same.any(axis=1)] = 1.0
    return jnp.asarray(same / same.sum(axis=1, keepdims=True))
