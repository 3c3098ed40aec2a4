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

Pieces = list[tuple[int, int]]


@dataclass(frozen=True)
class Members:
    """The regular files of a tar file, in its order.

    Attributes:
        names: (n,) names, valid UTF-8, without leading `./`.
        starts, sizes: (n,) the bytes of each.
        pieces: (offset, length) of the bytes that are stored of a sparse file, by row; between them
            are zeros, which the tar file leaves out.
        links: number of links, which hold no bytes.
        problem: why there may be more than these; "" if the tar file is whole.
        contents: those that were asked for, by name.
    """

    names: NameIndex
    starts: Indices
    sizes: Indices
    pieces: dict[int, Pieces]
    links: int
    problem: str
    contents: dict[str, bytes] = field(default_factory=dict)

    def without_contents(self) -> Members:
        return replace(self, contents={})

    def read(self, blob: Blob, row: int) -> bytes:
        """Return the content of a member; fewer bytes than its size if the tar file is cut off."""
        start, size = int(self.starts[row]), int(self.sizes[row])
        pieces = self.pieces.get(row)
        return _spread(blob.read(start, start + _stored(size, pieces)), size, pieces)


def scan(blob: Blob, keep: Callable[[str], bool] | None = None) -> Members:
    """Read the headers of a tar file, and the content of members that are wanted, in one pass.

    Raises:
        ConfigError: two members have one name.
        StorageError, OSError: it cannot be read.
    """
    names: list[str] = []
    starts: list[int] = []
    sizes: list[int] = []
    pieces: dict[int, Pieces] = {}
    contents: dict[str, bytes] = {}
    links, problem, seen = 0, "", set[str]()
    if blob.stamp.size == 0:
        return _members(names, starts, sizes, pieces, 0, "empty file")
    try:
        with as_file(blob) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := _next(tar)) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                links += member.islnk() or member.issym()
                if not member.isreg():
                    continue
                name = clean(member.name)
                if name in seen:
                    raise ConfigError(
                        f"{blob.place} holds {name!r} twice: keep one member of each name"
                    )
                if member.sparse is not None:
                    pieces[len(names)] = _checked(member)
                seen.add(name)
                names.append(name)
                starts.append(member.offset_data)
                sizes.append(member.size)
                # A few bytes may say that they are terabytes of zeros.
                if keep is not None and keep(name) and member.size <= blob.stamp.size:
                    own = pieces.get(len(names) - 1)
                    file.seek(member.offset_data)
                    data = file.read(_stored(member.size, own))
                    contents[name] = _spread(data, member.size, own)
            problem = _end(blob, tar.offset)
    except tarfile.TarError as error:
        problem = "not a tar file" if not names else str(error)
    if problem and names and problem != _JOINED:
        problem = f"{problem} after {len(names):,} members: the rest is lost, get the file again"
    return _members(names, starts, sizes, pieces, links, problem, contents)


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except ValueError:  # what a sparse member says of its pieces is no number
        raise tarfile.ReadError("damaged") from None


def _checked(member: tarfile.TarInfo) -> Pieces:
    """Return the pieces of a sparse member; raises ReadError if they are not in order inside it."""
    found: Pieces = list(member.sparse)  # type: ignore[arg-type]
    pieces = [(offset, length) for offset, length in found if length]  # one of 0 bytes is padding
    end = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > member.size:
            raise tarfile.ReadError("damaged")
        end = offset + length
    return pieces


def _stored(size: int, pieces: Pieces | None) -> int:
    return size if pieces is None else sum(length for _, length in pieces)


def _spread(data: bytes, size: int, pieces: Pieces | None) -> bytes:
    """Return a member's content, given what is stored of it; cut off where that is."""
    if pieces is None:
        return data
    content, at = bytearray(size), 0
    for offset, length in pieces:
        part = data[at : at + length]
        content[offset : offset + len(part)] = part
        if len(part) < length:
            return bytes(content[: offset + len(part)])
        at += length
    return bytes(content)


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
    pieces: dict[int, Pieces],
    links: int,
    problem: str,
    contents: dict[str, bytes] | None = None,
) -> Members:
    return Members(
        NameIndex(pa.array(names, pa.large_string())),
        np.array(starts, np.int64),
        np.array(sizes, np.int64),
        pieces,
        links,
        problem,
        contents or {},
    )


def clean(name: str) -> str:
    r"""Return a member's name as a relative path in valid UTF-8; a backslash becomes \\x5c."""
    return posixpath.normpath("/" + as_utf8(name.replace("\\", r"\x5c"))).lstrip("/")
