"""``mtjax-watch``: show a sweep as a live table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text

from mtjax.launch import command, flags
from mtjax.options import option
from mtjax.sweeps import ledger, status
from mtjax.training.progress import time_text

USAGE = """
    mtjax-watch shows the progress of a sweep until it ends. Ctrl-C stops mtjax-watch, not the sweep.

      mtjax-watch sweeps/cagrad
"""
STYLES = {
    ledger.RUNNING: "bold cyan",
    ledger.DONE: "green",
    ledger.FAILED: "bold red",
    ledger.DIVERGED: "red",
    ledger.STOPPED: "yellow",
    ledger.WAITING: "dim",
}
WIDE = 110  # columns from which on there is room for progress bars beside the trials' names


@dataclasses.dataclass(frozen=True)
class Command:
    """Watching."""

    interval: float = option(2.0, "Seconds between updates.", above=0)
    once: bool = option(False, "Print the table once and exit.")


def define(values: command.FlagValues) -> None:
    """Define the command's flags."""
    flags.define_options(values, Command())
    flags.define_help(values, USAGE)


def run(values: command.FlagValues, folders: Sequence[str] = ()) -> int:
    """Watch the sweep in the given folder. Returns the exit code; bad input raises ValueError."""
    asked = Command(**flags.given(values, Command()))
    if len(folders) != 1:
        raise ValueError("name the folder of one sweep: mtjax-watch SWEEP")
    console = rich.console.Console()
    now = status.look(folders[0])
    if asked.once or not console.is_terminal:
        console.print(draw(now, len(now.rows), console.size.width))
        return command.OK
    with rich.live.Live(fitting(now, console), console=console, auto_refresh=False) as live:
        try:
            while now.launcher or any(row.state == ledger.RUNNING for row in now.rows):
                time.sleep(asked.interval)
                now = status.look(folders[0])
                live.update(fitting(now, console), refresh=True)
        except KeyboardInterrupt:
            pass
    return command.OK


def fitting(now: status.Status, console: rich.console.Console) -> rich.console.RenderableType:
    """The picture of a sweep with as many trials and errors as the screen has lines for."""
    width, height = console.size
    room = max(3, height - 1)  # without the line of the cursor
    some = max(1, room // 4)
    most = min(len(now.rows), room)
    while True:
        picture = draw(now, most, width, some)
        if most <= 1 or len(console.render_lines(picture, pad=False)) <= room:
            return picture
        most -= 1


def draw(
    now: status.Status, most: int, width: int = WIDE, most_errors: int | None = None
) -> rich.console.RenderableType:
    """The picture of a sweep: a table of its trials, and below it their errors, one line each.

    Args:
        now: the sweep's status.
        most: number of trials to show at most.
        width: width of the screen in columns. A narrow one has no bars, which would break the trials' names apart.
        most_errors: number of errors to show at most; None shows all.
    """
    lines = errors(now)
    shown = lines if most_errors is None or len(lines) <= most_errors else lines[: max(1, most_errors - 1)]
    texts = [rich.text.Text(line, style="red", no_wrap=True, overflow="ellipsis") for line in shown]
    if len(shown) < len(lines):
        texts.append(rich.text.Text(f"… and {len(lines) - len(shown)} more errors", style="dim"))
    return rich.console.Group(headline(now), table(now, most, width), *texts)


def headline(now: status.Status) -> rich.text.Text:
    """How many trials are in each state, and how long the sweep takes."""
    counts = ", ".join(f"{number} {state}" for state, number in now.state.count().items() if number)
    times = f"{time_text(now.elapsed)} so far" + (f", about {time_text(now.left)} left" if now.left else "")
    idle = "" if now.launcher or not any(r.state != ledger.DONE for r in now.rows) else " · no launcher is running"
    return rich.text.Text(f"{now.plan.name}: {counts} · {times}{idle}", style="bold")


def errors(now: status.Status) -> list[str]:
    """A line for every error, after the number with which the trial's name begins; a program's trials share a line."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in now.rows:
        if row.error:
            found.setdefault((row.program, row.error), []).append(row.trial.split("_")[0])
    names = {key: key[0] if len(trials) > 1 else trials[0] for key, trials in found.items()}
    return [f"{names[program, error]}: {' '.join(error.split())}" for program, error in found]


def table(now: status.Status, most: int, width: int) -> rich.table.Table:
    """The table of a sweep; the arguments are those of :func:`draw`."""
    wide = width >= WIDE
    drawn = rich.table.Table(box=None, pad_edge=False, header_style="dim")
    measure = next((row.measure for row in now.rows if row.measure), "")
    for name in ("trial", "program", "state"):
        drawn.add_column(name, no_wrap=name != "trial", overflow="fold")
    for name, justify in (("done", "left"), ("", "right")) if wide else (("done", "right"),):
        drawn.add_column(name, justify=justify, no_wrap=True)
    for name in (f"{measure} (mean)", "(worst)", "steps/s"):
        drawn.add_column(name.strip() if measure or name == "steps/s" else "", justify="right", no_wrap=True)
    for row in now.rows[:most]:
        style = STYLES[row.state]
        bar = [rich.progress_bar.ProgressBar(total=1.0, completed=row.share, width=16)] if wide else []
        cells = [figure(row.measures.get(name), row.measure) for name in ("mean", "worst")]
        speed = f"{row.speed:,.0f}" if row.speed else ""
        state = rich.text.Text(row.state, style=style)
        drawn.add_row(row.trial, row.program, state, *bar, f"{row.share:.0%}", *cells, speed)
    if len(now.rows) > most:
        drawn.add_row(f"… and {len(now.rows) - most} more", style="dim")
    return drawn


def figure(value: float | None, measure: str) -> str:
    """Format a measured value for display."""
    if value is None:
        return ""
    if measure.startswith("success"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    command.launch(define, run, argv, positional=True)


if __name__ == "__main__":
    main()
