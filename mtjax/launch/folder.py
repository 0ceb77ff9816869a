"""The rules of run folders: where a new run goes, what is never overwritten, what can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtjax import options
from mtjax.launch import resolve
from mtjax.training import lock
from mtjax.training.config import CHECKPOINTS, CONFIG, METRICS, RunConfig, resumed, save_config

RUNS = Path("runs")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a command is about to do.

    Attributes:
        resolved: the configuration and its sources.
        run_dir: the run's folder.
        resume: True if the command continues a run.
        replace: True if a run in that folder is deleted first.
        extended_from: total steps before this command raised them, or None.
        afresh: True if there was nothing to resume yet and the run starts from the beginning.
    """

    resolved: resolve.Resolved
    run_dir: Path
    resume: bool = False
    replace: bool = False
    extended_from: int | None = None
    afresh: bool = False


def plan_new(resolved: resolve.Resolved, run_dir: str | None, *, overwrite: bool) -> Plan:
    """Plan a new run in ``run_dir``, or in ``runs/<suite>-<time>`` if no folder is named.

    Raises:
        ValueError: the folder is in use or cannot be made.
    """
    if run_dir is None:
        run_dir = unused(RUNS, resolved.config.suite)
        _require_writable(run_dir)
        return Plan(resolved, run_dir)
    folder = Path(run_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run_dir={run_dir} is a file, not a folder")
    used = in_use(folder)
    if used and not resolve.is_run(folder):
        raise ValueError(f"--run_dir={run_dir} is not empty and is not a run; choose another folder")
    if used and not overwrite and has_begun(folder):
        raise ValueError(
            f"--run_dir={run_dir} already holds a run; continue it with --resume, replace it with "
            "--overwrite, or choose another folder"
        )
    _require_writable(folder)
    return Plan(resolved, folder, replace=used)


def plan_resume(
    given: Mapping[str, Any], resolved: resolve.Resolved, run_dir: str | None, *, unknown: Collection[str] = ()
) -> Plan:
    """Plan to continue the run in ``run_dir``, or else the newest run with these options under ``runs``.

    If ``run_dir`` holds no run yet, e.g. because it was killed before it could write its configuration, the run starts
    from the beginning.

    Args:
        given: options that the user set on the command line or by ``--config_from``.
        resolved: what the same command would start without ``--resume``.
        run_dir: the run's folder, or None.
        unknown: options that were chosen automatically when the run was started, and are not compared.

    Raises:
        ValueError: there is no such run, it was started with other options, or it cannot be written.
    """
    folder = Path(run_dir).expanduser() if run_dir else _newest(resolved.config, unknown)
    if run_dir and not resolve.is_run(folder):
        if "suite" not in given and not folder.exists():  # a mistyped folder rather than a run of the default suite
            raise ValueError(f"nothing to resume: there is no folder {run_dir}; to start a run there, give its --suite")
        return dataclasses.replace(plan_new(resolved, run_dir, overwrite=False), afresh=True)
    return plan_continued(given, folder)


def plan_continued(given: Mapping[str, Any], run_dir: str | Path, *, preset: str = "auto") -> Plan:
    """Plan to continue an existing run by its own saved configuration, whatever the presets say by now.

    Args:
        given: as in :func:`plan_resume`; they may repeat the run's options.
        run_dir: the run's folder.
        preset: the preset that the command names; it may repeat the run's.

    Raises:
        ValueError: the run was started with other options or another preset, or its folder cannot be written.
    """
    folder = Path(run_dir).expanduser()
    saved = resolve.load_config(folder)
    resolve.require_preset(preset, saved, given, run_dir)
    config = resumed(saved, given, folder)
    _require_writable(folder)
    sources = dict.fromkeys(options.flatten(config), "run") | dict.fromkeys(given, "flag")
    extended = saved.total_steps if config.total_steps > saved.total_steps else None
    return Plan(resolve.Resolved(config, None, sources), folder, resume=True, extended_from=extended)


@contextlib.contextmanager
def opened(plan: Plan) -> Iterator[None]:
    """Lock the run's folder and write a new run's configuration; a run to be replaced is deleted only now.

    The configuration is written first: whenever the process is killed, the folder is empty or can be resumed. That of a
    run to be continued stays until its checkpoint is loaded, as the run may be refused until then.

    Raises:
        ValueError: another process is using the folder, or has left a run there since the plan was made. Nothing in
            the folder is touched.
    """
    with lock.lock(plan.run_dir, "run"):
        if not (plan.resume or plan.replace) and resolve.is_run(plan.run_dir):
            raise ValueError(f"--run_dir={plan.run_dir} now holds another process's run; choose another folder")
        if plan.replace:
            _empty(plan.run_dir)
        if not plan.resume:
            save_config(plan.resolved.config, plan.run_dir)
        yield


def in_use(folder: Path) -> bool:
    """True if the folder holds any file that is not hidden: a process killed early leaves only hidden ones."""
    return folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())


def has_begun(folder: Path) -> bool:
    """True if a run's folder holds any measurement or checkpoint. One that failed or was killed while it was compiled,
    e.g. as its environment has a fault, holds nothing that a new run could destroy."""
    with contextlib.suppress(FileNotFoundError), (folder / METRICS).open("rb") as lines:
        if any(b'"kind":"train"' in line or b'"kind":"evaluation"' in line for line in lines):
            return True
    return any(path.name.isdecimal() for path in (folder / CHECKPOINTS).glob("*"))


def _empty(folder: Path) -> None:
    """Delete the contents of a folder, except the lock that keeps other processes out meanwhile.

    The configuration goes last: if the process is killed, the folder still counts as a run that --overwrite accepts.
    """
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != lock.FILE:
            path.unlink()


def unused(parent: Path, suite: str) -> Path:
    """A path under ``parent`` that does not exist yet, named after the suite and the time."""
    stem = parent / f"{suite}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder, number = stem, 2
    while folder.exists():
        folder, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return folder


def _require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be created or written, before anything expensive happens."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"--run_dir={folder} cannot be created: {existing} is a file")
    if not os.access(existing, os.W_OK):
        why = "is not writable" if existing == folder.absolute() else f"cannot be created: {existing} is not writable"
        raise ValueError(f"--run_dir={folder} {why}")


def _newest(config: RunConfig, unknown: Collection[str]) -> Path:
    """The newest run under ``runs`` that this configuration could have started, the options in ``unknown`` aside."""
    asked = {name: value for name, value in options.flatten(config).items() if name not in unknown}
    runs = [folder for folder in RUNS.glob("*") if resolve.is_run(folder)] if RUNS.is_dir() else []
    runs.sort(key=lambda folder: (folder / CONFIG).stat().st_mtime, reverse=True)
    fitting = []
    for folder in runs:
        try:
            saved = resolve.load_config(folder)
            resumed(saved, asked, folder)
        except ValueError:
            continue
        if asked.get("total_steps") in (None, saved.total_steps):
            return folder
        fitting.append(folder)  # resuming would extend it
    if fitting:
        return fitting[0]
    hint = f"; the newest run there is {runs[0]}" if runs else ""
    raise ValueError(f"nothing to resume: no run with these options under {RUNS}{hint}; name a run with --run_dir")
