"""Exact search in a folder of embeddings: build, extend, open, search."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whiten.encoder import Embeddable, Encoder
from whiten.errors import ConfigError, StoreError
from whiten.evaluate import top_k
from whiten.media import Item, Skipped
from whiten.run_folder import write_atomically
from whiten.store import Vectors

FORMAT = 1
_MANIFEST = "manifest.json"
_VECTORS = "vectors.npy"
_IDS = "ids.json"
_EMBEDDINGS = "embeddings"
_PARTIAL = f".{_VECTORS}.partial"
_NAMES = (_MANIFEST, _VECTORS, _IDS)
_PARTS = {_EMBEDDINGS, *_NAMES, *(f".{name}.partial" for name in _NAMES)}  # also of a killed build


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
        ids, paths: of the images.
        vectors: (n, dim) float32, memory-mapped.
        skipped: images that could not be read when it was built.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        ids: list[str],
        paths: list[str],
        vectors: Vectors,
        skipped: list[Skipped],
    ) -> None:
        self.folder = folder
        self.model = model
        self.ids = ids
        self.paths = paths
        self.vectors = vectors
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.ids)

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

        Only new and changed images are embedded.

        Raises:
            StoreError: the folder holds something else, or another model's index.
            NoImagesError: no image can be read.
        """
        root = Path(folder)
        if root.is_dir() and any(path.name not in _PARTS for path in root.iterdir()):
            raise StoreError(f"{root} holds something else than an index: name another folder")
        if (root / _MANIFEST).exists():
            cls.open(root)._require(encoder)
        root.mkdir(parents=True, exist_ok=True)
        kept, vectors, skipped = encoder.embed_items(
            items, cache=root / _EMBEDDINGS, show_progress=show_progress
        )
        partial = root / _PARTIAL
        with partial.open("wb") as file:
            np.save(file, vectors)
        os.replace(partial, root / _VECTORS)
        names = {"ids": [i.id for i in kept], "paths": [i.path for i in kept]}
        write_atomically(root / _IDS, json.dumps(names).encode())
        manifest = {
            "format": FORMAT,
            "model": encoder.fingerprint(),
            "name": encoder.name,
            "dim": encoder.dim,
            "count": len(kept),
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
            names = json.loads((root / _IDS).read_text())
            vectors = np.load(root / _VECTORS, mmap_mode="r")
            ids, paths = list(names["ids"]), list(names["paths"])
            shape = (int(manifest["count"]), int(manifest["dim"]))
            skipped = [Skipped(*pair) for pair in manifest["skipped"]]
            model = str(manifest["model"])
        except FileNotFoundError as error:
            raise StoreError(f"{root} is not an index: build one with `whiten search`") from error
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{root} is damaged ({error}): delete it and search again") from error
        if vectors.shape != shape or not len(ids) == len(paths) == shape[0]:
            raise StoreError(f"{root} is damaged, its parts do not fit: delete it and search again")
        return cls(root, model, ids, paths, vectors, skipped)

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
                Match(self.ids[i], self.paths[i], float(score))
                for i, score in zip(best, scores, strict=True)
            ]
            for best, scores in top_k(queries, self.vectors, k)
        ]

    def _require(self, encoder: Encoder) -> None:
        if encoder.fingerprint() != self.model:
            raise StoreError(
                f"{self.folder} was built with another model ({self.model[:8]}) than "
                f"{encoder.name} ({encoder.fingerprint()[:8]}): name another index folder, or "
                "delete this one"
            )
