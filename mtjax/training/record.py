"""The record of a run: ``metrics.jsonl``, the source of truth, and TensorBoard, a view of it.

One JSON object per line, append-only (but see :func:`truncate_after`). The first line names the tasks; then come

    {"kind": "train", "step", "update", "time", "values": {...}}
    {"kind": "evaluation", "step", "time", "split", "mode", "final", "episodes", "values": {...}}
    {"kind": "event", "step", "time", "message"}

``step`` counts environment steps of one seed; ``time`` is in seconds since the start, over all resumes.
Non-finite numbers are written as null and read as NaN. A float32 is written with the fewest digits that read
back as the same float32; matrices [S, T, T] and per-task vectors [S, T, F] are rounded to four decimals, because
they are large.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import time as clock
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtjax.training import files, statistics
from mtjax.training.config import METRICS

FILE = METRICS
REQUIRED = {"kind", "step"}  # keys of every line
DIVERGED = "diverged at step"  # how the event of a divergence begins, by which reports know a run that ended so
MEASURES = ("return", "length", "success", "success_any", "success_last")  # shown per task and in aggregate
SYNC_SECONDS = 5.0  # a power cut loses at most this much
FLUSH_SECONDS = 10.0  # TensorBoard's files may lag behind by this much


class Recorder:
    """Writes a run's metrics. A context manager; opening an existing record appends to it.

    Args:
        run_dir: the run's folder; created if it does not exist.
        task_names: names of the training tasks, [T].
        tensorboard: also write TensorBoard's event files.
        alone: no other process writes this record. If one may, a torn last line is kept, as it may be unfinished.

    Raises:
        ValueError: the folder holds a record of other tasks.
        OSError: the record cannot be written, here or in any method; the error names the file.
    """

    def __init__(
        self, run_dir: str | os.PathLike, task_names: Sequence[str], tensorboard: bool = True, *, alone: bool = True
    ):
        self.path = pathlib.Path(run_dir) / FILE
        self.task_names = tuple(task_names)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        last_step = self._open_existing(alone) if self.path.exists() else None
        # Unbuffered: a line is one system call, so that lines of two processes do not mix, and a write that a full
        # disk has refused is not retried when the file is closed.
        self._file = self.path.open("ab", buffering=0)
        self._place = os.stat(self.path)
        self._synced = clock.monotonic()
        if last_step is None:
            self._write({"kind": "tasks", "step": 0, "time": 0.0, "tasks": list(self.task_names)})
        self._board = _Board(self.path.parent, self.task_names, last_step) if tensorboard else None

    def _open_existing(self, alone: bool) -> int | None:
        """Drop a torn last line if ``alone``, and check the tasks. Returns the newest step, or None without lines."""
        if alone:
            files.drop_torn_line(self.path)
        lines = files.parse_lines(self.path, REQUIRED)
        named = next((tuple(line["tasks"]) for line in lines if line["kind"] == "tasks"), None)
        if named is not None and named != self.task_names:
            ours = list(self.task_names)
            raise ValueError(f"{self.path} is a record of the tasks {list(named)}, not of {ours}")
        return max((line["step"] for line in lines), default=None)

    def train(self, step: int, update: int, time: float, values: Mapping[str, Any]) -> None:
        """Record the metrics of an update.

        Args:
            step: environment steps of one seed so far.
            update: updates so far.
            time: seconds since the start.
            values: arrays by name, of shape (), [S], [S, T], [S, T, T] or [S, T, F].
        """
        self._write({"kind": "train", "step": step, "update": update, "time": time, "values": values})
        if self._board:
            self._board.train(step, values)

    def evaluation(
        self,
        step: int,
        time: float,
        *,
        split: str,
        mode: str,
        final: bool,
        episodes: int,
        values: Mapping[str, Any],
        task_names: Sequence[str] | None = None,
    ) -> None:
        """Record an evaluation.

        Args:
            step, time: as in :meth:`train`.
            split: "train" or a held-out split.
            mode: "deterministic" or "stochastic".
            final: True for the evaluation after the last update.
            episodes: episodes per seed and task.
            values: [S, T] by name: "return", "length", "success_any", "success_last".
            task_names: names of the split's tasks, if they are not the training tasks.
        """
        line: dict[str, Any] = {"kind": "evaluation", "step": step, "time": time}
        line |= {"split": split, "mode": mode, "final": final, "episodes": episodes}
        if task_names is not None and tuple(task_names) != self.task_names:
            line["tasks"] = list(task_names)
        self._write(line | {"values": values}, sync=True)
        if self._board:
            self._board.evaluation(step, split, mode, values, line.get("tasks", self.task_names))

    def event(self, step: int, time: float, message: str) -> None:
        """Record an event: a resume, a skipped checkpoint, a stop."""
        self._write({"kind": "event", "step": step, "time": time, "message": message}, sync=True)
        if self._board:
            self._board.text(step, message)

    def sync(self) -> None:
        """Make every line durable. Call it before saving a checkpoint, which must not be ahead of the record."""
        with self._named():
            os.fsync(self._file.fileno())
        self._synced = clock.monotonic()

    def close(self) -> None:
        """Make everything durable and close. Closing twice is fine."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()
                if self._board:
                    self._board.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any], sync: bool = False) -> None:
        rest = memoryview(files.json_line({k: _plain(v) for k, v in line.items()}))
        with self._named():
            self._follow()
            while rest:
                rest = rest[self._file.write(rest) :]
        if sync or clock.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def _follow(self) -> None:
        """Reopen the record if its file was replaced, as a run that is resumed does (`truncate_after`)."""
        with contextlib.suppress(FileNotFoundError):
            if not os.path.samestat(os.stat(self.path), self._place):
                self._file.close()
                self._file = self.path.open("ab", buffering=0)
                self._place = os.stat(self.path)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Context manager: add the file's name to an OSError."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


class Unrecorded:
    """A Recorder that discards everything, for processes that measure the same as the one that writes."""

    def train(self, *_: Any, **__: Any) -> None: ...

    def evaluation(self, *_: Any, **__: Any) -> None: ...

    def event(self, *_: Any, **__: Any) -> None: ...

    def sync(self) -> None: ...


def read(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a run's record.

    Returns:
        The lines in the order written; each "values" maps names to float64 arrays, NaN for null. A torn
        last line is omitted.

    Raises:
        FileNotFoundError: the folder has no record.
        ValueError: a line other than a torn last one is broken; the message gives its number.
    """
    lines = files.parse_lines(pathlib.Path(run_dir) / FILE, REQUIRED)
    for line in lines:
        if "values" in line:
            line["values"] = {k: np.array(v, dtype=float) for k, v in line["values"].items()}
    return lines


def truncate_after(run_dir: str | os.PathLike, step: int, *, ends: bool = True) -> int:
    """Drop the lines that a run resumed at ``step`` writes again: all later ones, and a final evaluation there.

    Call it before the Recorder is opened. The file is replaced atomically.

    Args:
        run_dir: the run's folder.
        step: the step at which the run resumes.
        ends: the run ends at ``step`` and will repeat its final evaluation. If False, the run is extended: a final
            evaluation at ``step`` is kept as an intermediate one.

    Returns:
        How many whole lines were dropped.

    Raises:
        FileNotFoundError, ValueError: as :func:`read`.
    """
    path = pathlib.Path(run_dir) / FILE
    raw = files.whole_lines(path)
    lines = zip(raw, files.parse_lines(path, REQUIRED), strict=True)
    keep = []
    for text, line in lines:
        if line["step"] < step or (line["step"] == step and not line.get("final")):
            keep.append(text + b"\n")
        elif line["step"] == step and not ends:
            keep.append(files.json_line({**line, "final": False}))
    files.write_atomically(path, b"".join(keep))
    return len(raw) - len(keep)


def task_names(lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The training tasks' names in the lines that :func:`read` returned; empty if no line names them."""
    return next((tuple(line["tasks"]) for line in lines if line["kind"] == "tasks"), ())


def _plain(value: Any) -> Any:
    """Convert arrays, and mappings that contain them, to values that JSON can represent."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return list(value)
    return _numbers(np.asarray(value))


def _numbers(array: np.ndarray) -> Any:
    if array.dtype.kind in "biu":
        return array.tolist()
    array = np.asarray(array, np.float64 if array.dtype == np.float64 else np.float32)
    if array.ndim >= 3:
        array = array.round(4)
    # str() of a NumPy float gives the fewest digits that read back as the same number of that precision.
    finite = np.isfinite(array).ravel()
    flat = [float(str(v)) if ok else None for v, ok in zip(array.ravel(), finite, strict=True)]
    return _nest(flat, array.shape)


def _nest(flat: list, shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    size = len(flat) // shape[0] if shape[0] else 0
    return [_nest(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


class _Board:
    """The TensorBoard view: aggregates in one group, tasks in another, so that 50 tasks do not bury the aggregates.

    It is written in the caller's thread: if a full disk ended tensorboardX's own thread, the run would wait for it
    forever. After a failed write, a warning is shown and the rest of the view is not written; tensorboardX's event
    writer would leave a file open, which fails again at the end.
    """

    def __init__(self, run_dir: pathlib.Path, names: Sequence[str], last_step: int | None):
        # Imported here, because it takes a third of a second, which --notensorboard saves.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        self._folder, self._names = run_dir / "tensorboard", tuple(names)
        self._event, self._summary = event_pb2.Event, summary
        self._flushed = clock.monotonic()
        self._writer: Any = None
        with self._forgiven():
            self._folder.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{int(clock.time())}.{socket.gethostname()}"
            self._writer = record_writer.RecordWriter(str(self._folder / name))
            self._write(self._event(wall_time=clock.time(), file_version="brain.Event:2"))
            if last_step is not None:
                # Hides the events that a killed run wrote after the checkpoint from which this run resumes.
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.Value("START"))
                self._write(self._event(step=last_step + 1, session_log=start))

    def train(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            value = np.asarray(value, float)
            if name in MEASURES and value.ndim == 2:
                self._measure("train", name, step, value, self._names)
            elif value.ndim == 3 and name.startswith("grads/"):
                off_diagonal = ~np.eye(value.shape[-1], dtype=bool)
                self._scalar(f"learning/{name}", step, value[:, off_diagonal])
            elif value.ndim < 3 and name != "episodes":
                self._scalar(f"learning/{name}", step, value)

    def evaluation(self, step: int, split: str, mode: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
        for name, value in values.items():
            value = np.asarray(value, float)
            if value.ndim == 2:
                self._measure(f"evaluation_{split}_{mode}", name, step, value, names)

    def text(self, step: int, message: str) -> None:
        self._add(step, self._summary.text("events", message))

    def close(self) -> None:
        if self._writer is not None:
            with self._forgiven():
                self._writer.close()
            self._writer = None

    def _add(self, step: int, summary: Any) -> None:
        self._write(self._event(step=step, wall_time=clock.time(), summary=summary))

    def _write(self, event: Any) -> None:
        if self._writer is None:
            return
        with self._forgiven():
            self._writer.write(event.SerializeToString())
            if clock.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = clock.monotonic()

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            writer, self._writer = self._writer, None
            if writer is not None:
                with contextlib.suppress(OSError):
                    writer.close()
            warnings.warn(f"{self._folder} is no longer written: {error.strerror}", stacklevel=2)

    def _measure(self, group: str, name: str, step: int, value: np.ndarray, names: Sequence[str]) -> None:
        for label in ("mean", "median", "worst"):
            over_tasks = getattr(statistics, label)(value, skip_missing=True)  # [S]
            self._scalar(f"{group}/{name}/{label}", step, over_tasks)
        for index, task in enumerate(names):
            self._scalar(f"{group}_tasks/{name}/{task}", step, value[:, index])

    def _scalar(self, tag: str, step: int, value: np.ndarray) -> None:
        """Write the mean over the finite values, or nothing if there are none."""
        finite = value[np.isfinite(value)]
        if finite.size:
            self._add(step, self._summary.scalar(tag, float(finite.mean())))
