"""Check uploaded images, and make thumbnails of indexed ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from whiten.errors import ImageError, NotThereError
from whiten.media.decoding import stored_size
from whiten.media.reading import read_bytes
from whiten.media.thumbnails import as_jpeg, thumbnail
from whiten.serve.queries import RefusedError

SIZES = (16, 2048)  # minimum and maximum pixels of a thumbnail's longer side
_CACHED = 32 << 20  # bytes of thumbnails


def require_image(data: bytes, max_pixels: int) -> None:
    """Refuse data that is no image or too large, by its header, without decoding.

    Raises:
        ImageError: the reason.
    """
    if not data:
        raise ImageError("empty file")
    width, height = stored_size(data)
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, above the limit of {max_pixels:,}")


@contextmanager
def of_indexed(name: str) -> Iterator[None]:
    """Refuse, by its id, an indexed image whose file is gone or no image any more.

    Raises:
        RefusedError: see there; the reason has no path of the server.
    """
    try:
        yield
        return
    except NotThereError:
        reason = "no such object"
    except ImageError as error:
        reason = str(error)
    raise RefusedError(404, f"the image of {name[:200]!r} cannot be shown: {reason}")


class Thumbnails:
    """Small copies of images as JPEG; the most recently used are kept."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[str, int], tuple[bytes, tuple[int, int]]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def get(self, path: str, content: str, size: int) -> tuple[bytes, tuple[int, int]]:
        """Return a file's thumbnail, and the size of the upright image.

        Args:
            path: path of the file.
            content: changes with the file's content.
            size: pixels of the longer side; images are not enlarged.

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
            if key not in self._made and len(made[0]) <= _CACHED:
                self._made[key] = made
                self._held += len(made[0])
            while self._held > _CACHED:
                _, (oldest, _) = self._made.popitem(last=False)
                self._held -= len(oldest)
        return made


def _thumbnail(data: bytes, side: int) -> tuple[bytes, tuple[int, int]]:
    """Decode and re-encode, so that only images can be served."""
    small = thumbnail(data, side)
    return as_jpeg(small), _upright_size(data, small.size)


def _upright_size(data: bytes, decoded: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the whole upright image, given the size of a thumbnail."""
    size = stored_size(data)
    is_turned = (size[0] >= size[1]) != (decoded[0] >= decoded[1])
    return (size[1], size[0]) if is_turned else size
