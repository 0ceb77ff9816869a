"""Rich observations: environments whose state is hidden in high-dimensional, partly irrelevant observations.

In a block MDP (arXiv 1901.09018), the state can be decoded from the observation, but the decoder must be learnt. This
module has two emission functions, neither of which is a camera:

* :class:`Projected`: state and distractors, mixed by a FIXED, invertible random network. Decoding is as hard as
  inverting a random two-layer perceptron, without the structure of pictures (neighbouring pixels, objects).
* :class:`Pictured`: a grid world drawn as a small picture, cell by cell, in colours that change with every episode.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtjax.envs.base import ActionSpec, Array, Env, Step
from mtjax.envs.gridworld import GridState, GridTask, Gridworld


class RichState(NamedTuple):
    """The state of the inner environment, and the distractors (for :class:`Pictured`, the colour shifts)."""

    env: Any
    distractors: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Projected:
    """An environment observed through a fixed random network, together with distractors.

    y = tanh(2 W₂ tanh(g W₁ [x, d])), where x is the inner environment's observation, d are ``distractors``
    first-order autoregressive processes of variance 1 that depend on neither actions nor tasks, and g is ``gain``.
    W₁ and W₂ have orthonormal columns and are drawn from ``seed``, identically on every machine. Hence x can be
    recovered from y, except where tanh saturates. Dynamics and rewards are those of the inner environment.

    Attributes:
        env: the inner environment.
        size: numbers in an observation; at least as many as in x and d together.
        distractors: number of distractors.
        memory: correlation of a distractor with its value one step earlier.
        gain: factor g of W₁; a larger one makes the projection less linear.
        seed: of the projection.

    Raises:
        ValueError: ``size`` is too small to recover x from y.
    """

    env: Env
    size: int = 64
    distractors: int = 8
    memory: float = 0.9
    gain: float = 0.5
    seed: int = 0

    def __post_init__(self):
        inside = self.env.observation_size + self.distractors
        if self.size < inside:
            raise ValueError(
                f"size {self.size} is too small: observation and distractors have {inside} numbers, which cannot "
                "be recovered from fewer"
            )
        draw = np.random.Generator(np.random.PCG64(self.seed))
        layers = [np.linalg.qr(draw.normal(size=(self.size, width)))[0] for width in (inside, self.size)]
        object.__setattr__(self, "_layers", [jnp.asarray(layer.T, jnp.float32) for layer in layers])

    @property
    def observation_size(self) -> int:
        return self.size

    @property
    def action(self) -> ActionSpec:
        return self.env.action

    def reset(self, task: Any, key: Array) -> tuple[RichState, Array]:
        """Start an episode; the distractors start in their stationary distribution."""
        env_key, key = jax.random.split(key)
        inside, observation = self.env.reset(task, env_key)
        state = RichState(inside, jax.random.normal(key, (self.distractors,), jnp.float32))
        return state, self._emit(state, observation)

    def step(self, task: Any, state: RichState, action: Array, key: Array) -> tuple[RichState, Step]:
        """Step the inner environment and the distractors."""
        env_key, key = jax.random.split(key)
        inside, step = self.env.step(task, state.env, action, env_key)
        noise = jax.random.normal(key, (self.distractors,), jnp.float32)
        distractors = self.memory * state.distractors + jnp.sqrt(1.0 - self.memory**2) * noise
        state = RichState(inside, distractors)
        observation = self._emit(state, step.observation)
        return state, step._replace(observation=observation, final_observation=observation)

    def _emit(self, state: RichState, observation: Array) -> Array:
        first, second = self._layers
        hidden = jnp.tanh(self.gain * jnp.concatenate([observation, state.distractors]) @ first)
        return jnp.tanh(2.0 * hidden @ second)


_WALL, _FLOOR, _AGENT, _GOAL = np.asarray([[0.2, 0.2, 0.3], [0.9, 0.9, 0.9], [0.9, 0.4, 0.2], [0.2, 0.6, 0.4]])


@dataclasses.dataclass(frozen=True)
class Pictured:
    """A grid world drawn as a picture of ``height · scale`` × ``width · scale`` × 3 numbers in [0, 1], flattened.

    The picture shows walls, floor and agent, and the goal if ``show_goal``. In every episode, the colours of floor and
    walls are shifted by up to ``tint``: a state has many pictures, but a picture belongs to one state only.

    Attributes:
        env: the inner grid world; its own features are not used.
        scale: side of a cell in pixels.
        tint: largest shift of a colour channel; up to 0.2, all colours stay distinct.
        show_goal: draw the goal.
    """

    env: Gridworld
    scale: int = 1
    tint: float = 0.1
    show_goal: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an observation."""
        return self.env.height * self.scale, self.env.width * self.scale, 3

    @property
    def observation_size(self) -> int:
        height, width, channels = self.image_shape
        return height * width * channels

    @property
    def action(self) -> ActionSpec:
        return self.env.action

    def reset(self, task: GridTask, key: Array) -> tuple[RichState, Array]:
        """Start an episode, in new colours."""
        env_key, key = jax.random.split(key)
        inside, _ = self.env.reset(task, env_key)
        tint = jax.random.uniform(key, (2, 3), jnp.float32, -self.tint, self.tint)
        state = RichState(inside, tint)
        return state, self.draw(task, inside, tint)

    def step(self, task: GridTask, state: RichState, action: Array, key: Array) -> tuple[RichState, Step]:
        """Move by one cell; the colours stay."""
        inside, step = self.env.step(task, state.env, action, key)
        picture = self.draw(task, inside, state.distractors)
        state = RichState(inside, state.distractors)
        return state, step._replace(observation=picture, final_observation=picture)

    def draw(self, task: GridTask, state: GridState, tint: Array) -> Array:
        """The picture, flat; ``tint`` [2, 3] is added to the colours of walls and floor."""
        wall, floor = jnp.asarray(_WALL, jnp.float32) + tint[0], jnp.asarray(_FLOOR, jnp.float32) + tint[1]
        cells = jnp.where(task.walls.reshape(-1)[:, None], wall, floor)  # [H·W, 3]
        if self.show_goal:
            cells = cells.at[task.goal].set(jnp.asarray(_GOAL, jnp.float32))
        cells = cells.at[state.cell].set(jnp.asarray(_AGENT, jnp.float32))
        picture = cells.reshape(self.env.height, self.env.width, 3)
        for axis in (0, 1):
            picture = jnp.repeat(picture, self.scale, axis=axis)
        return jnp.clip(picture, 0.0, 1.0).reshape(-1)
