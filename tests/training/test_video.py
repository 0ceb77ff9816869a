"""Videos: a run must end well on a machine that cannot draw, and show every task on one that can."""

import os
import re
import subprocess
import sys
import types

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mtjax.envs.base import discrete
from mtjax.learners import replay
from mtjax.suites.base import Split, Suite, TaskInfo, Version
from mtjax.training import results, video

NAMES = ("mass 0.5/a", "mass_1.0", "a task with a name far too long for any tile to hold it")


def moving_square(task: int, count: int, height: int, width: int) -> np.ndarray:
    frames = np.full((count, height, width, 3), 235, np.uint8)
    for index in range(count):
        left = int(index / count * (width - 20))
        frames[index, 10:30, left : left + 20] = (200, 60 * task, 60)
    return frames


def make_suite(render, names=NAMES) -> Suite:
    infos = tuple(TaskInfo(name, f"{name}.") for name in names)
    splits = {"train": Split(infos, None), "extrapolation": Split(infos[:1], None)}
    return Suite(
        name="squares",
        version=Version("1", "none", "v1", 40),
        observation_size=1,
        action=discrete(2),
        horizon=40,
        splits=splits,
        make_vector_env=None,
        render=render,
    )


def render(split, task_index, policy, *, seed, steps):
    assert policy(None, None) == task_index and steps == 40
    return moving_square(task_index, 10 * (task_index + 1), 61, 81 + 2 * task_index), 10.0 + 10 * task_index


def policy_for_task(index):
    return lambda observation, key: index


def picture_size(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def read_video(path) -> tuple[float, np.ndarray]:
    """Frames a second, and the frames [N, height, width, 3]."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    width, height, fps = re.search(rb", (\d+)x(\d+)[ ,].* ([\d.]+) fps", done.stderr).groups()
    return float(fps), np.frombuffer(done.stdout, np.uint8).reshape(-1, int(height), int(width), 3)


def test_a_video_has_the_frames_it_was_given(tmp_path):
    frames = moving_square(0, 12, 61, 81)  # odd sides, which players do not take
    path = video.write_video(tmp_path / "deep" / "a.mp4", frames, 12.5)
    fps, decoded = read_video(path)
    assert fps == 12.5 and decoded.shape == (12, 62, 82, 3)
    for before, after in zip(frames, decoded, strict=True):
        assert np.abs(before.astype(int) - after[:61, :81]).mean() < 6
    assert os.listdir(path.parent) == ["a.mp4"]


@pytest.mark.parametrize("frames", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((4, 4))])
def test_what_is_no_film_is_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="must be"):
        video.write_video(tmp_path / "a.mp4", frames, 30)


def test_without_an_encoder_there_is_a_sheet_of_frames(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.warns(UserWarning, match="no working mp4 encoder"):
        path = video.write_video(tmp_path / "a.mp4", moving_square(0, 40, 60, 80), 30)
    assert path == tmp_path / "a.png" and picture_size(path) == (4 * 324 + 4, 3 * 244 + 4)


def test_an_encoder_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    with pytest.warns(UserWarning, match="no working mp4 encoder.*No such file"):
        assert video.write_video(tmp_path / "a.mp4", moving_square(0, 3, 60, 80), 30).suffix == ".png"
    assert os.listdir(tmp_path) == ["a.png"]


def test_every_task_and_all_of_them(tmp_path):
    written = video.render_tasks(make_suite(render), policy_for_task, tmp_path, returns=[1.5, None, np.nan])
    names = [str(path.relative_to(tmp_path / "videos")) for path in written]
    assert names[:2] == ["mass_0.5_a.mp4", "mass_1.0.mp4"] and names[3:] == ["all_tasks.mp4", "all_tasks.png"]
    fps, decoded = read_video(written[3])
    assert fps == 30 and len(decoded) == 30  # one second each, at the rate of the fastest
    assert picture_size(written[4]) == (2 * 324 + 4, 2 * 264 + 4)


def test_the_policy_that_is_filmed_has_no_replay(monkeypatch):
    """Which may fill half the device: a copy of one seed's would end an evaluation that had all its numbers."""
    filmed = []

    def policy(learner, observations, key, deterministic, unseen):
        filmed.append((learner["weight"].shape, learner["replay"].rows.shape))
        return jnp.zeros((len(NAMES), 1), jnp.int32)

    def play(suite, policy_for_task, run_dir, **_):
        policy_for_task(1)(jnp.zeros(1), jax.random.key(0))

    monkeypatch.setattr(video, "render_tasks", play)
    trainer = types.SimpleNamespace(learner=types.SimpleNamespace(policy=policy), contexts={})
    rows = replay.Replay(jnp.zeros((2, 3, 1000, 4)), jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32))
    state = types.SimpleNamespace(learner={"weight": jnp.zeros((2, 5)), "replay": rows})
    found = {"deterministic": {"return": {"tasks": dict.fromkeys(NAMES, 0.0)}}}
    results.draw_videos(trainer, make_suite(render), state, None, "train", found)
    assert filmed == [((5,), (3, 0, 4))]


def test_a_held_out_split(tmp_path):
    written = video.render_tasks(make_suite(render), policy_for_task, tmp_path, split="extrapolation")
    assert [path.parent.name for path in written] == ["extrapolation"] * 3


def test_no_picture_is_one_warning(tmp_path):
    with pytest.warns(UserWarning, match="squares cannot be rendered") as caught:
        assert video.render_tasks(make_suite(None), policy_for_task, tmp_path) == []
    assert len(caught) == 1


def test_a_machine_that_cannot_draw_is_one_warning(tmp_path):
    def broken(split, task_index, policy, *, seed, steps):
        raise RuntimeError("cannot find EGL")

    with pytest.warns(UserWarning, match="no video of task mass 0.5/a.*cannot find EGL") as caught:
        assert video.render_tasks(make_suite(broken), policy_for_task, tmp_path) == []
    assert len(caught) == 1


def test_a_renderer_that_fails_late_keeps_what_there_is(tmp_path):
    def fails_late(split, task_index, policy, *, seed, steps):
        if task_index:
            raise OSError("out of memory")
        return render(split, task_index, policy, seed=seed, steps=steps)

    with pytest.warns(UserWarning, match="out of memory"):
        written = video.render_tasks(make_suite(fails_late), policy_for_task, tmp_path)
    assert [path.name for path in written] == ["mass_0.5_a.mp4", "all_tasks.mp4", "all_tasks.png"]


def test_fifty_tasks_fit_in_memory():
    long = np.zeros((1500, 240, 320, 3), np.uint8)
    frames, fps = video._shrunk(long, 30.0, total=50, columns=8)
    assert frames.nbytes * 50 <= video.MAX_BYTES and frames.shape[0] / fps == pytest.approx(20, rel=0.05)
