"""Render images at their own size: cropped, and scaled down until the longest side fits.

Landmark retrieval is evaluated this way (Radenović et al., CVPR 2018): without square crops or
enlargement.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from whiten.errors import ImageError
from whiten.media.boxes import Box, crop
from whiten.media.decoding import decode_scaled

LONGEST = 1024  # pixels of the longest side, as in published results
_SMALLEST = 4  # pixels; half the size must still be an image


def render_own_size(
    data: bytes, *, longest: int = LONGEST, box: Box | None = None
) -> npt.NDArray[np.uint8]:
    """Decode, crop and shrink: (h, w, 3) uint8 RGB.

    A crop keeps the scale that it has in the whole image at its `longest` side, as in the benchmark
    authors' cnnimageretrieval: its longest side is `longest · c / l`, where c and l are the longest
    sides of crop and image. For images no larger than `longest`, as the published ones are, the
    crop keeps its own pixels.

    Args:
        data: the file's content. The EXIF orientation is not applied: boxes are in stored pixels.
        longest: longest side in pixels that the whole image is reduced to; smaller ones are
            unchanged.
        box: the crop, rounded to whole pixels.

    Raises:
        ImageError: the content cannot be decoded, or the crop is empty.
    """
    image, _ = decode_scaled(data, min_side=None, upright=False)
    limit = float(longest)
    if box is not None:
        whole = max(image.size)
        image = crop(image, box)
        limit *= max(image.size) / whole
    # in place; never enlarges
    image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    if min(image.size) < _SMALLEST:
        raise ImageError(f"{image.width}x{image.height} pixels are too few to embed")
    return np.asarray(image)
