"""The members of an uncompressed tar file: where each starts, found in one pass over its headers.

Nothing is extracted: a member is a range of the file's bytes.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from whiten.errors import ConfigError
from whiten.storage.blobs import Blob, as_file
from whiten.utils.arrays import Indices
from whiten.utils.names import NameIndex, as_utf8

_BLOCK = 512
_PADDING = 1 << 16  # bytes looked at behind the end mark; usual are at most 10,240
_JOINED = "more members follow its end mark: join tar files by `tar --concatenate`, not by `cat`"


@dataclass(frozen=True)
class Members:
    """The regular files of a tar file, in its order.

    Attributes:
        names: (n,) names, valid UTF-8, without leading `./`.
        starts, sizes: (n,) the bytes of each.
        links: number of links, which hold no bytes.
        problem: why there may be more than these; "" if the tar file is whole.
        contents: those that were asked for, by name.
    """

    names: NameIndex
    starts: Indices
    sizes: Indices
    links: int
    problem: str
    contents: dict[str, bytes] = field(default_factory=dict)

    def without_contents(self) -> Members:
        return replace(self, contents={})


def scan(blob: Blob, keep: Callable[[str], bool] | None = None) -> Members:
    """Read the headers of a tar file, and the content of members that are wanted, in one pass.

    Raises:
        ConfigError: two members have one name.
        StorageError, OSError: it cannot be read.
    """
    names: list[str] = []
    starts: list[int] = []
    sizes: list[int] = []
    contents: dict[str, bytes] = {}
    links, problem, seen = 0, "", set[str]()
    if blob.stamp.size == 0:
        return _members(names, starts, sizes, 0, "empty file")
    try:
        with as_file(blob) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                links += member.islnk() or member.issym()
                if not member.isreg() or member.issparse():
                    continue
                name = clean(member.name)
                if name in seen:
                    raise ConfigError(
                        f"{blob.place} holds {name!r} twice: keep one member of each name"
                    )
                seen.add(name)
                names.append(name)
                starts.append(member.offset_data)
                sizes.append(member.size)
                if keep is not None and keep(name):
                    file.seek(member.offset_data)
                    contents[name] = file.read(member.size)
            problem = _end(blob, tar.offset)
    except tarfile.TarError as error:
        problem = "not a tar file" if not names else str(error)
    if problem and names and problem != _JOINED:
        problem = f"{problem} after {len(names):,} members: the rest is lost, get the file again"
    return _members(names, starts, sizes, links, problem, contents)


def _end(blob: Blob, offset: int) -> str:
    """Say why a tar file may go on where its last header was found; "" if that was its end."""
    rest = blob.read(offset, offset + _PADDING)
    if rest[:_BLOCK].strip(b"\0"):
        return "damaged"
    if len(rest) < _BLOCK:
        return "cut off, it has no end mark"
    return _JOINED if rest.strip(b"\0") else ""


def _members(
    names: list[str],
    starts: list[int],
    sizes: list[int],
    links: int,
    problem: str,
    contents: dict[str, bytes] | None = None,
) -> Members:
    return Members(
        NameIndex(pa.array(names, pa.large_string())),
        np.array(starts, np.int64),
        np.array(sizes, np.int64),
        links,
        problem,
        contents or {},
    )


def clean(name: str) -> str:
    r"""Return a member's name as a relative path in valid UTF-8; a backslash becomes \\x5c."""
    return posixpath.normpath("/" + as_utf8(name.replace("\\", r"\x5c"))).lstrip("/")
