"""Keep uploaded images as files, named by their content."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from whiten.media.formats import FORMATS, is_jpeg_xl
from whiten.utils.files import write_durably

# Pillow's names that are no suffixes. An MPO is a JPEG that holds several pictures.
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tif", "HEIF": "heic"}


class Uploads:
    """A folder of uploaded files; it holds each content once.

    Args:
        root: the folder; it is made with the first upload.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def save(self, data: bytes, content: str) -> str:
        """Write an image to the disk, unless it is there; return its path.

        Args:
            content: hash of the data.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._place(content, _suffix(data))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)  # by one process at a time, see `LiveIndex.changing`
        return os.fspath(path)

    def drop(self, path: str, content: str) -> None:
        """Delete the file of an image if `save` wrote it: the folder may hold others, too."""
        file = Path(path)
        if file == self._place(content, file.suffix):
            file.unlink(missing_ok=True)

    def _place(self, content: str, suffix: str) -> Path:
        return self._root / content[:2] / f"{content}{suffix}"


def _suffix(data: bytes) -> str:
    """Return the suffix of an image's format, whatever the client called the file."""
    if is_jpeg_xl(data):
        return ".jxl"
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        name = str(opened.format)
    return f".{_SUFFIXES.get(name, name.lower())}"
