"""Compare two pictures by their pixels, independently of any model.

Two tests, of which one is enough. Discs: the central disc of one picture, in polar coordinates,
against central discs of the other at several scales, where a rotation is a shift along the angle;
so any rotation, mirroring and central crop is found by one Fourier transform. Crops: the whole of
one against crops of the other at several sizes and positions, turned and mirrored in eight ways.
Both are done in the pictures' own aspect ratio or squeezed to a square, and compare by Pearson's
correlation, which is invariant to brightness and contrast.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from whiten.errors import ImageError
from whiten.media.decoding import decode_scaled
from whiten.media.reading import read_bytes

SAME = 0.97  # minimum correlation of a picture with a crop
SAME_DISCS = 0.92  # of two discs, which are smoothed by interpolation; others reach 0.8
_SIDE = 16  # side in pixels
_CUTS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.77, 0.7)  # fraction kept of each side
_PLACES = 5  # positions of a crop along each side
_DISCS = tuple(0.96**power for power in range(14))  # diameters, as fractions of the shorter side
_RINGS, _ANGLES = 8, 72
_KEPT = 2048  # pictures, 200 kB each

Floats = npt.NDArray[np.float32]


class Pictures:
    """Compares pairs of images; caches the most recent ones."""

    def __init__(self) -> None:
        self._prepared = lru_cache(_KEPT)(_prepare)
        self._crops = lru_cache(256)(lambda path: _crops(self._prepared(path)[0]))

    def same(self, path: str, other: str) -> bool:
        """Return whether one of two images equals the other, or a part of at least half of it.

        Either may be mirrored, resized, recompressed, lighter or darker; if the part is central,
        also rotated by any angle. Small objects that were added or removed are not noticed.
        """
        one, two = self._prepared(path), self._prepared(other)
        if not len(one) or not len(two):
            return False
        if any(_discs_agree(a, b) for a, b in zip(one[1:], two[1:], strict=True)):
            return True
        crops, others = self._crops(path), self._crops(other)
        # The whole image is the first of its crops.
        best = max((crops @ _turned(others[0])).max(), (others @ _turned(crops[0])).max())
        return float(best) >= SAME


def _prepare(path: str) -> tuple[Floats, ...]:
    """Return a small square of an image, and its discs in both aspect ratios; () if unreadable."""
    try:
        image, _ = decode_scaled(read_bytes(path), min_side=4 * _SIDE)
    except ImageError:
        return ()
    square = image.resize((2 * _SIDE, 2 * _SIDE), Image.Resampling.BOX)
    scale = 4 * _SIDE / min(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    longest = 64 * _SIDE  # a strip: its middle is enough
    upright = image.resize((min(size[0], longest), min(size[1], longest)), Image.Resampling.BOX)
    squeezed = image.resize((4 * _SIDE, 4 * _SIDE), Image.Resampling.BOX)
    return np.asarray(square, np.float32), _discs(upright), _discs(squeezed)


def _discs(image: Image.Image) -> Floats:
    """Return central discs of each scale, (scales, channels × rings, angles), of mean 0, norm 1."""
    from scipy.ndimage import map_coordinates  # exported students are evaluated without it

    pixels = np.asarray(image, np.float32)
    middle = (np.array(pixels.shape[:2], np.float32) - 1) / 2
    angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    # Rings of equal area, so that every sample has equal weight.
    radius = np.sqrt((np.arange(_RINGS) + 0.5) / _RINGS) * middle.min()
    around = radius[:, None, None] * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    places = middle + np.multiply.outer(np.array(_DISCS), around)
    channels = [
        map_coordinates(pixels[..., c], np.moveaxis(places, -1, 0), order=1, mode="nearest")
        for c in range(3)
    ]
    return _standard(np.stack(channels, axis=1)).reshape(len(_DISCS), -1, _ANGLES)


def _discs_agree(one: Floats, other: Floats) -> bool:
    """Return whether the full disc of one agrees with a disc of the other, at any rotation."""
    a, b = np.fft.rfft(one), np.fft.rfft(other)
    # Correlation at every shift; the conjugate runs around the circle the other way.
    products = [
        (whole * part).sum(axis=1)
        for whole, parts in ((a[:1], b), (b[:1], a))
        for part in (parts, parts.conj())
    ]
    best = np.fft.irfft(np.concatenate(products), n=_ANGLES).max()
    return float(best) >= SAME_DISCS


def _standard(values: Floats) -> Floats:
    """Give each item mean 0 and norm 1 over all axes but the first; 0 for a uniform one."""
    flat = values.reshape(len(values), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: Floats = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 1e-3)
    return unit.reshape(values.shape).astype(np.float32)


def _crops(square: Floats) -> Floats:
    """Return crops of a (2·_SIDE, 2·_SIDE, 3) image, (crops, pixels), of mean 0 and norm 1."""
    parts = []
    for across in _resamplings():  # (places, _SIDE, 2·_SIDE)
        rows = np.tensordot(across, square, (2, 0))  # (tops, _SIDE, x, channel)
        both = np.tensordot(rows, across, (2, 2))  # (tops, _SIDE, channel, lefts, _SIDE)
        parts.append(both.transpose(0, 3, 1, 4, 2).reshape(-1, _SIDE * _SIDE * 3))
    return _standard(np.concatenate(parts))


@lru_cache(1)
def _resamplings() -> list[Floats]:
    """Return per cut the matrices (places, _SIDE, 2·_SIDE) that average a part of a line."""
    edges = np.arange(2 * _SIDE + 1, dtype=np.float32)
    found = []
    for part in _CUTS:
        free = 2 * _SIDE * (1 - part)
        offsets = np.linspace(0, free, 1 if part == 1 else _PLACES)
        step = 2 * part  # source pixels per pixel
        starts = offsets[:, None] + step * np.arange(_SIDE)
        low = np.maximum(edges[:-1], starts[..., None])
        high = np.minimum(edges[1:], starts[..., None] + step)
        found.append((np.maximum(high - low, 0) / step).astype(np.float32))
    return found


def _turned(whole: Floats) -> Floats:
    """Return a picture in its eight orientations, (pixels, 8)."""
    image = whole.reshape(_SIDE, _SIDE, 3)
    turns = [np.rot90(side, k) for side in (image, image[:, ::-1]) for k in range(4)]
    return np.stack([turn.reshape(-1) for turn in turns], axis=1)
