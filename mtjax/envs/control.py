"""Classic control in pure JAX with hidden physical parameters: CartPole, Acrobot and Pendulum.

The parameters are the task's data, never part of the observation. At their defaults, the dynamics, rewards,
initial states and terminations are those of gymnasium's CartPole-v1, Acrobot-v1 and Pendulum-v1. A negative
``force`` or ``torque`` reverses every action.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mtjax.envs.base import ActionSpec, Array, Step, continuous, discrete

Kind = Literal["discrete", "continuous"]


class CartPoleTask(NamedTuple):
    """Parameters of a cart with a pole; each is a float32 scalar, or [T]."""

    gravity: Array | float = 9.8  # m/s²
    cart_mass: Array | float = 1.0  # kg
    pole_mass: Array | float = 0.1  # kg
    half_length: Array | float = 0.5  # m, from the joint to the pole's centre of mass
    force: Array | float = 10.0  # N, applied by a full action to the right


@dataclasses.dataclass(frozen=True)
class CartPole:
    """Keep a pole upright on a cart: reward 1 per step until the pole leans over 12° or the cart leaves ±2.4 m.

    Observation: position, velocity, angle, angular velocity. Actions: push left or right with full force, or
    (continuous) with any fraction of it.
    """

    kind: Kind = "discrete"

    observation_size: ClassVar[int] = 4
    time_step: ClassVar[float] = 0.02  # s
    widest_position: ClassVar[float] = 2.4  # m
    widest_angle: ClassVar[float] = 12 * 2 * math.pi / 360

    @property
    def action(self) -> ActionSpec:
        return discrete(2) if self.kind == "discrete" else continuous(1)

    def reset(self, task: CartPoleTask, key: Array) -> tuple[Array, Array]:
        """Draw all four numbers uniformly from [-0.05, 0.05]. The state is the observation, [4]."""
        state = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return state, state

    def step(self, task: CartPoleTask, state: Array, action: Array, key: Array) -> tuple[Array, Step]:
        """One Euler step of 0.02 s; ``key`` is not used."""
        position, velocity, angle, spin = state
        push = 2.0 * action - 1.0 if self.kind == "discrete" else jnp.clip(action[0], -1.0, 1.0)
        acceleration, angular = self._accelerations(task, angle, spin, task.force * push)
        change = jnp.stack([velocity, acceleration, spin, angular])
        state = state + self.time_step * change
        fallen = (jnp.abs(state[0]) > self.widest_position) | (jnp.abs(state[2]) > self.widest_angle)
        return state, Step(state, jnp.ones(()), fallen, jnp.zeros((), bool), state, {})

    def _accelerations(self, task, angle, spin, force):
        """Accelerations of cart and pole (Florian, Correct equations for the dynamics of the cart-pole system)."""
        total, moment = task.cart_mass + task.pole_mass, task.pole_mass * task.half_length
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        pull = (force + moment * spin**2 * sin) / total
        inertia = task.half_length * (4.0 / 3.0 - task.pole_mass * cos**2 / total)
        angular = (task.gravity * sin - cos * pull) / inertia
        return pull - moment * angular * cos / total, angular


class AcrobotTask(NamedTuple):
    """Parameters of two links that hang from a pivot; each is a float32 scalar, or [T].

    A link's centre of mass is at half its length, and its moment of inertia is mass · length², which is
    1 kg m² at the defaults.
    """

    gravity: Array | float = 9.8  # m/s²
    mass_1: Array | float = 1.0  # kg, of the link at the pivot
    mass_2: Array | float = 1.0
    length_1: Array | float = 1.0  # m
    length_2: Array | float = 1.0
    torque: Array | float = 1.0  # N m, applied by a full action at the joint between the links


@dataclasses.dataclass(frozen=True)
class Acrobot:
    """Swing the tip up to the first link's length above the pivot: reward -1 per step, 0 for reaching it.

    Observation: cosine and sine of both angles, both angular velocities. Actions: full negative, zero or full
    positive torque, or (continuous) any fraction of it. ``info["success"]`` is 1 when the tip is up.
    """

    kind: Kind = "discrete"

    observation_size: ClassVar[int] = 6
    time_step: ClassVar[float] = 0.2  # s
    fastest: ClassVar[tuple[float, float]] = (4 * math.pi, 9 * math.pi)  # rad/s

    @property
    def action(self) -> ActionSpec:
        return discrete(3) if self.kind == "discrete" else continuous(1)

    def reset(self, task: AcrobotTask, key: Array) -> tuple[Array, Array]:
        """Draw both angles and velocities, the state [4], uniformly from [-0.1, 0.1]: both links hang down."""
        state = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
        return state, self._observe(state)

    def step(self, task: AcrobotTask, state: Array, action: Array, key: Array) -> tuple[Array, Step]:
        """One Runge-Kutta step (4th order) of 0.2 s; ``key`` is not used."""
        effort = action.astype(jnp.float32) - 1.0 if self.kind == "discrete" else jnp.clip(action[0], -1.0, 1.0)
        state = self._runge_kutta(task, state, task.torque * effort)
        angles = _wrap(state[:2])
        speeds = jnp.clip(state[2:], -jnp.asarray(self.fastest), jnp.asarray(self.fastest))
        state = jnp.concatenate([angles, speeds])
        height = -task.length_1 * jnp.cos(angles[0]) - task.length_2 * jnp.cos(angles.sum())
        up = height > task.length_1
        observation = self._observe(state)
        info = {"success": up.astype(jnp.float32)}
        return state, Step(observation, jnp.where(up, 0.0, -1.0), up, jnp.zeros((), bool), observation, info)

    def _observe(self, state: Array) -> Array:
        cos, sin = jnp.cos(state[:2]), jnp.sin(state[:2])
        return jnp.stack([cos[0], sin[0], cos[1], sin[1], state[2], state[3]])

    def _runge_kutta(self, task, state, torque):
        step = self.time_step
        slope_1 = self._derivative(task, state, torque)
        slope_2 = self._derivative(task, state + step / 2 * slope_1, torque)
        slope_3 = self._derivative(task, state + step / 2 * slope_2, torque)
        slope_4 = self._derivative(task, state + step * slope_3, torque)
        return state + step / 6 * (slope_1 + 2 * slope_2 + 2 * slope_3 + slope_4)

    def _derivative(self, task, state, torque):
        """Equations of motion (Sutton and Barto, Reinforcement Learning, section 11.3 of the first edition)."""
        angle_1, angle_2, spin_1, spin_2 = state
        m1, m2, l1 = task.mass_1, task.mass_2, task.length_1
        c1, c2 = task.length_1 / 2, task.length_2 / 2  # centres of mass
        i1, i2 = task.mass_1 * task.length_1**2, task.mass_2 * task.length_2**2
        cos, sin = jnp.cos(angle_2), jnp.sin(angle_2)
        d1 = m1 * c1**2 + m2 * (l1**2 + c2**2 + 2 * l1 * c2 * cos) + i1 + i2
        d2 = m2 * (c2**2 + l1 * c2 * cos) + i2
        phi2 = m2 * c2 * task.gravity * jnp.sin(angle_1 + angle_2)
        coriolis = -m2 * l1 * c2 * sin * (spin_2**2 + 2 * spin_1 * spin_2)
        phi1 = coriolis + (m1 * c1 + m2 * l1) * task.gravity * jnp.sin(angle_1) + phi2
        turn = torque + d2 / d1 * phi1 - m2 * l1 * c2 * spin_1**2 * sin - phi2
        acceleration_2 = turn / (m2 * c2**2 + i2 - d2**2 / d1)
        acceleration_1 = -(d2 * acceleration_2 + phi1) / d1
        return jnp.stack([spin_1, spin_2, acceleration_1, acceleration_2])


class PendulumTask(NamedTuple):
    """Parameters of a rod that swings from a pivot; each is a float32 scalar, or [T]."""

    gravity: Array | float = 10.0  # m/s²
    mass: Array | float = 1.0  # kg
    length: Array | float = 1.0  # m
    torque: Array | float = 2.0  # N m, applied by a full action


@dataclasses.dataclass(frozen=True)
class Pendulum:
    """Swing a rod up and hold it there; the torque is too weak to lift it directly. Never terminates.

    Reward: -(angle² + 0.1 spin² + 0.001 torque²), with the angle measured from upright. Observation: cosine,
    sine, spin.
    """

    observation_size: ClassVar[int] = 3
    action: ClassVar[ActionSpec] = continuous(1)
    time_step: ClassVar[float] = 0.05  # s
    fastest: ClassVar[float] = 8.0  # rad/s

    def reset(self, task: PendulumTask, key: Array) -> tuple[Array, Array]:
        """Draw the state [2] uniformly: the angle from [-π, π], the spin from [-1, 1]."""
        high = jnp.asarray([math.pi, 1.0], jnp.float32)
        state = jax.random.uniform(key, (2,), minval=-high, maxval=high)
        return state, self._observe(state)

    def step(self, task: PendulumTask, state: Array, action: Array, key: Array) -> tuple[Array, Step]:
        """One semi-implicit Euler step of 0.05 s; ``key`` is not used."""
        angle, spin = state
        torque = task.torque * jnp.clip(action[0], -1.0, 1.0)
        reward = -(_wrap(angle) ** 2 + 0.1 * spin**2 + 0.001 * torque**2)
        fall = 1.5 * task.gravity / task.length * jnp.sin(angle)
        drive = 3.0 * torque / (task.mass * task.length**2)
        spin = jnp.clip(spin + self.time_step * (fall + drive), -self.fastest, self.fastest)
        state = jnp.stack([_wrap(angle + self.time_step * spin), spin])
        observation, no = self._observe(state), jnp.zeros((), bool)
        return state, Step(observation, reward, no, no, observation, {})

    def _observe(self, state: Array) -> Array:
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])


def _wrap(angle: Array) -> Array:
    """Wrap an angle to [-π, π)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
