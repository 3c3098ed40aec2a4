"""Compare two pictures up to size, compression, brightness and slight cropping.

Pixels confirm what a model has proposed: a pair counts as copies if both agree, whatever the model
confuses elsewhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from whiten.errors import ImageError
from whiten.media.decoding import decode_scaled
from whiten.media.reading import read_bytes

SAME = 0.97  # minimum correlation of the pixels of equal pictures
_SIDE = 16  # side in pixels
_CUTS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82)  # fraction kept of each side
_PLACES = 5  # positions of a crop along each side
_KEPT = 128  # images, half a megabyte each


class Pictures:
    """Compares pairs of images; caches the most recent ones."""

    def __init__(self) -> None:
        self._prepared = lru_cache(_KEPT)(_prepare)

    def same(self, path: str, other: str) -> bool:
        """Return whether one of two images equals the other, or a part of at least 2/3 of it.

        Pearson correlation of small versions over all three channels is invariant to brightness
        and contrast; crops of one image at several sizes and positions are compared with the whole
        other image.
        """
        one, two = self._prepared(path), self._prepared(other)
        if one is None or two is None:
            return False
        # The whole image is the first of its crops.
        return float(max((one @ two[0]).max(), (two @ one[0]).max())) >= SAME


def _prepare(path: str) -> npt.NDArray[np.float32] | None:
    try:
        return _crops(_small(path))
    except ImageError:
        return None


def _small(path: str) -> Image.Image:
    """Open an image at a small square size: copies have nearly the same aspect ratio."""
    image, _ = decode_scaled(read_bytes(path), min_side=4 * _SIDE)
    return image.resize((2 * _SIDE, 2 * _SIDE), Image.Resampling.BOX)


def _crops(image: Image.Image) -> npt.NDArray[np.float32]:
    full = float(image.width)
    rows = []
    for part in _CUTS:
        free = full * (1 - part)
        offsets = np.linspace(0, free, 1 if part == 1 else _PLACES).tolist()
        for left in offsets:
            for top in offsets:
                box = (left, top, left + full * part, top + full * part)
                rows.append(_standard(image, box))
    return np.stack(rows)


def _standard(
    image: Image.Image, box: tuple[float, float, float, float] | None = None
) -> npt.NDArray[np.float32]:
    """Return pixels with mean 0 and norm 1; all 0 for a uniform area."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(small, np.float32).reshape(-1)
    pixels = pixels - pixels.mean()
    length = float(np.linalg.norm(pixels))
    unit: npt.NDArray[np.float32] = pixels / length if length > 0 else pixels
    return unit
