"""Draw an episode of one task with MuJoCo's renderer, on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from mtjax.envs.mjx.env import MjxEnv, MjxTask
from mtjax.envs.mjx.models import mujoco
from mtjax.envs.play import play

WIDTH, HEIGHT, FRAMES_PER_SECOND = 320, 240, 30.0


class RenderError(RuntimeError):
    """No picture could be drawn, e.g. because this machine has no OpenGL."""


def draw(env: MjxEnv, xml: str, task: MjxTask, poses: list[tuple]) -> tuple[np.ndarray, float]:
    """Draw poses.

    Args:
        env: says where the camera stands and which marks to add.
        xml: the task's own body.
        poses: (qpos [nq], target [k]) of every step, the start included.

    Returns:
        Frames [N, HEIGHT, WIDTH, 3] uint8 and how many of them are a second of simulated time.

    Raises:
        RenderError: MuJoCo's renderer does not work on this machine.
    """
    stride = max(1, round(1.0 / (FRAMES_PER_SECOND * env.dt)))
    try:
        model = _decorated(xml).compile()
        data, camera = mujoco.MjData(model), mujoco.MjvCamera()
        for name, value in env.camera.items():
            setattr(camera, name, value)
        frames = []
        with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
            for qpos, target in poses[::stride]:
                data.qpos[:] = qpos
                mujoco.mj_forward(model, data)
                camera.lookat[:] = env.look_at(data)
                renderer.update_scene(data, camera)
                for position in env.marks(task, target):
                    _add_mark(renderer.scene, position)
                frames.append(renderer.render())
    except Exception as error:  # EGL, GLX and GLFW each fail in a way of their own
        hint = "MuJoCo cannot draw (is MUJOCO_GL=egl set, and OpenGL installed?)"
        raise RenderError(f"{hint}: {error}") from error
    return np.stack(frames), 1.0 / (env.dt * stride)


@dataclasses.dataclass(frozen=True)
class MjxRender:
    """The ``render`` of a suite of MJX bodies; see :class:`mtjax.suites.base.Render`.

    Args:
        env: the suite's environment.
        mjcf: from the names and numbers of a task's ``parameters`` to its MJCF.
    """

    env: MjxEnv
    mjcf: Callable[..., str]

    def __call__(self, split, task_index: int, policy: Callable, *, seed: int, steps: int):
        task = jax.tree.map(lambda leaf: leaf[task_index], split.tasks)
        states = play(self.env, task, policy, seed=seed, steps=steps)
        poses = [(state.qpos, state.target) for state in states]
        return draw(self.env, self.mjcf(**split.infos[task_index].parameters), task, poses)


def _decorated(xml: str) -> mujoco.MjSpec:
    """The body on a chequered floor under a pale sky."""
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
    """Add a small red ball to the scene; it is drawn, and touches nothing."""
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
