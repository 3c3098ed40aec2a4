"""Walk a folder: its images or videos, what is left out, and what cannot be listed."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from whiten.datasets.collection import Item
from whiten.datasets.patterns import Choice
from whiten.errors import NoImagesError, counted
from whiten.media.formats import describe_unread, unread_kind
from whiten.media.video import VIDEO_SUFFIXES
from whiten.storage.places import TAR
from whiten.utils.names import as_utf8, display_path

# Folders that systems fill with thumbnails and deleted files; hidden ones are left out anyway.
_RUBBISH = frozenset(
    [
        "@eadir", "@tmp", "@thumb", "@__thumb", "@recycle", "@recently-snapshot", "@sharebin",
        "@synoresource", "#recycle", "#snapshot", "$recycle.bin", "recycler", "__macosx",
        "system volume information", "lost+found", "network trash folder", "temporary items",
        "found.000",
    ]
)  # fmt: skip
# A run of distillation that is kept among the images: the plots of its report are none of them.
_RUN, _PLOTS = frozenset(["config.yaml", "report.html", "student"]), "figures"
_NAMED = 3  # broken links that a note names


class Walk:
    """One walk through a folder.

    Hidden files and folders, known rubbish, and the plots of runs are left out. A link to a folder
    is followed, unless that folder is listed already: so each is listed once, under its own name if
    it is below the root, and loops end.

    Args:
        suffixes: of the wanted files, in lower case.
    """

    def __init__(self, root: Path, suffixes: frozenset[str], choice: Choice) -> None:
        self._root = os.fspath(root)
        self._suffixes = suffixes
        self._choice = choice
        self._unread: Counter[str] = Counter()
        self._videos = self._tars = 0
        self._nowhere: list[str] = []

    def __iter__(self) -> Iterator[Item]:
        """Yield the wanted files in any order, and `NAME/` for a folder that cannot be listed.

        Raises:
            NoImagesError: the root cannot be listed.
        """
        folders, links = [("", self._root)], list[tuple[str, str]]()
        listed: set[tuple[int, int] | str] = set()
        while folders or links:
            # Links come last: a folder below the root keeps its own name.
            relative, folder = folders.pop() if folders else heapq.heappop(links)
            try:
                identity = _identity(folder)
                if identity in listed:
                    continue
                listed.add(identity)
                with os.scandir(folder) as scan:
                    entries = list(scan)
            except OSError as error:
                yield self._unlisted(relative, folder, error)
                continue
            is_run = _RUN.issubset(entry.name for entry in entries)
            for entry in entries:
                if is_left_out(entry.name) or (is_run and entry.name == _PLOTS):
                    continue
                name = f"{relative}/{as_id(entry.name)}" if relative else as_id(entry.name)
                if _is_folder(entry):
                    if self._choice.enters(name):
                        if entry.is_symlink():
                            heapq.heappush(links, (name, entry.path))
                        else:
                            folders.append((name, entry.path))
                elif self._is_wanted(entry, name):
                    yield Item(name, entry.path, relative or None)

    def _is_wanted(self, entry: os.DirEntry[str], name: str) -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in self._suffixes:
            return self._choice.takes(name)
        if (kind := unread_kind(suffix)) is not None:
            self._unread[kind] += self._choice.takes(name)
        elif suffix == TAR:
            self._tars += self._choice.takes(name)
        elif suffix in VIDEO_SUFFIXES:
            self._videos += self._choice.takes(name)
        elif entry.is_symlink() and not Path(entry.path).exists():  # once a folder, perhaps
            self._nowhere.append(f"{name} -> {as_utf8(str(Path(entry.path).readlink()))}")
        return False

    def _unlisted(self, relative: str, folder: str, error: OSError) -> Item:
        if not relative:
            raise NoImagesError(
                f"{display_path(folder)} cannot be listed "
                f"({(error.strerror or str(error)).lower()}): give access, or name another folder"
            ) from error
        return Item(f"{relative}/", folder, relative)

    def unread(self) -> str:
        """Return a text on the images of kinds that are not read; "" if there are none."""
        counts = {kind: count for kind, count in self._unread.items() if count}
        return describe_unread(counts) if counts else ""

    def notes(self) -> Iterator[str]:
        """Yield a line on each kind of thing that was left out, after the walk."""
        root = as_utf8(self._root)
        if unread := self.unread():
            yield f"{root}: not read: {unread}"
        if self._videos:
            yield (
                f"{root}: not read: {counted(self._videos, 'video')}; take "
                f"frames with `whiten frames {root} --out FRAMES`, and name FRAMES"
            )
        if self._tars:
            yield (
                f"{root}: not read: {counted(self._tars, 'tar file')} beside "
                "the image files; name the tar files to read them"
            )
        if self._nowhere:
            links = sorted(self._nowhere)
            more = "" if len(links) <= _NAMED else f" and {len(links) - _NAMED:,} more"
            yield f"{root}: links that lead nowhere: {', '.join(links[:_NAMED])}{more}"


def is_left_out(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or known rubbish."""
    return name.startswith(".") or name.lower() in _RUBBISH


def _identity(folder: str) -> tuple[int, int] | str:
    """Return what two paths of one folder share; some network mounts number no files."""
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed, such as one to itself
        return False


def as_id(name: str) -> str:
    r"""Convert a name below the root to an id: valid UTF-8, with slashes.

    Invalid bytes become \\xNN. So do backslashes: no other name has the same id.
    """
    return as_utf8(name.replace(os.sep, "/").replace("\\", r"\x5c"))
