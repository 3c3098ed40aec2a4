"""Everything that `whiten` raises on purpose.

Every message is one line that says what was wrong and what to do about it; the
command line prints that line and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhitenError(Exception):
    """Base class: bad input, or a situation that the user can mend."""


class ConfigError(WhitenError, ValueError):
    """An option, a URI or a configuration file is wrong."""


class ImageError(WhitenError):
    """One image cannot be read; the reason is the message."""


class NoImagesError(WhitenError):
    """A folder or table holds no image that could be used."""


class StoreError(WhitenError):
    """An embedding store is damaged, foreign, or was made by another model."""


class WhiteningError(WhitenError):
    """A whitening cannot be fitted or applied."""


class RankDeficientError(WhiteningError):
    """More axes were asked for than the data spans."""


class ConstantInputError(WhiteningError):
    """Every fitting sample is the same vector."""


class NonFiniteInputError(WhiteningError):
    """Fitting or transformed samples hold NaN or infinity."""


class TeacherError(WhitenError):
    """A teacher or student cannot be loaded or used."""


class MissingExtraError(WhitenError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'whiten[{extra}]'")


class RunError(WhitenError):
    """A run folder is in the way, or a training run cannot go on."""


DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the reader of a record raises where its file is cut off, is no UTF-8 or JSON, lacks keys,
has values of other types, or a thousand open brackets."""


def nearest(word: object, choices: Iterable[str], n: int = 3) -> str:
    """`; did you mean 'a' or 'b'?` for the likeliest intended choices, or an empty string."""
    found = difflib.get_close_matches(str(word), list(choices), n=n, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(f) for f in found)}?" if found else ""


def one_line(error: BaseException) -> str:
    """What an exception says, for the inside of a message; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
