"""Judge which file of the same picture is worth more: true resolution, compression, colour.

Pixels alone mislead: an enlargement has more of them and no more detail. So the worth of a file is
its number of pixels, times the square of the part of the resolution that holds detail, times what
its compression has left.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from whiten.errors import ImageError
from whiten.media.colour import is_grey
from whiten.media.decoding import decode
from whiten.media.formats import FORMATS
from whiten.media.reading import read_bytes

# Least detail beyond a part of the resolution, relative to the octave below it. Photographs exceed
# it, and their enlargements stay below (measured, lossless and at JPEG quality 30). A power
# spectrum that falls as frequency⁻⁴, steeper than any photograph's, exceeds it too.
_STEPS = {0.8: 0.08, 0.67: 0.13, 0.5: 0.17, 0.4: 0.2, 0.33: 0.22, 0.25: 0.22, 0.17: 0.22}
_SIDE = 512  # pixels of the centre that are analysed
_SMALLEST = 96  # pixels; below, detail cannot be told
_LUMINANCE = 57.58  # mean of JPEG's standard quantisation table, of quality 50 (ITU T.81, K.1)
# Fidelity by JPEG quality; lossless is 1.
_QUALITIES, _LEFT = (0, 30, 50, 75, 90, 95, 100), (0.4, 0.6, 0.78, 0.93, 0.97, 0.985, 0.995)
_UNKNOWN = 0.95  # lossy, of a quality that its header does not tell
_REPEATED = 1.3  # least ratio of differences between runs of repeated pixels to those inside them
_REGULAR = 0.2  # least correlation of differences with the lines at which an enlargement has them
_PARTS = np.linspace(0.15, 0.8, 1301)  # candidates: lines before an enlargement per line after it
_NOISE = 1.25  # detail below this multiple of what compression alone makes counts as none
# Soft photographs fall below these limits, too. A file that does so is taken for an enlargement if
# its original may stand beside it, or if it falls below these, too.
_SURELY, _SURE_NOISE = 0.6, 1.1
_SAME_SIZE = 0.8  # least size of the original, compared with the part that holds detail
_OUTLINE, _SAME_OUTLINE = 16, 0.98  # pixels of a side, and least correlation; a crop has less
# Weight of an enlargement, so that its original wins; `detail` is the upper end of a step.
_RESAMPLED = 0.7
_BLOCKY, _BLOCK = 1.25, 8  # differences across a JPEG's blocks, compared with those inside
_LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "TGA")


@dataclass(frozen=True)
class Quality:
    """Quality of an image file.

    Attributes:
        width, height: size in pixels as stored; 0 if unreadable.
        detail: part of the resolution that holds detail, from 0.17; 1 unless it was enlarged.
        suspected: the same, if a smaller file of the picture may be its original.
        compression: `lossless`, `JPEG 30` with the quality of its tables, or the lossy format.
        fidelity: what compression and dropped colour have left, from 0 to 1.
        has_exif: whether it has the camera's facts.
        seconds: length of a video, roughly; 1 for an image.
        frames: number of frames or pages, of which only the first is compared and judged.
        outline: the whole picture in 16 × 16 grey pixels; black if unreadable.
    """

    width: int = 0
    height: int = 0
    detail: float = 1.0
    suspected: float = 1.0
    compression: str = ""
    fidelity: float = 0.0
    has_exif: bool = False
    seconds: float = 1.0
    frames: int = 1
    outline: npt.NDArray[np.uint8] = field(
        default_factory=lambda: np.zeros((_OUTLINE, _OUTLINE), np.uint8), repr=False, compare=False
    )

    @property
    def worth(self) -> float:
        """True pixels, of a video per second, weighted by fidelity."""
        resampled = _RESAMPLED if self.detail < 1 else 1.0
        pixels = self.width * self.height * self.seconds
        return pixels * self.detail**2 * self.fidelity * resampled


def quality_of(path: str) -> Quality:
    """Judge an image file; an unreadable one has no pixels."""
    try:
        data = read_bytes(path)
        image = decode(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            compression, left = _compression(opened, data)
            tables = getattr(opened, "quantization", None)
            has_no_colour = is_grey(opened.mode)
            has_exif = len(opened.getexif()) > 0
            frames = _frames(opened)
    except ImageError:
        return Quality()
    except Exception:  # decoders raise almost anything on damaged files
        return Quality(*image.size, fidelity=_UNKNOWN)
    whole = image.convert("L")
    grey = np.asarray(_centre(whole), np.float32)
    if compression == "lossless" and _blockiness(grey) > _BLOCKY:
        compression, left = "lossless, of a JPEG", 0.6
    repeated = _part_not_repeated(whole)
    surely, perhaps = _details(grey, tables)
    return Quality(
        width,
        height,
        min(surely, repeated),
        min(perhaps, repeated),
        compression,
        left * (0.8 if has_no_colour else 1.0),
        has_exif,
        frames=frames,
        outline=np.asarray(whole.resize((_OUTLINE, _OUTLINE), Image.Resampling.BOX)),
    )


def beside_others(files: Sequence[Quality]) -> list[Quality]:
    """Return what files of the same picture are worth beside one another.

    The original of an enlargement is smaller, about as its detail says, and shows as much.
    """
    outlines = np.array([file.outline.ravel() for file in files], np.float32)
    outlines -= outlines.mean(axis=1, keepdims=True)
    outlines /= np.maximum(np.linalg.norm(outlines, axis=1, keepdims=True), 1)
    pixels = np.array([file.width * file.height for file in files])
    judged = []
    for file, outline, own in zip(files, outlines, pixels, strict=True):
        if file.suspected < file.detail:
            parts = np.sqrt(pixels / own)
            fit = (parts > _SAME_SIZE * file.suspected) & (parts < 1)
            if (outlines[fit] @ outline > _SAME_OUTLINE).any():
                file = replace(file, detail=file.suspected)
        judged.append(file)
    return judged


def _frames(image: ImageFile.ImageFile) -> int:
    """Return the number of frames or pages; 1 for a JPEG, whose other pictures are views of it."""
    if image.format in ("JPEG", "MPO"):
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damaged after the first one
        return 1


def _compression(image: Image.Image, data: bytes) -> tuple[str, float]:
    tables = getattr(image, "quantization", None)
    if tables:
        scale = 100 * float(np.mean(tables[min(tables)])) / _LUMINANCE
        quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
        name = f"JPEG {round(min(100.0, max(1.0, quality)))}"
        return name, float(np.interp(quality, _QUALITIES, _LEFT))
    if image.mode == "P":
        return f"{image.format}, 256 colours", 0.9
    is_lossless = image.format in _LOSSLESS or data[8:16] == b"WEBPVP8L"
    return ("lossless", 1.0) if is_lossless else (str(image.format), _UNKNOWN)


def _centre(image: Image.Image) -> Image.Image:
    width, height = image.size
    # Start at a multiple of a block, so that a JPEG's grid stays where it is.
    left, top = (max(0, side - _SIDE) // 2 // _BLOCK * _BLOCK for side in image.size)
    return image.crop((left, top, min(width, left + _SIDE), min(height, top + _SIDE)))


def _details(
    grey: npt.NDArray[np.float32], tables: dict[int, list[int]] | None
) -> tuple[float, float]:
    """Return the part of the resolution that surely, and that perhaps, holds all detail.

    Beyond it is no more detail than in enlargements. What is lost by resizing to a part and back is
    the detail beyond it; natural pictures have about as much in each octave. Compression adds some
    of its own: as much as in the same picture, resized so and compressed with the same tables.
    """
    surely = perhaps = 1.0
    if min(grey.shape) < _SMALLEST:
        return surely, perhaps
    for part, least in _STEPS.items():
        beyond = _lost(grey, part)
        below = _lost(grey, part / 2) - beyond
        if below <= 0:
            continue
        noise = _lost(_compressed(_resized(grey, part), tables), part) if tables else 0.0
        if beyond < max(least * below, _NOISE * noise):
            perhaps = part
        if beyond < max(_SURELY * least * below, _SURE_NOISE * noise):
            surely = part
    return surely, perhaps


def _part_not_repeated(image: Image.Image) -> float:
    """Return the part of a grey image's lines that is left without repeated ones; 1 if none are.

    An enlargement by the nearest pixel takes its line x from line floor((x + 1/2) part), and
    differs from the line before only where that changes.
    """
    found = []
    for lines in (np.asarray(image), np.asarray(image).T):
        some = lines[:: max(1, len(lines) // _SMALLEST), :_SIDE].astype(np.float32)
        steps = np.abs(np.diff(some, axis=1)).mean(axis=0)
        if len(steps) < _SMALLEST or not steps.any():
            return 1.0
        at_edge = np.diff(np.floor((np.arange(len(steps) + 1) + 0.5) * _PARTS[:, None])) > 0
        in_block = np.arange(1, len(steps) + 1) % _BLOCK != 0  # a JPEG differs between its blocks
        steps, at_edge = steps[in_block], at_edge[:, in_block]
        covariance = at_edge @ (steps - steps.mean()) / len(steps)
        likeness = covariance / at_edge.std(axis=1)
        best = int(likeness.argmax())
        across, inside = steps[at_edge[best]].mean(), steps[~at_edge[best]].mean()
        if across < _REPEATED * inside or likeness[best] < _REGULAR * steps.std():
            return 1.0
        found.append(float(_PARTS[best]))
    return round(max(found), 2)


def _resized(grey: npt.NDArray[np.float32], part: float) -> npt.NDArray[np.float32]:
    image = Image.fromarray(grey)
    small = image.resize(_part_of(image, part), Image.Resampling.LANCZOS)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


def _compressed(
    grey: npt.NDArray[np.float32], tables: dict[int, list[int]]
) -> npt.NDArray[np.float32]:
    file = io.BytesIO()
    image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    image.save(file, "JPEG", qtables=[tables[min(tables)]])
    with Image.open(file) as again:
        return np.asarray(again, np.float32)


def _part_of(image: Image.Image, part: float) -> tuple[int, int]:
    width, height = image.size
    return max(2, round(width * part)), max(2, round(height * part))


def _lost(grey: npt.NDArray[np.float32], part: float) -> float:
    """Return the mean square of what resizing to a part and back changes."""
    image = Image.fromarray(grey)
    small = image.resize(_part_of(image, part), Image.Resampling.LANCZOS)
    # Whatever it was enlarged by.
    ways = (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
    back = (np.asarray(small.resize(image.size, way)) for way in ways)
    return min(float(np.square(again - grey).mean()) for again in back)


def _blockiness(grey: npt.NDArray[np.float32]) -> float:
    """Return the mean difference across the edges of 8 × 8 blocks, compared with other pixels."""
    found = []
    for lines in (grey, grey.T):
        steps = np.abs(np.diff(lines, axis=1)).mean(axis=0)
        at_edge = np.arange(1, len(steps) + 1) % _BLOCK == 0
        if at_edge.any() and steps[~at_edge].mean() > 0:
            found.append(float(steps[at_edge].mean() / steps[~at_edge].mean()))
    return min(found, default=1.0)
