"""Pieces of MJCF that the bodies share."""

from __future__ import annotations


def document(
    body: str,
    *,
    joints: str,
    actuators: str,
    contacts: str = "",
    timestep: float,
    gravity: float = 9.81,
    iterations: int = 1,
    ls_iterations: int = 4,
) -> str:
    """One MJCF document.

    The solver takes few iterations, warm-started: with few constraints that is enough, and it is what the
    speed of MJX hangs on. No geom collides but by an explicit pair in ``contacts``.

    Args:
        body: what stands in the world besides the floor (a geom of the name "floor").
        joints: attributes that all joints share unless they say otherwise.
        actuators, contacts: the elements within those sections.
        gravity: downward acceleration, m/s².
    """
    solver = f'iterations="{iterations}" ls_iterations="{ls_iterations}"'
    return f"""<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" gravity="0 0 {-gravity}" {solver}/>
  <default>
    <joint {joints}/>
    <geom type="capsule" contype="0" conaffinity="0" density="1000" rgba=".36 .55 .78 1"/>
    <motor ctrlrange="-1 1"/>
  </default>
  <worldbody>
    <light directional="true" pos="0 -2 5" dir="0 .4 -1"/>
    <geom name="floor" type="plane" size="60 20 .5" rgba=".8 .82 .85 1"/>
    {body}
  </worldbody>
  <contact>{contacts}</contact>
  <actuator>{actuators}</actuator>
</mujoco>"""


def planar_root(height: float) -> str:
    """Joints of a body that moves in the x-z plane; the second coordinate is its absolute height."""
    free = 'damping="0" armature="0"'
    return f"""<joint name="root_x" type="slide" axis="1 0 0" {free}/>
    <joint name="root_z" type="slide" axis="0 0 1" ref="{height}" {free}/>
    <joint name="root_y" type="hinge" axis="0 1 0" {free}/>"""


def floor_contact(geom: str, friction: float) -> str:
    """A contact pair of a geom and the floor with sliding friction."""
    return f'<pair geom1="floor" geom2="{geom}" condim="3" friction="{friction} {friction} .01 .001 .001"/>'


def motors(gears: dict[str, float]) -> str:
    """One motor for each joint."""
    return "".join(f'<motor name="{joint}" joint="{joint}" gear="{gear}"/>' for joint, gear in gears.items())
