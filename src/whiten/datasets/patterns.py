"""Choose images by patterns of their paths, as `--exclude` and `--include` do.

A pattern is a glob, compared with the path below the folder, or as a table has it. In `*`, `?` and
`[…]` no slash matches; `**` matches any number of folders. A pattern without a slash may match the
name of the image or of any folder on its way. A folder that matches stands for all that it holds.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from whiten.datasets.collection import Items
from whiten.utils.names import several

Patterns = Sequence[str]


class Choice:
    """The images that patterns leave; remembers which of the patterns matched.

    Args:
        exclude: an image that one of these matches is left out.
        include: if there are any, one of these must match.
    """

    def __init__(self, exclude: Patterns = (), include: Patterns = ()) -> None:
        self._exclude = {text: _parse(text) for text in several(exclude)}
        self._include = {text: _parse(text) for text in several(include)}
        self._matched: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._exclude or self._include)

    def enters(self, folder: str) -> bool:
        """Return whether a folder may hold chosen images; it is named by its relative path."""
        return not self._match(self._exclude, folder)

    def takes(self, name: str) -> bool:
        """Return whether an image is chosen; it is named by its relative path."""
        if not self:
            return True
        is_out = self._match(self._exclude, name)
        is_in = not self._include or self._match(self._include, name)
        return is_in and not is_out

    def of(self, items: Items, paths: Iterable[str]) -> Items:
        """Return the chosen items, by the path of each."""
        if not self:
            return items
        return items.take(np.array([self.takes(posixpath.normpath(p)) for p in paths], bool))

    def unmatched(self) -> Iterator[str]:
        """Yield the patterns that no image or folder matched so far, with their options."""
        for option, patterns in (("--exclude", self._exclude), ("--include", self._include)):
            for text in patterns:
                if text not in self._matched:
                    yield f"{option} {text!r}"

    def _match(self, patterns: dict[str, list[str]], name: str) -> bool:
        if not patterns:
            return False
        parts = name.lstrip("/").split("/")
        found = [text for text, pattern in patterns.items() if _covers(pattern, parts)]
        self._matched.update(found)
        return bool(found)


def _parse(text: str) -> list[str]:
    pattern = text.removeprefix("./").rstrip("/")
    if "/" not in pattern:
        return ["**", pattern]
    return pattern.lstrip("/").split("/")


def _covers(pattern: list[str], parts: list[str]) -> bool:
    """Return whether a pattern matches a path or a folder on its way."""
    return any(matches(pattern, parts[:end]) for end in range(1, len(parts) + 1))


def matches(pattern: list[str], parts: list[str]) -> bool:
    """Return whether the parts of a pattern match those of a whole path."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return matches(pattern[1:], parts) or (bool(parts) and matches(pattern, parts[1:]))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(pattern[1:], parts[1:])
