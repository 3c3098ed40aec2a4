"""Images for calibrating and measuring an export."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from whiten.datasets.collection import Item, Items
from whiten.errors import ImageError, NoImagesError
from whiten.media.reading import Skipped, skipped_for
from whiten.models.inputs import show_or_fail
from whiten.models.teacher import drawn_pixels
from whiten.utils.threads import ordered_map
from whiten.views.rendering import Preprocess

HELD_OUT = 512  # maximum number of images
CALIBRATION = 256
_DRAWN = 64  # synthetic images

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """Images as the student receives them.

    Attributes:
        items, pixels: the held-out images and their pixels, (n, h, w, 3) uint8.
        calibration: (m, h, w, 3) uint8 pixels of other images, of other groups.
        skipped: images that could not be read.
        is_drawn: whether the images are synthetic because the user gave none.
    """

    items: list[Item]
    pixels: Pixels
    calibration: Pixels
    skipped: list[Skipped] = field(default_factory=list)
    is_drawn: bool = False


def sample_images(items: Items, preprocess: Preprocess, workers: int | None) -> Sample:
    """Split a collection by hashes of its names, keeping groups whole, and read both halves.

    The same collection gives the same halves on every machine, in any order of files.

    Raises:
        NoImagesError: none of the held-out images can be read.
    """
    held_out, calibration = split(items)
    skipped: list[Skipped] = []
    kept, pixels = _read(held_out, preprocess, workers, skipped)
    _, others = _read(calibration, preprocess, workers, skipped)
    if not kept:
        reason = f", first {skipped[0].id!r}: {skipped[0].reason}" if skipped else ""
        raise NoImagesError(
            f"none of the images can be read to compare embeddings on{reason}; name a folder with "
            "readable images"
        )
    return Sample(kept, pixels, others, skipped)


def split(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Choose at most `HELD_OUT` held-out and `CALIBRATION` calibration images."""
    listed = list(items)
    sizes = Counter(item.group for item in listed if item.group is not None)
    by_groups = sum(size > 1 for size in sizes.values()) > 1
    held_out: list[Item] = []
    calibration: list[Item] = []
    units: dict[str, list[Item]] = {}
    for item in listed:
        unit = item.group if by_groups and item.group is not None else item.id
        units.setdefault(unit, []).append(item)
    for number, unit in enumerate(sorted(units, key=_order)):
        side, limit = (calibration, CALIBRATION) if number % 2 else (held_out, HELD_OUT)
        side.extend(units[unit][: limit - len(side)])
    return held_out, calibration


def _order(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _read(
    items: Sequence[Item], preprocess: Preprocess, workers: int | None, skipped: list[Skipped]
) -> tuple[list[Item], Pixels]:
    kept, shown = [], []
    found = ordered_map(lambda item: show_or_fail(item.path, preprocess), items, workers=workers)
    for item, pixels in zip(items, found, strict=True):
        if isinstance(pixels, ImageError):
            skipped.append(skipped_for(item.id, pixels))
        else:
            kept.append(item)
            shown.append(pixels)
    return kept, np.stack(shown) if shown else np.zeros((0, *preprocess.size, 3), np.uint8)


def draw_images(preprocess: Preprocess) -> Sample:
    """Make synthetic images for when the user gives none.

    They test whether the graph computes the same as the student, not how well it retrieves.
    """
    pixels = drawn_pixels(preprocess, _DRAWN)
    items = [Item(f"drawn {number}", "") for number in range(_DRAWN)]
    return Sample(items, pixels, pixels[:0], is_drawn=True)
