"""Bodies with a fixed base: cartpole, reacher and finger."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtjax.envs.base import Array
from mtjax.envs.mjx.env import MjxEnv, MjxState, MjxTask
from mtjax.envs.mjx.mjcf import document, geom_contact, motors


class Cartpole(MjxEnv):
    """Swing up a pole and balance it: it starts hanging down, and the cart runs on a rail of ±1.8 m.

    Observation [5]: x, cos and sin of the pole's angle (1 and 0 if upright), both velocities. The reward is
    upright × centred × calm × gentle, in [0, 1], as in the swing-up of the DeepMind Control Suite.
    """

    observation_size = 5
    substeps = 2
    camera = {"distance": 5.0, "azimuth": 90.0, "elevation": -8.0}

    @staticmethod
    def mjcf(
        *,
        gravity: float = 1.0,
        cart_mass: float = 1.0,
        pole_mass: float = 0.1,
        pole_length: float = 1.0,
        strength: float = 1.0,
    ) -> str:
        """MJCF of a cartpole.

        Args:
            gravity: as a multiple of 9.81 m/s².
            cart_mass, pole_mass: in kg.
            pole_length: in m.
            strength: force of the motor, as a multiple of 10 N.
        """
        body = f"""<body name="cart" pos="0 0 1.4">
      <joint name="slider" type="slide" axis="1 0 0" range="-1.8 1.8" damping=".05" solreflimit=".08 1"/>
      <geom name="cart" type="box" size=".18 .12 .08" mass="{cart_mass}"/>
      <body name="pole"><joint name="hinge" axis="0 1 0"/>
        <geom name="pole" fromto="0 0 0 0 0 {pole_length}" size=".045" mass="{pole_mass}" rgba=".85 .5 .3 1"/>
    </body></body>"""
        return document(
            body,
            joints='type="hinge" damping=".0002"',
            actuators=motors({"slider": 10.0 * strength}),
            timestep=0.01,
            iterations=3,
            gravity=9.81 * gravity,
        )

    def start(self, task: MjxTask, model, key: Array) -> MjxState:
        noise = jax.random.normal(key, (4,))
        return MjxState(
            qpos=jnp.array([0.0, jnp.pi]) + jnp.array([0.1, 0.1]) * noise[:2],
            qvel=0.01 * noise[2:],
            qacc=jnp.zeros(2),
            target=jnp.zeros(0),
        )

    def observe(self, task: MjxTask, state: MjxState) -> Array:
        x, angle = state.qpos
        return jnp.concatenate([jnp.stack([x, jnp.cos(angle), jnp.sin(angle)]), state.qvel])

    def outcome(self, task: MjxTask, before: MjxState, after: MjxState, action: Array):
        x, angle = after.qpos
        upright = (1.0 + jnp.cos(angle)) / 2.0
        centred = (1.0 + gaussian_tail(x, 2.0)) / 2.0
        gentle = (4.0 + jnp.maximum(0.0, 1.0 - action[0] ** 2)) / 5.0
        calm = (1.0 + gaussian_tail(after.qvel[1], 5.0)) / 2.0
        return upright * centred * gentle * calm, jnp.bool_(False), {}


class Reacher(MjxEnv):
    """Bring the tip of a two-link arm in the horizontal plane to a target that is redrawn in every episode.

    Observation [10]: cosines and sines of both angles, velocities, the tip, and the target minus the tip (scaled).
    The reward is minus the distance, minus 0.01 |action|². Success: the tip is within 3 cm of the target.
    """

    observation_size = 10
    substeps = 2
    near = 0.03
    camera = {"distance": 0.75, "azimuth": 90.0, "elevation": -89.0}

    @staticmethod
    def mjcf(
        *,
        upper: float = 0.12,
        lower: float = 0.12,
        mass: float = 1.0,
        damping: float = 1.0,
        strength: float = 1.0,
    ) -> str:
        """MJCF of a reacher.

        Args:
            upper, lower: lengths of the links, in m.
            mass: mass of both links, as a multiple of the default.
            damping: damping of both joints, as a multiple of the default.
            strength: torque of the motors, as a multiple of the default.
        """
        density = 1000.0 * mass
        body = f"""<body name="upper" pos="0 0 .02"><joint name="shoulder"/>
      <geom name="upper" fromto="0 0 0 {upper} 0 0" size=".01" density="{density}"/>
      <body name="lower" pos="{upper} 0 0"><joint name="elbow"/>
        <geom name="lower" fromto="0 0 0 {lower} 0 0" size=".01" density="{density}" rgba=".85 .5 .3 1"/>
        <site name="tip" pos="{lower} 0 0" size=".01"/>
    </body></body>"""
        return document(
            body,
            joints=f'type="hinge" axis="0 0 1" damping="{0.01 * damping}" armature=".0005"',
            actuators=motors(dict.fromkeys(("shoulder", "elbow"), 0.06 * strength)),
            timestep=0.01,
        )

    def start(self, task: MjxTask, model, key: Array) -> MjxState:
        pose_key, target_key = jax.random.split(key)
        angles = jax.random.uniform(pose_key, (2,), minval=-jnp.pi, maxval=jnp.pi)
        return MjxState(angles, jnp.zeros(2), jnp.zeros(2), self.draw_target(task, target_key))

    def draw_target(self, task: MjxTask, key: Array) -> Array:
        """A random target [2] at a distance of 0.05 to 0.2 m from the shoulder."""
        radius, turn = jax.random.uniform(key, (2,))
        radius = 0.05 + 0.15 * radius
        return radius * jnp.stack([jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)])

    def tip(self, task: MjxTask, state: MjxState) -> Array:
        """Position [2] of the tip."""
        model = self.task_model(task)
        upper, lower = model.body_pos[2, 0], model.site_pos[0, 0]
        shoulder, both = state.qpos[0], state.qpos[0] + state.qpos[1]
        x = upper * jnp.cos(shoulder) + lower * jnp.cos(both)
        y = upper * jnp.sin(shoulder) + lower * jnp.sin(both)
        return jnp.stack([x, y])

    def observe(self, task: MjxTask, state: MjxState) -> Array:
        tip = self.tip(task, state)
        angles = [jnp.cos(state.qpos), jnp.sin(state.qpos)]
        return jnp.concatenate([*angles, 0.1 * state.qvel, 10.0 * tip, 10.0 * (state.target - tip)])

    def outcome(self, task: MjxTask, before: MjxState, after: MjxState, action: Array):
        distance = jnp.linalg.norm(after.target - self.tip(task, after))
        success = (distance < self.near).astype(jnp.float32)
        return -distance - 0.01 * jnp.sum(action**2), jnp.bool_(False), {"success": success}

    def look_at(self, data) -> Array:
        return data.xpos[0]

    def marks(self, task: MjxTask, target: Array) -> list[Array]:
        return [jnp.append(target, 0.02)]


class GoalReacher(Reacher):
    """The reacher with one fixed target per task, which is not observed; episodes differ only in the initial pose."""

    observation_size = 8

    def draw_target(self, task: MjxTask, key: Array) -> Array:
        return task.goal["target"]

    def observe(self, task: MjxTask, state: MjxState) -> Array:
        return super().observe(task, state)[:8]


class Finger(MjxEnv):
    """Spin a cross about its hinge with a finger of two links.

    Observation [7]: the finger's two angles, cosine and sine of the cross's angle, three velocities. The reward
    is the cross's angular velocity divided by 15 rad/s, clipped to [0, 1]; above this speed, the spin task of the
    DeepMind Control Suite gives its reward.
    """

    observation_size = 7
    substeps = 2
    camera = {"distance": 1.1, "azimuth": 90.0, "elevation": -8.0}

    @staticmethod
    def mjcf(*, finger: float = 0.16, gravity: float = 1.0, spinner_mass: float = 1.0, strength: float = 1.0) -> str:
        """MJCF of a finger beside a cross.

        Args:
            finger: length of the finger's outer link, in m; the link's mass grows with it.
            gravity: as a multiple of 9.81 m/s².
            spinner_mass: mass of the cross, as a multiple of the default.
            strength: torque of the motors, as a multiple of the default.
        """
        density = 1000.0 * spinner_mass
        cross = f'type="capsule" size=".025" density="{density}" rgba=".85 .5 .3 1"'
        body = f"""<body name="proximal" pos="-.2 0 .5"><joint name="proximal" range="-1.9 1.9"/>
      <geom name="proximal" fromto="0 0 0 0 0 -.17" size=".02"/>
      <body name="distal" pos="0 0 -.17"><joint name="distal" range="-1.9 1.9"/>
        <geom name="distal" fromto="0 0 0 0 0 {-finger}" size=".02"/>
    </body></body>
    <body name="spinner" pos="0 0 .35"><joint name="spinner" damping=".002"/>
      <geom name="bar" fromto="-.1 0 0 .1 0 0" {cross}/><geom name="beam" fromto="0 0 -.1 0 0 .1" {cross}/>
    </body>"""
        return document(
            body,
            joints='type="hinge" axis="0 -1 0" damping=".05" armature=".001"',
            actuators=motors({"proximal": 1.5 * strength, "distal": 0.75 * strength}),
            contacts=geom_contact("distal", "bar", 0.7) + geom_contact("distal", "beam", 0.7),
            timestep=0.01,
            gravity=9.81 * gravity,
        )

    def start(self, task: MjxTask, model, key: Array) -> MjxState:
        finger_key, spinner_key = jax.random.split(key)
        finger = jax.random.uniform(finger_key, (2,), minval=-0.3, maxval=-0.1)
        spinner = jax.random.uniform(spinner_key, (1,), minval=-0.2, maxval=0.2)
        return MjxState(jnp.concatenate([finger, spinner]), jnp.zeros(3), jnp.zeros(3), jnp.zeros(0))

    def observe(self, task: MjxTask, state: MjxState) -> Array:
        spinner = state.qpos[2]
        turn = jnp.stack([jnp.cos(spinner), jnp.sin(spinner)])
        return jnp.concatenate([state.qpos[:2], turn, 0.1 * state.qvel])

    def outcome(self, task: MjxTask, before: MjxState, after: MjxState, action: Array):
        return jnp.clip(after.qvel[2] / 15.0, 0.0, 1.0), jnp.bool_(False), {}

    def look_at(self, data) -> Array:
        return data.xpos[3]


def gaussian_tail(x: Array, margin: float) -> Array:
    """1 at x = 0, falling to 0.1 at |x| = ``margin``: the Gaussian tolerance of the DeepMind Control Suite."""
    return jnp.exp(jnp.log(0.1) * (x / margin) ** 2)
