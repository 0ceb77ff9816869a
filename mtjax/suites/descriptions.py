"""What the tasks' descriptions say, as vectors: the context that networks are conditioned on.

The vectors of the suites that come with mtjax are in ``descriptions.npz``, by sentence; ``embed_descriptions.py`` made
them. Sentence embeddings of one suite are much alike (they are about one robot) and are only useful centred: the mean
of the training tasks is taken off every vector. Numbers hardly show in them at all, so that the numbers that set
tasks apart (``TaskInfo.parameters``) are appended, standardised: a task of gravity 0.8 lies between 0.7 and 0.9.
"""

from __future__ import annotations

import functools
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from mtjax.suites.base import Suite, TaskInfo

SHIPPED = "shipped"
FILE = pathlib.Path(__file__).with_name("descriptions.npz")


def contexts(suite: Suite, source: str = SHIPPED) -> dict[str, np.ndarray]:
    """The tasks' contexts by split.

    Args:
        suite: whose tasks.
        source: "shipped", or the path of an .npz file with one vector for the name of every task.

    Returns:
        [N, D] float32 by split: the embedding, then the tasks' numbers if they have any. Both are centred on the
        training tasks and scaled alike for all tasks, so that entries have a mean square of 1 over the training
        tasks (and the numbers together weigh as much as the embedding).

    Raises:
        ValueError: the file cannot be read; a task has no vector in it; vectors differ in size.
    """
    find = _shipped if source == SHIPPED else functools.partial(_of_file, path=source)
    vectors = {label: find(suite.name, split.infos) for label, split in suite.splits.items() if len(split)}
    text = _centred(vectors)
    numbers = _numbers({label: suite.splits[label].infos for label in vectors})
    size, count = text["train"].shape[1], numbers["train"].shape[1]
    if not count:
        return text
    for_text, for_numbers = np.sqrt([(size + count) / (2 * size), (size + count) / (2 * count)]).astype(np.float32)
    return {label: np.concatenate([for_text * text[label], for_numbers * numbers[label]], axis=1) for label in text}


def _centred(vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the training tasks' mean off, and scale to a mean square of 1 over them (one task alone stays 0)."""
    train = vectors["train"]
    mean = train.mean(axis=0)
    scale = np.sqrt(np.mean((train - mean) ** 2))
    return {label: ((v - mean) / (scale if scale > 1e-6 else 1.0)).astype(np.float32) for label, v in vectors.items()}


def _numbers(infos: Mapping[str, Sequence[TaskInfo]]) -> dict[str, np.ndarray]:
    """The tasks' parameters [N, P], every column standardised over the training tasks; 0 where a task has none."""
    columns: dict[str, list[float]] = {}
    for info in infos["train"]:
        for name, value in info.parameters.items():
            columns.setdefault(name, []).append(float(value))
    statistics = {
        name: (np.mean(values), np.std(values))
        for name, values in columns.items()
        if np.std(values) > 1e-6 * max(np.abs(values))  # else it is one number, up to rounding
    }

    def row(info: TaskInfo) -> list[float]:
        return [
            (info.parameters[name] - mean) / deviation if name in info.parameters else 0.0
            for name, (mean, deviation) in statistics.items()
        ]

    return {
        label: np.asarray([row(info) for info in members], np.float32).reshape(len(members), len(statistics))
        for label, members in infos.items()
    }


# ------------------------------------------------------------------------------------------- sources


@functools.cache
def shipped() -> dict[str, np.ndarray]:
    """The vectors that come with mtjax, [384] float32 by sentence."""
    with np.load(FILE) as file:
        return dict(zip(file["sentences"].tolist(), file["vectors"].astype(np.float32), strict=True))


def _shipped(suite: str, infos: Sequence[TaskInfo]) -> np.ndarray:
    known = shipped()
    for info in infos:
        if info.description not in known:
            raise ValueError(
                f"task_embeddings: mtjax ships no embedding of task {info.name!r} of suite {suite!r} "
                f"({info.description!r}); give --task_embeddings=FILE.npz with one vector for each task's name"
            )
    return np.stack([known[info.description] for info in infos])


def _of_file(suite: str, infos: Sequence[TaskInfo], *, path: str) -> np.ndarray:
    vectors = _read(path)
    missing = [info.name for info in infos if info.name not in vectors]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"task_embeddings: {path} has no vector for task {', '.join(missing[:3])}{more} of {suite}")
    return np.stack([vectors[info.name] for info in infos])


def _read(path: str) -> dict[str, np.ndarray]:
    """Vectors [D] float32 by name, all of one size and finite."""
    try:
        with np.load(path) as file:
            vectors = {name: np.asarray(file[name], np.float32) for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"task_embeddings: {path} cannot be read as .npz with a vector a task: {error}") from None
    shapes = {vector.shape for vector in vectors.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"task_embeddings: {path} must hold vectors of one size; it holds {sorted(shapes)}")
    for name, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise ValueError(f"task_embeddings: the vector of {name!r} in {path} is not finite")
    return vectors
