"""Exact search in a folder of embeddings: build, extend, open, search.

Vectors and names stay on disk and are read as they are needed, so that memory does not grow with
the index.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from whiten.encoder import Embeddable, Encoder
from whiten.errors import ConfigError, StoreError
from whiten.evaluate import top_k
from whiten.media import Item, Items, Skipped, display_path, stamp_of
from whiten.protocols.gallery import write_embeddings
from whiten.run_folder import write_atomically
from whiten.store import Vectors

FORMAT = 2
_MANIFEST = "manifest.json"
_VECTORS = "vectors.npy"
_NAMES = "names.arrow"
_EMBEDDINGS = "embeddings"
_FILES = (_MANIFEST, _VECTORS, _NAMES)
# What an index folder may hold, also after a killed build, and of format 1.
_PARTS = {_EMBEDDINGS, *_FILES, *(f".{name}.partial" for name in _FILES), "ids.json"}
_CHUNK = 8192  # names written at once


@dataclass(frozen=True)
class Match:
    """One answer of a search.

    Attributes:
        id: of the image in its collection.
        path: of its file.
        score: cosine similarity to the query, -1 to 1.
    """

    id: str
    path: str
    score: float


class Index:
    """Vectors, ids, and the fingerprint of the model that made them.

    Attributes:
        folder: where it lies.
        model: fingerprint of the encoder.
        state: of the collection when it was built.
        vectors: (n, dim) float32, memory-mapped.
        skipped: images that could not be read when it was built.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        state: str,
        names: pa.Table,
        vectors: Vectors,
        skipped: list[Skipped],
    ) -> None:
        self.folder = folder
        self.model = model
        self.state = state
        self._names = names
        self.vectors = vectors
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def ids(self) -> list[str]:
        """Of the images; read anew each time."""
        ids: list[str] = self._names["id"].to_pylist()
        return ids

    @property
    def paths(self) -> list[str]:
        """Of the images' files; read anew each time."""
        return [os.fsdecode(path) for path in self._names["path"].to_pylist()]

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        items: Sequence[Item],
        folder: str | os.PathLike[str],
        *,
        show_progress: bool = False,
    ) -> Index:
        """Index a collection, or bring its index up to date.

        Only new and changed images are embedded. If no file came, went or changed since, and none
        was moved, not one of them is opened.

        Raises:
            StoreError: the folder holds something else, or another model's index.
            NoImagesError: no image can be read.
        """
        root = Path(folder)
        if root.is_dir() and any(path.name not in _PARTS for path in root.iterdir()):
            raise StoreError(f"{root} holds something else than an index: name another folder")
        # Before anything is embedded: what changes meanwhile is noticed the next time.
        state = _state(items)
        if (root / _MANIFEST).exists():
            built = cls.open(root)
            built._require(encoder)
            if built.state == state:
                return built
            if encoder.fingerprint() != built.model:  # it may ask, and not add
                raise StoreError(
                    f"{root} is behind its images, and {encoder.name} can only ask it: bring it up "
                    "to date with the model that it was built with"
                )
        root.mkdir(parents=True, exist_ok=True)
        partial = root / f".{_VECTORS}.partial"
        try:
            with partial.open("wb") as file:
                kept, skipped = write_embeddings(
                    encoder,
                    items,
                    file,
                    cache=root / _EMBEDDINGS,
                    header=lambda count: _npy_header(count, encoder.dim),
                    show_progress=show_progress,
                )
        except BaseException:
            partial.unlink()  # it is as large as the index
            raise
        # Without its manifest an index is no index: a kill from here on mixes no old and new files.
        (root / _MANIFEST).unlink(missing_ok=True)
        os.replace(partial, root / _VECTORS)
        _write_names(root, kept)
        manifest = {
            "format": FORMAT,
            "model": encoder.fingerprint(),
            "name": encoder.name,
            "dim": encoder.dim,
            "count": len(kept),
            "state": state,
            "skipped": [[s.id, s.reason] for s in skipped],
        }
        write_atomically(root / _MANIFEST, json.dumps(manifest, indent=2).encode())
        return cls.open(root)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Index:
        """Open an index.

        Raises:
            StoreError: none is there, or it is damaged.
        """
        root = Path(folder)
        try:
            manifest = json.loads((root / _MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                raise StoreError(
                    f"{root} has index format {manifest['format']!r}, this version reads {FORMAT}: "
                    "delete it and search again"
                )
            names = _read_names(root / _NAMES)
            vectors = np.load(root / _VECTORS, mmap_mode="r")
            shape = (int(manifest["count"]), int(manifest["dim"]))
            skipped = [Skipped(*pair) for pair in manifest["skipped"]]
            model, state = str(manifest["model"]), str(manifest["state"])
        except FileNotFoundError as error:
            raise StoreError(f"{root} is not an index: build one with `whiten search`") from error
        except (OSError, EOFError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise StoreError(f"{root} is damaged ({error}): delete it and search again") from error
        if vectors.shape != shape or len(names) != shape[0]:
            raise StoreError(f"{root} is damaged, its parts do not fit: delete it and search again")
        return cls(root, model, state, names, vectors, skipped)

    def search(
        self, encoder: Encoder, queries: Sequence[Embeddable] | Embeddable, k: int = 10
    ) -> list[list[Match]]:
        """For each query its k nearest images, best first; exact.

        Raises:
            StoreError: the encoder is another model than the index was built with.
            ImageError: a query cannot be read.
            ConfigError: k is below 1.
        """
        return self.search_vectors(encoder, encoder.embed(queries), k)

    def search_vectors(self, encoder: Encoder, queries: Vectors, k: int = 10) -> list[list[Match]]:
        """`search` with (n, dim) embeddings that `encoder` has made already."""
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        self._require(encoder)
        return [
            [
                Match(
                    self._names["id"][i].as_py(),
                    os.fsdecode(self._names["path"][i].as_py()),
                    float(score),
                )
                for i, score in zip(best, scores, strict=True)
            ]
            for best, scores in top_k(queries, self.vectors, k)
        ]

    def _require(self, encoder: Encoder) -> None:
        if not encoder.can_ask(self.model):
            raise StoreError(
                f"{self.folder} was built with another model ({self.model[:8]}) than "
                f"{encoder.name} ({encoder.fingerprint()[:8]}): name another index folder, or "
                "delete this one"
            )


def _state(items: Sequence[Item]) -> str:
    """Changes when a file comes, goes, moves or changes; asks the file system only for dates."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        stamp = stamp_of(item.path)
        digest.update(f"{item.id}\0{display_path(item.path)}\0{stamp}\0".encode())
    return digest.hexdigest()


def _npy_header(count: int, dim: int) -> bytes:
    buffer = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def _write_names(root: Path, items: Items) -> None:
    partial = root / f".{_NAMES}.partial"
    schema = pa.schema([pa.field("id", pa.string()), pa.field("path", pa.binary())])
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(items), _CHUNK):
            part = slice(start, start + _CHUNK)
            columns = [items.ids[part].cast(pa.string()), items.paths[part].cast(pa.binary())]
            writer.write_batch(pa.record_batch(columns, schema))
    os.replace(partial, root / _NAMES)


def _read_names(path: Path) -> pa.Table:
    """Map the ids and paths: of the file only what is looked at comes into memory."""
    with path.open("rb"):  # a missing file is not a damaged one
        pass
    table: pa.Table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if table.schema.names != ["id", "path"]:
        raise ValueError(f"its columns are {table.schema.names}")
    return table
