"""What a run ran on, and the writing of JSON files that are whole or absent."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import tempfile
from typing import Any

import jax

import mtjax

DISTRIBUTIONS = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "brax": "brax",
    "mujoco": "mujoco",
    "mujoco_mjx": "mujoco-mjx",
    "envpool": "envpool",
    "numpy": "numpy",
}


def versions() -> dict[str, Any]:
    """Everything below the program that a result depends on.

    Returns:
        Strings and numbers by name: Python, platform, processor, devices, the version of every library
        that computes something (None if it is not installed), mtjax and its git commit (None if the
        package does not lie in a git checkout). Starts JAX's backend if nothing else has.
    """
    devices = jax.devices()
    return {
        "mtjax": mtjax.__version__,
        "git": _git(pathlib.Path(mtjax.__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "processor_count": os.cpu_count(),
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
        "packages": {name: _installed(package) for name, package in DISTRIBUTIONS.items()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def write(run_dir: str | os.PathLike) -> dict[str, Any]:
    """Write ``versions.json`` into a run's folder and return what it holds."""
    found = versions()
    write_json(pathlib.Path(run_dir) / "versions.json", found)
    return found


def write_json(path: str | os.PathLike, value: Any) -> pathlib.Path:
    """Write JSON so that a reader sees the old file or the new one, whole, whenever the writer dies.

    Args:
        path: the file; its folder is made if it is not there.
        value: anything JSON can say. NaN and infinities are refused: say None.

    Raises:
        ValueError, TypeError: JSON cannot say ``value``; the old file stays.
        OSError: the disk is full or read-only; the old file stays.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, text.encode())


def write_atomically(path: str | os.PathLike, content: bytes) -> pathlib.Path:
    """Write to a temporary file beside ``path``, make it durable, and rename it over ``path``."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
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
    """Make a rename within ``folder`` survive a power cut. File systems that cannot are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder
    finally:
        os.close(descriptor)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name as its maker says it, where the system tells."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: pathlib.Path) -> dict[str, Any] | None:
    """Commit of the checkout that tracks ``folder``, and whether the package's files differ from it."""

    def ask(*arguments: str) -> str:
        # No optional locks: asking must never get in the way of somebody's git command.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        # A site-packages folder inside somebody else's checkout is not a checkout of mtjax.
        if not ask("ls-files", "__init__.py"):
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
