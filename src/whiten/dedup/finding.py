"""Find the groups of a collection, exact copies first, and choose which members to keep."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from whiten.dedup.near_duplicates import check_threshold, choose_kept, linked, lowest_similarity
from whiten.dedup.pair_similarity import Rows
from whiten.dedup.sources import Collection
from whiten.dedup.threshold import Calibration
from whiten.media.formats import FORMATS
from whiten.media.reading import Skipped
from whiten.utils.names import display_path
from whiten.utils.progress import progress

Keep = Literal["best", "first"]
Kind = Literal["kept", "exact", "near"]

_CHUNK = 1 << 20  # bytes of a file hashed at once


@dataclass(frozen=True)
class Member:
    """One image or video of a group.

    Attributes:
        id: id in its collection.
        path: path of its file.
        kind: `kept`; `exact`, a byte-identical copy of the kept one; or `near`.
        copy_of: id of the kept one that it is a copy of; its own if kept.
        similarity: similarity to that one; 1 if kept.
        width, height: size in pixels; 0 if unreadable.
        bytes: size of the file; 0 if there is none.
        content_hash: see `whiten.utils.hashing.content_hash`; "" if unreadable.
        picture: image that shows it.
        is_link: whether it is a symbolic link.
    """

    id: str
    path: str
    kind: Kind
    copy_of: str
    similarity: float
    width: int
    height: int
    bytes: int
    content_hash: str
    picture: str
    is_link: bool

    @property
    def is_kept(self) -> bool:
        return self.kind == "kept"


@dataclass(frozen=True)
class Group:
    """Members linked by similarities above the threshold.

    Attributes:
        number: number of the group, from 1.
        lowest: similarity of the least similar two members; far below the threshold, the group is a
            chain.
        members: each kept one followed by its copies, most similar first.
    """

    number: int
    lowest: float
    members: list[Member]


@dataclass(frozen=True)
class Deduplication:
    """Result of a deduplication.

    Attributes:
        what: `image` or `video`.
        count: number of images or videos compared.
        threshold: smallest similarity of a linked pair.
        calibration: how the threshold was chosen; None if it was given.
        groups: groups of at least two members.
        skipped: files that could not be used, with the reason.
    """

    what: str
    count: int
    threshold: float
    calibration: Calibration | None
    groups: list[Group]
    skipped: list[Skipped]

    @property
    def copies(self) -> list[Member]:
        """Members that are not kept."""
        return [m for group in self.groups for m in group.members if not m.is_kept]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; paths as valid UTF-8."""
        return {
            "what": self.what,
            "count": self.count,
            "threshold": self.threshold,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "groups": [
                {
                    "group": group.number,
                    "lowest_similarity": group.lowest,
                    "members": [member_row(group, member) for member in group.members],
                }
                for group in self.groups
            ],
            "skipped": [asdict(skip) for skip in self.skipped],
        }

    def lines(self) -> list[str]:
        """Return lines for display."""
        kinds = Counter(member.kind for group in self.groups for member in group.members)
        freed = sum(member.bytes for member in self.copies)
        return [
            f"{self.count:,} {self.what}s, {len(self.groups):,} groups at a similarity of "
            f"{self.threshold:.4f} or more",
            f"  {kinds['kept']:,} kept, {kinds['exact']:,} byte-identical copies, "
            f"{kinds['near']:,} near-duplicates: {freed / 1e6:,.1f} MB in copies",
        ]


def member_row(group: Group, member: Member) -> dict[str, Any]:
    """Return a member as one row of a table."""
    return {
        "group": group.number,
        "id": member.id,
        "path": display_path(member.path),
        "keep": "yes" if member.is_kept else "no",
        "kind": member.kind,
        "copy_of": member.copy_of,
        "similarity": round(member.similarity, 6),
        "width": member.width,
        "height": member.height,
        "bytes": member.bytes,
    }


def deduplicate(
    collection: Collection,
    threshold: float,
    *,
    keep: Keep = "best",
    calibration: Calibration | None = None,
    show_progress: bool = False,
) -> Deduplication:
    """Find the groups of a collection, and choose the members to keep.

    Args:
        threshold: smallest similarity of a linked pair, see `whiten.near_duplicates`.
        keep: `best`, the one with most pixels, then most bytes; or `first`, by path.
        calibration: how the threshold was chosen, for the record.
    """
    check_threshold(threshold)
    with progress(f"compare {collection.what}s", enabled=show_progress) as update:
        near = linked(collection.similarity, threshold, update)
    files = _Files(collection, near, keep)
    groups = [
        _group(files, collection, rows, threshold, number)
        for number, rows in enumerate(files.groups, start=1)
    ]
    return Deduplication(
        what=collection.what,
        count=len(collection.names),
        threshold=threshold,
        calibration=calibration,
        groups=groups,
        skipped=collection.skipped,
    )


def _group(
    files: _Files, collection: Collection, rows: Rows, threshold: float, number: int
) -> Group:
    """Return the group of some contents: `rows` of the similarity."""
    own = {row: sorted(files.members[row], key=files.rank) for row in rows.tolist()}
    ordered = np.array(sorted(own, key=lambda row: files.rank(own[row][0])))
    kept, alike = choose_kept(collection.similarity, ordered, threshold)
    members: list[tuple[int, bool, float, Member]] = []
    for place, row in enumerate(ordered.tolist()):
        best = own[int(ordered[kept[place]])][0]
        for file in own[row]:
            kind: Kind = "kept" if file == best else "exact" if files.same(file, best) else "near"
            value = 1.0 if kind == "exact" else float(alike[place])
            member = files.member(file, kind, collection.names[best], value)
            members.append((int(kept[place]), kind != "kept", -value, member))
    members.sort(key=lambda entry: entry[:3])
    lowest = lowest_similarity(collection.similarity, rows)
    return Group(number, round(min(lowest, 1.0), 6), [entry[3] for entry in members])


class _Files:
    """Size, pixels and content of the files in groups, read on demand."""

    def __init__(self, collection: Collection, near: Sequence[Rows], keep: Keep) -> None:
        self._collection = collection
        self._keep = keep
        self.members: dict[int, list[int]] = defaultdict(list)
        count = np.bincount(collection.copy_of, minlength=len(collection.similarity))
        in_groups = np.zeros(len(count), bool)
        for rows in near:
            in_groups[rows] = True
        alone = np.flatnonzero((count > 1) & ~in_groups)
        wanted = in_groups | (count > 1)
        for file in np.flatnonzero(wanted[collection.copy_of]).tolist():
            self.members[int(collection.copy_of[file])].append(file)
        self.groups = sorted([*near, *alone[:, None]], key=lambda rows: int(rows[0]))
        self._facts = {
            file: _look(collection, file) for own in self.members.values() for file in own
        }

    def rank(self, file: int) -> tuple[Any, ...]:
        """Return the sort key of a file; the smallest is kept.

        A missing file, as in a store, is never kept; nor a link instead of a file, which may be
        its target.
        """
        facts, path = self._facts[file], os.fsencode(self._collection.paths[file])
        worth = (facts.bytes == 0, facts.is_link)
        if self._keep == "first":
            return (*worth, path)
        return (*worth, -facts.width * facts.height, -facts.bytes, path)

    def same(self, file: int, other: int) -> bool:
        """Return whether two files have the same content."""
        digest = self._facts[file].content_hash
        return digest != "" and digest == self._facts[other].content_hash

    def member(self, file: int, kind: Kind, copy_of: str, similarity: float) -> Member:
        collection, facts = self._collection, self._facts[file]
        return Member(
            id=collection.names[file],
            path=collection.paths[file],
            kind=kind,
            copy_of=copy_of,
            similarity=similarity,
            picture=collection.pictures[file],
            **asdict(facts),
        )


@dataclass(frozen=True)
class _Facts:
    width: int
    height: int
    bytes: int
    content_hash: str
    is_link: bool


def _look(collection: Collection, file: int) -> _Facts:
    path = collection.paths[file]
    size, digest = 0, collection.hashes[file]
    try:
        status = os.stat(path)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        digest = digest or _hash_file(path)
    except (OSError, ValueError):
        pass
    width, height = _pixels(collection.pictures[file])
    return _Facts(width, height, size, digest, Path(path).is_symlink())


def _hash_file(path: str) -> str:
    """Return the content hash of a file that may be larger than memory."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def _pixels(path: str) -> tuple[int, int]:
    """Return width and height, reading only the header."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:  # decoders raise almost anything on damaged files
        return (0, 0)
