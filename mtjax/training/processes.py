"""Several processes that train one run together (``jax.distributed``), each with its devices of the mesh.

All run the same programs on their parts of the arrays, and get the same results. Only the first writes the run's
folder: checkpoints are gathered for it and read by every process, so all must have access to the folder. If a process
dies, jax ends the others; the run can be resumed from its newest checkpoint.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtjax.training.checkpoint import Checkpointer, CheckpointError


def several() -> bool:
    """True if more than one process trains this run."""
    return jax.process_count() > 1


def first() -> bool:
    """True in the one process that writes the run's folder."""
    return jax.process_index() == 0


def from_first(number: int) -> int:
    """Broadcast the first process's number to all processes, which must all call this."""
    if not several():
        return number
    data = np.frombuffer(np.int64(number).tobytes(), np.uint8)  # bytes, as jax would truncate 64 bits to 32
    return int(np.frombuffer(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes(), np.int64)[0])


class CommonStop:
    """An event common to all processes: a signal to one of them becomes visible to all at the same call.

    Each call of :meth:`is_set` sends this process's flag and returns what was sent at the previous call, so that no
    process waits for a busy device. All processes must call it equally often.

    Args:
        mine: the event of this process.
    """

    def __init__(self, mine: threading.Event):
        self.mine = mine
        devices = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
        self._each = NamedSharding(devices, PartitionSpec("device"))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(devices, PartitionSpec()))
        self._sent: jax.Array | None = None

    def is_set(self) -> bool:
        """True if any process had been signalled by the previous call; the same in all processes."""
        before = self._sent
        news = np.full(jax.local_device_count(), self.mine.is_set(), np.int32)
        self._sent = self._any(jax.make_array_from_process_local_data(self._each, news))
        return before is not None and bool(np.asarray(before))


class SharedCheckpoints:
    """A :class:`Checkpointer` for several processes: the first writes, all read. All must call every method.

    Args:
        run_dir: the run's folder, to which all have access.
        keep: how many of the newest checkpoints to keep.

    Attributes:
        skipped: as in Checkpointer, in the first process; empty in the others.
    """

    def __init__(self, run_dir: str | os.PathLike, keep: int = 3):
        self.run_dir = run_dir
        self._writer = Checkpointer(run_dir, keep) if first() else None
        self.skipped: list[tuple[int, str]] = []

    def save(self, step: int, state: Any, host: Mapping[str, Any] | None = None) -> None:
        """Save a state that each process holds in full. Raises like a Checkpointer, in the first process only."""
        if self._writer:
            self._writer.save(step, state, host)

    def wait(self) -> None:
        """In the first process, wait until its last save is on the disk; the others do not wait."""
        if self._writer:
            self._writer.wait()

    def restore(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Like :meth:`Checkpointer.restore`; each process reads its own part of the arrays."""
        good = self._writer.find() if self._writer else None
        step = from_first(-1 if good is None else good)
        if step < 0:
            return None
        if self._writer:
            self.skipped = self._writer.skipped
            return step, *self._writer.load(step, abstract_state)
        with Checkpointer(self.run_dir, read_only=True) as reader:
            found = reader.restore(abstract_state, step)
        if found is None:
            me, why = jax.process_index(), reader.skipped[0][1]
            raise CheckpointError(
                f"process {me} cannot read checkpoint {step} of {self.run_dir}: {why}; the first process can"
            )
        return found

    def __enter__(self) -> SharedCheckpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writer:
            self._writer.close()
