"""Pictures of MJX bodies without OpenGL: their shapes, seen through MuJoCo's camera, as Pillow draws them.

For machines on which MuJoCo's renderer does not work. No light and no texture; what moves is where it would be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtjax.envs.mjx.models import mujoco

_SCALE = 2  # pictures are drawn this much larger, so that edges are soft
_SKY, _GROUND, _GRID, _MARK = (226, 233, 242), (198, 203, 209), (176, 182, 190), (217, 51, 38)
_FIELD = 45.0  # degrees that MuJoCo's free camera sees from top to bottom
_NEAREST = 0.05  # m before the camera; what is nearer is not drawn
_GRID_REACH = 40  # lines of the floor's grid on either side


class Camera(NamedTuple):
    """Where a picture is taken from: a point [3], three unit vectors [3], and pixels for a slope of 1."""

    position: np.ndarray
    forward: np.ndarray
    right: np.ndarray
    up: np.ndarray
    focus: float
    size: tuple[int, int]

    def see(self, point: np.ndarray) -> tuple[float, float, float]:
        """(x, y, depth) of a point [3]: pixels from the left and from the top, and metres ahead."""
        away = point - self.position
        depth = float(away @ self.forward)
        ahead = max(depth, _NEAREST)
        width, height = self.size
        x = width / 2 + self.focus * float(away @ self.right) / ahead
        return x, height / 2 - self.focus * float(away @ self.up) / ahead, depth


def aim(look_at: np.ndarray, camera: Mapping[str, Any], width: int, height: int) -> Camera:
    """MuJoCo's free camera that looks at a point [3].

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
        camera: where from.
        marks: points [3] with a small red ball each.

    Returns:
        RGB [height, width, 3] uint8.
    """
    from PIL import Image, ImageDraw  # only a picture needs it

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
    for geom, depth in sorted(things, key=lambda thing: -thing[1]):  # what is nearer covers what is behind it
        if depth > _NEAREST:
            _geom(brush, large, model, data, geom)
    for mark in marks:
        x, y, depth = large.see(np.asarray(mark, np.float64))
        _disc(brush, x, y, 0.02 * large.focus / max(depth, _NEAREST), _MARK)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def _floor(brush: Any, camera: Camera) -> None:
    """The ground below the horizon, and lines on it that stand still while the camera follows a body."""
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
    """A line between two points [2, 3], as far as it is before the camera."""
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
