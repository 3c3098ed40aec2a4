"""All exceptions that `whiten` raises on purpose.

Every message is one line with the problem and its remedy; the command line prints it and exits with
code 2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator


class WhitenError(Exception):
    """Base class: bad input, or a situation that the user can resolve."""


class ConfigError(WhitenError, ValueError):
    """An option, a URI or a configuration file is wrong."""


class ImageError(WhitenError):
    """An image cannot be read; the message is the reason."""


class UnreadableError(ImageError):
    """An image could not be read now, which says nothing about its content: it is tried again."""


class NoImagesError(WhitenError):
    """A folder or table holds no usable image."""


class StoreError(WhitenError):
    """An embedding store is damaged, foreign, or was made by another model."""


class StorageError(WhitenError):
    """A storage service does not answer, refuses, or does not have what a URL names."""


class NotThereError(StorageError):
    """There is no such bucket or object."""


class ChangedError(StorageError):
    """A file or an object is of another version than when it was listed."""


class LockedError(StoreError):
    """Another process is changing an index: the same call can succeed once it is done."""


class WhiteningError(WhitenError):
    """A whitening cannot be fitted or applied."""


class RankDeficientError(WhiteningError):
    """More axes were requested than the data spans."""


class ConstantInputError(WhiteningError):
    """All samples of the fit are equal."""


class NonFiniteInputError(WhiteningError):
    """Samples hold NaN or infinity."""


class TeacherError(WhitenError):
    """A teacher or student cannot be loaded or used."""


class MissingExtraError(WhitenError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'whiten[{extra}]'")


class RunError(WhitenError):
    """A run folder is occupied, or a training run cannot continue."""


class ClusterError(WhitenError):
    """A cluster cannot be reached, does not fit this machine, or cannot go on."""


DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors of a record's reader if the file is truncated, is not UTF-8 or JSON, lacks keys, has
values of other types, or is nested too deeply."""


UPGRADE = "a later version of whiten: upgrade, `pip install --upgrade whiten`"


def refuse_later(
    place: object,
    what: str,
    found: object,
    *known: int,
    error: type[WhitenError] = StoreError,
) -> None:
    """Refuse what a later version wrote: it is whole, so the remedy is not to delete it.

    Args:
        place: its place, for the message.
        what: its kind, for the message: "index".
        found: the format that it states.
        known: the formats that this version reads, in order.
        error: the type to raise if the format is a later one.
    """
    number = int(found) if isinstance(found, str) and found.isdecimal() else found
    if isinstance(number, int) and number > known[-1]:
        reads = " and ".join(map(str, known))
        raise error(
            f"{place} has {what} format {number}, this version reads {reads}: it is of {UPGRADE}"
        )


def nearest(word: object, choices: Iterable[str]) -> str:
    """Return `; did you mean 'a' or 'b'?` for the closest choices, or an empty string."""
    found = difflib.get_close_matches(str(word), list(choices), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(f) for f in found)}?" if found else ""


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line; its type's name if it has none."""
    if isinstance(error, KeyError) and re.fullmatch(r"'\w+'", str(error)):
        return f"it lacks {error}"  # a record, which has no such entry
    return " ".join(str(error).split()) or type(error).__name__


def causes(error: BaseException, *, contexts: bool = False) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on; ends where one is raised from itself.

    Args:
        contexts: also follow errors that were only being handled when the next one was raised.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is earlier for earlier in seen):
        yield cause
        seen.append(cause)
        cause = cause.__cause__ or (cause.__context__ if contexts else None)


def counted(count: int, what: str) -> str:
    """Return `1 image`, `2,000 images`, `3 queries`."""
    if count != 1:
        what = f"{what[:-1]}ies" if what.endswith(("py", "ry")) else f"{what}s"
    return f"{count:,} {what}"
