"""Random pictures that resampling and compression change little, and their files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def picture(
    seed: int = 0, width: int = 60, height: int = 44, *, blobs: tuple[int, int] = (4, 5)
) -> Image.Image:
    """Blobs of colour in so many rows and columns."""
    noise = np.random.default_rng(seed).integers(0, 256, (*blobs, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def photograph(width: int = 480, height: int = 320) -> Image.Image:
    """A picture with more detail."""
    return picture(0, width, height, blobs=(9, 13))


def distance(a: Image.Image, b: Image.Image) -> float:
    """Mean difference in grey levels."""
    assert a.size == b.size
    assert a.mode == b.mode == "RGB"
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).mean())


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: Callable[[int], bytes]) -> bytes:
    """A PNG of any header, row by row, for kinds that Pillow does not write."""
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(b"\0" + rows(y)) for y in range(height)) + packer.flush()
    return png_of(struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), pixels)


def png_of(header: bytes, pixels: bytes) -> bytes:
    """A PNG of compressed pixels, whether they fit the header or not."""
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
