"""Small copies of images."""

from __future__ import annotations

import base64
import io

from PIL import Image

from whiten.errors import ImageError
from whiten.media.decoding import decode_scaled
from whiten.media.reading import read_bytes


def thumbnail(data: bytes, side: int) -> Image.Image:
    """Decode at a small scale and resize until the longer side has at most `side` pixels.

    Args:
        data: the file's content.

    Raises:
        ImageError: the content cannot be decoded.
    """
    image, picture = decode_scaled(data, min_side=side)
    width, height = picture.right - picture.left, picture.bottom - picture.top
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, box=picture)


def as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def data_url(path: str, side: int) -> str:
    """Return a file's thumbnail as a data URL for a page; "" if the file cannot be read."""
    try:
        content = as_jpeg(thumbnail(read_bytes(path), side))
    except ImageError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
