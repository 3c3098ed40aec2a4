"""The storage kinds by name: fit a codec, or open a fitted one."""

from __future__ import annotations

from collections.abc import Mapping

from whiten.errors import ConfigError, StoreError, nearest
from whiten.index.local.storage.binary import Binary
from whiten.index.local.storage.codec import Codec
from whiten.index.local.storage.product import Product, open_faiss, require_parts
from whiten.index.local.storage.scalar import Float, Int8
from whiten.index.local.storage.truncation import Truncation
from whiten.utils.arrays import Array, Vectors

NAMES = ("float32", "float16", "int8", "binary", "pca:K", "pq:M")
BASE = "float32"
_KEPT = f"+{BASE}"
_PARTS = (128, 64, 32, 16, 8, 4)  # bytes per code of product quantisation


def default_kinds(dim: int) -> list[str]:
    """Return a range of kinds for embeddings of `dim` dimensions."""
    axes = [f"pca:{dim // part}" for part in (2, 4, 8) if dim // part >= 4]
    parts = [f"pq:{m}" for m in _PARTS if dim % m == 0 and dim // m >= 2]
    return ["float32", "float16", "int8", "binary", *axes, *parts]


def parse_kind(kind: str) -> tuple[str, int]:
    """Split `pca:64` into (`pca`, 64); kinds without a number have 0.

    Raises:
        ConfigError: there is no such kind.
    """
    name, colon, number = kind.partition(":")
    if name in ("pca", "pq") and number.isdecimal() and int(number) > 0:
        return name, int(number)
    if kind in NAMES and not colon:
        return kind, 0
    raise ConfigError(f"there is no kind {kind!r}{nearest(kind, NAMES)}: use {', '.join(NAMES)}")


def parse_storage(storage: str) -> tuple[str, bool]:
    """Split `int8+float32` into (`int8`, True): codes are searched, full vectors re-rank the hits.

    Raises:
        ConfigError: there is no such storage.
    """
    kind = storage.removesuffix(_KEPT)
    keeps_vectors = kind != storage
    parse_kind(kind)
    if keeps_vectors and kind == BASE:
        raise ConfigError(f"there is no storage {storage!r}: use {BASE}, or {NAMES[2]}{_KEPT}")
    return kind, keeps_vectors


def check_storage(storage: str, dim: int | None = None) -> None:
    """Refuse a storage that is unavailable, before anything is computed.

    Args:
        dim: embedding dimension, once known.

    Raises:
        ConfigError: there is no such storage, or not for this dimension.
        MissingExtraError: FAISS is needed, and not installed.
    """
    name, number = parse_kind(parse_storage(storage)[0])
    if name == "pq":
        open_faiss()
    if dim is None:
        return
    if name == "pq":
        require_parts(dim, number)
    if name == "pca" and number > dim:
        raise ConfigError(f"pca:{number} needs {number} axes, the embeddings have {dim}")


def check_conversion(place: str, before: str, storage: str) -> None:
    """Refuse to store an index as another kind once its full vectors are gone.

    Args:
        before, storage: kinds, as `parse_storage` takes them.

    Raises:
        StoreError: they are gone.
    """
    if before not in (storage, BASE) and not parse_storage(before)[1]:
        raise StoreError(
            f"{place} is stored as {before}, its full vectors are gone: leave --storage out, or "
            "delete the index and index again"
        )


def fit(kind: str, sample: Vectors) -> Codec:
    """Fit a codec for embeddings like those of the sample.

    Args:
        kind: one of `NAMES`, with a number for K (axes) or M (bytes).
        sample: (n, dim) float32, L2-normalised.

    Raises:
        ConfigError: there is no such kind, or not for this dimension or sample.
        MissingExtraError: FAISS is not installed, for `pq`.
        WhiteningError: the sample spans fewer axes than requested.
    """
    name, number = parse_kind(kind)
    dim = sample.shape[1]
    if name == "pca":
        return Truncation.fit(sample, number)
    if name == "pq":
        return Product.fit(sample, number)
    if name == "int8":
        return Int8.fit(sample)
    if name == "binary":
        return Binary.fit(sample)
    return Float(dim, int(name.removeprefix("float")))


def from_state(kind: str, dim: int, state: Mapping[str, Array]) -> Codec:
    """Open a fitted codec.

    Raises:
        ConfigError, StoreError: there is no such kind, or the state does not match it.
    """
    name, number = parse_kind(kind)
    if name == "pca":
        return Truncation.from_state(state, dim, number)
    if name == "pq":
        return Product.from_state(state, dim, number)
    if name == "int8":
        return Int8.from_state(state, dim)
    if name == "binary":
        return Binary.from_state(state, dim)
    return Float(dim, int(name.removeprefix("float")))
