"""Keep uploaded images as files, named by their content."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from whiten.errors import ConfigError
from whiten.index import Index
from whiten.media.formats import FORMATS, is_jpeg_xl
from whiten.utils.files import write_durably
from whiten.utils.hashing import fingerprint
from whiten.utils.names import as_utf8

_OWNER = ".whiten-index"  # names the index whose uploads a folder keeps
_DATABASE = b"database "  # begins the name of one, whose address may hold a password

# Pillow's names that are no suffixes. An MPO is a JPEG that holds several pictures.
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tif", "HEIF": "heic"}


class Uploads:
    """A folder of the files that were uploaded to one index; it holds each content once.

    What one index deletes would be gone for another, so that each needs a folder of its own.

    Args:
        root: the folder; it is made with the first upload.
        index: the index of the uploads.

    Raises:
        ConfigError: the folder keeps the uploads of another index, which is still there.
    """

    def __init__(self, root: Path, index: Index) -> None:
        self._root = root.absolute()
        if index.folder is None:
            self._owner = _DATABASE + fingerprint(index.place).encode()
        else:
            self._owner = os.fsencode(os.path.realpath(index.folder))
        self._require_own()

    def _named_owner(self) -> bytes:
        mark = self._root / _OWNER
        return mark.read_bytes() if mark.is_file() else b""

    def _require_own(self) -> bytes:
        """Refuse a folder of another index; return what its owner's file holds."""
        owner = self._named_owner()
        is_gone = not owner.startswith(_DATABASE) and not os.path.exists(owner)  # noqa: PTH110
        if owner != self._owner and not is_gone:
            named = "a database" if owner.startswith(_DATABASE) else as_utf8(os.fsdecode(owner))
            raise ConfigError(
                f"{self._root} keeps the uploads of {named}, and an index deletes its own: name "
                f"another folder with --uploads, or, if that is this index, delete "
                f"{self._root / _OWNER}"
            )
        return owner

    def save(self, data: bytes, content: str) -> str:
        """Write an image to the disk, unless it is there; return its path.

        Args:
            content: hash of the data.

        Raises:
            OSError: the folder cannot be written.
            ConfigError: it has become that of another index.
        """
        path = Path(self.path_of(data, content))
        if self._require_own() != self._owner:
            self._root.mkdir(parents=True, exist_ok=True)
            write_durably(self._root / _OWNER, self._owner)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)  # by one process at a time, see `LiveIndex.changing`
        return os.fspath(path)

    def path_of(self, data: bytes, content: str) -> str:
        """Return where `save` writes an image."""
        return os.fspath(self._place(content, _suffix(data)))

    def drop(self, path: str, content: str) -> None:
        """Delete the file of an image if `save` wrote it: the folder may hold others, too."""
        file = Path(path)
        if file == self._place(content, file.suffix) and self._named_owner() == self._owner:
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
