"""Find the files that a source names: brace ranges, globs, and the objects below a URL."""

from __future__ import annotations

import glob
import itertools
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from whiten.datasets.patterns import matches
from whiten.datasets.walking import is_left_out
from whiten.errors import ConfigError, NoImagesError
from whiten.storage.objects import exists, find_objects, forget
from whiten.storage.services import refuse_credentials, scheme_of
from whiten.utils.threads import ordered_map
from whiten.utils.urls import as_url, joined, named_place

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_GLOB = re.compile(r"[*?[]")
_MOST = 1_000_000  # files of one brace range
_AT_ONCE = 16  # requests


@dataclass(frozen=True)
class Located:
    """Files of one source.

    Attributes:
        root: folder or URL that their names start at.
        names: sorted names with slashes, relative to the root.
        is_named: whether the user named each of them, by a pattern or alone.
    """

    root: str
    names: list[str]
    is_named: bool

    def place(self, name: str) -> str:
        """Return path or URL of a file."""
        return joined(self.root, name)


def is_pattern(source: str | os.PathLike[str]) -> bool:
    """Return whether a source names files by a brace range or a glob."""
    text = named_place(source)
    if as_url(text) is None and os.path.lexists(text):
        return False
    return bool(_RANGE.search(text) or _CHOICE.search(text) or _GLOB.search(path_of(text)))


def locate(source: str | os.PathLike[str]) -> Located:
    """Find the files of a pattern, or of a URL: one object, or all below it.

    Raises:
        NoImagesError: there is none, or a file of a brace range is missing.
        StorageError: a service refuses or does not answer.
    """
    text = named_place(source)
    url = as_url(text)
    if url is not None:
        refuse_credentials(url)
    if not is_pattern(text):
        assert url is not None
        return _one(url) if posixpath.splitext(path_of(url))[1] else _below(url)
    root = _root(text)
    names = [name[len(root) :].lstrip("/") for name in _braces(text)]
    if not any(_GLOB.search(path_of(name)) for name in names):
        _require_all(root, names)
    else:
        pool = _all(root) if url is not None else None
        names = [found for name in names for found in _globbed(root, name, pool)]
    if not names:
        raise NoImagesError(f"{text} matches no file: check the pattern")
    return Located(root, sorted(set(names)), is_named=True)


def see_anew(places: Sequence[str]) -> None:
    """Prepare to read URLs that a table names, as they are now.

    Raises:
        ConfigError: one holds a credential.
    """
    urls = [url for place in places if (url := as_url(place)) is not None]
    for url in urls:
        refuse_credentials(url)
    forget(urls)


def source_exists(source: str) -> bool:
    """Return whether a folder or a file of a source is there; URLs always may be."""
    if as_url(source) is not None:
        return True
    if is_pattern(source):
        return any(glob.glob(name) for name in _braces(source))  # noqa: PTH207
    return os.path.lexists(source)


def _one(url: str) -> Located:
    """Return an object by its name, or all below it if it is a prefix with a dot."""
    if not exists(url) and scheme_of(url) not in ("http", "https"):
        return _below(url)
    root, _, name = url.rpartition("/")
    return Located(root, [name], is_named=True)


def _below(url: str) -> Located:
    return Located(url.rstrip("/"), _all(url), is_named=False)


def _all(root: str) -> list[str]:
    """List the objects below a URL, without hidden ones."""
    start = root.rstrip("/") + "/"
    names = (url.removeprefix(start) for url in find_objects(root))
    return sorted(name for name in names if not any(map(is_left_out, name.split("/"))))


def _root(text: str) -> str:
    """Return the folder of a pattern up to its first part that is a pattern."""
    first = next(found.start() for found in re.finditer(r"[*?[{]", text))
    root = text[: text.rfind("/", 0, first) + 1]
    return root.rstrip("/") if as_url(text) is not None else root


def _require_all(root: str, names: list[str]) -> None:
    """Refuse names of a brace range that are not there."""
    places = [joined(root, name) for name in names]
    there = list(
        ordered_map(exists, places, workers=_AT_ONCE)
        if as_url(root) is not None
        else map(os.path.exists, places)
    )
    missing = [name for name, is_there in zip(names, there, strict=True) if not is_there]
    if missing:
        raise NoImagesError(
            f"{len(missing):,} of the {len(names):,} files named are missing, first "
            f"{joined(root, missing[0])}: name those that are there, or a glob"
        )


def _globbed(root: str, pattern: str, pool: list[str] | None) -> Iterator[str]:
    if pool is None:
        for name in glob.glob(pattern, root_dir=root or None, recursive=True):  # noqa: PTH207
            if os.path.isfile(os.path.join(root, name)):  # noqa: PTH113
                yield name.replace(os.sep, "/")
        return
    parts = pattern.split("/")
    yield from (name for name in pool if matches(parts, name.split("/")))


def _braces(text: str) -> list[str]:
    """Expand brace ranges and choices, as a shell does.

    Raises:
        ConfigError: they name more files than anyone has.
    """
    texts, count = [text], 1
    while (found := _RANGE.search(texts[0]) or _CHOICE.search(texts[0])) is not None:
        if ".." in found[0]:
            first, last = found[1], found[2]
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            low, high = int(first), int(last)
            step = 1 if high >= low else -1
            count *= abs(high - low) + 1
            if count > _MOST:
                raise ConfigError(f"{text} names more than {_MOST:,} files: name fewer")
            several = [f"{n:0{width}d}" for n in range(low, high + step, step)]
        else:
            several = found[1].split(",")
        token = found[0]
        texts = [one.replace(token, value, 1) for one, value in itertools.product(texts, several)]
    return texts


def path_of(text: str) -> str:
    """Return a URL without what follows `?`, and a path as it is."""
    return text.partition("?")[0] if text.startswith(("http://", "https://")) else text
