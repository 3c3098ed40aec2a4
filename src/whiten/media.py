"""Find and decode images. A bad file is skipped with its reason, and counted."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from whiten.errors import ConfigError, ImageError, NoImagesError

# fmt: off
SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".avif", ".jp2", ".tga",
])
# fmt: on
# Whatever a file's name says: formats that Pillow decodes itself, with the size known before the
# pixels. EPS would start another program, ICO decodes while it is opened.
Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
    if name in Image.OPEN
]
MAX_PIXELS = 200_000_000  # 600 MB as RGB; a JPEG may be larger, its decoder can shrink it

_ORIENTATION = 0x0112  # EXIF tag
# What turns an image of each orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_SIDE = frozenset([5, 6, 7, 8])

# The limit above replaces Pillow's process-wide one, which would warn at half of it.
Image.MAX_IMAGE_PIXELS = None

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a collection.

    Attributes:
        id: name that is unique in the collection and valid UTF-8.
        path: where the file is.
        group: what the image shows (landmark, product), or None where unknown.
    """

    id: str
    path: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be used, and why."""

    id: str
    reason: str


def find_items(source: str | os.PathLike[str]) -> list[Item]:
    """The images of a folder, or of a CSV or Parquet table with columns `path` and `group`.

    In a folder whose images all lie one folder deep or deeper, the folder that holds an
    image is its group; images directly in the root have none. Hidden files and folders are
    passed over, links to folders are not followed. In a table, relative paths start at the
    table's folder. The order is by id, the same on every machine.

    Raises:
        NoImagesError: the source is missing or names no image.
        ConfigError: a table that cannot be read, without a `path` column, or with a path
            missing or twice.
    """
    root = Path(source)
    if root.is_dir():
        items = list(_walk(root))
        if not items:
            raise NoImagesError(
                f"{root} holds no image file ({' '.join(sorted(SUFFIXES)[:6])} …): "
                "name a folder of images, or a CSV or Parquet with columns path,group"
            )
    elif root.suffix.lower() in (".csv", ".parquet") and root.is_file():
        items = list(_read_table(root))
        if not items:
            raise NoImagesError(f"{root} has no rows: list one image path a row")
    elif root.is_file():
        return [Item(_text(root.name), os.fspath(root))]
    else:
        raise NoImagesError(f"{root} does not exist: name a folder of images or a table of paths")
    return sorted(items, key=lambda item: item.id)


def _walk(root: Path) -> Iterator[Item]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                top = relative == os.curdir
                yield Item(
                    id=_text(name if top else os.path.join(relative, name).replace(os.sep, "/")),
                    path=os.path.join(folder, name),
                    group=None if top else _text(relative.replace(os.sep, "/")),
                )


def _read_table(table: Path) -> Iterator[Item]:
    seen = set()
    for number, (path, group) in enumerate(_rows_or_refuse(table), start=1):
        if not path:
            raise ConfigError(f"{table} has no path in row {number}: give every row its image")
        if path in seen:
            raise ConfigError(f"{table} lists {path!r} twice: list every image once")
        seen.add(path)
        yield Item(path, os.path.join(table.parent, path), group or None)


def _rows_or_refuse(table: Path) -> Iterator[tuple[str | None, str | None]]:
    from pyarrow import ArrowException

    try:
        yield from _table_rows(table)
    except (OSError, UnicodeError, csv.Error, ArrowException) as error:
        raise ConfigError(
            f"cannot read {table} ({str(error).splitlines()[0]}): "
            "it must be CSV in UTF-8, or Parquet"
        ) from error


def _table_rows(table: Path) -> Iterator[tuple[str | None, str | None]]:
    if table.suffix.lower() == ".csv":
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _require_path_column(table, reader.fieldnames or [])
            for row in reader:
                yield row["path"], row.get("group")
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as parquet:
        names = parquet.schema_arrow.names
        _require_path_column(table, names)
        wanted = [name for name in ("path", "group") if name in names]
        for batch in parquet.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                path, group = row["path"], row.get("group")
                yield None if path is None else str(path), None if group is None else str(group)


def _require_path_column(table: Path, names: Iterable[str]) -> None:
    if "path" not in names:
        raise ConfigError(f"{table} has no column 'path': it needs path, and group for positives")


def display_path(path: str) -> str:
    """The absolute path as valid UTF-8, for tables and messages."""
    return _text(os.path.abspath(path))  # noqa: PTH100 - links stay as the user named them


def _text(name: str) -> str:
    """A file name as valid UTF-8; bytes that are not become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_bytes(path: str) -> bytes:
    """The whole file.

    Raises:
        ImageError: missing, unreadable, or empty.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    if not data:
        raise ImageError("empty file")
    return data


def content_hash(data: bytes) -> str:
    """32 hexadecimal digits that identify a file's content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode(data: bytes) -> Image.Image:
    """Decode to an upright RGB image of 8 bits a channel; see `decode_scaled`."""
    return decode_scaled(data, min_side=None)[0]


def decode_scaled(data: bytes, *, min_side: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode to an upright RGB image of 8 bits a channel, and its (width, height) at full size.

    Transparency is laid over white, CMYK and grey are converted, 16-bit and float images are
    scaled to 8 bits, the EXIF orientation is applied, and of an animation the first frame is taken.

    Args:
        data: the file's content.
        min_side: a JPEG may be decoded at a half, quarter or eighth of its size as long as its
            shorter side stays at least this many pixels; much faster.

    Raises:
        ImageError: not an image, truncated, or larger than MAX_PIXELS.
    """
    try:
        with _no_pillow_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            full_size = opened.size
            if min_side is not None and min_side < min(opened.size):
                # Only the JPEG decoder acts on this.
                opened.draft(None, _draft_size(opened.size, min_side))
            # Before anything else: asking a PNG for its EXIF block decodes it.
            if opened.width * opened.height > MAX_PIXELS:
                raise ImageError(
                    f"{opened.width}x{opened.height} pixels, above the limit of {MAX_PIXELS:,}"
                )
            opened.load()
            image = _to_rgb(opened)
            orientation = _orientation(opened)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return image, full_size[::-1] if orientation in _ON_SIDE else full_size
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of an unknown format") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ImageError(f"damaged: {reason}") from None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged EXIF block is no reason to lose the image
        return 1
    return value if isinstance(value, int) else 1


_warnings_lock = threading.Lock()
_warnings_off = ExitStack()
_decoding = 0  # threads that are inside `_no_pillow_warnings`


@contextmanager
def _no_pillow_warnings() -> Iterator[None]:
    """Silence Pillow (damaged EXIF blocks, odd palettes) in all threads that decode.

    The filters of `warnings` belong to the process. If each thread saved and restored them, two
    that overlap would restore each other's: the first one in saves, the last one out restores.
    """
    global _decoding
    with _warnings_lock:
        if _decoding == 0:
            _warnings_off.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module="PIL")
        _decoding += 1
    try:
        yield
    finally:
        with _warnings_lock:
            _decoding -= 1
            if _decoding == 0:
                _warnings_off.close()


def _draft_size(size: tuple[int, int], min_side: int) -> tuple[int, int]:
    ratio = min_side / min(size)
    return (int(np.ceil(size[0] * ratio)), int(np.ceil(size[1] * ratio)))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as `decode` would return it."""
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    is_transparent = "transparency" in image.info
    if image.mode == "RGB" and not is_transparent:
        return image.copy()
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or is_transparent:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(canvas, layered).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(pixels.astype(np.float32))
    if pixels.dtype.kind in "iu":
        white = 65535.0 if values.max(initial=0) > 255 or pixels.dtype.itemsize == 2 else 255.0
    else:
        # Float images carry no range: 0..1 by convention, else up to their brightest pixel.
        white = max(1.0, float(values.max(initial=0)))
    return (values * (255.0 / white)).clip(0, 255).round().astype(np.uint8)


def ordered_map(
    function: Callable[[In], Out], inputs: Iterable[In], *, workers: int, ahead: int
) -> Iterator[Out]:
    """`map` on threads: results in order, at most `ahead` of them computed in advance.

    Memory stays bounded however many inputs there are. Decoding releases the GIL, so threads
    run on all cores beside the caller.
    """
    pending: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="whiten-media")
    try:
        for item in inputs:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
