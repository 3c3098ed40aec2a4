"""A box in an image, and the only way to crop to it."""

from __future__ import annotations

import math
from typing import NamedTuple

from PIL import Image

from whiten.errors import ConfigError, ImageError


class Box(NamedTuple):
    """The sides of a box, in pixels from the image's left and top edges."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read `x,y,w,h`: left, top, width and height in pixels.

        Raises:
            ConfigError: these are not four finite numbers, or the box is empty.
        """
        try:
            left, top, width, height = (float(part) for part in text[:200].split(","))
        except ValueError:
            raise ConfigError(
                f"a box is x,y,w,h in pixels, like 40,20,200,150, not {text[:80]!r}"
            ) from None
        if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
            raise ConfigError(f"the box {text[:80]} is empty: width and height must be above 0")
        return cls(left, top, left + width, top + height)

    def __str__(self) -> str:
        sides = (self.left, self.top, self.right - self.left, self.bottom - self.top)
        return ",".join(f"{side:g}" for side in sides)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """Crop to the part of a box that is inside the image: whole pixels, at least one.

    Raises:
        ImageError: the box is outside the image.
    """
    left, top = max(box.left, 0.0), max(box.top, 0.0)
    right, bottom = min(box.right, image.width), min(box.bottom, image.height)
    if not (left < right and top < bottom):
        raise ImageError(
            f"the box {box} lies outside of the image, which has {image.width} × {image.height} "
            "pixels"
        )
    x, y = min(round(left), image.width - 1), min(round(top), image.height - 1)
    return image.crop((x, y, max(x + 1, round(right)), max(y + 1, round(bottom))))
