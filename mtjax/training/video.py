"""Videos of a trained agent: one per task, and a tiled image and a tiled video of all tasks.

No failure here may end a run: if frames cannot be drawn or videos cannot be encoded, a warning says so.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtjax.suites.base import Suite

MAX_TILE = (320, 240)  # width, height
MAX_WIDTH = 1600  # of the tiled video
MAX_SECONDS = 20.0  # of the tiled video
MAX_BYTES = 300e6  # of all tiles together, in memory
CAPTION, GAP = 20, 4
PAPER, INK, FADED = (255, 255, 255), (34, 38, 43), (110, 118, 128)


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float) -> pathlib.Path:
    """Write an mp4 or, if no encoder works, a PNG with a dozen of the frames.

    Args:
        path: ends in ".mp4"; its folder is created if it does not exist.
        frames: [N, height, width, 3] uint8.
        fps: frames per second.

    Returns:
        The file written: ``path``, or the same path with ".png".

    Raises:
        ValueError: there are no frames, or they have another shape or dtype.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or frames.dtype != np.uint8:
        raise ValueError(f"frames must be [N, height, width, 3] uint8, got {frames.shape} {frames.dtype}")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _encode(path, frames, fps)
    except (ImportError, OSError, RuntimeError) as error:
        why = str(error).strip().split("\n")[0]
        warnings.warn(f"no working mp4 encoder ({why}); writing a contact sheet instead", stacklevel=2)
        return contact_sheet(path.with_suffix(".png"), frames)


def _encode(path: pathlib.Path, frames: np.ndarray, fps: float) -> pathlib.Path:
    """Encode with ffmpeg. Raises ImportError, OSError or RuntimeError if it is missing or fails."""
    import imageio_ffmpeg

    # Players need yuv420p, which needs an even width and height.
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    temporary = path.with_name(f".{path.stem}.tmp.mp4")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart", str(temporary)]
    try:
        # Not imageio's own writer: it forks, which can deadlock with JAX's threads (JAX warns of it).
        done = subprocess.run(command, input=memoryview(frames).cast("B"), capture_output=True, process_group=0)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace") or f"ffmpeg: {done.returncode}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def contact_sheet(path: pathlib.Path, frames: np.ndarray, count: int = 12) -> pathlib.Path:
    """Write a PNG with ``count`` frames, evenly spaced from first to last, in rows of four."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, count).astype(int))
    tiles = [_fitted(frames[index], MAX_TILE) for index in chosen]
    Image.fromarray(_tiled(tiles, min(4, len(tiles)))).save(path)
    return path


def render_tasks(
    suite: Suite,
    policy_for_task: Callable[[int], Callable],
    run_dir: str | os.PathLike,
    *,
    split: str = "train",
    returns: Sequence[float | None] | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> list[pathlib.Path]:
    """Play one episode of every task and write videos of them.

    Writes ``videos/<task>.mp4`` of each task, and ``videos/all_tasks.mp4`` and ``all_tasks.png`` of all together;
    those of a held-out split go to ``videos/<split>/``.

    Args:
        suite: its ``render`` draws the frames.
        policy_for_task: task index -> the task's policy, ``policy(observation [obs], key) -> action``.
        run_dir: the run's folder.
        split: the split whose tasks are played.
        returns: [T] the tasks' returns, e.g. in the last evaluation, shown beside the names; None where unknown.
        steps: steps of an episode; the suite's horizon by default.
        seed: seed of the episodes.

    Returns:
        The files written; none, and one warning, if the suite cannot be drawn or the machine cannot render.
    """
    if suite.render is None:
        warnings.warn(f"suite {suite.name} cannot be rendered: no videos", stacklevel=2)
        return []
    infos = suite.splits[split].infos
    columns = math.ceil(math.sqrt(len(infos) * 1.2))  # of tiles; about as many as rows
    folder = pathlib.Path(run_dir) / "videos" / ("" if split == "train" else split)
    films: list[tuple[np.ndarray, float]] = []  # small frames and their rate, for every task
    written: list[pathlib.Path] = []
    for index, info in enumerate(infos):
        try:
            frames, fps = suite.render(
                suite.splits[split], index, policy_for_task(index), seed=seed, steps=steps or suite.horizon
            )
            written.append(write_video(folder / f"{_file_name(info.name)}.mp4", frames, fps))
        except Exception as error:  # of a driver or simulator: no error here may end the run
            warnings.warn(f"no video of task {info.name} or of those after it: {error}", stacklevel=2)
            break
        films.append(_shrunk(frames, fps, len(infos), columns))
    if films:
        names = [info.name for info in infos]
        captions = list(zip(names, returns or [None] * len(names), strict=True))[: len(films)]
        written += _write_all(folder, films, captions, min(columns, len(films)))
    return written


def _write_all(
    folder: pathlib.Path,
    films: list[tuple[np.ndarray, float]],
    captions: list[tuple[str, float | None]],
    columns: int,
) -> list[pathlib.Path]:
    """Write the tiled video, and its poster with the middle frame of every episode."""
    poster = folder / "all_tasks.png"
    middles = [
        _captioned(frames[len(frames) // 2], *caption) for (frames, _), caption in zip(films, captions, strict=True)
    ]
    Image.fromarray(_tiled(middles, columns)).save(poster)
    rate = max(fps for _, fps in films)
    video = np.stack(list(_tile_frames(films, captions, columns, rate)))
    return [write_video(folder / "all_tasks.mp4", video, rate), poster]


def _tile_frames(
    films: list[tuple[np.ndarray, float]],
    captions: list[tuple[str, float | None]],
    columns: int,
    rate: float,
) -> Iterator[np.ndarray]:
    """All videos side by side in real time; one that ends early stays on its last frame."""
    seconds = max(len(frames) / fps for frames, fps in films)
    for index in range(max(1, round(seconds * rate))):
        now = index / rate
        tiles = [
            _captioned(frames[min(int(now * fps + 1e-6), len(frames) - 1)], *caption)
            for (frames, fps), caption in zip(films, captions, strict=True)
        ]
        yield _tiled(tiles, columns)


# ------------------------------------------------------------------------------------------------- images


def _shrunk(frames: np.ndarray, fps: float, total: int, columns: int) -> tuple[np.ndarray, float]:
    """The first MAX_SECONDS, resized to a tile, at a rate at which all tasks together take at most MAX_BYTES."""
    width = min(MAX_TILE[0], MAX_WIDTH // columns - GAP)
    tile = (width, width * MAX_TILE[1] // MAX_TILE[0])
    frames = frames[: max(1, int(MAX_SECONDS * fps))]
    room = max(10, int(MAX_BYTES / (total * 3 * tile[0] * tile[1])))
    stride = math.ceil(len(frames) / room)
    return np.stack([_fitted(frame, tile) for frame in frames[::stride]]), fps / stride


def _fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frame scaled to the largest size that fits, centred on a blank tile: [height, width, 3]."""
    scale = min(size[0] / frame.shape[1], size[1] / frame.shape[0])
    inner = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    sampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    page = Image.new("RGB", size, PAPER)
    page.paste(Image.fromarray(frame).resize(inner, sampling), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return np.asarray(page)


def _captioned(frame: np.ndarray, name: str, value: float | None) -> np.ndarray:
    """The frame below its task's name (left) and return (right)."""
    width = frame.shape[1]
    page = Image.new("RGB", (width, frame.shape[0] + CAPTION), PAPER)
    page.paste(Image.fromarray(frame), (0, CAPTION))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    number = "" if value is None or not math.isfinite(value) else f"{value:,.4g}"
    room = width - draw.textlength(number, font=font) - 8
    while name and draw.textlength(name, font=font) > room:
        name = name[:-2].rstrip("…") + "…" if len(name) > 2 else ""
    draw.text((2, 3), name, fill=INK, font=font)
    draw.text((width - 2, 3), number, fill=FADED, font=font, anchor="ra")
    return np.asarray(page)


def _tiled(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arrange tiles of equal size in rows, as one image."""
    height, width = tiles[0].shape[:2]
    rows = math.ceil(len(tiles) / columns)
    page = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (
            position * side + GAP
            for position, side in zip(divmod(index, columns), (height + GAP, width + GAP), strict=True)
        )
        page[top : top + height, left : left + width] = tile
    return page


def _file_name(task: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", task).strip(".") or "task"
