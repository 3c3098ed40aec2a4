"""Codes on disk: a folder that is written whole or not at all, and searched through a memory map.

- codes.npy: (n, width) codes
- codec.safetensors: what was fitted, with a checksum
- names.parquet: id, path and group of each row
- manifest.json: kind, dimension, model, versions and checksums
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whiten._version import __version__
from whiten.compact.codec import Codec, bytes_per_vector
from whiten.compact.kinds import from_state
from whiten.datasets.collection import Items
from whiten.embedding.encoder import Encoder
from whiten.errors import DAMAGED, ConfigError, StoreError, WhitenError, one_line
from whiten.retrieval.blocks import top_k
from whiten.utils.arrays import Array, Vectors, normalize_rows
from whiten.utils.files import load_sealed, save_sealed, write_atomically
from whiten.utils.hashing import content_hash
from whiten.utils.memory import forget

FORMAT = 1
_CODES, _CODEC, _NAMES, _MANIFEST = (
    "codes.npy", "codec.safetensors", "names.parquet", "manifest.json",
)  # fmt: skip
_BLOCK = 8192  # rows that are encoded or checked at once
SAMPLE_ROWS = 50_000  # that a codec is fitted on, at most
_SAMPLE_BYTES = 128 << 20


@dataclass(frozen=True)
class Hit:
    """One answer of a search; scores of different kinds of codes cannot be compared."""

    id: str
    path: str
    score: float


class Compact:
    """Codes of a collection, open for searching.

    Attributes:
        folder: where they lie.
        codec: how they are read.
        model: fingerprint of the model that made the embeddings, and its name.
        names: id, path and group of each, as an Arrow table.
        codes: (n, width), memory-mapped.
    """

    def __init__(
        self, folder: Path, codec: Codec, model: tuple[str, str], names: pa.Table, codes: Array
    ) -> None:
        self.folder = folder
        self.codec = codec
        self.model = model
        self.names = names
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def search(self, queries: Vectors, k: int = 10) -> list[list[Hit]]:
        """For each (q, dim) float32 query its k best by code, best first; ties by row.

        Raises:
            ConfigError: k below 1, or queries of another dimension.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        if queries.ndim != 2 or queries.shape[1] != self.codec.dim:
            raise ConfigError(
                f"queries of shape {queries.shape} cannot search codes of {self.codec.dim} "
                "dimensions: pass (q, dim), embedded with the same model"
            )
        asked = self.codec.queries(normalize_rows(queries.astype(np.float32, copy=False)))
        found = top_k(asked, decoded(self.codec, self.codes), k)
        return [[self._hit(*pair) for pair in zip(*best, strict=True)] for best in found]

    def decode(self, rows: slice | Sequence[int] | Array) -> Vectors:
        """(r, dim) float32 embeddings, as near as the codes can tell."""
        return self.codec.decode(self.codes[rows])

    def require(self, encoder: Encoder) -> None:
        """Raise StoreError if another model made the embeddings."""
        if encoder.fingerprint() != self.model[0]:
            raise StoreError(
                f"{self.folder} holds codes of {self.model[1]} ({self.model[0][:8]}), not of "
                f"{encoder.name} ({encoder.fingerprint()[:8]}): search with that model"
            )

    def _hit(self, row: Any, score: Any) -> Hit:
        name, path = (self.names[column][int(row)].as_py() for column in ("id", "path"))
        return Hit(name, os.fsdecode(path), float(score))


class _Decoded:
    """Codes that look like the float32 rows that they stand for, a block at a time."""

    def __init__(self, codec: Codec, codes: Array) -> None:
        self._codec, self._codes = codec, codes
        width = codec.rows(np.zeros((1, codec.width), codec.dtype)).shape[1]
        self.shape = (len(codes), width)

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: Any) -> Vectors:
        part = self._codes[rows]
        out = self._codec.rows(part)
        forget(part)
        return out


def decoded(codec: Codec, codes: Array) -> Vectors:
    """What scoring takes in place of an array: rows are decoded when they are looked at."""
    return cast(Vectors, _Decoded(codec, codes))


def sample_rows(vectors: Vectors) -> Vectors:
    """Rows to fit a codec on: all, or as many at random as fit into little memory."""
    most = min(SAMPLE_ROWS, _SAMPLE_BYTES // (4 * vectors.shape[1]))
    if len(vectors) <= most:
        return np.array(vectors, np.float32)
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:most])
    return np.asarray(vectors[rows], np.float32)


def encode_into(codec: Codec, vectors: Vectors, file: IO[bytes]) -> int:
    """Write an `npy` of the codes, a block in memory at a time; returns the checksum of the codes.

    Raises:
        ConfigError: a vector is not finite.
    """
    facts = {
        "descr": np.lib.format.dtype_to_descr(codec.dtype),
        "fortran_order": False,
        "shape": (len(vectors), codec.width),
    }
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, facts)
    file.write(header.getvalue())
    crc = 0
    for start in range(0, len(vectors), _BLOCK):
        part = vectors[start : start + _BLOCK]
        if not np.isfinite(part).all():
            raise ConfigError("an embedding holds NaN or infinity: embed the images again")
        codes = np.ascontiguousarray(codec.encode(part))
        forget(part)
        crc = zlib.crc32(codes.tobytes(), crc)
        file.write(codes.tobytes())
    file.flush()
    return crc


def write_compact(
    folder: Path, codec: Codec, vectors: Vectors, items: Items, model: tuple[str, str]
) -> Compact:
    """Encode a collection into a new folder.

    Args:
        vectors: (n, dim) float32, L2-normalised; may be a memory map.
        items: of the rows.
        model: fingerprint and name of what made them.

    Raises:
        StoreError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is not empty: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    new.mkdir()
    with (new / _CODES).open("wb") as file:
        crc = encode_into(codec, vectors, file)
    facts = {"kind": codec.kind, "dim": codec.dim}
    save_sealed(new / _CODEC, codec.state(), facts)
    pq.write_table(items.table(), new / _NAMES, compression="zstd", write_page_checksum=True)
    manifest = {
        "format": FORMAT,
        "kind": codec.kind,
        "dim": codec.dim,
        "count": len(vectors),
        "bytes_per_vector": bytes_per_vector(codec),
        "model": model[0],
        "name": model[1],
        "version": __version__,
        "codes_crc32": crc,
        "names_hash": content_hash((new / _NAMES).read_bytes()),
    }
    manifest["check"] = _check(manifest)
    write_atomically(new / _MANIFEST, json.dumps(manifest, indent=2).encode())
    os.replace(new, folder)
    return open_compact(folder)


def open_compact(folder: str | os.PathLike[str]) -> Compact:
    """Open codes that `whiten compact --write` wrote.

    They are read once to compare their checksum, and then searched through a memory map.

    Raises:
        StoreError: none are there, or they are damaged.
    """
    root = Path(folder)
    try:
        manifest = json.loads((root / _MANIFEST).read_text("utf-8"))
        check = manifest.pop("check")
        if manifest["format"] != FORMAT:
            raise StoreError(f"format {manifest['format']!r}, where this version reads {FORMAT}")
        if check != _check(manifest):
            raise ValueError("its manifest does not match its checksum")
        facts, state = load_sealed(root / _CODEC)
        if facts != {"kind": manifest["kind"], "dim": manifest["dim"]}:
            raise ValueError("its codec is of other codes")
        codec = from_state(manifest["kind"], manifest["dim"], state)
        content = (root / _NAMES).read_bytes()
        if content_hash(content) != manifest["names_hash"]:
            raise ValueError("its names do not match their checksum")
        names = pq.read_table(io.BytesIO(content))
        codes = np.load(root / _CODES, mmap_mode="r", allow_pickle=False)
        if codes.shape != (manifest["count"], codec.width) or codes.dtype != codec.dtype:
            raise ValueError(f"its codes are {codes.dtype} of shape {codes.shape}")
        if len(names) != len(codes) or _crc(codes) != manifest["codes_crc32"]:
            raise ValueError("its codes do not match their checksum")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{root} holds no compact embeddings: write some with `whiten compact … --write KIND "
            f"--out {root}`"
        ) from error
    except (*DAMAGED, EOFError, pa.ArrowException, WhitenError) as error:
        raise StoreError(f"{root} is damaged ({one_line(error)}): write it again") from error
    return Compact(root, codec, (manifest["model"], manifest["name"]), names, codes)


def _crc(codes: Array) -> int:
    crc = 0
    for start in range(0, len(codes), _BLOCK):
        part = codes[start : start + _BLOCK]
        crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
        forget(part)
    return crc


def _check(manifest: dict[str, Any]) -> str:
    return content_hash(json.dumps(manifest, sort_keys=True).encode())
