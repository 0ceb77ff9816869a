"""The environment of a run: libraries, devices, commit."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

import mtjax
from mtjax.training.files import write_json

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
    """Everything beneath the program that a result depends on.

    Returns:
        Strings and numbers by name: Python, platform, processor, devices, the version of every library
        that computes something (None if it is not installed), mtjax and its git commit (None if the
        package is not in a git checkout). Initialises JAX's backend if nothing else has.
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
    """Write ``versions.json`` into a run's folder and return its contents."""
    found = versions()
    write_json(pathlib.Path(run_dir) / "versions.json", found)
    return found


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model name if the system reports it, otherwise a more general name."""
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
        # No optional locks: a query must never block a git command that someone else runs.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        # A site-packages folder inside the checkout of another project is not a checkout of mtjax.
        if not ask("ls-files", "__init__.py"):
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
