"""An index in a folder: segments, which of their rows are gone, and a manifest that names both.

A change writes new files beside those in use and then replaces the manifest, which is the one
moment at which it counts: a kill leaves the old state or the new one, and what no manifest names
is swept away by the next change. Vectors and rows are mapped, so that opening reads almost nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from whiten.atomic import write_atomically
from whiten.errors import StoreError
from whiten.index.exact import QUERIES, Mask, Nearest, scan
from whiten.index.rows import Block, Facts, Match, matches
from whiten.index.segments import Segment, SegmentWriter
from whiten.index.where import Where, to_arrow
from whiten.media import NameIndex
from whiten.store import Vectors

FORMAT = 3
MANIFEST = "manifest.json"
_LOCK = ".lock"
_SEGMENT, _GONE, _STAGED = "segment-", "gone-", ".staged-"
_OURS = (MANIFEST, _LOCK, f".{MANIFEST}.partial")
_MOST_SEGMENTS = 8  # before they are merged
_MOST_GONE = 0.25  # of the rows, likewise
_BATCH = 8192  # rows that are copied at once


@dataclass(frozen=True)
class Part:
    """A segment in the manifest.

    Attributes:
        name: of its folder.
        count: of its rows.
        gone: file with those that are gone, packed bits; "" is none.
    """

    name: str
    count: int
    gone: str = ""


@dataclass(frozen=True)
class Manifest:
    """The state of an index; `generation` grows with every change."""

    generation: int
    facts: Facts
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "generation": self.generation,
            "facts": self.facts.to_json(),
            "parts": [asdict(part) for part in self.parts],
        }


class FolderIndex:
    """The backend that lies in a folder.

    Attributes:
        place: the folder.
        facts: None while there is no index.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.root = Path(folder)
        self.place = os.fspath(folder)
        self._refuse_foreign()
        self._reopen()

    def _refuse_foreign(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file: name a folder for the index")
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path.name not in _OURS and not path.name.startswith((_SEGMENT, _GONE, _STAGED)):
                raise StoreError(
                    f"{self.root} holds something else than an index, {path.name!r}: name another "
                    "folder"
                )

    def _reopen(self) -> None:
        manifest = self._read_manifest()
        while True:
            try:
                return self._open(manifest)
            except StoreError:
                # A writer may have replaced the manifest, and swept what the old one names.
                latest = self._read_manifest()
                if latest == manifest:
                    raise
                manifest = latest

    def refresh(self) -> None:
        if self.manifest != self._read_manifest():
            self._reopen()

    def _open(self, manifest: Manifest | None) -> None:
        self.manifest = manifest
        self.facts = None if manifest is None else manifest.facts
        self._segments: list[Segment] = []
        self._present: list[Mask | None] = []  # rows that are not gone; None is all
        self.__dict__.pop("_by_id", None)
        if self.manifest is None:
            return
        for part in self.manifest.parts:
            self._segments.append(
                Segment.open(self.root / part.name, self.manifest.facts, part.count)
            )
            self._present.append(self._read_gone(part))

    def _read_manifest(self) -> Manifest | None:
        path = self.root / MANIFEST
        try:
            facts = json.loads(path.read_text())
            if facts["format"] != FORMAT:
                raise StoreError(
                    f"{self.root} has index format {facts['format']!r}, this version reads "
                    f"{FORMAT}: delete it and index again"
                )
            return Manifest(
                int(facts["generation"]),
                Facts.from_json(facts["facts"]),
                tuple(
                    Part(str(part["name"]), int(part["count"]), str(part["gone"]))
                    for part in facts["parts"]
                ),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} is damaged ({error}): delete {self.root} and index again"
            ) from error

    def _read_gone(self, part: Part) -> Mask | None:
        if not part.gone:
            return None
        try:
            bits = np.fromfile(self.root / part.gone, np.uint8)
        except OSError as error:
            raise StoreError(
                f"{self.root / part.gone} is missing or unreadable ({error}): delete {self.root} "
                "and index again"
            ) from error
        if len(bits) != -(-part.count // 8):
            raise StoreError(f"{self.root / part.gone} is damaged: delete {self.root}, index again")
        return ~np.unpackbits(bits, count=part.count).astype(bool)

    # --- reading ------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(
            len(segment) if present is None else int(present.sum())
            for segment, present in zip(self._segments, self._present, strict=True)
        )

    def pages(self, size: int) -> Iterator[pa.Table]:
        for segment, present in zip(self._segments, self._present, strict=True):
            for start in range(0, len(segment), size):
                page = segment.rows.slice(start, size)
                yield page if present is None else page.filter(pa.array(present[start:][:size]))

    def known(self) -> pa.Table:
        assert self.facts is not None
        return pa.concat_tables([self.facts.schema().empty_table(), *self.pages(1 << 20)])

    @cached_property
    def _by_id(self) -> tuple[NameIndex, np.ndarray[Any, Any]]:
        """Ids of the rows that are there, and the place of each over all segments."""
        places = np.flatnonzero(np.concatenate([np.zeros(0, bool), *map(self._there, self._all())]))
        return NameIndex(self.known()["id"].combine_chunks()), places

    def _all(self) -> range:
        return range(len(self._segments))

    def _there(self, number: int) -> Mask:
        present = self._present[number]
        return np.ones(len(self._segments[number]), bool) if present is None else present

    def _places(self, ids: Sequence[str]) -> np.ndarray[Any, Any]:
        """Of each id over all segments; -1 where it is not there."""
        index, places = self._by_id
        rows = index.rows(list(ids))
        return np.where(rows < 0, -1, places[rows]) if len(places) else rows

    def fetch(self, ids: Sequence[str]) -> Block:
        places = self._places(ids)
        if (places < 0).any():
            missing = ids[int((places < 0).argmax())]
            raise StoreError(f"{self.place} has no image {missing!r}")
        return self._take(places)

    def _take(self, places: np.ndarray[Any, Any]) -> Block:
        """Rows at places over all segments."""
        assert self.facts is not None
        rows = pa.concat_tables(
            [self.facts.schema().empty_table(), *(segment.rows for segment in self._segments)]
        ).take(pa.array(places, pa.int64()))
        vectors = np.empty((len(places), self.facts.dim), np.float32)
        first = 0
        for segment in self._segments:
            inside = (places >= first) & (places < first + len(segment))
            vectors[inside] = segment.vectors[places[inside] - first]
            first += len(segment)
        return Block(rows, vectors)

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        assert self.facts is not None
        allowed = [self._allowed(number, where) for number in self._all()]
        found: list[list[Match]] = []
        rows = pa.concat_tables(
            [self.facts.schema().empty_table(), *(segment.rows for segment in self._segments)]
        )
        for start in range(0, len(queries), QUERIES):
            some = np.ascontiguousarray(queries[start : start + QUERIES], np.float32)
            nearest = Nearest(len(some), k)
            first = 0
            for segment, mask in zip(self._segments, allowed, strict=True):
                scan(some, segment.vectors, nearest, mask, first)
                first += len(segment)
            for places, scores in nearest.best():
                found.append(matches(rows.take(pa.array(places)), scores, self.facts.columns))
        return found

    def _allowed(self, number: int, where: Where | None) -> Mask | None:
        present = self._present[number]
        if where is None:
            return present
        rows = self._segments[number].rows
        numbered = rows.append_column("", pa.array(np.arange(len(rows))))
        passing = ds.dataset(numbered).to_table(columns=[""], filter=to_arrow(where))[""].to_numpy()
        mask = np.zeros(len(rows), bool)
        mask[passing] = True
        return mask if present is None else mask & present

    # --- writing ------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # Windows: one process at a time is the user's to see to
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(
                    f"another process is changing {self.place}: wait until it is done"
                ) from error
            self.refresh()
            yield

    def staged(self, facts: Facts) -> list[Block]:
        named = set() if self.manifest is None else {part.name for part in self.manifest.parts}
        left = [
            path
            for kind in (_STAGED, _SEGMENT)
            for path in sorted(self.root.glob(f"{kind}*"))
            if path.name not in named
        ]
        found = [Segment.salvage(folder, facts) for folder in left]
        return [block for block in found if block is not None]

    def write(self, facts: Facts, gone: Sequence[str], new: Iterable[Block]) -> None:
        generation = 1 + (0 if self.manifest is None else self.manifest.generation)
        staged = self.root / f"{_STAGED}{generation:06d}-{os.urandom(4).hex()}"
        with SegmentWriter(staged, facts) as writer:
            writer.write(new)
        parts = self._without([*gone, *writer.ids], generation)
        if writer.ids:
            name = f"{_SEGMENT}{generation:06d}"
            shutil.rmtree(self.root / name, ignore_errors=True)  # of a change that was killed
            os.replace(staged, self.root / name)
            parts.append(Part(name, len(writer.ids)))
        self._commit(Manifest(generation, facts, tuple(parts)))
        if self._is_scattered():
            self._merge()
        self._sweep()

    def _without(self, ids: Sequence[str], generation: int) -> list[Part]:
        """The parts of today, with more rows gone; those with none left are left out."""
        if self.manifest is None or not ids:
            return [] if self.manifest is None else list(self.manifest.parts)
        places = self._places(ids)
        places = places[places >= 0]
        parts, first = [], 0
        for number, part in enumerate(self.manifest.parts):
            inside = places[(places >= first) & (places < first + part.count)] - first
            first += part.count
            if len(inside):
                there = self._there(number).copy()
                there[inside] = False
                if not there.any():
                    continue
                part = replace(part, gone=f"{_GONE}{generation:06d}-{number}")
                write_atomically(self.root / part.gone, np.packbits(~there).tobytes())
            parts.append(part)
        return parts

    def _is_scattered(self) -> bool:
        total = sum(map(len, self._segments))
        return len(self._segments) > _MOST_SEGMENTS or len(self) < (1 - _MOST_GONE) * total

    def _merge(self) -> None:
        """Copy what is there into one segment."""
        assert self.manifest is not None
        generation = self.manifest.generation + 1
        name = f"{_SEGMENT}{generation:06d}"
        shutil.rmtree(self.root / name, ignore_errors=True)
        with SegmentWriter(self.root / name, self.manifest.facts) as writer:
            writer.write(self._blocks())
        self._commit(Manifest(generation, self.manifest.facts, (Part(name, len(writer.ids)),)))

    def _blocks(self) -> Iterator[Block]:
        for number, segment in enumerate(self._segments):
            there = np.flatnonzero(self._there(number))
            for start in range(0, len(there), _BATCH):
                rows = there[start : start + _BATCH]
                yield Block(segment.rows.take(pa.array(rows)), segment.vectors[rows])

    def _commit(self, manifest: Manifest) -> None:
        """From here on the change counts."""
        _sync(self.root)
        write_atomically(self.root / MANIFEST, json.dumps(manifest.to_json(), indent=2).encode())
        _sync(self.root)
        self._open(manifest)

    def _sweep(self) -> None:
        """Remove what the manifest does not name; who has it open goes on reading it."""
        assert self.manifest is not None
        named = {name for part in self.manifest.parts for name in (part.name, part.gone)}
        for path in self.root.iterdir():
            if path.name in named or path.name in _OURS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """A renaming is on the disk once its folder is; not on Windows, where folders cannot be."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
