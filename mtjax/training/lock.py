"""A lock that admits one process at a time to a folder, and is released however that process ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading
import time as clock
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
PATIENCE = 0.3  # seconds to retry: a process that calls ``held`` holds the lock for an instant


class InUse(ValueError):
    """Another process holds the folder."""


_held_here: dict[pathlib.Path, int] = {}  # locks of this process, and the thread that holds each


@contextlib.contextmanager
def lock(folder: str | os.PathLike, what: str, *, wait: float = 0.0) -> Iterator[None]:
    """Context manager: lock a folder for this process. The thread that holds it may lock it again.

    Args:
        folder: created if it does not exist.
        what: kind of the folder, for the message: "run", "sweep" or "program".
        wait: seconds to wait if another process holds it.

    Raises:
        InUse: another process holds it; the message says which.
        OSError: the folder cannot be written.
    """
    path = (pathlib.Path(folder) / FILE).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    key, thread = path.resolve(), threading.get_ident()
    if _held_here.get(key) == thread:
        yield
        return
    with path.open("a+b", buffering=0) as file:
        _take(file, folder, what, max(wait, PATIENCE))
        _held_here[key] = thread
        try:
            with contextlib.suppress(OSError):  # the text only informs users, and a full disk has no room for it
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            del _held_here[key]


def _take(file, folder: str | os.PathLike, what: str, wait: float) -> None:
    deadline = clock.monotonic() + wait
    while fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if clock.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "another process"
                raise InUse(f"{folder} is in use by {holder}: only one process at a time may use a {what}") from None
            clock.sleep(0.05)
        except OSError:  # a network file system without locks
            return


def held(folder: str | os.PathLike) -> bool:
    """True if some process holds the lock of a folder. Changes nothing."""
    if fcntl is None:
        return False
    try:
        with (pathlib.Path(folder) / FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
