"""Show progress on stderr: a bar on a terminal, occasional lines elsewhere; and log it."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

Update = Callable[..., None]
"""Called with (done, total), and named values to show, such as loss="1.234"."""

_QUIET_SECONDS = 20.0

_is_quiet = False
_log: IO[bytes] | None = None


def be_quiet(quiet: bool) -> None:
    """Show no progress in this process, or show it again. Process-wide; logs have it anyway."""
    global _is_quiet
    _is_quiet = quiet


def is_quiet() -> bool:
    return _is_quiet


@contextmanager
def quiet_restored() -> Iterator[None]:
    """Show progress as before when the block ends."""
    before = _is_quiet
    try:
        yield
    finally:
        be_quiet(before)


def announce(text: str) -> None:
    """Print a line on stderr without disturbing the progress, and log it."""
    note(text)
    if not _is_quiet:
        print(text, file=sys.stderr)


def note(text: str) -> None:
    """Write a line to the log, if there is one, with the time."""
    if _log is not None:
        with suppress(OSError, ValueError):  # a full disk is told by what is really needed
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(text.split())}\n"
            _log.write(line.encode("utf-8", "backslashreplace"))


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"warning: {record.getMessage()}")


@contextmanager
def logging_to(path: Path, *, enabled: bool = True) -> Iterator[None]:
    """Append progress, announcements and warnings to a file, for the time of the block."""
    global _log
    if not enabled:
        yield
        return
    root, handler = logging.getLogger("whiten"), _Warnings(logging.WARNING)
    show = warnings.showwarning

    def show_and_note(message: Warning | str, *rest: Any, **more: Any) -> None:
        note(f"warning: {message}")
        show(message, *rest, **more)

    before = _log
    # Unbuffered: on a full disk, closing a buffer would raise in place of the block's own error.
    with path.open("ab", buffering=0) as _log:
        root.addHandler(handler)
        warnings.showwarning = show_and_note
        try:
            yield
        except BaseException as error:
            note(f"ended early: {error or type(error).__name__}")
            raise
        finally:
            root.removeHandler(handler)
            warnings.showwarning = show
            _log = before


@contextmanager
def progress(description: str, *, enabled: bool = True, unit: str = "") -> Iterator[Update]:
    """Yield a function that shows the progress of the work.

    Args:
        unit: unit of the count, such as `images`; if given, the speed is shown.
    """
    if not enabled:
        yield lambda done, total, **figures: None
        return
    logged = _lines(description, note)
    if _is_quiet:
        yield _with_speed(logged, unit)
    elif sys.stderr.isatty():
        with _bar(description) as shown:
            yield _with_speed(_both(shown, logged), unit)
    else:
        yield _with_speed(_both(_lines(description, _print), logged), unit)


def _print(text: str) -> None:
    print(text, file=sys.stderr)


def _both(first: Update, second: Update) -> Update:
    def update(done: int, total: int, **figures: str) -> None:
        first(done, total, **figures)
        second(done, total, **figures)

    return update


def _with_speed(show: Update, unit: str) -> Update:
    start = time.monotonic()

    def update(done: int, total: int, **figures: str) -> None:
        if unit:
            speed = done / max(time.monotonic() - start, 1e-3)
            figures[unit] = f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
        show(done, total, **figures)

    return update


@contextmanager
def _bar(description: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=None, figures="")

        def update(done: int, total: int, **figures: str) -> None:
            bar.update(task, completed=done, total=total, figures=_text(figures))

        yield update


def _lines(description: str, write: Callable[[str], None]) -> Update:
    """Write lines: one every 20 s, and one at the end."""
    start = last = time.monotonic()

    def update(done: int, total: int, **figures: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < _QUIET_SECONDS:
            return
        last = now
        elapsed = now - start
        left = elapsed / max(done, 1) * (total - done)
        when = f"{left:.0f} s left" if done < total else f"{elapsed:.0f} s"
        write(f"{description}: {done}/{total}, {when} {_text(figures)}".rstrip())

    return update


def _text(figures: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in figures.items())
