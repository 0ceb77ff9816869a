"""Progress on the screen: a live bar on a terminal, plain lines elsewhere, or nothing.

compiling rollout … 12 s
hidden-hopper ━━━━━━━━━━━━━━━━━━━━ 41%  4.1M of 10.0M steps · 52.3k steps/s · 1:53 left
return: mean 812 · median 790 · worst 301
"""

from __future__ import annotations

import collections
import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text

from mtjax.training import statistics

PLAIN_SECONDS = 10.0  # minimum time between two lines without a terminal
RECENT_SECONDS = 30.0  # window over which the speed is measured


class Progress:
    """Shows the progress of a run. A context manager.

    Args:
        total_steps: environment steps of one seed.
        suite: the suite's name.
        num_seeds: agents in the program; the speed counts the steps of all of them.
        enabled: if False, show nothing, and leave warnings to Python.
        console: where to print; standard error by default.
    """

    def __init__(
        self,
        total_steps: int,
        suite: str,
        *,
        num_seeds: int = 1,
        enabled: bool = True,
        console: rich.console.Console | None = None,
    ):
        self.total_steps = total_steps
        self.suite = suite
        self.num_seeds = num_seeds
        self.enabled = enabled
        self.console = console or rich.console.Console(stderr=True)
        self._step = 0
        self._marks = collections.deque([(time.monotonic(), 0)])
        self._measures = ""
        self._compiling: tuple[str, float] | None = None
        self._compile_seconds = 0.0
        self._last_line = -PLAIN_SECONDS
        self._live: rich.live.Live | None = None
        self._old_showwarning = warnings.showwarning

    def __enter__(self) -> Progress:
        if self.enabled and self.console.is_terminal:
            live = rich.live.Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            live.start()
            self._live = live
        if self.enabled:
            self._old_showwarning = warnings.showwarning
            warnings.showwarning = self._show_warning
        self._restart_clock()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.enabled:
            warnings.showwarning = self._old_showwarning
        if self._live:
            self._live.stop()
            self._live = None
        elif self.enabled:
            self._line(self._status())

    # -------------------------------------------------------------------------------- called by the loop

    def start(self, step: int) -> None:
        """Set the step at which training starts or resumes: steps of earlier processes do not count towards the speed.

        Args:
            step: environment steps of one seed.
        """
        self._step = step
        self._restart_clock()

    def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """Report how far training has come.

        Args:
            step: environment steps of one seed.
            values: may have "success" and "return", [S, T]; success is preferred if there is any.
        """
        now = time.monotonic()
        self._step = step
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[0][0] > RECENT_SECONDS:
            self._marks.popleft()
        self._measures = describe(values or {}) or self._measures
        if self.enabled and not self._live and now - self._last_line >= PLAIN_SECONDS:
            self._line(self._status())

    def evaluation(self, step: int, split: str, mode: str, values: Mapping[str, Any]) -> None:
        """Show an evaluation as one permanent line. ``values`` are [S, T]."""
        self.message(f"evaluation at {steps_text(step)} steps ({split}, {mode}): {describe(values)}")

    def message(self, text: str) -> None:
        """Show a permanent line above the bar."""
        if self.enabled:
            self._line(text)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Context manager: show "compiling ``what`` …" with the elapsed seconds, then how long it took."""
        start = time.monotonic()
        self._compiling = what, start
        if self.enabled and not self._live:
            self._line(f"compiling {what} …")
        try:
            yield
        finally:
            self._compiling = None
            took = time.monotonic() - start
            self._compile_seconds += took
            self._restart_clock()
        self.message(f"compiled {what} in {took:.1f} s")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: exclude the time spent inside (an evaluation, a checkpoint) from the speed."""
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()  # a mark made inside (e.g. after compiling) is moved to the end
            self._marks = collections.deque((min(moment + end - start, end), step) for moment, step in self._marks)

    @property
    def steps_per_second(self) -> float | None:
        """Speed of all seeds together over the last RECENT_SECONDS, or None until it is known."""
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return self.num_seeds * (last - first) / (end - start) if end > start and last > first else None

    # ----------------------------------------------------------------------------------------- drawing

    def _restart_clock(self) -> None:
        self._marks = collections.deque([(time.monotonic(), self._step)])

    def _status(self) -> str:
        percent = min(100, int(100 * self._step / max(1, self.total_steps)))
        parts = [f"{percent}% of {self._all()}", *self._speed(), self._measures]
        return f"{self.suite}: " + " · ".join(part for part in parts if part)

    def _all(self) -> str:
        seeds = f" × {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        return f"{steps_text(self.total_steps)} steps{seeds}"

    def _speed(self) -> list[str]:
        speed = self.steps_per_second
        if not speed:
            return []
        left = self.num_seeds * max(0.0, self.total_steps - self._step) / speed
        return [f"{steps_text(speed)} steps/s", f"{time_text(left)} left"]

    def _render(self) -> rich.console.RenderableType:
        grid = rich.table.Table.grid(padding=(0, 1))
        if self._compiling:
            what, start = self._compiling
            grid.add_row(f"[yellow]compiling {what} … {time.monotonic() - start:.0f} s")
        bar = rich.table.Table.grid(padding=(0, 1))
        done = f"{steps_text(self._step)} of {self._all()}"
        bar.add_row(
            f"[bold]{self.suite}",
            rich.progress_bar.ProgressBar(total=self.total_steps, completed=self._step, width=24),
            f"{min(1.0, self._step / max(1, self.total_steps)):4.0%}",
            " · ".join([done, *self._speed()]),
        )
        grid.add_row(bar)
        if self._measures:
            grid.add_row(f"[cyan]{self._measures}")
        return grid

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.console.print(rich.text.Text(text), soft_wrap=True)

    def _show_warning(self, message: Any, category: Any, *_: Any, **__: Any) -> None:
        line = rich.text.Text(f"warning: {message}", style="yellow")
        self.console.print(line, soft_wrap=True)


def describe(values: Mapping[str, Any]) -> str:
    """Text with mean, median and worst of success (%) if there is any, otherwise of the return; "" if neither is known.

    Args:
        values: [S, T] by name. Tasks without a finished episode are ignored.
    """
    for name in ("success", "success_any", "return"):
        if name in values and np.isfinite(values[name]).any():
            scale, unit = (1, "") if name == "return" else (100, "%")
            numbers = []
            for label in ("mean", "median", "worst"):
                over_tasks = getattr(statistics, label)(values[name], skip_missing=True)
                numbers.append(f"{label} {number_text(scale * float(np.nanmean(over_tasks)))}{unit}")
            return f"{name.removesuffix('_any')}: " + " · ".join(numbers)
    return ""


def number_text(value: float) -> str:
    """Format a number with about three significant digits: 0.123, 12.3, 1,234."""
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def steps_text(steps: float) -> str:
    """Format a count with a unit: 950, 12.3k, 4.1M, 2.0G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if steps >= size:
            return f"{steps / size:.1f}{unit}"
    return f"{steps:.0f}"


def time_text(seconds: float) -> str:
    """Format seconds as 1:05 or 2:03:04."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
