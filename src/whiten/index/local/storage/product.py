"""Product quantisation (Jégou et al., TPAMI 2011): one byte per part of the embedding.

FAISS fits; the codebooks are plain arrays, so that encoding, search and decoding need no FAISS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whiten.errors import ConfigError, MissingExtraError
from whiten.index.local.storage.codec import Codec, require_state
from whiten.utils.arrays import Array, Vectors

CENTROIDS = 256  # per part: as many as a byte can index


class Product(Codec):
    """Stores m bytes, each the nearest of 256 centroids of dim/m dimensions.

    Args:
        codebooks: (m, 256, dim/m) float32.
    """

    def __init__(self, codebooks: Vectors) -> None:
        parts, _, length = codebooks.shape
        self.kind = f"pq:{parts}"
        self.codebooks = codebooks
        self.width, self.dim = parts, parts * length
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    @classmethod
    def fit(cls, sample: Vectors, parts: int) -> Product:
        """Fit the codebooks with FAISS.

        Raises:
            MissingExtraError: FAISS is not installed.
            ConfigError: there are fewer vectors than centroids, or parts of unequal length.
        """
        faiss = open_faiss()
        dim = sample.shape[1]
        require_parts(dim, parts)
        if len(sample) < CENTROIDS:
            raise ConfigError(
                f"pq:{parts} needs {CENTROIDS} different vectors at least, there are {len(sample)}"
            )
        quantizer = faiss.ProductQuantizer(dim, parts, 8)
        # FAISS would warn below 39 samples per centroid; the measured loss says more.
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(np.ascontiguousarray(sample))
        centroids = faiss.vector_to_array(quantizer.centroids)
        return cls(centroids.reshape(parts, CENTROIDS, dim // parts).copy())

    @classmethod
    def from_state(cls, state: Mapping[str, Array], dim: int, parts: int) -> Product:
        if dim % parts:
            raise ConfigError(f"its codebooks do not make {dim} dimensions")
        return cls(*require_state(state, {"codebooks": (parts, CENTROIDS, dim // parts)}))

    def encode(self, vectors: Vectors) -> Array:
        codes = np.empty((len(vectors), self.width), np.uint8)
        length = self.codebooks.shape[2]
        for part, book in enumerate(self.codebooks):
            own = vectors[:, part * length : (part + 1) * length]
            # The nearest one: |x - c|² less |x|², which is the same for all c.
            codes[:, part] = ((book**2).sum(axis=1) - 2 * (own @ book.T)).argmin(axis=1)
        return codes

    def decode(self, codes: Array) -> Vectors:
        _, count, length = self.codebooks.shape
        rows = codes + count * np.arange(self.width)  # into the concatenated codebooks
        found: Vectors = np.take(self.codebooks.reshape(-1, length), rows, axis=0)
        return found.reshape(len(codes), self.dim)

    def state(self) -> dict[str, Array]:
        return {"codebooks": self.codebooks}


def require_parts(dim: int, parts: int) -> None:
    if dim % parts:
        raise ConfigError(
            f"pq:{parts} cannot cut {dim} dimensions into equal parts: use a divisor of {dim}"
        )


def open_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("product quantisation", "faiss") from error
    return faiss
