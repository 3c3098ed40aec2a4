"""Images as they come in, which may be anything, and as they go out, which are made here."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from PIL import Image

from whiten.errors import ImageError
from whiten.media.decoding import decode, decode_scaled, stored_size
from whiten.media.reading import read_bytes

SIZES = (16, 2048)  # pixels of a thumbnail's longer side, least and most
_QUALITY = 85
_CACHED = 32 << 20  # bytes of thumbnails

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the upright image."""


def require_image(data: bytes, max_pixels: int) -> None:
    """Refuse what is no image, or too large a one, by what it says of itself; decodes nothing.

    Raises:
        ImageError: the reason.
    """
    if not data:
        raise ImageError("empty file")
    width, height = stored_size(data)
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, above the limit of {max_pixels:,}")


def crop(data: bytes, box: Box) -> Image.Image:
    """The part of an image inside a box, as far as it is there; at least a pixel.

    Raises:
        ImageError: it cannot be decoded, or the box lies beside it.
    """
    image = decode(data)
    left, top, width, height = box
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    left, top = max(left, 0.0), max(top, 0.0)
    if not (left < right and top < bottom):
        raise ImageError(f"the box lies beside the image, which is {image.width}x{image.height}")
    x, y = int(left), int(top)
    return image.crop((x, y, max(x + 1, round(right)), max(y + 1, round(bottom))))


class Thumbnails:
    """Small copies of images as JPEG; the last ones asked for are kept."""

    def __init__(self, capacity: int = _CACHED) -> None:
        self._capacity = capacity
        self._made: OrderedDict[tuple[str, int], tuple[bytes, tuple[int, int]]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def get(self, path: str, content: str, size: int) -> tuple[bytes, tuple[int, int]]:
        """A file's thumbnail, and the size of the upright image.

        Args:
            path: of the file.
            content: changes when it does.
            size: pixels of the longer side, which is not enlarged.

        Raises:
            ImageError: the file cannot be read.
        """
        key = (f"{content} {path}", size)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = _thumbnail(read_bytes(path), size)
        with self._lock:
            if key not in self._made and len(made[0]) <= self._capacity:
                self._made[key] = made
                self._held += len(made[0])
            while self._held > self._capacity:
                _, (oldest, _) = self._made.popitem(last=False)
                self._held -= len(oldest)
        return made


def _thumbnail(data: bytes, size: int) -> tuple[bytes, tuple[int, int]]:
    """Never the file itself: what leaves has been decoded, so that no other file can."""
    with_edges, box = decode_scaled(data, min_side=size)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(1.0, size / max(width, height))
    small = with_edges.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))),
        Image.Resampling.LANCZOS,
        box=box,
    )
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue(), _upright_size(data, (with_edges.width, with_edges.height))


def _upright_size(data: bytes, decoded: tuple[int, int]) -> tuple[int, int]:
    """Of the whole image, which may have been decoded smaller."""
    size = stored_size(data)
    is_turned = (size[0] >= size[1]) != (decoded[0] >= decoded[1])
    return (size[1], size[0]) if is_turned else size
