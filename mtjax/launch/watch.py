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
FRAME = 8  # lines of the screen that are not available for trials
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
    first = draw(now, _room(console), console.size.width)
    with rich.live.Live(first, console=console, auto_refresh=False) as live:
        try:
            while now.launcher or any(row.state == ledger.RUNNING for row in now.rows):
                time.sleep(asked.interval)
                now = status.look(folders[0])
                live.update(draw(now, _room(console), console.size.width), refresh=True)
        except KeyboardInterrupt:
            pass
    return command.OK


def _room(console: rich.console.Console) -> int:
    return max(3, console.size.height - FRAME)


def draw(now: status.Status, most: int, width: int = WIDE) -> rich.table.Table:
    """The table of a sweep.

    Args:
        now: the sweep's status.
        most: number of trials to show at most.
        width: width of the screen in columns. A narrow one has no bars, which would break the trials' names apart.
    """
    wide = width >= WIDE
    counts = ", ".join(f"{number} {state}" for state, number in now.state.count().items() if number)
    times = f"{time_text(now.elapsed)} so far" + (f", about {time_text(now.left)} left" if now.left else "")
    idle = "" if now.launcher or not any(r.state != ledger.DONE for r in now.rows) else " · no launcher is running"
    table = rich.table.Table(
        title=f"{now.plan.name}: {counts} · {times}{idle}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    measure = next((row.measure for row in now.rows if row.measure), "")
    for name in ("trial", "program", "state"):
        table.add_column(name, no_wrap=name != "trial", overflow="fold")
    for name, justify in (("done", "left"), ("", "right")) if wide else (("done", "right"),):
        table.add_column(name, justify=justify, no_wrap=True)
    for name in (f"{measure} (mean)", "(worst)", "steps/s"):
        table.add_column(name.strip() if measure or name == "steps/s" else "", justify="right", no_wrap=True)
    for row in now.rows[:most]:
        style = STYLES[row.state]
        bar = [rich.progress_bar.ProgressBar(total=1.0, completed=row.share, width=16)] if wide else []
        cells = [figure(row.measures.get(name), row.measure) for name in ("mean", "worst")]
        speed = f"{row.speed:,.0f}" if row.speed else ""
        trial = rich.text.Text(row.trial)
        if row.error:
            trial.append(f"\n{row.error}", style="red")
        state = rich.text.Text(row.state, style=style)
        table.add_row(trial, row.program, state, *bar, f"{row.share:.0%}", *cells, speed)
    if len(now.rows) > most:
        table.add_row(f"… and {len(now.rows) - most} more", style="dim")
    return table


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
