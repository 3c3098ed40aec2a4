"""Find the groups of a collection, exact copies first, and choose which members to keep."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from whiten.dedup.near_duplicates import check_threshold, choose_kept, linked, lowest_similarity
from whiten.dedup.pair_similarity import Rows
from whiten.dedup.quality import Quality, beside_others, quality_of
from whiten.dedup.sources import Collection
from whiten.dedup.threshold import Calibration
from whiten.errors import ImageError, counted
from whiten.media.formats import FORMATS
from whiten.media.reading import Skipped, read_bytes
from whiten.media.video import MAX_FRAMES, stated_seconds
from whiten.storage.places import is_plain
from whiten.utils.hashing import content_hash, hash_file
from whiten.utils.names import display_path
from whiten.utils.progress import progress
from whiten.utils.threads import ordered_map

Keep = Literal["best", "first"]
Kind = Literal["kept", "exact", "near"]


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
        detail, compression: see `whiten.dedup.quality.Quality`; of a video 1 and "".
        bytes: size of the file; 0 if there is none.
        content_hash: see `whiten.utils.hashing.content_hash`; "" if unreadable.
        picture: image that shows it.
        is_link: whether it is a symbolic link.
        is_reference: whether it is in the reference folder, of which everything is kept.
        seconds: length of a video; 1 for an image.
        frames: number of frames or pages of an image. Only the first is compared, so that a file
            of several is kept unless it is identical to another.
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
    detail: float = 1.0
    compression: str = ""
    is_reference: bool = False
    seconds: float = 1.0
    frames: int = 1

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
            f"{counted(self.count, self.what)}, {counted(len(self.groups), 'group')} at a "
            f"similarity of {self.threshold:.4f} or more",
            f"  {kinds['kept']:,} kept, "
            f"{counted(kinds['exact'], 'byte-identical copy')} of these, "
            f"{counted(kinds['near'], 'near-duplicate')}: {freed / 1e6:,.1f} MB in copies",
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
        "detail": member.detail,
        "compression": member.compression,
        "reference": "yes" if member.is_reference else "no",
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
        keep: `best`, the one with most true pixels, weighted by compression (see
            `whiten.dedup.quality`), then with the camera's facts, most pixels, most bytes; or
            `first`, by path. Files of the collection's reference are always kept, and first.
            Contents of several frames or pages are kept, too: only the first ones were compared.
        calibration: how the threshold was chosen, for the record.
    """
    check_threshold(threshold)
    with progress(f"compare {collection.what}s", enabled=show_progress) as update:
        near = linked(collection.similarity, threshold, update)
    files = _Files(collection, near, keep, show_progress)
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
    bests = [own[row][0] for row in ordered.tolist()]
    always = np.array([files.is_reference(file) or files.frames(file) > 1 for file in bests])
    kept, alike = choose_kept(collection.similarity, ordered, threshold, always)
    members: list[tuple[int, bool, float, Member]] = []
    for place, row in enumerate(ordered.tolist()):
        best = own[int(ordered[kept[place]])][0]
        for file in own[row]:
            kind: Kind = "exact" if files.same(file, best) else "near"
            if file == best or files.is_reference(file):
                kind = "kept"
            value = float(alike[place]) if kind == "near" else 1.0
            copy_of = collection.names[file if kind == "kept" else best]
            member = files.member(file, kind, copy_of, value)
            members.append((int(kept[place]), kind != "kept", -value, member))
    members.sort(key=lambda entry: entry[:3])
    lowest = lowest_similarity(collection.similarity, rows)
    return Group(number, round(min(lowest, 1.0), 6), [entry[3] for entry in members])


class _Files:
    """Size, pixels and content of the files in groups, read on demand."""

    def __init__(
        self, collection: Collection, near: Sequence[Rows], keep: Keep, show_progress: bool
    ) -> None:
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
        every = sorted(file for own in self.members.values() for file in own)
        self._facts: dict[int, _Facts] = {}
        with progress("look at copies", enabled=show_progress and bool(every)) as update:
            looked = ordered_map(lambda file: _look(collection, file), every)
            for file, facts in zip(every, looked, strict=True):
                self._facts[file] = facts
                update(len(self._facts), len(every))
        for rows in self.groups:
            own = [file for row in rows.tolist() for file in self.members[row]]
            found = [self._facts[file].quality for file in own]
            for file, quality in zip(own, beside_others(found), strict=True):
                self._facts[file] = replace(self._facts[file], quality=quality)

    def rank(self, file: int) -> tuple[Any, ...]:
        """Return the sort key of a file; the smallest is kept.

        A missing file, as in a store, is never kept; nor a link instead of a file, which may be
        its target.
        """
        facts, path = self._facts[file], os.fsencode(self._collection.paths[file])
        first = (facts.bytes == 0, not self.is_reference(file), facts.is_link)
        if self._keep == "first":
            return (*first, path)
        quality = facts.quality
        pixels = quality.width * quality.height
        return (*first, -quality.worth, not quality.has_exif, -pixels, -facts.bytes, path)

    def is_reference(self, file: int) -> bool:
        return self._collection.names[file] in self._collection.reference

    def frames(self, file: int) -> int:
        return self._facts[file].quality.frames

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
            width=facts.quality.width,
            height=facts.quality.height,
            detail=facts.quality.detail,
            compression=facts.quality.compression,
            bytes=facts.bytes,
            content_hash=facts.content_hash,
            is_link=facts.is_link,
            is_reference=self.is_reference(file),
            seconds=facts.quality.seconds,
            frames=self.frames(file),
        )


@dataclass(frozen=True)
class _Facts:
    quality: Quality
    bytes: int
    content_hash: str
    is_link: bool


def _look(collection: Collection, file: int) -> _Facts:
    path = collection.paths[file]
    size, digest = 0, collection.hashes[file]
    try:
        if is_plain(path):
            status = os.stat(path)
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            digest = digest or hash_file(path)
        else:
            data = read_bytes(path)
            size, digest = len(data), digest or content_hash(data)
    except (OSError, ValueError, ImageError):
        pass
    picture = collection.pictures[file]
    quality = quality_of(picture) if picture == path else _of_video(collection, file)
    return _Facts(quality, size, digest, Path(path).is_symlink())


def _of_video(collection: Collection, file: int) -> Quality:
    """Judge a video; a frame tells its size, and nothing of its compression."""
    seconds = collection.seconds[file]
    if seconds >= MAX_FRAMES - 1:
        # Only the first minute has frames. A header is right for a whole file alone.
        seconds = max(seconds, stated_seconds(collection.paths[file]))
    return Quality(*_pixels(collection.pictures[file]), fidelity=1.0, seconds=seconds)


def _pixels(path: str) -> tuple[int, int]:
    """Return width and height, reading only the header."""
    try:
        file = path if is_plain(path) else io.BytesIO(read_bytes(path))
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except Exception:  # decoders raise almost anything on damaged files
        return (0, 0)
