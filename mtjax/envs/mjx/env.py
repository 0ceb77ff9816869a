"""``MjxEnv``: one body simulated by MJX; a task carries the model leaves in which it differs from other tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import Array, Step, continuous
from mtjax.envs.mjx.models import mjx


class MjxTask(NamedTuple):
    """The parameters of one task.

    Attributes:
        model: the leaves of the MJX model that differ between tasks, by dotted name. See `stack_models`.
        goal: parameters of the reward, by name (e.g. a target velocity).
    """

    model: Mapping[str, Array]
    goal: Mapping[str, Array]


class MjxState(NamedTuple):
    """State of an environment: far less than ``mjx.Data``, the rest of which is recomputed.

    Attributes:
        qpos: [nq] positions.
        qvel: [nv] velocities.
        qacc: [nv] accelerations, the constraint solver's warm start for the next step.
        target: [k] what else was drawn for this episode besides the pose (k may be 0).
    """

    qpos: Array
    qvel: Array
    qacc: Array
    target: Array


class MjxEnv:
    """Base class of bodies: a pure, unbatched :class:`~mtjax.envs.base.Env`.

    A body sets the class attributes, defines ``mjcf`` (a static method from the body's physical parameters to
    its MJCF), ``observe`` and ``outcome``, and may override ``start``. Observations are functions of the state
    alone, so that a reset needs no simulation.

    Attributes:
        observation_size: numbers in an observation.
        substeps: simulation steps per environment step.
        noise: half-width of the uniform noise on the initial pose and velocity.
        camera: placement of the camera for pictures, as attributes of MuJoCo's ``MjvCamera``.

    Args:
        model: the MJX model that tasks modify.
    """

    observation_size: int
    substeps: int = 1
    noise: float = 0.01
    camera: Mapping[str, Any] = {"distance": 4.0, "azimuth": 90.0, "elevation": -12.0}

    def __init__(self, model: mjx.Model):
        self.model = model
        self.action = continuous(model.nu)
        self._data = mjx.make_data(model, impl="jax")

    def reset(self, task: MjxTask, key: Array) -> tuple[MjxState, Array]:
        """Start an episode near the rest pose. Returns (state, observation [obs])."""
        state = self.start(task, self.task_model(task), key)
        return state, self.observe(task, state)

    def step(self, task: MjxTask, state: MjxState, action: Array, key: Array) -> tuple[MjxState, Step]:
        """Apply ``action`` [nu], clipped to [-1, 1], for ``substeps`` steps of the simulator."""
        del key
        action = jnp.clip(action, -1.0, 1.0)
        after = self.simulate(task, state, action)
        observation = self.observe(task, after)
        reward, terminated, info = self.outcome(task, state, after, action)
        return after, Step(observation, reward, terminated, jnp.bool_(False), observation, info)

    def task_model(self, task: MjxTask) -> mjx.Model:
        """The MJX model of one task."""
        return self.model.tree_replace(task.model)

    def simulate(self, task: MjxTask, state: MjxState, action: Array) -> MjxState:
        """``substeps`` steps of MJX under a constant control."""
        model = self.task_model(task)

        def substep(state: MjxState, _):
            data = self._data.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.qacc, ctrl=action)
            data = mjx.step(model, data)
            return state._replace(qpos=data.qpos, qvel=data.qvel, qacc=data.qacc_warmstart), None

        return jax.lax.scan(substep, state, length=self.substeps)[0]

    @property
    def dt(self) -> float:
        """Seconds of simulated time in one environment step."""
        return float(self.model.opt.timestep) * self.substeps

    def start(self, task: MjxTask, model: mjx.Model, key: Array) -> MjxState:
        """The initial state of an episode: the rest pose with noise, unless a body overrides this."""
        del task
        noise = jax.random.uniform(key, (model.nq + model.nv,), minval=-self.noise, maxval=self.noise)
        return MjxState(
            qpos=model.qpos0 + noise[: model.nq],
            qvel=noise[model.nq :],
            qacc=jnp.zeros(model.nv),
            target=jnp.zeros(0),
        )

    def look_at(self, data) -> Array:
        """Point [3] that the camera looks at, given MuJoCo's ``MjData``: by default the first body."""
        return data.xpos[1]

    def marks(self, task: MjxTask, target: Array) -> list[Array]:
        """Points [3] to mark in a picture, such as a target."""
        del task, target
        return []

    def observe(self, task: MjxTask, state: MjxState) -> Array:
        """Observation [obs] of a state."""
        raise NotImplementedError

    def outcome(
        self, task: MjxTask, before: MjxState, after: MjxState, action: Array
    ) -> tuple[Array, Array, Mapping[str, Array]]:
        """Returns (reward [], terminated [] bool, info) of one step."""
        raise NotImplementedError
