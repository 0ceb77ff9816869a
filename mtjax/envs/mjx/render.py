"""Draw an episode of one task on the host: with MuJoCo's renderer or, without OpenGL, as sketches."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtjax.envs.mjx.env import MjxEnv, MjxTask
from mtjax.envs.mjx.models import mujoco
from mtjax.envs.mjx.sketch import aim, sketch
from mtjax.envs.play import play

WIDTH, HEIGHT, FRAMES_PER_SECOND = 320, 240, 30.0


def draw(env: MjxEnv, xml: str, task: MjxTask, poses: list[tuple]) -> tuple[np.ndarray, float]:
    """Draw poses with MuJoCo's renderer or, where that does not work, as sketches.

    Args:
        env: determines the camera's placement and the marks to add.
        xml: MJCF of the task's body.
        poses: (qpos [nq], target [k]) of every step, the initial state included.

    Returns:
        Frames [N, HEIGHT, WIDTH, 3] uint8, and the number of frames per second of simulated time.
    """
    stride = max(1, round(1.0 / (FRAMES_PER_SECOND * env.dt)))
    model = _decorated(xml).compile()
    data, frames = mujoco.MjData(model), []
    with _pictures(model) as picture:
        for qpos, target in poses[::stride]:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            frames.append(picture(data, env.camera, env.look_at(data), env.marks(task, target)))
    return np.stack(frames), 1.0 / (env.dt * stride)


@contextlib.contextmanager
def _pictures(model: mujoco.MjModel) -> Iterator[Callable]:
    """Context manager that yields a function (data, camera attributes, point to look at, marks) → picture."""
    if opengl_error():
        yield lambda data, camera, look_at, marks: sketch(model, data, aim(look_at, camera, WIDTH, HEIGHT), marks)
        return
    view = mujoco.MjvCamera()

    def picture(data: mujoco.MjData, camera: Mapping[str, Any], look_at: Any, marks: Sequence[Any]) -> np.ndarray:
        for name, value in camera.items():
            setattr(view, name, value)
        view.lookat[:] = look_at
        renderer.update_scene(data, view)
        for position in marks:
            _add_mark(renderer.scene, position)
        return renderer.render()

    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        yield picture


@functools.cache
def opengl_error() -> str:
    """Why MuJoCo's renderer fails on this machine, after a warning; "" if it works. Tried once per process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW warns about a missing display
            with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8) as renderer:
                renderer.render()
    except Exception as error:  # EGL, GLX and GLFW raise different exceptions
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"MuJoCo cannot draw here ({why}); drawing sketches instead. For its pictures, install OpenGL (on Debian: "
            "libegl1 and libopengl0)",
            stacklevel=2,
        )
        return why
    return ""


@dataclasses.dataclass(frozen=True)
class MjxRender:
    """The ``render`` of a suite of MJX bodies; see :class:`mtjax.suites.base.Render`.

    Args:
        env: the suite's environment.
        mjcf: a function from a task's ``parameters``, as keyword arguments, to its MJCF.
    """

    env: MjxEnv
    mjcf: Callable[..., str]

    def __call__(self, split, task_index: int, policy: Callable, *, seed: int, steps: int):
        task = jax.tree.map(lambda leaf: leaf[task_index], split.tasks)
        states = play(self.env, task, policy, seed=seed, steps=steps)
        poses = [(state.qpos, state.target) for state in states]
        return draw(self.env, self.mjcf(**split.infos[task_index].parameters), task, poses)


def _decorated(xml: str) -> mujoco.MjSpec:
    """Put the body on a chequered floor under a pale sky."""
    spec = mujoco.MjSpec.from_string(xml)
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        width=64, height=384, rgb1=[0.9, 0.94, 1.0], rgb2=[0.55, 0.68, 0.85],
    )  # fmt: skip
    spec.add_texture(
        name="grid", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        width=256, height=256, rgb1=[0.78, 0.8, 0.82], rgb2=[0.66, 0.69, 0.72],
    )  # fmt: skip
    textures = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "grid"
    spec.add_material(name="grid", textures=textures, texrepeat=[1, 1], texuniform=True, specular=0.0, shininess=0.0)
    floor = spec.geom("floor")
    floor.material = "grid"
    floor.rgba = [1, 1, 1, 1]
    return spec


def _add_mark(scene, position) -> None:
    """Add a small red ball to the scene; it is only drawn and takes no part in the physics."""
    if scene.ngeom < scene.maxgeom:
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            mujoco.mjtGeom.mjGEOM_SPHERE,
            np.full(3, 0.02),
            np.asarray(position, np.float64),
            np.eye(3).ravel(),
            np.array([0.85, 0.2, 0.15, 1.0], np.float32),
        )
        scene.ngeom += 1
