"""An index in a folder: segments, masks of removed rows, and a manifest that names both.

A change writes new files next to those in use, then replaces the manifest, which commits it: a
kill leaves the old state or the new one, and the next change deletes files that no manifest names.
Vectors and rows are memory-mapped, so that opening reads almost nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from whiten.datasets.collection import Items
from whiten.errors import ConfigError, StoreError, WhitenError
from whiten.index.columns import lost_fields
from whiten.index.conditions import Where
from whiten.index.local.locking import LOCK, alone
from whiten.index.local.manifest import MANIFEST, Manifest, Part, small_parts
from whiten.index.local.segments import ROWS, VECTORS, Segment, SegmentWriter
from whiten.index.local.snapshot import Snapshot
from whiten.index.local.storage.coded import Coding, map_codes, sample_rows, write_codes
from whiten.index.local.storage.earlier import refuse_earlier_codes
from whiten.index.local.storage.kinds import BASE, check_conversion, fit, parse_storage
from whiten.index.local.storage.loss import measure
from whiten.index.local.storage.state import Storage, save_codec
from whiten.index.local.tuning import RECALL, Tuning, choose
from whiten.index.rows import Backend, Block, Facts, Match
from whiten.media.reading import stamp_of
from whiten.storage.blobs import Stamp
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.files import flush_folder, write_durably, written_out

_SEGMENT, _GONE, _STAGED, _FAST, _CODEC = "segment-", "gone-", ".staged-", "fast-", "codec-"
_OURS = (MANIFEST, LOCK, f".{MANIFEST}.partial")
_MOST_SEGMENTS = 8  # above this, some small ones are merged
_MOST_GONE = 0.25  # fraction of removed rows; above this, all segments are merged
_MOST_BESIDE = 0.2  # fraction of rows outside the largest segment; likewise


class FolderIndex(Backend):
    """Index in a folder.

    Attributes:
        place: the folder.
        facts: None if there is no index.
        seen: stamp of the manifest that is open; None if there is no index.
    """

    facts: Facts | None

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.root = Path(folder)
        self.place = os.fspath(folder)
        self._refuse_foreign()
        self._now: Snapshot | None = None
        self.seen: Stamp | None = None
        self._open()

    def _refuse_foreign(self) -> None:
        for path in (self.root, *self.root.parents):
            if path.exists() and not path.is_dir():
                raise StoreError(f"{path} is a file: name a folder for the index")
        for path in self.root.iterdir() if self.root.is_dir() else ():
            ours = (_SEGMENT, _GONE, _STAGED, _FAST, _CODEC, f".{_CODEC}")
            if path.name not in _OURS and not path.name.startswith(ours):
                refuse_earlier_codes(self.root)
                raise StoreError(
                    f"{self.root} holds something else than an index, {path.name!r}: name another "
                    "folder"
                )

    def _open(self) -> None:
        while True:
            # Before reading: if the manifest is replaced meanwhile, the next refresh sees it.
            seen = stamp_of(os.fspath(self.root / MANIFEST))
            manifest = Manifest.read(self.root)
            try:
                self._now = None if manifest is None else Snapshot(self.root, manifest)
                self.facts = None if manifest is None else manifest.facts
                self.seen = seen
                return
            except StoreError:
                # A writer may have replaced the manifest and deleted the files of the old one.
                if seen == stamp_of(os.fspath(self.root / MANIFEST)):
                    raise

    def refresh(self) -> None:
        # An index that was deleted and made again may have an equal manifest, and other vectors.
        if self.seen != stamp_of(os.fspath(self.root / MANIFEST)):
            self._open()

    # --- reading ------------------------------------------------------------------------

    @property
    def tuning(self) -> Tuning | None:
        """Search kind and its measurements; None if there is no index."""
        return None if self._manifest is None else self._manifest.tuning

    @property
    def storage(self) -> Storage:
        """Storage kind of the vectors."""
        return Storage() if self._manifest is None else self._manifest.storage

    @property
    def coding(self) -> Coding | None:
        """Codec of the vectors; None for float32."""
        return self._opened.coding

    @property
    def _manifest(self) -> Manifest | None:
        return None if self._now is None else self._now.manifest

    @property
    def _opened(self) -> Snapshot:
        if self._now is None:
            raise StoreError(f"{self.place} is no longer an index: it was deleted or moved away")
        return self._now

    def __len__(self) -> int:
        return 0 if self._now is None else len(self._now)

    def pages(self, size: int) -> Iterator[pa.Table]:
        return self._opened.pages(size)

    def known(self) -> pa.Table:
        return self._opened.known()

    def state(self) -> object:
        return self.seen

    def as_stored(self, vector: Vectors, ids: Sequence[str]) -> Vectors:
        coding = self.coding
        if coding is not None and not coding.keeps_vectors:
            vector = normalize_rows(coding.codec.decode(coding.codec.encode(vector)))
        return super().as_stored(vector, ids)

    def fetch(self, ids: Sequence[str]) -> Block:
        now = self._opened
        places = now.places(ids)
        if (places < 0).any():
            missing = ids[int((places < 0).argmax())]
            raise StoreError(f"{self.place} has no image {missing!r}")
        return now.take(places)

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        return self._opened.search(queries, k, where)

    # --- writing ------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        with alone(self.root):
            self.refresh()
            yield

    def discard(self) -> None:
        (self.root / MANIFEST).unlink(missing_ok=True)
        self._open()
        for folder in self.root.glob(f"{_STAGED}*"):
            if not (folder / VECTORS).is_file() or not (folder / VECTORS).stat().st_size:
                shutil.rmtree(folder, ignore_errors=True)

    def staged(self, facts: Facts) -> list[Block]:
        named = {part.name for part in self._manifest.parts} if self._manifest else set()
        left = [
            path
            for kind in (_STAGED, _SEGMENT)
            for path in sorted(self.root.glob(f"{kind}*"))
            if path.name not in named
        ]
        found = [Segment.salvage(folder, facts) for folder in left]
        return [block for block in found if block is not None]

    def write(self, facts: Facts, gone: Sequence[str], new: Iterable[Block]) -> None:
        before = self._manifest
        generation = 1 if before is None else before.generation + 1
        staged = self.root / f"{_STAGED}{generation:06d}-{os.urandom(4).hex()}"
        coding = None if self._now is None else self._now.coding
        with SegmentWriter(staged, facts, coding) as writer:
            writer.write(new)
        if before is None and not writer.count:
            return  # a first run that found nothing leaves no index
        parts = [] if before is None else self._without([*gone, *writer.ids()], generation)
        if before is not None and (lost := lost_fields(before.facts.columns, facts.columns)):
            # Otherwise the values would be back with the next column of this name.
            parts = [replace(p, lost=tuple(dict.fromkeys((*p.lost, *lost)))) for p in parts]
        if writer.count:
            name = f"{_SEGMENT}{generation:06d}"
            shutil.rmtree(self.root / name, ignore_errors=True)  # left by a killed change
            os.replace(staged, self.root / name)
            parts.append(Part(name, writer.count))
        storage = Storage() if before is None else before.storage
        self._commit(Manifest(generation, facts, tuple(parts), self.tuning, storage))
        self._tidy()
        self._sweep()

    def _without(self, ids: Sequence[str], generation: int) -> list[Part]:
        """Return the current parts with more rows removed; empty parts are dropped."""
        if not ids:
            return list(self._opened.manifest.parts)
        places = self._opened.places(ids)
        places = places[places >= 0]
        parts, first = [], 0
        for number, part in enumerate(self._opened.manifest.parts):
            inside = places[(places >= first) & (places < first + part.count)] - first
            first += part.count
            if len(inside):
                there = self._opened.there(number).copy()
                there[inside] = False
                if not there.any():
                    continue
                part = replace(part, gone=f"{_GONE}{generation:06d}-{number}")
                with written_out(self.root / part.gone) as file:  # not yet named by a manifest
                    file.write(np.packbits(~there).tobytes())
            parts.append(part)
        return parts

    def _tidy(self) -> None:
        """Merge small segments, or all if many rows are removed or new; then tune again."""
        manifest, counts = self._opened.manifest, self._opened.counts
        total, largest = sum(counts), max(counts, default=0)
        tuning = manifest.tuning
        is_grown = (
            tuning is not None
            and tuning.asked != "exact"
            and total * (1 - _MOST_BESIDE) > tuning.rows
        )
        is_beside = total - largest > _MOST_BESIDE * total
        is_many = len(counts) > _MOST_SEGMENTS
        if len(self) < (1 - _MOST_GONE) * total or (is_beside and (is_many or is_grown)):
            self._merge(range(len(counts)))
        elif is_many:
            self._merge(small_parts(counts))
        is_lost = not any(part.fast for part in self._opened.manifest.parts)
        if tuning is not None and (is_grown or (tuning.kind != "exact" and is_lost)):
            self._choose(tuning.asked, tuning.target)

    def _merge(self, numbers: Sequence[int]) -> None:
        """Copy the remaining rows of some segments into one."""
        manifest = self._opened.manifest
        generation = manifest.generation + 1
        name = f"{_SEGMENT}{generation:06d}"
        shutil.rmtree(self.root / name, ignore_errors=True)
        with SegmentWriter(self.root / name, manifest.facts, self._opened.coding) as writer:
            writer.write(self._opened.blocks(numbers))
        parts = [part for n, part in enumerate(manifest.parts) if n not in numbers]
        if writer.count:
            parts.append(Part(name, writer.count))
        self._commit(replace(manifest, generation=generation, parts=tuple(parts)))

    def store_as(self, name: str) -> None:
        """Store the vectors as another kind; see `whiten.index.local.storage`.

        The codec is fitted on the current vectors and does not change after that.

        Raises:
            StoreError: the full vectors are no longer stored.
            ConfigError: there are too few vectors for this kind.
        """
        before = self._opened.manifest
        if name == before.storage.name:
            return
        check_conversion(self.place, before.storage.name, name)
        storage = Storage()
        if name != BASE:
            if len(before.parts) != 1 or self._opened.present[0] is not None:
                self._merge(range(len(before.parts)))
            storage = self._encode(name)
        manifest = self._opened.manifest
        parts = tuple(replace(part, fast="") for part in manifest.parts)
        generation = manifest.generation + 1
        self._commit(replace(manifest, generation=generation, parts=parts, storage=storage))
        if before.tuning is not None:
            self._choose(before.tuning.asked, before.tuning.target)
        self._sweep()

    def _encode(self, name: str) -> Storage:
        """Fit a codec on the only segment, write its codes, and measure their loss."""
        kind, keeps_vectors = parse_storage(name)
        try:
            if not len(self):
                raise ConfigError("it is empty")
            [segment] = self._opened.segments
            codec = fit(kind, sample_rows(segment.vectors))
        except WhitenError as error:
            raise ConfigError(
                f"{self.place} cannot be stored as {name}, and is stored as before: {error}"
            ) from error
        file = f"{_CODEC}{self._opened.manifest.generation + 1:06d}.safetensors"
        save_codec(self.root / file, codec)
        storage = Storage(name, file)
        path = segment.folder / storage.codes
        write_codes(path, codec, segment.vectors)
        codes = map_codes(path, codec, len(segment))
        kept = segment.vectors if keeps_vectors else None
        loss = measure(name, codec, codes, segment.vectors, Items.from_table(segment.rows), kept)
        return replace(storage, loss=loss)

    def tune(self, asked: str | None = None, target: float | None = None) -> None:
        """Choose the search kind; see `whiten.index.local.tuning`.

        Args:
            asked: auto, exact, int8, ivf or hnsw; by default unchanged, auto for a new index.
            target: recall@10; by default unchanged.
        """
        before = self.tuning
        asked = asked or (before.asked if before else "auto")
        target = target or (before.target if before else RECALL)
        if before is not None and (asked, target) == (before.asked, before.target):
            return
        counts = self._opened.counts
        if asked != "exact" and sum(counts) - max(counts) > _MOST_BESIDE * sum(counts):
            self._merge(range(len(counts)))
        self._choose(asked, target)
        self._sweep()

    def _choose(self, asked: str, target: float) -> None:
        """Choose for the largest segment; the others are small, and scanned."""
        now = self._opened
        counts, generation = now.counts, now.manifest.generation + 1
        tuning = Tuning(asked, target, "exact", 0)
        parts = [replace(part, fast="") for part in now.manifest.parts]
        # Lists and graphs take a byte per dimension: with a compact storage, only on request.
        if counts and not (asked == "auto" and now.coding is not None):
            number = int(np.argmax(counts))
            tuning, folder = choose(
                asked,
                target,
                now.segments[number].unit,
                now.present[number],
                lambda kind: self.root / f"{_FAST}{generation:06d}-{kind}",
                None if now.coding is None else now.coding.codec,
            )
            parts[number] = replace(parts[number], fast=folder.name if folder else "")
        tuning = replace(tuning, rows=sum(counts))
        self._commit(
            replace(now.manifest, generation=generation, parts=tuple(parts), tuning=tuning)
        )

    def _commit(self, manifest: Manifest) -> None:
        """Replace the manifest: from here on the change counts."""
        for part in manifest.parts:
            for name in filter(None, (part.name, part.fast)):
                flush_folder(self.root / name)
        flush_folder(self.root)
        write_durably(self.root / MANIFEST, json.dumps(manifest.to_json(), indent=2).encode())
        self._open()

    def _sweep(self) -> None:
        """Delete files that the manifest does not name; readers that have them open keep them."""
        manifest = self._opened.manifest
        parts, storage = manifest.parts, manifest.storage
        named = {name for part in parts for name in (part.name, part.gone, part.fast)}
        named.add(storage.codec)
        kept = {ROWS, storage.codes} | ({VECTORS} if storage.has_vectors else set())
        for part in parts:
            for path in (self.root / part.name).iterdir():
                if path.name not in kept:
                    path.unlink()
        for path in self.root.iterdir():
            if path.name in named or path.name in _OURS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
