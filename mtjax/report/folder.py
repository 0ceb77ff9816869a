"""What a folder holds: a run or a sweep. Imports no jax, so that a command refuses a wrong folder at once."""

from __future__ import annotations

import os
import pathlib

from mtjax.sweeps.plan import MANIFEST
from mtjax.training.config import CONFIG

RUN, SWEEP = "run", "sweep"


def kind_of(folder: str | os.PathLike) -> str:
    """RUN or SWEEP.

    Raises:
        ValueError: the folder holds neither.
    """
    folder = pathlib.Path(folder)
    if (folder / MANIFEST).is_file():
        return SWEEP
    if (folder / CONFIG).is_file():
        return RUN
    what = f"it has neither {CONFIG} nor {MANIFEST}" if folder.is_dir() else "there is no such folder"
    raise ValueError(f"{folder} is neither a run nor a sweep: {what}")
