"""Embeddings of the tasks' descriptions: the context vectors that networks are conditioned on.

The vectors for mtjax's own suites are stored by sentence in ``descriptions.npz``, which ``embed_descriptions.py`` made.
Sentence embeddings within one suite are very similar (they describe one robot) and only useful when centred: the mean
over the training tasks is subtracted from every vector. They hardly reflect numbers, so the numbers that distinguish
tasks (``TaskInfo.parameters``) are appended, standardised: a task with gravity 0.8 lies between 0.7 and 0.9.
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
    """The tasks' context vectors by split.

    Args:
        suite: the suite.
        source: "shipped", or the path of an .npz file with one vector under each task's name.

    Returns:
        [N, D] float32 by split: the embedding, then the tasks' parameters if they have any. Both are centred on the
        training tasks and scaled by factors common to all tasks, such that entries have a mean square of 1 over the
        training tasks and the parameters together carry as much weight as the embedding.

    Raises:
        ValueError: the file cannot be read, a task has no vector, or vectors differ in size or are not finite.
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
    """Subtract the training tasks' mean and scale to a mean square of 1 over them (a single task stays 0)."""
    train = vectors["train"]
    mean = train.mean(axis=0)
    scale = np.sqrt(np.mean((train - mean) ** 2))
    return {label: ((v - mean) / (scale if scale > 1e-6 else 1.0)).astype(np.float32) for label, v in vectors.items()}


def _numbers(infos: Mapping[str, Sequence[TaskInfo]]) -> dict[str, np.ndarray]:
    """The tasks' parameters [N, P], every column standardised over the training tasks; 0 where a task lacks one."""
    columns: dict[str, list[float]] = {}
    for info in infos["train"]:
        for name, value in info.parameters.items():
            columns.setdefault(name, []).append(float(value))
    statistics = {
        name: (np.mean(values), np.std(values))
        for name, values in columns.items()
        if np.std(values) > 1e-6 * max(np.abs(values))  # else the column is constant, up to rounding
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
    """The vectors shipped with mtjax, [384] float32 by sentence."""
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
    """Read vectors [D] float32 by name; raises ValueError unless all are finite and of one size."""
    try:
        with np.load(path) as file:
            vectors = {name: np.asarray(file[name], np.float32) for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"task_embeddings: {path} cannot be read as .npz with one vector per task: {error}") from None
    shapes = {vector.shape for vector in vectors.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"task_embeddings: {path} must hold vectors of one size; it holds {sorted(shapes)}")
    for name, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise ValueError(f"task_embeddings: the vector of {name!r} in {path} is not finite")
    return vectors
