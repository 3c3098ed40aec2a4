"""The kinds by name: fit one, or open one that was fitted."""

from __future__ import annotations

from collections.abc import Mapping

from whiten.compact.binary import Binary
from whiten.compact.codec import Codec
from whiten.compact.product import Product
from whiten.compact.scalar import Float, Int8
from whiten.compact.truncation import Truncation
from whiten.errors import ConfigError, nearest
from whiten.utils.arrays import Array, Vectors

NAMES = ("float32", "float16", "int8", "binary", "hamming", "pca:K", "pq:M")
_PARTS = (128, 64, 32, 16, 8, 4)  # bytes of product quantisation


def default_kinds(dim: int) -> list[str]:
    """A spread of kinds for embeddings of `dim` dimensions."""
    axes = [f"pca:{dim // part}" for part in (2, 4, 8) if dim // part >= 4]
    parts = [f"pq:{m}" for m in _PARTS if dim % m == 0 and dim // m >= 2]
    return ["float32", "float16", "int8", "binary", "hamming", *axes, *parts]


def parse_kind(kind: str) -> tuple[str, int]:
    """`pca:64` -> (`pca`, 64); others have the number 0.

    Raises:
        ConfigError: there is no such kind.
    """
    name, colon, number = kind.partition(":")
    if name in ("pca", "pq") and number.isdecimal() and int(number) > 0:
        return name, int(number)
    if kind in NAMES and not colon:
        return kind, 0
    raise ConfigError(f"there is no kind {kind!r}{nearest(kind, NAMES)}: use {', '.join(NAMES)}")


def fit(kind: str, sample: Vectors) -> Codec:
    """A codec for embeddings like those of the sample.

    Args:
        kind: one of `NAMES`, with a number for K (axes) or M (bytes).
        sample: (n, dim) float32, L2-normalised.

    Raises:
        ConfigError: there is no such kind, or it cannot be had of this dimension or sample.
        MissingExtraError: FAISS is not installed, for `pq`.
        WhiteningError: the sample spans fewer axes than asked.
    """
    name, number = parse_kind(kind)
    dim = sample.shape[1]
    if name == "pca":
        return Truncation.fit(sample, number)
    if name == "pq":
        return Product.fit(sample, number)
    if name == "int8":
        return Int8.fit(sample)
    if name in ("binary", "hamming"):
        return Binary.fit(name, sample)
    return Float(dim, int(name.removeprefix("float")))


def from_state(kind: str, dim: int, state: Mapping[str, Array]) -> Codec:
    """A codec as it was fitted.

    Raises:
        ConfigError, StoreError: there is no such kind, or the state is not one of it.
    """
    name, number = parse_kind(kind)
    if name == "pca":
        return Truncation.from_state(state, dim, number)
    if name == "pq":
        return Product.from_state(state, dim, number)
    if name == "int8":
        return Int8.from_state(state, dim)
    if name in ("binary", "hamming"):
        return Binary.from_state(name, state, dim)
    return Float(dim, int(name.removeprefix("float")))
