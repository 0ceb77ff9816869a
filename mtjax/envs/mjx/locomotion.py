"""Planar bodies that run: hopper, walker and cheetah."""

from __future__ import annotations

import jax.numpy as jnp

from mtjax.envs.base import Array
from mtjax.envs.mjx.env import MjxEnv, MjxState, MjxTask
from mtjax.envs.mjx.mjcf import document, floor_contact, motors, planar_root


class Runner(MjxEnv):
    """A body in the x-z plane that is rewarded for running along +x.

    Observation: every position but x, then every velocity, clipped to ±10.

    Attributes:
        alive: constant reward per step.
        control_cost: weight of the squared norm of the action, which is subtracted from the reward.
        lowest: height of the torso, as a fraction of its height at rest, below which the body has fallen;
            minus infinity if it cannot fall.
        steepest: angle of the torso in rad beyond which the body has fallen.
    """

    alive: float = 1.0
    control_cost: float = 1e-3
    lowest: float = -jnp.inf
    steepest: float = jnp.inf

    @property
    def observation_size(self) -> int:
        return self.model.nq - 1 + self.model.nv

    def observe(self, task: MjxTask, state: MjxState) -> Array:
        return jnp.concatenate([state.qpos[1:], jnp.clip(state.qvel, -10.0, 10.0)])

    def velocity(self, before: MjxState, after: MjxState) -> Array:
        """Mean velocity of the torso along x during one step, in m/s."""
        return (after.qpos[0] - before.qpos[0]) / self.dt

    def outcome(self, task: MjxTask, before: MjxState, after: MjxState, action: Array):
        effort = self.control_cost * jnp.sum(action**2)
        reward = self.alive + self.progress(task, self.velocity(before, after)) - effort
        return reward, self.fallen(task, after), {}

    def progress(self, task: MjxTask, velocity: Array) -> Array:
        """The part of the reward that the task sets: the velocity itself, unless the task has a goal."""
        if "velocity" in task.goal:
            return -jnp.abs(velocity - task.goal["velocity"])
        return velocity * task.goal.get("direction", 1.0)

    def fallen(self, task: MjxTask, state: MjxState) -> Array:
        height, angle = state.qpos[1], state.qpos[2]
        at_rest = self.task_model(task).qpos0[1]
        return (height < self.lowest * at_rest) | (jnp.abs(angle) > self.steepest)


class Hopper(Runner):
    """One leg of four segments; three motors. Below 56% of its height at rest or beyond 0.4 rad it has fallen."""

    substeps = 2
    noise = 0.005
    lowest = 0.56
    steepest = 0.4

    @staticmethod
    def mjcf(
        *,
        gravity: float = 1.0,
        friction: float = 1.0,
        mass: float = 1.0,
        leg: float = 1.0,
        strength: float = 1.0,
    ) -> str:
        """MJCF of a hopper.

        Args:
            gravity: as a multiple of 9.81 m/s².
            friction: sliding friction of the foot on the floor.
            mass: mass of every segment, as a multiple of the default.
            leg: length of the shank, as a multiple of 0.5 m.
            strength: torque of each motor, as a multiple of 200 Nm.
        """
        shank, density = 0.5 * leg, 1000.0 * mass
        height = 0.2 + 0.45 + shank + 0.1
        body = f"""<body name="torso" pos="0 0 {height}">{planar_root(height)}
      <geom name="torso" fromto="0 0 .2 0 0 -.2" size=".05" density="{density}"/>
      <body name="thigh" pos="0 0 -.2"><joint name="hip" range="-.2 2.6"/>
        <geom name="thigh" fromto="0 0 0 0 0 -.45" size=".05" density="{density}"/>
        <body name="shank" pos="0 0 -.45"><joint name="knee" range="-2.6 0"/>
          <geom name="shank" fromto="0 0 0 0 0 {-shank}" size=".04" density="{density}"/>
          <body name="foot" pos="0 0 {-shank}"><joint name="ankle" range="-.8 .8"/>
            <geom name="foot" fromto="-.13 0 -.04 .26 0 -.04" size=".06" density="{density}"/>
    </body></body></body></body>"""
        return document(
            body,
            joints='type="hinge" axis="0 -1 0" damping="1" armature="1"',
            actuators=motors(dict.fromkeys(("hip", "knee", "ankle"), 200.0 * strength)),
            contacts=floor_contact("foot", friction),
            timestep=0.008,
            gravity=9.81 * gravity,
        )


class Walker(Runner):
    """Two legs of three segments; six motors. Below 64% of its height at rest or beyond 1 rad it has fallen."""

    substeps = 2
    noise = 0.005
    lowest = 0.64
    steepest = 1.0

    @staticmethod
    def mjcf(
        *,
        gravity: float = 1.0,
        friction: float = 0.9,
        mass: float = 1.0,
        leg: float = 1.0,
        strength: float = 1.0,
        left_foot: float = 0.1,
    ) -> str:
        """MJCF of a walker.

        Args:
            gravity: as a multiple of 9.81 m/s².
            friction: sliding friction of both feet on the floor.
            mass: mass of every segment, as a multiple of the default.
            leg: length of both shanks, as a multiple of 0.5 m.
            strength: torque of the motors, as a multiple of 100 Nm.
            left_foot: half the length of the left foot, in m.
        """
        shank, density = 0.5 * leg, 1000.0 * mass
        height = 0.2 + 0.45 + shank + 0.1

        def limb(side: str, foot: float) -> str:
            return f"""<body name="{side}_thigh" pos="0 0 -.2"><joint name="{side}_hip" range="-.35 2.6"/>
      <geom name="{side}_thigh" fromto="0 0 0 0 0 -.45" size=".05" density="{density}"/>
      <body name="{side}_shank" pos="0 0 -.45"><joint name="{side}_knee" range="-2.6 0"/>
        <geom name="{side}_shank" fromto="0 0 0 0 0 {-shank}" size=".04" density="{density}"/>
        <body name="{side}_foot" pos="0 0 {-shank}"><joint name="{side}_ankle" range="-.8 .8"/>
          <geom name="{side}_foot" fromto="0 0 -.04 {2 * foot} 0 -.04" size=".06" density="{density}"/>
      </body></body></body>"""

        body = f"""<body name="torso" pos="0 0 {height}">{planar_root(height)}
      <geom name="torso" fromto="0 0 .2 0 0 -.2" size=".05" density="{density}"/>
      {limb("right", 0.1)}{limb("left", left_foot)}</body>"""
        joints = [f"{side}_{joint}" for side in ("right", "left") for joint in ("hip", "knee", "ankle")]
        return document(
            body,
            joints='type="hinge" axis="0 -1 0" damping="1" armature=".1"',
            actuators=motors(dict.fromkeys(joints, 100.0 * strength)),
            contacts=floor_contact("right_foot", friction) + floor_contact("left_foot", friction),
            timestep=0.008,
            gravity=9.81 * gravity,
        )


class Cheetah(Runner):
    """A long torso on two legs of three segments; six motors. It never falls."""

    substeps = 4
    noise = 0.1
    alive = 0.0
    control_cost = 0.1

    @staticmethod
    def mjcf(
        *,
        gravity: float = 1.0,
        friction: float = 0.8,
        mass: float = 1.0,
        strength: float = 1.0,
        torso: float = 0.5,
        foot: float = 0.046,
    ) -> str:
        """MJCF of a cheetah.

        Args:
            gravity: as a multiple of 9.81 m/s².
            friction: sliding friction on the floor.
            mass: mass of every segment, as a multiple of the default.
            strength: torque of the motors, as a multiple of the default.
            torso: half the length of the torso, in m.
            foot: radius of both feet, in m.
        """
        density = 1000.0 * mass

        def segment(name, *, at, to, motion, stiffness, damping, radius=0.046, inner=""):
            return f"""<body name="{name}" pos="{at}">
      <joint name="{name}" range="{motion}" stiffness="{stiffness}" damping="{damping}"/>
      <geom name="{name}" fromto="0 0 0 {to}" size="{radius}" density="{density}"/>{inner}</body>"""

        hind_foot = segment("hind_foot", at="-.16 0 -.25", to=".1 0 -.13", motion="-.4 .8", stiffness=120,
                            damping=3, radius=foot)  # fmt: skip
        hind_shin = segment("hind_shin", at=".16 0 -.24", to="-.16 0 -.25", motion="-.8 .8", stiffness=180,
                            damping=4.5, inner=hind_foot)  # fmt: skip
        hind = segment("hind_thigh", at=f"{-torso} 0 0", to=".16 0 -.24", motion="-.5 1.05", stiffness=240,
                       damping=6, inner=hind_shin)  # fmt: skip
        fore_foot = segment("fore_foot", at=".12 0 -.18", to=".02 0 -.14", motion="-.5 .5", stiffness=60,
                            damping=1.5, radius=foot)  # fmt: skip
        fore_shin = segment("fore_shin", at="-.14 0 -.26", to=".12 0 -.18", motion="-1.2 .9", stiffness=120,
                            damping=3, inner=fore_foot)  # fmt: skip
        fore = segment("fore_thigh", at=f"{torso} 0 0", to="-.14 0 -.26", motion="-1 .7", stiffness=180,
                       damping=4.5, inner=fore_shin)  # fmt: skip
        body = f"""<body name="torso" pos="0 0 .66">{planar_root(0.66)}
      <geom name="torso" fromto="{-torso} 0 0 {torso} 0 0" size=".046" density="{density}"/>
      <geom name="head" fromto="{torso} 0 0 {torso + 0.2} 0 .2" size=".046" density="{density}"/>
      {hind}{fore}</body>"""
        gears = {"hind_thigh": 120, "hind_shin": 90, "hind_foot": 60}
        gears |= {"fore_thigh": 120, "fore_shin": 60, "fore_foot": 30}
        return document(
            body,
            joints='type="hinge" axis="0 1 0" armature=".1"',
            actuators=motors({joint: gear * strength for joint, gear in gears.items()}),
            contacts="".join(floor_contact(geom, friction) for geom in ("hind_foot", "fore_foot", "torso")),
            timestep=0.01,
            gravity=9.81 * gravity,
        )
