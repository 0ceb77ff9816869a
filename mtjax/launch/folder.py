"""The rules of a run's folder: where a new run goes, what is never overwritten, what can be resumed."""

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
from mtjax.training import files, lock
from mtjax.training.config import CONFIG, RunConfig, resumed

RUNS = Path("runs")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a command is about to do.

    Attributes:
        resolved: the configuration and its sources.
        run_dir: the run's folder.
        resume: True if it continues a run.
        replace: True if a run in that folder is deleted first.
        extended_from: total steps before this command raised them, or None.
        afresh: True if there was nothing to resume yet, so that the run starts from the beginning.
    """

    resolved: resolve.Resolved
    run_dir: Path
    resume: bool = False
    replace: bool = False
    extended_from: int | None = None
    afresh: bool = False


def plan_new(resolved: resolve.Resolved, run_dir: str | None, *, overwrite: bool) -> Plan:
    """A new run in ``run_dir``, or in ``runs/<suite>-<time>`` if none is named.

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
    if used and not overwrite:
        raise ValueError(
            f"--run_dir={run_dir} already holds a run; continue it with --resume, replace it with "
            "--overwrite, or choose another folder"
        )
    _require_writable(folder)
    return Plan(resolved, folder, replace=used)


def plan_resume(
    given: Mapping[str, Any], resolved: resolve.Resolved, run_dir: str | None, *, unknown: Collection[str] = ()
) -> Plan:
    """Continue the run in ``run_dir``, or the newest run of these options under ``runs`` if none is named.

    Where ``run_dir`` holds nothing yet, as of a run that was killed before it had written its configuration, that
    run is started from the beginning.

    Args:
        given: options that the user named, on the command line or by ``--config_from``.
        resolved: what the same command would start without ``--resume``.
        run_dir: the run's folder.
        unknown: options of ``resolved`` that were chosen when the run was started.

    Raises:
        ValueError: there is no such run, it was started with other options, or it cannot be written.
    """
    folder = Path(run_dir).expanduser() if run_dir else _newest(resolved.config, unknown)
    if run_dir and not resolve.is_run(folder):
        if "suite" not in given and not folder.exists():  # a mistyped folder, rather than a run of the default suite
            raise ValueError(f"nothing to resume: there is no folder {run_dir}; to start a run there, name its --suite")
        return dataclasses.replace(plan_new(resolved, run_dir, overwrite=False), afresh=True)
    return plan_continued(given, folder)


def plan_continued(given: Mapping[str, Any], run_dir: str | Path, *, preset: str = "auto") -> Plan:
    """Continue a run that is there: what it is, it says itself, and whatever preset is in force by now does not.

    Args:
        given: as of :func:`plan_resume`; they may repeat the run's.
        run_dir: the run's folder.
        preset: the one that the command names, which may repeat the run's.

    Raises:
        ValueError: it was started with other options or another preset, or it cannot be written.
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
    """Hold the run's folder, with its configuration in it; a run that is to be replaced is deleted now, not earlier.

    The configuration comes first: whenever the process is killed, the folder is empty or can be resumed.

    Raises:
        ValueError: another process is at work in the folder, or has left a run there since the plan was made.
            Nothing of it is touched.
    """
    with lock.lock(plan.run_dir, "run"):
        if not (plan.resume or plan.replace) and resolve.is_run(plan.run_dir):
            raise ValueError(
                f"--run_dir={plan.run_dir} has come to hold a run of another process; choose another folder"
            )
        if plan.replace:
            _empty(plan.run_dir)
        config = plan.resolved.config
        files.write_json(plan.run_dir / CONFIG, dataclasses.asdict(config))
        files.write_atomically(plan.run_dir / resolve.FLAGS, resolve.flagfile(config).encode())
        yield


def in_use(folder: Path) -> bool:
    """True if the folder holds any file that is not hidden: a process killed early leaves only hidden ones."""
    return folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())


def _empty(folder: Path) -> None:
    """Delete what is in a folder, but for the lock that keeps others out meanwhile.

    The configuration goes last: whenever the process is killed, --overwrite can be said again.
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
    """Refuse a folder that cannot be made or written, before anything expensive happens."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"--run_dir={folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK):
        why = "is not writable" if existing == folder.absolute() else f"cannot be made: {existing} is not writable"
        raise ValueError(f"--run_dir={folder} {why}")


def _newest(config: RunConfig, unknown: Collection[str]) -> Path:
    """The newest run under ``runs`` that this configuration could have started, whatever the unknown options were."""
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
        fitting.append(folder)  # it would be extended
    if fitting:
        return fitting[0]
    hint = f"; the newest run there is {runs[0]}" if runs else ""
    raise ValueError(f"nothing to resume: no run of these options under {RUNS}{hint}; name a run with --run_dir")
