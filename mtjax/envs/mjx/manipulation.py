"""Bodies with a fixed base: cartpole, reacher and finger."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtjax.envs.base import Array
from mtjax.envs.mjx.env import MjxEnv, MjxState, MjxTask
from mtjax.envs.mjx.mjcf import document, motors


class Cartpole(MjxEnv):
    """Swing a pole up and hold it: it starts hanging down, the cart runs on a rail of ±1.8 m.

    Observation [5]: x, cos and sin of the pole's angle (1, 0 upright), the two velocities. The reward is
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
            gravity: as a share of 9.81 m/s².
            cart_mass, pole_mass: in kg.
            pole_length: in m.
            strength: force of the motor, as a share of 10 N.
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


def gaussian_tail(x: Array, margin: float) -> Array:
    """1 at x = 0, falling to 0.1 at |x| = ``margin``: the tolerance function of the Control Suite."""
    return jnp.exp(jnp.log(0.1) * (x / margin) ** 2)
