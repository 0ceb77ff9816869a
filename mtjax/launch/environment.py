"""The process around a run: variables to set before jax and mujoco start, the device, the compilation cache.

This module imports neither jax nor mujoco, so that a command can call ``prepare`` first and answer ``--help``
and mistyped flags without waiting for them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
import re
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import NoReturn

PLATFORMS = ("auto", "cpu", "gpu", "tpu")

# jaxlib < 0.11 on CPU: a fusion pass makes deep MJX body chains up to 1,000 times slower.
SLOW_FUSION = "--xla_cpu_use_fusion_emitters"

# Of matrix products of float32. On NVIDIA GPUs since Ampere jax's own choice is TensorFloat-32, which keeps about
# three decimal digits: too few for physics (mujoco_playground's issue 86).
PRECISIONS = ("auto", "default", "bfloat16", "tensorfloat32", "float32")

# How long a process waits for the others at the end: the first one still draws.
SHUTDOWN_SECONDS = 3600

# Log levels of C++ and absl; whoever wants more sets them before starting.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "GLOG_minloglevel": "2", "GRPC_VERBOSITY": "ERROR"}

# jax's LAPACK on CPU is SciPy's OpenBLAS, whose threads spin for a while after every call: at T = 50 the T×T work of
# IMTL-G, ConFIG, Aligned-MTL, UPGrad or DualProj then slows the whole update by up to 1.7 times (benchmarks/grads.py).
BLAS = {"OPENBLAS_NUM_THREADS": "1"}


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what must be set before jax and mujoco are imported. A value that the user has set is kept."""
    if jaxlib_version() < (0, 11) and SLOW_FUSION not in environ.get("XLA_FLAGS", ""):
        environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {SLOW_FUSION}=false".strip()
    if sys.platform == "linux" and "MUJOCO_GL" not in environ and _has_egl():
        environ["MUJOCO_GL"] = "egl"  # pictures without a display
    for name, value in {**QUIET, **BLAS}.items():
        environ.setdefault(name, value)
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _has_egl() -> bool:
    """True if the libraries of MuJoCo's EGL backend load; with MUJOCO_GL=egl and without them its import fails."""
    return _loads("libEGL.so.1") and (_loads("libOpenGL.so.0") or _loads("libGL.so.1"))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def jaxlib_version() -> tuple[int, int]:
    """Major and minor version of the installed jaxlib, without importing it."""
    numbers = re.findall(r"\d+", importlib.metadata.version("jaxlib"))
    return int(numbers[0]), int(numbers[1])


def choose_platform(platform: str) -> None:
    """Make jax run on a kind of device: "auto" (jax's own choice), "cpu", "gpu" or "tpu".

    Raises:
        ValueError: there is no such device, or jax has no support for it installed.
    """
    if platform == "auto":
        return
    # The CPU stays visible beside an accelerator: host callbacks and checkpoints use it.
    wanted = {"cpu": "cpu", "gpu": f"{_gpu_backend()},cpu", "tpu": "tpu,cpu"}[platform]
    os.environ["JAX_PLATFORMS"] = wanted
    import jax

    try:
        jax.config.update("jax_platforms", wanted)  # in case jax was imported before
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:
        found, reason = "none", str(error).split("\n")[0]
    else:
        reason = f"jax finds only {found.upper()} devices"
    if found != platform:
        raise ValueError(
            f"--platform={platform}: no {platform.upper()} that jax can use ({reason}). "
            f"{_INSTALL.get(platform, '')}Use --platform=cpu or leave --platform out."
        )


_INSTALL = {
    "gpu": "On a machine with an NVIDIA GPU install its support with: pip install 'mtjax[cuda]'. ",
    "tpu": "On a TPU machine install its support with: pip install 'mtjax[tpu]'. ",
}


def _gpu_backend() -> str:
    """jax's name for the kind of GPU whose plugin is installed."""
    installed = {dist.metadata["Name"] or "" for dist in importlib.metadata.distributions()}
    return "rocm" if any(name.startswith("jax-rocm") for name in installed) else "cuda"


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the processes that train one run together. Before jax looks for devices.

    Args:
        coordinator: HOST:PORT at which the first process listens; "auto" lets jax find out where it can (SLURM,
            Open MPI, TPU pods); "" stays alone.
        num_processes: how many there are; 0 if jax is to find out.
        process_id: which one this is, from 0; -1 if jax is to find out.

    Raises:
        ValueError: the three do not go together, or jax cannot find out.
    """
    given = {"num_processes": num_processes > 0, "process_id": process_id >= 0}
    if not coordinator:
        for name, there in given.items():
            if there:
                raise ValueError(f"--{name} goes with --coordinator=HOST:PORT, which is missing")
        return
    host, _, port = coordinator.rpartition(":")
    if coordinator != "auto":
        if not host or not port.isdecimal():
            raise ValueError(f"--coordinator={coordinator}: expected HOST:PORT of the first process, or auto")
        for name, there in given.items():
            if not there:
                raise ValueError(f"--coordinator={coordinator} needs --{name}")
        if process_id >= num_processes:
            raise ValueError(f"--process_id={process_id}: it must be below --num_processes={num_processes}")
    import jax

    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=None if coordinator == "auto" else coordinator,
            num_processes=num_processes or None,
            process_id=process_id if process_id >= 0 else None,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise ValueError(f"--coordinator={coordinator}: {error}") from None


def lost_a_process(error: Exception) -> bool:
    """True if a jax error says that another process no longer answers."""
    return any(word in str(error) for word in ("Gloo", "NCCL", "heartbeat", "preempted"))


def leave(code: int) -> NoReturn:
    """End this process at once. Otherwise jax waits for the others to end too, a minute or two if one is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def set_precision(precision: str) -> str:
    """Set the precision of matrix products of float32.

    "auto" is what JAX_DEFAULT_MATMUL_PRECISION says, or else float32 on accelerators and jax's own choice on a CPU.

    Returns:
        What holds now.
    """
    import jax

    if precision == "auto":
        own = jax.config.jax_default_matmul_precision or ("default" if jax.default_backend() == "cpu" else None)
        if own:
            return own
        precision = "float32"
    jax.config.update("jax_default_matmul_precision", precision)
    return precision


def cache_folder(choice: str) -> Path | None:
    """Where compiled programs are kept: "auto" is the user's cache folder, "none" nowhere, else a folder."""
    if choice == "none":
        return None
    if choice != "auto":
        return Path(choice).expanduser()
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtjax"


def keep_compiled_programs(choice: str) -> Path | None:
    """Switch jax's persistent compilation cache on, so that the second run of a program starts sooner.

    Returns:
        The folder, or None if the cache is off. A folder that cannot be written costs a warning, not the run.
    """
    folder = cache_folder(choice)
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it is not writable")
    except OSError as error:
        warnings.warn(f"no compilation cache at {folder}: {error}", stacklevel=2)
        return None
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder
