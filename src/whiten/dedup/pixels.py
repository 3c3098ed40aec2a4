"""Whether two pictures are the same but for size, compression, light and a little cropping.

Pixels are asked where a model has been: what both say is a copy is one, whatever the model confuses
elsewhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from whiten.errors import ImageError
from whiten.media.decoding import decode_scaled
from whiten.media.reading import read_bytes

SAME = 0.97  # correlation of the pixels from which two pictures are the same
_SIDE = 16  # pixels
_CUTS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82)  # of each side
_PLACES = 5  # of a crop, along each side
_KEPT = 128  # images, half a megabyte each


class Pictures:
    """Compares pairs of images; the last ones asked about stay prepared."""

    def __init__(self) -> None:
        self._prepared = lru_cache(_KEPT)(_prepare)

    def same(self, path: str, other: str) -> bool:
        """Whether one of two images is the other one, or a part of at least two thirds of it.

        Correlation (Pearson's, over all three channels) of small versions is invariant to
        brightness and contrast; crops of one at a few sizes and places are tried against the other
        one whole.
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
    """Whatever its aspect: copies keep theirs nearly."""
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
    """Pixels with mean 0 and length 1; all 0 of a plain area."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(small, np.float32).reshape(-1)
    pixels = pixels - pixels.mean()
    length = float(np.linalg.norm(pixels))
    unit: npt.NDArray[np.float32] = pixels / length if length > 0 else pixels
    return unit
