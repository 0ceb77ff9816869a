"""Files that survive a killed writer: complete or absent, or JSON lines of which only the last may be torn.

Imports nothing but the standard library, so that launchers can use it without loading jax.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from typing import Any


def write_json(path: str | os.PathLike, value: Any) -> pathlib.Path:
    """Write JSON so that a reader sees the complete old or new file, even if the writer is killed.

    Args:
        path: the file; its folder is created if it does not exist.
        value: anything JSON can represent. NaN and infinities are refused; use None.

    Raises:
        ValueError, TypeError: JSON cannot represent ``value``; the old file stays.
        OSError: the disk is full or read-only; the old file stays.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, text.encode())


def write_atomically(path: str | os.PathLike, content: bytes) -> pathlib.Path:
    """Write to a temporary file beside ``path``, make it durable, and rename it over ``path``."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:  # its message would name the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would lock colleagues out of a shared run
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def sync_folder(folder: str | os.PathLike) -> None:
    """Make a rename within ``folder`` survive a power cut; does nothing on file systems that cannot do it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder
    finally:
        os.close(descriptor)


def json_line(value: Any) -> bytes:
    """``value`` as one line of JSON, without spaces but with its line break.

    Raises:
        ValueError, TypeError: JSON cannot represent ``value``, or it contains a NaN or an infinity.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def whole_lines(path: str | os.PathLike) -> list[bytes]:
    """The lines of a file, without line breaks; an incomplete last line, torn by a kill, is omitted."""
    content = pathlib.Path(path).read_bytes()
    return content[: content.rfind(b"\n") + 1].splitlines()


def drop_torn_line(path: str | os.PathLike) -> None:
    """Cut off what follows the last line break, so that the next line to be appended starts a new line."""
    content = pathlib.Path(path).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def parse_lines(path: str | os.PathLike, required: set[str]) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; a torn last line is omitted.

    Args:
        path: the file.
        required: keys that every line must have.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line other than a torn last one is not a JSON object with these keys.
    """
    parsed = []
    for number, text in enumerate(whole_lines(path), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not required <= line.keys():
            raise ValueError(f"line {number} of {path} is broken: {text[:60]!r}")
        parsed.append(line)
    return parsed
