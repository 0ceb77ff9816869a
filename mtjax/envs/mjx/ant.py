"""The ant: a ball on four legs, free in space."""

from __future__ import annotations

import jax.numpy as jnp

from mtjax.envs.base import Array
from mtjax.envs.mjx.env import MjxEnv, MjxState, MjxTask
from mtjax.envs.mjx.mjcf import document, floor_contact, motors

_LEGS = {"front_left": (1, 1), "front_right": (1, -1), "back_left": (-1, 1), "back_right": (-1, -1)}


class Ant(MjxEnv):
    """Four legs with two joints each; eight motors. It runs along +x, unless its task's goal says otherwise.

    Observation [27]: height, orientation (quaternion), joint angles, then every velocity, clipped to ±10. The
    reward is 1 + progress - 0.5 |action|²; an episode ends when the torso's height is not within 0.2 to 1 m.
    Progress is the velocity along +x, or along the direction ``goal["angle"]`` (in rad from +x), or
    -|forward velocity - goal["velocity"]|.
    """

    observation_size = 27
    substeps = 4
    noise = 0.1
    camera = {"distance": 5.0, "azimuth": 90.0, "elevation": -25.0}

    @staticmethod
    def mjcf(
        *,
        gravity: float = 1.0,
        friction: float = 1.0,
        mass: float = 1.0,
        leg: float = 1.0,
        strength: float = 1.0,
    ) -> str:
        """MJCF of an ant.

        Args:
            gravity: as a multiple of 9.81 m/s².
            friction: sliding friction of the feet and the torso on the floor.
            mass: mass of every part, as a multiple of the default.
            leg: length of the four shins, as a multiple of 0.57 m.
            strength: torque of the motors, as a multiple of 150 Nm.
        """
        density, shin = 5.0 * mass, 0.4 * leg

        def limb(name: str, x: int, y: int) -> str:
            return f"""<geom fromto="0 0 0 {0.2 * x} {0.2 * y} 0" size=".08" density="{density}"/>
      <body name="{name}_thigh" pos="{0.2 * x} {0.2 * y} 0">
        <joint name="{name}_hip" axis="0 0 1" range="-.52 .52"/>
        <geom fromto="0 0 0 {0.2 * x} {0.2 * y} 0" size=".08" density="{density}"/>
        <body name="{name}_shin" pos="{0.2 * x} {0.2 * y} 0">
          <joint name="{name}_ankle" axis="{-0.7071 * y} {0.7071 * x} 0" range=".52 1.22"/>
          <geom fromto="0 0 0 {shin * x} {shin * y} 0" size=".08" density="{density}"/>
          <geom name="{name}_foot" type="sphere" pos="{shin * x} {shin * y} 0" size=".08" mass="0"/>
      </body></body>"""

        height = 0.75 + 0.48 * (leg - 1)  # the feet of bent shins of any length start equally far above the floor
        body = f"""<body name="torso" pos="0 0 {height:.4f}"><freejoint name="root"/>
      <geom name="torso" type="sphere" size=".25" density="{density}"/>
      {"".join(limb(name, x, y) for name, (x, y) in _LEGS.items())}</body>"""
        joints = [f"{name}_{joint}" for name in _LEGS for joint in ("hip", "ankle")]
        feet = [f"{name}_foot" for name in _LEGS]
        return document(
            body,
            joints='type="hinge" damping="1" armature="1"',
            actuators=motors(dict.fromkeys(joints, 150.0 * strength)),
            contacts="".join(floor_contact(geom, friction) for geom in (*feet, "torso")),
            timestep=0.0125,
            gravity=9.81 * gravity,
        )

    def start(self, task: MjxTask, model, key: Array) -> MjxState:
        state = super().start(task, model, key)
        bent = state.qpos.at[7:].add(jnp.array([0.0, 1.0] * 4))  # the ankles' range does not include 0
        orientation = bent[3:7] / jnp.linalg.norm(bent[3:7])
        return state._replace(qpos=bent.at[3:7].set(orientation))

    def observe(self, task: MjxTask, state: MjxState) -> Array:
        return jnp.concatenate([state.qpos[2:], jnp.clip(state.qvel, -10.0, 10.0)])

    def outcome(self, task: MjxTask, before: MjxState, after: MjxState, action: Array):
        velocity = (after.qpos[:2] - before.qpos[:2]) / self.dt
        height = after.qpos[2]
        reward = 1.0 + self.progress(task, velocity) - 0.5 * jnp.sum(action**2)
        return reward, (height < 0.2) | (height > 1.0), {}

    def progress(self, task: MjxTask, velocity: Array) -> Array:
        """The part of the reward that the task sets, from the torso's velocity [2]."""
        if "velocity" in task.goal:
            return -jnp.abs(velocity[0] - task.goal["velocity"])
        if "angle" in task.goal:
            angle = task.goal["angle"]
            return velocity[0] * jnp.cos(angle) + velocity[1] * jnp.sin(angle)
        return velocity[0]
