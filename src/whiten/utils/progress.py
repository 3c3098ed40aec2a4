"""Show progress on stderr: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[..., None]
"""Called with (done, total), and named values to show, such as loss="1.234"."""

_QUIET_SECONDS = 20.0


def announce(text: str) -> None:
    """Print a line on stderr without disturbing the progress."""
    print(text, file=sys.stderr)


@contextmanager
def progress(description: str, *, enabled: bool = True, unit: str = "") -> Iterator[Update]:
    """Yield a function that shows the progress of the work.

    Args:
        unit: unit of the count, such as `images`; if given, the speed is shown.
    """
    if not enabled:
        yield lambda done, total, **figures: None
    elif sys.stderr.isatty():
        with _bar(description) as update:
            yield _with_speed(update, unit)
    else:
        yield _with_speed(_lines(description), unit)


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


def _lines(description: str) -> Update:
    """Print lines for logs: one every 20 s, and one at the end."""
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
        print(f"{description}: {done}/{total}, {when} {_text(figures)}".rstrip(), file=sys.stderr)

    return update


def _text(figures: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in figures.items())
