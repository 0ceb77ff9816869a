"""Pictures of the control bodies, drawn enlarged with Pillow and scaled down to smooth the edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtjax.envs.control import AcrobotTask, CartPole, CartPoleTask, PendulumTask

WIDTH, HEIGHT = 480, 320
_SCALE = 3  # pictures are drawn this much larger
_PAPER, _INK, _GROUND = (246, 244, 239), (52, 61, 78), (200, 196, 186)
_ORANGE, _BLUE, _GREEN = (222, 98, 48), (76, 120, 184), (63, 160, 103)


class _Canvas:
    """A canvas whose origin is at (``left``, ``top``) pixels; y points up, and a metre is ``metre`` pixels."""

    def __init__(self, width: int, height: int, left: float, top: float, metre: float):
        from PIL import Image, ImageDraw  # needed only for drawing

        self._image = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._left, self._top, self._metre = left, top, metre

    def _place(self, point) -> tuple[float, float]:
        return (
            _SCALE * (self._left + self._metre * point[0]),
            _SCALE * (self._top - self._metre * point[1]),
        )

    def line(self, start, end, colour, width: float = 2.0) -> None:
        """A line with round ends; ``width`` in pixels."""
        thickness = max(1, round(width * _SCALE))
        self._draw.line([self._place(start), self._place(end)], fill=colour, width=thickness)
        if width > 3:
            self.disc(start, width / 2, colour)
            self.disc(end, width / 2, colour)

    def dashes(self, start, end, colour, number: int = 24) -> None:
        marks = np.linspace(start, end, 2 * number + 1)
        for i in range(number):
            self.line(marks[2 * i], marks[2 * i + 1], colour, 1.5)

    def disc(self, centre, radius: float, colour) -> None:
        """``radius`` in pixels."""
        x, y = self._place(centre)
        r = radius * _SCALE
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def box(self, centre, width: float, height: float, colour, corner: float = 4.0) -> None:
        """A rounded box; ``width`` and ``height`` in pixels."""
        x, y = self._place(centre)
        w, h = width * _SCALE / 2, height * _SCALE / 2
        self._draw.rounded_rectangle([x - w, y - h, x + w, y + h], radius=corner * _SCALE, fill=colour)

    def array(self) -> np.ndarray:
        """RGB [height, width, 3] uint8: averages of the enlarged pixels, which take 1/12 of the time of Lanczos."""
        return np.asarray(self._image.reduce(_SCALE))


def cartpole(task: CartPoleTask, states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One picture per state: the rail with its ends, the cart (larger if heavier), the pole (thicker if heavier)."""
    metre, wide = 90.0, CartPole.widest_position
    cart = (56.0 * float(np.clip(task.cart_mass, 0.2, 4.0)) ** (1 / 3), 26.0)
    thickness = 9.0 * float(np.clip(task.pole_mass / 0.1, 0.1, 8.0)) ** (1 / 3)
    frames = []
    for position, _, angle, _ in states:
        canvas = _Canvas(WIDTH, HEIGHT, WIDTH / 2, 250.0, metre)
        canvas.line((-wide, -0.2), (wide, -0.2), _GROUND, 3.0)
        for end in (-wide, wide):
            canvas.line((end, -0.28), (end, -0.12), _INK, 3.0)
        length = 2.0 * float(task.half_length)
        tip = (position + length * math.sin(angle), length * math.cos(angle))
        canvas.box((position, 0.0), *cart, _INK)
        for side in (-1, 1):
            canvas.disc((position + side * cart[0] / metre / 3.2, -0.145), 5.0, _BLUE)
        canvas.line((position, 0.0), tip, _ORANGE, thickness)
        canvas.disc((position, 0.0), 4.0, _PAPER)
        frames.append(canvas.array())
    return frames


def acrobot(task: AcrobotTask, states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One picture per state: both links (thicker if heavier), and the height to reach."""
    length_1, length_2 = float(task.length_1), float(task.length_2)
    reach = length_1 + length_2
    metre = 0.46 * HEIGHT / reach
    thick = [12.0 * float(np.clip(mass, 0.2, 4.0)) ** (1 / 3) for mass in (task.mass_1, task.mass_2)]
    frames = []
    for angle_1, angle_2, _, _ in states:
        canvas = _Canvas(HEIGHT, HEIGHT, HEIGHT / 2, HEIGHT / 2, metre)
        up = -length_1 * math.cos(angle_1) - length_2 * math.cos(angle_1 + angle_2) > length_1
        canvas.dashes((-reach, length_1), (reach, length_1), _GREEN if up else _GROUND)
        joint = (length_1 * math.sin(angle_1), -length_1 * math.cos(angle_1))
        total = angle_1 + angle_2
        tip = (joint[0] + length_2 * math.sin(total), joint[1] - length_2 * math.cos(total))
        canvas.line((0, 0), joint, _INK, thick[0])
        canvas.line(joint, tip, _ORANGE, thick[1])
        canvas.disc((0, 0), 4.0, _PAPER)
        canvas.disc(joint, 4.0, _PAPER)
        canvas.disc(tip, 6.0, _GREEN if up else _BLUE)
        frames.append(canvas.array())
    return frames


def pendulum(task: PendulumTask, states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One picture per state: the rod (thicker if heavier) and the upright direction."""
    length = float(task.length)
    metre = 0.4 * HEIGHT / max(length, 1.0)
    thickness = 14.0 * float(np.clip(task.mass, 0.2, 4.0)) ** (1 / 3)
    frames = []
    for angle, _ in states:
        canvas = _Canvas(HEIGHT, HEIGHT, HEIGHT / 2, HEIGHT / 2, metre)
        canvas.dashes((0, 0), (0, 1.1 * length), _GROUND, 12)
        upright = abs((angle + math.pi) % (2 * math.pi) - math.pi) < 0.2
        tip = (-length * math.sin(angle), length * math.cos(angle))
        canvas.line((0, 0), tip, _GREEN if upright else _ORANGE, thickness)
        canvas.disc((0, 0), 9.0, _INK)
        canvas.disc((0, 0), 4.0, _PAPER)
        frames.append(canvas.array())
    return frames
