"""Output and exit of the command line: results on stdout, all else on stderr, one-line errors."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError

from whiten.errors import WhitenError, one_line

USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # the last two as in shells


@contextmanager
def one_line_endings(arguments: Sequence[str]) -> Iterator[None]:
    """Turn user errors, interrupts and closed pipes into one line and an exit code.

    Args:
        arguments: the command line; after an interrupt the message says how to continue it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # keeps file names that are no text
    try:
        yield
        if sys.stdout is not None:  # closed with >&-
            sys.stdout.flush()
    except (WhitenError, CycloptsError) as error:
        _end(one_line(error), USAGE)
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():  # Python would wait for them to end
            child.terminate()
        _end(f"interrupted: {how_to_continue(arguments)}", INTERRUPTED)
    except BrokenPipeError:  # the reader of `whiten … | head` has closed the pipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # Python would report errors when flushing them
            os.dup2(nowhere, stream)
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        what = " ".join((error.strerror or str(error)).split())
        _end(
            f"{what}:{where}; finished work is kept, make room or give access and run again", USAGE
        )


def how_to_continue(arguments: Sequence[str]) -> str:
    """Say how to continue after an interrupt without losing work."""
    verb = arguments[0] if arguments else ""
    out = _option(arguments, "--out")
    if verb == "distill" and out is not None and Path(out, "config.yaml").is_file():
        return f"finished work is kept, whiten distill --out {shlex.quote(out)} --resume continues"
    is_cached = any(_option(arguments, name) for name in ("--cache", "--embeddings"))
    if (
        verb in ("embed", "search", "demo")
        or (verb in ("evaluate", "dedup", "compact") and is_cached)
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
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # A lone surrogate stands for a byte of a file name that is not valid Unicode: JSON can escape
    # it.
    print(text.encode("utf-8", "backslashreplace").decode())


def print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def list_skipped(skipped: Sequence[Any], what: str = "image") -> None:
    """List on stderr the images that were skipped, with the reasons."""
    if skipped:
        say(f"{len(skipped)} {what}{'' if len(skipped) == 1 else 's'} skipped:")
    for skip in skipped:
        say(f"  {printable(skip.id)}: {skip.reason}")


def list_duplicates(groups: Sequence[Sequence[str]]) -> None:
    """List on stderr the images with the same content."""
    if groups:
        more = sum(len(group) - 1 for group in groups)
        say(f"{more} image{'' if more == 1 else 's'} with the content of another:")
    for group in groups:
        say("  " + " = ".join(map(printable, group)))


def printable(name: str) -> str:
    """Escape line breaks and other control characters in a name."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
