"""Decode a file's content to an upright RGB image with 8 bits per channel."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from whiten.errors import ImageError, UnreadableError, one_line
from whiten.media.boxes import Box
from whiten.media.colour import forget_source, is_foreign, to_srgb
from whiten.media.formats import (
    FORMATS,
    PLAIN,
    how_to_read,
    is_jpeg_xl,
    jpeg_xl_size,
    missing_format,
)
from whiten.media.reading import read_bytes
from whiten.storage.places import is_plain

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_PIXELS = 200_000_000  # 600 MB as RGB

_ORIENTATION = 0x0112  # EXIF tag
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0102, 0x0106, 0x0153  # TIFF tags; the first: per sample
_WHITE_IS_ZERO, _SIGNED = 0, 2
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
# Transposition that makes an image of each orientation upright.
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
_FROM_RIGHT = frozenset([2, 3, 6, 7])  # orientations whose first column becomes the last one
_FROM_BOTTOM = frozenset([3, 4, 7, 8])

_UNSET_ALPHA = ("BMP", "TGA")  # an alpha channel of zeros means that it is not used

_JPEG = ("JPEG", "MPO")  # the latter holds several pictures; the first is used

# This replaces Pillow's process-wide limit, which would warn at half of it.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes) -> Image.Image:
    """Decode to an upright RGB image of 8 bits per channel; see `decode_scaled`."""
    return decode_scaled(data, min_side=None)[0]


def decode_scaled(
    data: bytes, *, min_side: int | None, upright: bool = True
) -> tuple[Image.Image, Box]:
    """Decode to an upright RGB image of 8 bits per channel, with the box of the picture in it.

    Colours are converted to sRGB by the file's profile, transparency is blended with white, CMYK
    and grey are converted, 16-bit and float images are scaled to 8 bits, the EXIF orientation is
    applied, and the first frame of an animation is taken.

    Args:
        data: the file's content.
        min_side: a JPEG may be decoded at a half, quarter or eighth of its size as long as its
            shorter side stays at least this many pixels; much faster.
        upright: apply the EXIF orientation; else keep the pixels as stored.

    Returns:
        The image, and (left, top, right, bottom) in its pixels: all of it, except for a JPEG whose
        size is no multiple of the reduction, of which the last pixels are partly beyond the edge.

    Raises:
        ImageError: not an image, truncated, or larger than MAX_PIXELS; only a JPEG may be larger
            if it is decoded at a smaller size.
        UnreadableError: nothing is said about the content: memory ran out, or an extra is missing.
    """
    with _opened(data) as opened:
        # First of all: asking a PNG for its EXIF block decodes it. A progressive JPEG's
        # coefficients are all held in memory, at any decoding size.
        if opened.info.get("progressive"):
            _refuse_large(opened.size)
        drafted = None
        if min_side is not None and min_side < min(opened.size):
            # Only the JPEG decoder uses this.
            drafted = opened.draft(None, _draft_size(opened.size, min_side))
        _refuse_large(opened.size)
        image = _decode_fast(opened, data)
        if image is None:
            opened.decodermaxblock = len(data)  # hand the decoder all of it at once
            opened.load()
            image = opened
        else:
            image.info = opened.info
        image = _to_rgb(image, opened)
        orientation = _orientation(opened) if upright else 1
        size = image.size if drafted is None else drafted[1][2:]
        box = _upright_box(image.size, size, orientation)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        # It holds the orientation and the profile, which `upright_rgb` would apply again.
        image.info = {}
        return image, box


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """Open a file's content; whatever fails in the block raises an `ImageError`."""
    try:
        if is_jpeg_xl(data):  # its decoder decodes on opening
            _refuse_large(jpeg_xl_size(data))
        with _no_pillow_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            yield opened
    except ImageError:
        raise
    except UnidentifiedImageError:
        if (kind := missing_format(data)) is not None:
            raise UnreadableError(f"{kind} needs an optional dependency: {how_to_read()}") from None
        if data.startswith(_TIFF):
            raise ImageError(
                "damaged, or a TIFF of a kind that is not read: save it with 8 or 16 bits"
            ) from None
        raise ImageError("not an image, or of an unknown format") from None
    except MemoryError:
        raise UnreadableError("out of memory") from None
    except Exception as error:  # decoders raise almost anything on damaged files
        if "out of memory" in str(error).lower() or getattr(error, "errno", None) is not None:
            raise UnreadableError(one_line(error).lower()) from None
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ImageError(f"damaged: {reason}") from None


def _decode_fast(opened: Image.Image, data: bytes) -> Image.Image | None:
    """Decode a JPEG with simplejpeg, if installed: the same pixels as Pillow's in less time.

    Returns None if simplejpeg warns: Pillow decides which files are damaged.
    """
    if simplejpeg is None or opened.format not in _JPEG or opened.mode != "RGB":
        return None
    width, height = opened.size
    try:
        # Pillow takes the smallest scale that is at least as large as the requested size.
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except (ValueError, RuntimeError):
        return None
    return Image.fromarray(pixels) if pixels.shape == (height, width, 3) else None


def stored_size(data: bytes) -> tuple[int, int]:
    """Read width and height from a file's header, before any orientation; decodes nothing.

    Raises:
        ImageError: not an image, or its header is damaged.
    """
    if is_jpeg_xl(data):
        try:
            return jpeg_xl_size(data)
        except ValueError as error:
            raise ImageError(f"damaged: {error}") from None
    with _opened(data) as opened:
        return opened.size


def has_foreign_colours(path: str) -> bool:
    """Return whether a file's header says that its colours are not sRGB; decodes nothing."""
    try:
        file = path if is_plain(path) else io.BytesIO(read_bytes(path))
        with _no_pillow_warnings(), Image.open(file, formats=PLAIN) as opened:
            return is_foreign(opened)
    except Exception:  # it cannot be read, which others tell
        return False


def _refuse_large(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{size[0]}x{size[1]} pixels, above the limit of {MAX_PIXELS:,}")


def _upright_box(pixels: tuple[int, int], picture: tuple[float, float], orientation: int) -> Box:
    """Return the box of a picture at the top left of an image of `pixels` once it is upright."""
    if orientation in _ON_SIDE:
        pixels, picture = pixels[::-1], picture[::-1]
    left = pixels[0] - picture[0] if orientation in _FROM_RIGHT else 0.0
    top = pixels[1] - picture[1] if orientation in _FROM_BOTTOM else 0.0
    return Box(left, top, left + picture[0], top + picture[1])


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation; 1 if there is none."""
    if image.format == "JXL" and not getattr(image, "jpeg", None):
        return 1  # its decoder has applied it, unless it kept a whole JPEG
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # use the image despite a damaged EXIF block
        return 1
    return value if isinstance(value, int) else 1


_warnings_lock = threading.Lock()
_warnings_off = ExitStack()
_decoding = 0  # threads inside `_no_pillow_warnings`


@contextmanager
def _no_pillow_warnings() -> Iterator[None]:
    """Silence Pillow (damaged EXIF blocks, odd palettes) in all threads that decode.

    The filters of `warnings` are process-wide. If each thread saved and restored them, overlapping
    threads would restore each other's: so the first one in saves, and the last one out restores.
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
    """Convert an opened image to what `decode` returns."""
    return forget_source(_to_rgb(ImageOps.exif_transpose(image), image))


def _to_rgb(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Convert an image to RGB of 8 bits; `opened` is what Pillow opened it as."""
    if image.mode.startswith(("I", "F")):
        info = {name: value for name, value in image.info.items() if name != "transparency"}
        image = Image.fromarray(_to_8_bits(_numbers(image, opened), _is_deep(opened)))
        if isinstance(opened, TiffImageFile) and opened.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            image = ImageOps.invert(image)  # which Pillow does for 8 bits only
        image.info = info
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    image = to_srgb(image)
    is_transparent = image.has_transparency_data  # by its palette alone, perhaps
    if image.mode == "RGB" and not is_transparent:
        return image
    if is_transparent:
        layered = image.convert("RGBA")
        if opened.format in _UNSET_ALPHA and layered.getchannel("A").getextrema() == (0, 0):
            return layered.convert("RGB")
        canvas = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(canvas, layered).convert("RGB")
    return image.convert("RGB")


def _numbers(image: Image.Image, opened: Image.Image) -> np.ndarray:
    """Return the values of a grey image; Pillow takes those of 32 bits as signed."""
    values = np.asarray(image)
    if isinstance(opened, TiffImageFile) and values.dtype == np.int32:
        is_signed = _SIGNED in opened.tag_v2.get(_SAMPLE_FORMAT, ())
        return values if is_signed else values.astype(np.uint32)
    return values


def _is_deep(opened: Image.Image) -> bool:
    """Return whether a file says that its greys are of 16 bits, which Pillow gives in 32 bits."""
    if opened.format == "PPM":  # Pillow scales the maximum that a PGM states to 65535
        return True
    bits = opened.tag_v2.get(_BITS, ()) if isinstance(opened, TiffImageFile) else ()
    return 16 in bits  # a TIFF of signed numbers


def _to_8_bits(pixels: np.ndarray, is_deep: bool) -> np.ndarray:
    """Scale integers or floats to 8 bits; white is 65535 if they are known to be of 16 bits."""
    values = np.nan_to_num(pixels.astype(np.float32))
    if pixels.dtype.kind in "iu":
        is_deep = is_deep or pixels.dtype.itemsize == 2 or values.max(initial=0) > 255
        white = 65535.0 if is_deep else 255.0
        # Beyond 16 bits no range is declared: up to the brightest pixel.
        white = max(white, float(values.max(initial=0)))
    else:
        # Nor is one of float images: 0..1 by convention, else up to the brightest pixel.
        white = max(1.0, float(values.max(initial=0)))
    return (values * (255.0 / white)).clip(0, 255).round().astype(np.uint8)
