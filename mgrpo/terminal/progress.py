"""Progress of long work: a live bar on a terminal, plain lines elsewhere, never silent for more than two seconds.

    with Progress("grpo", total=200) as progress:
        for iteration in range(200):
            ...
            progress.update(loss=loss, reward=reward)

`MGRPO_PROGRESS` chooses: `rich` (bar), `plain` (lines), `plain:30` (a line every 30 seconds), `off` (nothing, errors
apart); unset: a bar when standard error is a terminal, lines otherwise. Everything goes to standard error, so that
standard output stays clean for results. Bars nest: the outer one shows the stage, the inner one the work in it. A
piece of work may have a view, some lines that stand under the bar of a terminal that is wide and high enough for them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from mgrpo.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL = 1.6
"""Seconds between plain lines: below two, with room for a late timer."""

RATE_WINDOW = 20.0
"""Seconds over which the rate is measured, so that a slow start doesn't spoil the time left."""


class View(Protocol):
    """More about a piece of work than its bar tells, such as :class:`mgrpo.train.live_view.LiveView`."""

    def lines(self, width: int) -> Sequence[Sequence[tuple[str, str]]]:
        """Lines of at most ``width`` columns, in pieces of (text, role of its colour); none: nothing to show. Called
        from another thread than the work's."""
        ...


class Progress:
    """Shows how far one piece of work is. A context manager; `update` may be called from any thread."""

    def __init__(self, label: str, total: int | None = None, unit: str = "it", *, start: int = 0) -> None:
        """`total`: units of work in all, None when unknown. `start`: units done by an earlier process (a resumed
        run)."""
        self.label = label
        """What is being done, a word or two."""
        self.total = total
        """Units of work in all; None when unknown."""
        self.unit = unit
        """Name of one unit in the rate, such as it or windows."""
        self.done = start
        """Units finished so far."""
        self.view: View | None = None
        """What to show under the bar; on a terminal only."""
        self._start = start
        self._values: dict[str, Any] = {}
        self._began = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._began, start)])
        self._ended: float | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        self._marks = deque([(self._began, self.done)])
        _DISPLAY.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        _DISPLAY.leave(self, failed=kind is not None)

    def update(self, n: int = 1, **values: float | int | str) -> None:
        """Count `n` more units and show `values` (such as loss=0.1); values given before stay until given again."""
        now = time.monotonic()
        with _DISPLAY.lock:
            self.done += n
            self._values.update(values)
            self._marks.append((now, self.done))
            while len(self._marks) > 2 and now - self._marks[1][0] > RATE_WINDOW:
                self._marks.popleft()
        _DISPLAY.updated(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the work began (or that it took)."""
        return (time.monotonic() if self._ended is None else self._ended) - self._began

    @property
    def rate(self) -> float | None:
        """Units per second lately; None before the first one."""
        first, last = self._marks[0], self._marks[-1]
        span = last[0] - first[0]
        return (last[1] - first[1]) / span if span > 0 and last[1] > first[1] else None

    @property
    def time_left(self) -> float | None:
        """Seconds until the end at the present rate; None while it can't be told."""
        rate = self.rate
        if rate is None or self.total is None:
            return None
        # the unit now in work has already used some of its time
        waited = time.monotonic() - self._marks[-1][0] if self._ended is None else 0.0
        return max(0.0, (self.total - self.done) / rate - min(waited, 1 / rate))

    def describe_values(self) -> str:
        """The values on show, such as "loss 0.0123  reward 1.2"."""
        return "  ".join(f"{name} {format_value(value)}" for name, value in list(self._values.items()))

    def describe(self) -> str:
        """One plain line about the present state."""
        parts = [self.label]
        if self.total is None:
            parts.append(f"{self.done} {self.unit}")
        else:
            parts.append(f"{self.done}/{self.total} {self.unit}")
            if self.total:
                parts.append(f"{100 * self.done / self.total:.0f} %")
        parts += [self.describe_values()] if self._values else []
        rate, left = self.rate, self.time_left
        parts += [format_rate(rate, self.unit)] if rate is not None else []
        parts.append(f"elapsed {format_seconds(self.elapsed)}")
        parts += [f"left {format_seconds(left)}"] if left is not None and self._ended is None else []
        return "  ".join(parts)

    def describe_end(self, *, failed: bool) -> str:
        """The last line: finished or stopped, how much, how long."""
        complete = not failed and (self.total is None or self.done >= self.total)
        count = (
            f"{self.done} {self.unit}" if self.total is None or complete else f"{self.done}/{self.total} {self.unit}"
        )
        done_here = self.done - self._start
        mean = f", {format_rate(done_here / self.elapsed, self.unit)}" if done_here and self.elapsed > 0 else ""
        values = f"  {self.describe_values()}" if self._values else ""
        ending = "done" if complete else "stopped"
        return f"{self.label}  {ending}: {count} in {format_seconds(self.elapsed)}{mean}{values}"


def format_value(value: Any) -> str:
    """A number in about four digits, anything else as text."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def format_seconds(seconds: float) -> str:
    """`0:07`, `12:34` or `1:02:03`."""
    whole = int(seconds + 0.5)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_rate(rate: float, unit: str) -> str:
    """`12.3 windows/s`, or `4.5 s/window` when slower than one a second."""
    if 0 < rate < 1:
        one = unit.removesuffix("s")
        return f"{1 / rate:.3g} s/{one}" if rate > 1e-3 else f"{1 / rate:.0f} s/{one}"
    return f"{rate:.3g} {unit}/s" if rate < 1000 else f"{rate:.0f} {unit}/s"


def notice(text: str) -> None:
    """Print one line for the user without disturbing a live bar. Shown in every mode."""
    _DISPLAY.post(text)
    _DISPLAY.flush()


def notice_from_signal(text: str) -> None:
    """Like `notice`, for a signal handler: takes no lock. Within a `Progress` the line appears within a quarter
    second."""
    _DISPLAY.post(text)
    if _DISPLAY.silent:
        _DISPLAY.take_posted()
    elif not _DISPLAY.active:
        with contextlib.suppress(OSError):
            os.write(2, (_DISPLAY.take_posted() + "\n").encode())


@contextlib.contextmanager
def silence(silent: bool = True) -> Iterator[None]:
    """Show nothing within the block, notices included, where `silent`: for all processes of a training but one."""
    before = _DISPLAY.silent
    _DISPLAY.silent = before or silent
    try:
        yield
    finally:
        _DISPLAY.silent = before


def display_mode() -> tuple[str, float]:
    """The mode in force ("rich", "plain" or "off") and the seconds between plain lines.

    Raises `InputError` for an unknown `MGRPO_PROGRESS`.
    """
    wanted = os.environ.get("MGRPO_PROGRESS", "").strip().lower()
    if not wanted or wanted == "auto":
        return ("rich" if _is_terminal() else "plain"), PLAIN_INTERVAL
    if wanted in ("rich", "plain", "off"):
        return wanted, PLAIN_INTERVAL
    mode, _, seconds = wanted.partition(":")
    try:
        interval = float(seconds)
    except ValueError:
        interval = -1.0
    if mode != "plain" or not interval > 0:
        raise InputError(
            f"MGRPO_PROGRESS must be off, plain, plain:SECONDS, rich or auto, got {wanted!r}. Change or unset it."
        )
    return "plain", interval


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


class _Display:
    """The one display of the process: a stack of active `Progress` objects and a thread that keeps it moving."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._stack: list[Progress] = []
        self._posted: deque[str] = deque()
        self._mode = "off"
        self._interval = PLAIN_INTERVAL
        self._last_line = 0.0
        self._rich: RichProgress | None = None
        self._ticker: threading.Thread | None = None
        self._stop = threading.Event()
        self.silent = False
        """Whether nothing is shown at all."""

    @property
    def active(self) -> bool:
        return bool(self._stack)

    def enter(self, progress: Progress) -> None:
        with self.lock:
            if not self._stack:
                self._mode, self._interval = ("off", PLAIN_INTERVAL) if self.silent else display_mode()
                if self._mode == "rich":
                    self._rich = _rich_progress()
                    self._rich.start()
                self._start_ticker()
            self._stack.append(progress)
            if self._rich is not None:
                progress._task = self._rich.add_task(
                    progress.label, total=progress.total, completed=progress.done, progress=progress
                )
            self._line(force=True)

    def leave(self, progress: Progress, *, failed: bool) -> None:
        with self.lock:
            self.flush()
            if self._mode != "off":
                self._print(self._path(progress, progress.describe_end(failed=failed)))
            if self._rich is not None and progress._task is not None:
                self._rich.remove_task(progress._task)
            if progress in self._stack:
                self._stack.remove(progress)
            if self._stack:
                return
            rich, self._rich = self._rich, None
            if rich is not None:
                rich.stop()
            ticker, self._ticker = self._ticker, None
            self._stop.set()
        # joined outside the lock: the thread may be waiting for it
        if ticker is not None and ticker is not threading.current_thread():
            ticker.join()

    def updated(self, progress: Progress) -> None:
        with self.lock:
            if self._rich is not None and progress._task is not None:
                self._rich.update(progress._task, completed=progress.done)
            self._line()

    def post(self, text: str) -> None:
        self._posted.append(text)

    def take_posted(self) -> str:
        texts = []
        while self._posted:
            texts.append(self._posted.popleft())
        return "\n".join(texts)

    def flush(self) -> None:
        with self.lock:
            while self._posted:
                self._print(self._posted.popleft())

    def view_of(self, width: int, height: int) -> RenderableType | None:
        """The view of the innermost work that has one, framed; None where there is none, or no room for it.

        Called by the thread that draws. It holds rich's lock, for which a holder of ours may be waiting: so it doesn't
        take ours.
        """
        views = [one.view for one in list(self._stack) if one.view is not None]
        if not views:
            return None
        inside = min(width, _WIDEST) - 4  # the frame and a blank on both sides
        lines = views[-1].lines(inside)
        if not lines or len(lines) + 2 + len(self._stack) >= height:
            return None
        from rich.panel import Panel
        from rich.text import Text

        text = Text("\n").join(Text.assemble(*((part, _ROLES[role]) for part, role in line)) for line in lines)
        text.no_wrap, text.overflow = True, "ellipsis"
        return Panel(text, width=inside + 4, border_style="dim")

    def _start_ticker(self) -> None:
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, args=(self._stop,), name="mgrpo-progress", daemon=True)
        self._ticker.start()

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(0.2):
            with self.lock:
                if stop.is_set():
                    return
                self.flush()
                self._line()

    def _line(self, force: bool = False) -> None:
        """In plain mode, print the innermost progress when the last line is old enough."""
        if self._mode != "plain" or not self._stack:
            return
        if force or time.monotonic() - self._last_line >= self._interval:
            self._print(self._path(self._stack[-1], self._stack[-1].describe()))

    def _path(self, progress: Progress, text: str) -> str:
        outer = self._stack[: self._stack.index(progress)] if progress in self._stack else []
        return "".join(f"{p.label} {p.done}{'' if p.total is None else f'/{p.total}'} > " for p in outer) + text

    def _print(self, text: str) -> None:
        if self.silent:
            return
        self._last_line = time.monotonic()
        try:
            if self._rich is not None:
                self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # closed pipe or stream: work matters more than showing it
            self._mode = "off"


_WIDEST = 120
"""Columns that a view takes at most."""

_ROLES = {"plain": "", "label": "dim", "value": "", "curve": "cyan", "warning": "yellow"}
"""Style of each role in a view."""


def _rich_progress() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class Values(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.fields["progress"].describe_values(), style="cyan")

    class Times(ProgressColumn):
        def render(self, task: Any) -> Text:
            progress: Progress = task.fields["progress"]
            rate, left = progress.rate, progress.time_left
            parts = [format_rate(rate, progress.unit)] if rate is not None else []
            parts.append(format_seconds(progress.elapsed))
            parts += [f"left {format_seconds(left)}"] if left is not None else []
            return Text("  ".join(parts), style="dim")

    class Bars(RichProgress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield from super().get_renderables()
            view = _DISPLAY.view_of(console.width, console.height)
            if view is not None:
                yield view

    console = Console(
        stderr=True, force_terminal=True if os.environ.get("MGRPO_PROGRESS", "").lower() == "rich" else None
    )
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
        # one line whatever the width: a narrow terminal cuts the numbers' end instead of stacking their words
        Values(table_column=Column(no_wrap=True)),
        Times(table_column=Column(no_wrap=True)),
        console=console,
        refresh_per_second=8,
        # a redirected standard output must stay clean: only take it over when it shares the terminal
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        redirect_stderr=True,
    )


_DISPLAY = _Display()
