"""Checkpoints that are loaded only if complete and verified: a wrapper around Orbax.

Orbax writes a step atomically but does not detect later damage, has no fallback, counts an empty step folder
as the latest, and silently refuses to save a step that is not newer than the latest. So each step gets a manifest,
written once Orbax reports that the step is durable, with the SHA-256 of every file and the shape and dtype of
every leaf. A step without a valid manifest is never loaded: restoring takes the newest good step, reports the steps
it skipped, and moves them out of the way.

    checkpoints/<step>/           Orbax's files and manifest.json
    checkpoints/quarantine/       damaged checkpoints
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from mtjax.training import lock
from mtjax.training.config import CHECKPOINTS
from mtjax.training.files import write_json

MANIFEST = "manifest.json"
QUARANTINE = "quarantine"
TEMPORARY = "*.orbax-checkpoint-tmp*"
LOOKS = 5  # attempts to read a run that saves, and so deletes, checkpoints meanwhile

Leaves = dict[str, str]  # "['params']['w']" -> "float32[2, 3]", in the order of the pytree


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


class MismatchError(CheckpointError):
    """An undamaged checkpoint holds another pytree than the one requested."""


def _is_news(record: logging.LogRecord) -> bool:
    """False for exceptions caught by Orbax's threads, which it raises to us as well, and for what we asked for."""
    if record.getMessage().startswith(("CheckpointManagerOptions.read_only", "Given directory is read only")):
        return False
    trace = record.exc_info[2] if record.exc_info else None
    return trace is None or "orbax" not in pathlib.PurePath(trace.tb_frame.f_code.co_filename).parts


logging.getLogger("absl").addFilter(_is_news)


class Hushed:
    """A ``sys.unraisablehook`` that does not report the threads that a failed save leaves behind.

    Each of Orbax's writes ends in a C++ thread, which then wakes an event loop. After one write has failed, Orbax
    closes that loop, and every write that ends later (on a full disk: all of them) would print a traceback.
    """

    def __init__(self, told: Callable[[Any], None]):
        self.told = told

    def __call__(self, unraisable: Any) -> None:
        trace = unraisable.exc_traceback
        late = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
        if not (late and str(unraisable.exc_value) == "Event loop is closed"):
            self.told(unraisable)


def _reason(error: BaseException) -> str:
    """The error in one line; for a full disk, Orbax's message has a dozen, with names of temporary files."""
    text = str(error)
    full = "No space left on device"
    return full if full in text else (text.splitlines() or [type(error).__name__])[0]


def newest_step(run_dir: str | os.PathLike) -> int:
    """The newest step with a checkpoint, good or not, in a run's folder; 0 if it has none."""
    folder = pathlib.Path(run_dir) / CHECKPOINTS
    return max(_steps_in(folder), default=0)


def _steps_in(folder: pathlib.Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]


class Checkpointer:
    """Saves a run's state in the background and restores the newest good checkpoint. A context manager.

    Args:
        run_dir: the run's folder.
        keep: how many of the newest checkpoints to keep.
        read_only: change nothing on the disk; for evaluations, as the run may still be training.

    Attributes:
        skipped: (step, reason) of every damaged checkpoint that the last restore skipped.
    """

    def __init__(self, run_dir: str | os.PathLike, keep: int = 3, *, read_only: bool = False):
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one checkpoint must be kept")
        self.folder = pathlib.Path(run_dir).absolute() / CHECKPOINTS
        self.keep = keep
        self.read_only = read_only
        self.skipped: list[tuple[int, str]] = []
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_temporary()
        # Orbax must not delete checkpoints: it would do so before we have sealed the new one. And it saves in our
        # thread, not in threads of its own: after a failed save, these keep the program from exiting for minutes.
        options = ocp.CheckpointManagerOptions(
            create=False,
            read_only=read_only,
            lightweight_initialize=read_only,  # otherwise fails if another process deletes a step meanwhile
            enable_async_checkpointing=False,
            multiprocessing_options=_alone(),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, concurrent.futures.Future] | None = None

    # ------------------------------------------------------------------------------------------ saving

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, being saved or found on the disk; the next save must be newer."""
        return self._pending[0] if self._pending else max(self._steps(), default=None)

    def save(self, step: int, state: Any, host: Mapping[str, Any] | None = None) -> None:
        """Copy the state off the device and write it in the background.

        Returns once the state may be donated. Errors that occur later (a full disk) are raised by the next
        ``save``, ``wait`` or ``close``.

        Args:
            step: environment steps; greater than :attr:`latest_step`.
            state: pytree of arrays, also typed PRNG keys. Of several processes one saves, and must hold all of it.
            host: values that JSON can represent (tuples are restored as lists, keys as strings).

        Raises:
            CheckpointError: the step is not newer, or the previous save failed.
            TypeError: a leaf is not an array, or ``host`` is not JSON.
        """
        if self.read_only:
            raise CheckpointError(f"{self.folder} was opened read-only")
        self.wait()
        if self.latest_step is not None and step <= self.latest_step:
            latest = self.latest_step
            raise CheckpointError(f"cannot save step {step}: {self.folder} already holds step {latest}")
        leaves = describe(state)
        host = dict(host or {})
        json.dumps(host)
        copy = jax.tree.map(_copied, state)
        self._pending = step, self._writer.submit(self._write, step, copy, host, leaves)

    def wait(self) -> None:
        """Wait until the last save is durable and sealed. Raises CheckpointError if it failed."""
        if self._pending is None:
            return
        step, written = self._pending
        self._pending = None
        try:
            written.result()
        except Exception as error:
            self._discard(step)
            raise CheckpointError(f"checkpoint {step} could not be written: {_reason(error)}") from error

    def close(self) -> None:
        """Wait for the last save, and release Orbax's threads. Raises CheckpointError if that save failed."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _write(self, step: int, state: Any, host: dict[str, Any], leaves: Leaves) -> None:
        """Save the step, seal it with its manifest, and only then delete the oldest. Runs in the background."""
        # Orbax requires a container, hence the dict around the state.
        args = ocp.args.Composite(state=ocp.args.StandardSave({"state": state}), host=ocp.args.JsonSave(host))
        if not isinstance(sys.unraisablehook, Hushed):
            sys.unraisablehook = Hushed(sys.unraisablehook)
        if not self._manager.save(step, args=args):
            raise CheckpointError(f"Orbax refused to save it in {self.folder}")
        write_manifest(self.folder / str(step), step, leaves)
        oldest_kept = sorted(self._sealed())[-self.keep :][0]
        for old in self._steps():
            if old < oldest_kept:
                shutil.rmtree(self.folder / str(old))
        self._manager.reload()

    def _discard(self, step: int) -> None:
        """Free the disk space that a failed save has taken."""
        shutil.rmtree(self.folder / str(step), ignore_errors=True)
        self._remove_temporary()
        self._manager.reload()

    # --------------------------------------------------------------------------------------- restoring

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """Load the newest checkpoint of which every byte is as it was written.

        Newer but damaged ones are listed in a warning and in :attr:`skipped` and, unless ``read_only``, moved to the
        quarantine folder.

        Args:
            abstract_state: pytree of arrays or ``jax.ShapeDtypeStruct`` (e.g. from ``jax.eval_shape``). A leaf
                without a sharding is loaded to the first local device; if a sharding spans several processes,
                all of them must call this.
            step: load only this step.

        Returns:
            (step, state, host), or None if there is no good checkpoint (see :attr:`skipped`).

        Raises:
            MismatchError: the checkpoint holds another pytree; the message names the first leaf that differs.
            CheckpointError: the checkpoint is undamaged, but Orbax cannot read it.
        """
        for left in reversed(range(LOOKS)):
            sealed, good = self._sealed(), self.find(step)
            try:
                return None if good is None else (good, *self.load(good, abstract_state))
            except (OSError, CheckpointError):
                if not (left and self._moved_on(sealed)):
                    raise
        return None

    def find(self, step: int | None = None) -> int | None:
        """The step that :meth:`restore` would load, or None; damaged steps are treated as described there."""
        self.wait()
        for _ in range(LOOKS):
            sealed, good = self._sealed(), self._look(step)
            if good is not None or not self._moved_on(sealed):
                break
        self._set_aside(good)
        return good

    def _look(self, step: int | None) -> int | None:
        """The newest good step, or ``step`` if it is good; None if there is none. Lists damaged ones in ``skipped``."""
        self.skipped = []
        for candidate in sorted(self._steps(), reverse=True) if step is None else [step]:
            if step is None and self._being_saved(candidate):
                continue
            problem = verify(self.folder / str(candidate), candidate)
            if problem is None:
                return candidate
            self.skipped.append((candidate, problem))
        return None

    def _being_saved(self, step: int) -> bool:
        """True if this is a reader and the run, active in another process, has not sealed this step yet."""
        return self.read_only and step not in self._sealed() and lock.held(self.folder.parent)

    def _moved_on(self, sealed: set[int]) -> bool:
        """True if this is a reader and the sealed steps have changed: the run has saved, and may have deleted, some."""
        return self.read_only and self._sealed() != sealed

    def load(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Load (state, host) of a step that :meth:`find` returned. Raises like :meth:`restore`."""
        wanted = describe(abstract_state)
        where = f"checkpoint {step} in {self.folder}"
        _assert_equal(json.loads((self.folder / str(step) / MANIFEST).read_text())["leaves"], wanted, where)
        target = {"state": jax.tree.map(_stored, abstract_state)}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:
            raise CheckpointError(f"{where} is undamaged, but Orbax cannot read it: {error}") from error
        state = jax.tree.map(_loaded, restored["state"]["state"], abstract_state)
        _assert_equal(describe(state), wanted, where)
        return state, restored["host"]

    def _set_aside(self, good: int | None) -> None:
        """List the damaged steps in a warning and, unless read-only, move them to where Orbax does not see them."""
        if not self.skipped:
            return
        named = "; ".join(f"{step}: {problem}" for step, problem in self.skipped)
        found = "none is usable" if good is None else f"using {good}"
        warnings.warn(f"skipped damaged checkpoints in {self.folder} ({named}); {found}", stacklevel=4)
        if self.read_only:
            return
        for step, _ in self.skipped:
            if (self.folder / str(step)).exists():
                _move_into(self.folder / str(step), self.folder / QUARANTINE)
        self._manager.reload()

    # ---------------------------------------------------------------------------------------- the disk

    def _steps(self) -> list[int]:
        return _steps_in(self.folder)

    def _sealed(self) -> set[int]:
        return {step for step in self._steps() if (self.folder / str(step) / MANIFEST).exists()}

    def _remove_temporary(self) -> None:
        for path in self.folder.glob(TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)


# -------------------------------------------------------------------------------------------- manifest


def describe(state: Any) -> Leaves:
    """Name, dtype and shape of every leaf.

    Raises:
        TypeError: a leaf has no dtype; the message names it.
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise TypeError(f"leaf {name} of the state is a {type(leaf).__name__}, not an array")
        leaves[name] = f"{leaf.dtype}{list(leaf.shape)}"
    return leaves


def write_manifest(folder: pathlib.Path, step: int, leaves: Leaves) -> None:
    """Seal a step's folder with the size and SHA-256 of every file in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in paths}
    content = {"step": step, "leaves": leaves, "files": files}
    write_json(folder / MANIFEST, content | {"sha256": _digest_of(content)})


def verify(folder: pathlib.Path, step: int) -> str | None:
    """Describe what is wrong with a step's folder; None if every byte is as it was written."""
    if not folder.is_dir():
        return "there is no such checkpoint"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        seal = manifest.pop("sha256")
        files = manifest["files"]
    except FileNotFoundError:
        return "it has no manifest, so its save was interrupted"
    except (OSError, ValueError, KeyError, AttributeError):
        return "its manifest is unreadable"
    if seal != _digest_of(manifest) or manifest["step"] != step:
        return "its manifest is damaged"
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if _digest(path) != digest:
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _assert_equal(found: Leaves, wanted: Leaves, where: str) -> None:
    """Raise MismatchError, naming the first leaf, unless both have the same leaves in the same order."""
    if found == wanted and list(found) == list(wanted):
        return
    differ = [name for name in found | wanted if found.get(name) != wanted.get(name)]
    if not differ:
        raise MismatchError(f"{where} has the same leaves in another order")
    name, more = differ[0], len(differ) - 1
    raise MismatchError(
        f"{where} was written with another configuration or version of mtjax: leaf {name} is "
        f"{found.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        + (f" ({more} more leaves differ)" if more else "")
    )


def _copied(leaf: Any) -> np.ndarray:
    """What Orbax stores for a leaf, copied to the host, so that the leaf may be donated.

    For a PRNG key, its key data; for an empty array, which Orbax refuses to store, one byte.
    """
    if not leaf.size:
        return np.zeros((1,), np.uint8)
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _stored(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what is stored for a leaf, and the sharding with which to restore it.

    Without a sharding, Orbax would require the devices from which it was saved.
    """
    like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if not leaf.size:
        like = jax.ShapeDtypeStruct((1,), jnp.uint8)
    elif _is_key(leaf):
        like = jax.eval_shape(jax.random.key_data, like)
    sharding = (leaf.size and getattr(leaf, "sharding", None)) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)


def _loaded(stored: jax.Array, like: Any) -> jax.Array:
    """The inverse of ``_copied``: the leaf that was stored, which is like ``like``."""
    if not like.size:
        return jnp.zeros(like.shape, like.dtype)
    return jax.random.wrap_key_data(stored) if _is_key(like) else stored


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Options for Orbax without barriers: each process saves or restores by itself."""
    me = jax.process_index()
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )


def _move_into(path: pathlib.Path, folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    target, attempt = folder / path.name, 1
    while target.exists():
        attempt += 1
        target = folder / f"{path.name}-{attempt}"
    path.rename(target)
