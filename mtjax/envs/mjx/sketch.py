"""Pictures of MJX bodies without OpenGL: Pillow draws their shapes as MuJoCo's camera would see them.

For machines on which MuJoCo's renderer does not work. There is no lighting and no texture, but every body appears
where MuJoCo would draw it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtjax.envs.mjx.models import mujoco

_SCALE = 2  # pictures are drawn this much larger, then scaled down to smooth the edges
_SKY, _GROUND, _GRID, _MARK = (226, 233, 242), (198, 203, 209), (176, 182, 190), (217, 51, 38)
_FIELD = 45.0  # vertical field of view of MuJoCo's free camera, in degrees
_NEAREST = 0.05  # near plane, in m; nothing nearer to the camera is drawn
_GRID_REACH = 40  # grid lines of the floor on each side of the camera


class Camera(NamedTuple):
    """A pinhole camera: position [3], three unit vectors [3], focal length in pixels, and picture size."""

    position: np.ndarray
    forward: np.ndarray
    right: np.ndarray
    up: np.ndarray
    focus: float
    size: tuple[int, int]

    def see(self, point: np.ndarray) -> tuple[float, float, float]:
        """Project a point [3] to (x, y, depth): pixels from the left and from the top, and metres ahead."""
        away = point - self.position
        depth = float(away @ self.forward)
        ahead = max(depth, _NEAREST)
        width, height = self.size
        x = width / 2 + self.focus * float(away @ self.right) / ahead
        return x, height / 2 - self.focus * float(away @ self.up) / ahead, depth


def aim(look_at: np.ndarray, camera: Mapping[str, Any], width: int, height: int) -> Camera:
    """MuJoCo's free camera, looking at a point [3].

    Args:
        look_at: the point.
        camera: "distance" in m; "azimuth" and "elevation" in degrees.
        width, height: of the picture, in pixels.
    """
    turn, rise = math.radians(camera["azimuth"]), math.radians(camera["elevation"])
    forward = np.array([math.cos(rise) * math.cos(turn), math.cos(rise) * math.sin(turn), math.sin(rise)])
    right = np.array([math.sin(turn), -math.cos(turn), 0.0])
    focus = height / 2 / math.tan(math.radians(_FIELD / 2))
    position = np.asarray(look_at, np.float64) - camera["distance"] * forward
    return Camera(position, forward, right, np.cross(right, forward), focus, (width, height))


def sketch(model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, marks: Sequence[Any]) -> np.ndarray:
    """Draw a pose.

    Args:
        model, data: the body; ``mj_forward`` has placed its geoms.
        camera: the camera to draw from.
        marks: points [3] to mark with small red balls.

    Returns:
        RGB [height, width, 3] uint8.
    """
    from PIL import Image, ImageDraw  # needed only for drawing

    width, height = camera.size
    large = camera._replace(focus=camera.focus * _SCALE, size=(width * _SCALE, height * _SCALE))
    image = Image.new("RGB", large.size, _SKY)
    brush = ImageDraw.Draw(image)
    _floor(brush, large)
    things = [
        (geom, large.see(data.geom_xpos[geom])[2])
        for geom in range(model.ngeom)
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_PLANE
    ]
    for geom, depth in sorted(things, key=lambda thing: -thing[1]):  # back to front, so that near geoms cover far ones
        if depth > _NEAREST:
            _geom(brush, large, model, data, geom)
    for mark in marks:
        x, y, depth = large.see(np.asarray(mark, np.float64))
        _disc(brush, x, y, 0.02 * large.focus / max(depth, _NEAREST), _MARK)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def _floor(brush: Any, camera: Camera) -> None:
    """Draw the ground below the horizon, and grid lines that are fixed in the world as the camera follows a body."""
    width, height = camera.size
    level = math.hypot(camera.forward[0], camera.forward[1])
    horizon = height / 2 + camera.focus * camera.forward[2] / max(level, 1e-6)
    brush.rectangle([0, max(0.0, min(horizon, height)), width, height], fill=_GROUND)
    spacing = 0.5 if camera.position[2] > 0.5 else 0.1
    middle = np.round(camera.position / spacing) * spacing
    for axis in (0, 1):
        for line in range(-_GRID_REACH, _GRID_REACH + 1):
            ends = np.zeros((2, 3))
            ends[:, axis] = middle[axis] + spacing * line
            ends[:, 1 - axis] = middle[1 - axis] + spacing * _GRID_REACH * np.array([-1.0, 1.0])
            _line(brush, camera, ends, 1.0 * _SCALE, _GRID)


def _line(brush: Any, camera: Camera, ends: np.ndarray, width: float, colour: tuple[int, ...]) -> None:
    """Draw the part of a line between two points [2, 3] that lies in front of the camera."""
    depths = (ends - camera.position) @ camera.forward
    if max(depths) <= _NEAREST:
        return
    for end in (0, 1):
        if depths[end] < _NEAREST:
            share = (_NEAREST - depths[end]) / (depths[1 - end] - depths[end])
            ends[end] += share * (ends[1 - end] - ends[end])
    brush.line([camera.see(end)[:2] for end in ends], fill=colour, width=max(1, round(width)))


def _geom(brush: Any, camera: Camera, model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> None:
    kind, size = mujoco.mjtGeom(model.geom_type[geom]), model.geom_size[geom]
    position, turn = data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)
    colour = tuple(int(255 * part) for part in model.geom_rgba[geom][:3])
    edge = tuple(int(0.7 * part) for part in colour)
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        corners = [position + turn @ (size * np.array([a, b, c])) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
        outline = hull([camera.see(corner)[:2] for corner in corners])
        brush.polygon(outline, fill=colour, outline=edge, width=_SCALE)
        return
    half = size[1] * turn[:, 2] if kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER) else 0.0
    ends = [camera.see(position - half), camera.see(position + half)]
    radius = size[0] * camera.focus / max(camera.see(position)[2], _NEAREST)
    for grown, shade in ((_SCALE, edge), (0, colour)):
        brush.line([end[:2] for end in ends], fill=shade, width=max(1, round(2 * (radius + grown))))
        for x, y, _ in ends:
            _disc(brush, x, y, radius + grown, shade)


def _disc(brush: Any, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    brush.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The convex hull of points in the plane, in order (Andrew's monotone chain)."""
    points = sorted(set(points))

    def half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for x, y in points:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) > (by - ay) * (x - ax):
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    return half(points) + half(points[::-1])
