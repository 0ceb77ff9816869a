"""Setup of the process: variables needed before jax and mujoco start, the device, the compilation cache.

This module imports neither jax nor mujoco, so that a command can call ``prepare`` first and answer ``--help``
and mistyped flags without waiting for these imports.
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

# Precisions of float32 matrix products. On NVIDIA GPUs since Ampere, jax defaults to TensorFloat-32, which keeps about
# three decimal digits: too few for physics (mujoco_playground's issue 86).
PRECISIONS = ("auto", "default", "bfloat16", "tensorfloat32", "float32")

# How long a process waits for the others at the end: the first one still has plots and videos to draw.
SHUTDOWN_SECONDS = 3600

# Log levels of C++ libraries and absl; a user who wants more output sets these variables before starting.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "GLOG_minloglevel": "2", "GRPC_VERBOSITY": "ERROR"}

# On CPU, jax's LAPACK is SciPy's OpenBLAS, whose threads keep spinning after every call: at T = 50 the T×T work of
# IMTL-G, ConFIG, Aligned-MTL, UPGrad or DualProj then slows the whole update by up to 1.7 times (benchmarks/grads.py).
BLAS = {"OPENBLAS_NUM_THREADS": "1"}


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables needed before jax and mujoco are imported. Values that the user has set are kept."""
    if jaxlib_version() < (0, 11) and SLOW_FUSION not in environ.get("XLA_FLAGS", ""):
        environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {SLOW_FUSION}=false".strip()
    if sys.platform == "linux" and "MUJOCO_GL" not in environ and _has_egl():
        environ["MUJOCO_GL"] = "egl"  # render without a display
    for name, value in {**QUIET, **BLAS}.items():
        environ.setdefault(name, value)
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _has_egl() -> bool:
    """True if the libraries of MuJoCo's EGL backend load; without them, MUJOCO_GL=egl makes importing mujoco fail."""
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
    """Make jax use one kind of device: "auto" (jax's own choice), "cpu", "gpu" or "tpu".

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
    "gpu": "For NVIDIA GPUs, install: pip install 'mtjax[cuda]'. ",
    "tpu": "For TPUs, install: pip install 'mtjax[tpu]'. ",
}


def _gpu_backend() -> str:
    """jax's name for the kind of GPU whose plugin is installed."""
    installed = {dist.metadata["Name"] or "" for dist in importlib.metadata.distributions()}
    return "rocm" if any(name.startswith("jax-rocm") for name in installed) else "cuda"


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the processes that train one run together. Call it before jax looks for devices.

    Args:
        coordinator: HOST:PORT at which the first process listens; "auto" lets jax detect it where it can (SLURM,
            Open MPI, TPU pods); "" means a single process.
        num_processes: number of processes; 0 lets jax detect it.
        process_id: index of this process, from 0; -1 lets jax detect it.

    Raises:
        ValueError: the three arguments do not go together, or jax cannot detect them.
    """
    given = {"num_processes": num_processes > 0, "process_id": process_id >= 0}
    if not coordinator:
        for name, there in given.items():
            if there:
                raise ValueError(f"--{name} needs --coordinator=HOST:PORT")
        return
    host, _, port = coordinator.rpartition(":")
    if coordinator != "auto":
        if not host or not port.isdecimal():
            raise ValueError(f"--coordinator={coordinator}: expected HOST:PORT of the first process, or auto")
        for name, there in given.items():
            if not there:
                raise ValueError(f"--coordinator={coordinator} needs --{name}")
        if process_id >= num_processes:
            raise ValueError(f"--process_id={process_id}: must be less than --num_processes={num_processes}")
    import jax

    # The service's SIGTERM handler would replace ours.
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
    """True if a jax error means that another process no longer responds."""
    return any(word in str(error) for word in ("Gloo", "NCCL", "heartbeat", "preempted"))


def leave(code: int) -> NoReturn:
    """Exit at once. On a normal exit, jax waits for the other processes: a minute or two if one is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def set_precision(precision: str) -> str:
    """Set the precision of float32 matrix products.

    "auto" is JAX_DEFAULT_MATMUL_PRECISION if that is set, else float32 on accelerators and jax's default on CPU.

    Returns:
        The precision now in effect.
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
    """Folder of the compilation cache: "auto" is JAX_COMPILATION_CACHE_DIR or in the user's cache, "none" is None."""
    if choice == "none":
        return None
    if choice != "auto":
        return Path(choice).expanduser()
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtjax"


def keep_compiled_programs(choice: str) -> Path | None:
    """Turn on jax's persistent compilation cache, so that a program starts sooner the next time.

    Returns:
        The folder, or None if the cache is off. A folder that cannot be written causes a warning, not an error.
    """
    folder = cache_folder(choice)
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it is not writable")
    except OSError as error:
        warnings.warn(f"cannot use the compilation cache {folder}: {error}", stacklevel=2)
        return None
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder
