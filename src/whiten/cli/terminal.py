"""Output and exit of the command line: results on stdout, all else on stderr, one-line errors."""

from __future__ import annotations

import codecs
import io
import json
import logging
import math
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cyclopts import CoercionError, CycloptsError, MissingArgumentError

from whiten.errors import WhitenError, counted, one_line
from whiten.utils.validation import describe

_LISTED = 10  # lines of a list on stderr; a file holds longer ones
USAGE, BROKEN_PIPE = 2, 141  # the latter as in shells


_NAMES = "whiten-names"


def _encode_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Keep the bytes of file names that are no text; escape what the terminal's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    out = b""
    for char in error.object[error.start : error.end]:
        is_byte = "\udc80" <= char <= "\udcff"
        out += bytes([ord(char) - 0xDC00]) if is_byte else char.encode("ascii", "backslashreplace")
    return out, error.end


codecs.register_error(_NAMES, _encode_name)


class _Notes(logging.Handler):
    """Prints what the library logs on stderr, each line once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self._told:
            self._told.add(text)
            say(f"whiten: {text}")


def _tell_logged() -> None:
    for package in ("datasets", "store", "models", "index", "evaluation"):
        name = f"whiten.{package}"
        logging.getLogger(name).handlers[:] = [_Notes()]


_WAIT, _WAITS = 0.05, 400  # seconds, and how often: no import may keep an interrupt for longer


def _is_importing(frame: Any) -> bool:
    """Return whether a module is being imported.

    Libraries swallow what is raised then, or leave halves of modules, whose errors hide it.
    """
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _send_again(number: int) -> None:
    """Send a signal to the main thread, whose waiting it interrupts on systems that can."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(signal.Signals(number))


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let `kill`, a scheduler or a closed terminal interrupt as Ctrl-C does: Python would only die.

    Temporary files would stay, and nothing would say how to continue. All wait until what is being
    imported is.
    """

    waits = 0

    def interrupt(number: int, frame: Any) -> None:
        nonlocal waits
        if waits < _WAITS and _is_importing(frame):
            waits += 1
            timer = threading.Timer(_WAIT, _send_again, [number])
            timer.daemon = True
            timer.start()
            return
        raise KeyboardInterrupt(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others may set no handlers
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has only the first two
            number = getattr(signal, name, None)
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            if number is not None and signal.getsignal(number) == usual:  # not of `nohup`
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_line_endings(arguments: Sequence[str]) -> Iterator[None]:
    """Turn user errors, interrupts and closed pipes into one line and an exit code.

    Args:
        arguments: the command line; after an interrupt the message says how to continue it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_NAMES)
    _tell_logged()
    try:
        with _signals_interrupt():
            yield
        if sys.stdout is not None:  # closed with >&-
            sys.stdout.flush()
    except (WhitenError, CycloptsError) as error:
        _end(_told(error), USAGE)
    except KeyboardInterrupt as error:
        for child in multiprocessing.active_children():  # Python would wait for them to end
            child.terminate()
        number = error.args[0] if error.args else signal.SIGINT
        _end(f"interrupted: {how_to_continue(arguments)}", 128 + number)  # as in shells
    except BrokenPipeError:  # the reader of `whiten … | head` has closed the pipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # Python would report errors when flushing them
            os.dup2(nowhere, stream)
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        what = " ".join((error.strerror or str(error)).split())
        advice = "make room or give access and run again"
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            advice = "name another place"
        _end(f"{what}{where}; finished work is kept, {advice}", USAGE)


def _told(error: Exception) -> str:
    """Return an error in one line, which says what a value must be as that of a file does."""
    line = one_line(error)
    if isinstance(error, CoercionError) and error.token is not None:
        start, is_unable, _ = line.partition("unable to convert ")
        if is_unable:
            return f"{start}must be {describe(error.target_type)}, not {error.token.value!r}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        if name.startswith("-"):
            return f"{name} needs a value"
        return f"name {name} before the options, of which some take all that follows"
    return line


def how_to_continue(arguments: Sequence[str]) -> str:
    """Say how to continue after an interrupt without losing work."""
    verb = arguments[0] if arguments else ""
    out = _option(arguments, "--out")
    if verb == "distill" and out is not None and Path(out, "config.yaml").is_file():
        return f"finished work is kept, whiten distill --out {shlex.quote(out)} --resume continues"
    is_cached = any(_option(arguments, name) for name in ("--cache", "--embeddings"))
    if (
        verb in ("embed", "search", "demo")
        or (verb in ("evaluate", "dedup", "compact", "diagnose") and is_cached)
        or (verb == "dedup" and out is not None)
    ):
        return "finished work is kept, the same command continues"
    return "nothing is broken, run the same command again"


def _option(arguments: Sequence[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def _end(message: str, code: int) -> None:
    say(f"whiten: {message}")
    sys.exit(code)


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning on one line, without its location in the source."""
    say(f"whiten: warning: {' '.join(str(message).split())}")


def print_json(value: Any) -> None:
    """Print JSON, which has no NaN or infinity: they are null."""
    value = _finite(value)
    if not _is_unicode(getattr(sys.stdout, "encoding", None)):  # it is None if it was closed
        print(json.dumps(value, indent=2))
        return
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # A lone surrogate stands for a byte of a file name that is not valid Unicode: JSON can escape
    # it.
    print(text.encode("utf-8", "backslashreplace").decode())


def _finite(value: Any) -> Any:
    """Replace NaN and infinity in plain values by None."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_unicode(encoding: str | None) -> bool:
    return encoding is None or codecs.lookup(encoding).name.startswith("utf")


def print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def list_skipped(skipped: Sequence[Any], what: str = "image") -> None:
    """List on stderr the images that were skipped, with the reasons."""
    if skipped:
        say(f"{counted(len(skipped), what)} skipped:")
        _list([f"{printable(skip.id)}: {skip.reason}" for skip in skipped], "skipped")


def list_duplicates(groups: Sequence[Sequence[str]]) -> None:
    """List on stderr the images with the same content."""
    if groups:
        more = sum(len(group) - 1 for group in groups)
        say(f"{counted(more, 'image')} with the content of another:")
        _list([" = ".join(map(printable, group)) for group in groups], "copies")


def _list(lines: Sequence[str], name: str) -> None:
    """Print the first lines on stderr, and write all of them to a file if there are more."""
    for line in lines[:_LISTED]:
        say(f"  {line}")
    if len(lines) > _LISTED:
        where = _write_list(lines, name)
        say(f"  … and {len(lines) - _LISTED:,} more: {where or 'add --json'}")


def _write_list(lines: Sequence[str], name: str) -> str | None:
    try:
        handle, path = tempfile.mkstemp(prefix=f"whiten-{name}-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError:
        return None
    return f"all are in {path}"


def printable(name: str) -> str:
    """Escape line breaks and other control characters in a name."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
