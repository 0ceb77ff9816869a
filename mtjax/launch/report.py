"""``mtjax-report``: compare runs and sweeps on one self-contained HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mtjax.launch import command, environment, flags
from mtjax.options import option
from mtjax.report.folder import kind_of

USAGE = """
    mtjax-report compares runs and sweeps on one self-contained HTML page.

      mtjax-report sweeps/cagrad
      mtjax-report runs/pcgrad runs/mean --output=comparison.html

    Runs that differ only in their seeds count as one method. Runs may still be training.
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """The report."""

    output: str = option("", "The HTML file to write; by default, report.html in the first folder.")
    title: str = option("", "Title of the page; by default, the folders' names.")
    video_megabytes: float = option(
        30.0, "Videos are embedded in the page up to this total size; the others are linked.", low=0
    )


def define(values: command.FlagValues) -> None:
    """Define the command's flags."""
    flags.define_options(values, Command())
    flags.define_help(values, USAGE)


def run(values: command.FlagValues, folders: Sequence[str] = ()) -> int:
    """Write the report of ``folders``. Returns the exit code; bad input raises ValueError."""
    asked = Command(**flags.given(values, Command()))
    if not folders:
        raise ValueError("name the folders of runs or sweeps: mtjax-report FOLDER ...")
    output = Path(asked.output) if asked.output else Path(folders[0]) / "report.html"
    if output.is_dir():
        raise ValueError(f"--output={asked.output} is a folder; name a file")
    for folder in folders:
        kind_of(folder)  # raises for a bad folder, before the slow import of jax
    environment.prepare()

    from mtjax.report import page

    written = page.write(folders, output, title=asked.title, video_megabytes=asked.video_megabytes)
    print(f"report: {written}", flush=True)
    return command.OK


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    command.launch(define, run, argv, positional=True)


if __name__ == "__main__":
    main()
