"""How the command line speaks and ends: results on stdout, the rest on stderr, errors in a line."""

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

USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # the last two as shells number signals


@contextmanager
def one_line_endings(arguments: Sequence[str]) -> Iterator[None]:
    """Turn what a user can mend, an interrupt and a closed pipe into a line and an exit code.

    Args:
        arguments: of the command; an interrupt's line says how to go on with them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not text stay whole
    try:
        yield
        if sys.stdout is not None:  # closed with >&-
            sys.stdout.flush()
    except (WhitenError, CycloptsError) as error:
        _end(one_line(error), USAGE)
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():  # Python would wait for their ends
            child.terminate()
        _end(f"interrupted: {how_to_go_on(arguments)}", INTERRUPTED)
    except BrokenPipeError:  # the reader of `whiten … | head` has enough
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # Python would complain while it flushes them
            os.dup2(nowhere, stream)
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        what = " ".join((error.strerror or str(error)).split())
        _end(f"{what}:{where}; what is done is kept, make room or give access and run again", USAGE)


def how_to_go_on(arguments: Sequence[str]) -> str:
    """What to type after an interrupt, so that what is done is used."""
    verb = arguments[0] if arguments else ""
    out = _option(arguments, "--out")
    if verb == "distill" and out is not None and Path(out, "config.yaml").is_file():
        return f"what is done is kept, whiten distill --out {shlex.quote(out)} --resume goes on"
    is_cached = _option(arguments, "--embeddings") is not None
    if (
        verb in ("embed", "search", "demo")
        or (verb in ("evaluate", "dedup", "compact") and is_cached)
        or (verb == "dedup" and out is not None)
    ):
        return "what is done is kept, the same command goes on"
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
    """A line on stderr."""
    print(text, file=sys.stderr)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without the place in the source."""
    say(f"whiten: warning: {' '.join(str(message).split())}")


def print_json(value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Half a surrogate pair stands for a byte of a file name that is not text: JSON can escape it.
    print(text.encode("utf-8", "backslashreplace").decode())


def print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def list_skipped(skipped: Sequence[Any], what: str = "image") -> None:
    """Name on stderr each image that could not be used, with its reason."""
    if skipped:
        say(f"{len(skipped)} {what}{'' if len(skipped) == 1 else 's'} skipped:")
    for skip in skipped:
        say(f"  {printable(skip.id)}: {skip.reason}")


def list_duplicates(groups: Sequence[Sequence[str]]) -> None:
    """Name on stderr the images that have the same content."""
    if groups:
        more = sum(len(group) - 1 for group in groups)
        say(f"{more} image{'' if more == 1 else 's'} with the content of another:")
    for group in groups:
        say("  " + " = ".join(map(printable, group)))


def printable(name: str) -> str:
    """A name that may hold line breaks, as one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
