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
    iterations: int = 5,
) -> str:
    """One MJCF document.

    The solver takes Newton steps with a line search of one iteration: from a warm start, 4 to 6 steps reach the
    solution of 100. A single step injects energy until the body flies off, and a longer line search only costs
    time (both measured on these bodies). Geoms collide only if ``contacts`` has an explicit pair.

    Args:
        body: the contents of the world besides the floor (a geom named "floor").
        joints: default attributes of all joints.
        actuators, contacts: the elements of these sections.
        gravity: downward acceleration, m/s².
        iterations: maximum number of Newton steps.
    """
    solver = f'iterations="{iterations}" ls_iterations="1"'
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
    """Root joints of a body that moves in the x-z plane; the second coordinate is its absolute height."""
    free = 'damping="0" armature="0"'
    return f"""<joint name="root_x" type="slide" axis="1 0 0" {free}/>
    <joint name="root_z" type="slide" axis="0 0 1" ref="{height}" {free}/>
    <joint name="root_y" type="hinge" axis="0 1 0" {free}/>"""


def geom_contact(first: str, second: str, friction: float) -> str:
    """A contact pair of two geoms with sliding friction."""
    return f'<pair geom1="{first}" geom2="{second}" condim="3" friction="{friction} {friction} .01 .001 .001"/>'


def floor_contact(geom: str, friction: float) -> str:
    """A contact pair of the floor and a geom with sliding friction."""
    return geom_contact("floor", geom, friction)


def motors(gears: dict[str, float]) -> str:
    """One motor for each joint."""
    return "".join(f'<motor name="{joint}" joint="{joint}" gear="{gear}"/>' for joint, gear in gears.items())
