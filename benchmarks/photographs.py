"""Photographs that need no download: drawn at random, with the statistics of real ones.

Occluding discs of power-law sizes ("dead leaves") have the edges and the spectrum of natural scenes
(Lee, Mumford & Huang, IJCV 2001); shading, texture and grain are added. At JPEG quality 90 they
take about 2.4 bits a pixel; photographs that were looked at took 1.4 to 3.2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

DISCS, SMALLEST, LARGEST = 2500, 6.0, 400.0  # radii in pixels of a 1024 px image


def photograph(seed: int, width: int = 1024, height: int = 768) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), "grey")
    canvas = ImageDraw.Draw(image)
    scale = width / 1024
    cube = SMALLEST**-2 + rng.random(DISCS) * (LARGEST**-2 - SMALLEST**-2)
    radii = scale * cube**-0.5  # density r⁻³: the same at every scale
    centres = rng.random((DISCS, 2)) * (width, height)
    colours = rng.normal(120, 50, (DISCS, 1)) + rng.normal(0, 22, (DISCS, 3))
    flatness = rng.uniform(0.5, 1, DISCS)
    for (x, y), r, flat, colour in zip(
        centres, radii, flatness, colours.clip(0, 255).astype(int).tolist(), strict=True
    ):
        canvas.ellipse((x - r, y - r * flat, x + r, y + r * flat), fill=tuple(colour))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    shading = 25 * _noise(rng, width, height, 2.0) + 12 * _noise(rng, width, height, 1.2)
    pixels = pixels + shading[..., None] + rng.normal(0, 2, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _noise(
    rng: np.random.Generator, width: int, height: int, slope: float
) -> npt.NDArray[np.float64]:
    """(height, width) Gaussian noise whose amplitude falls as frequency^-slope; variance 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    white = np.fft.rfft2(rng.standard_normal((height, width)))
    noise: npt.NDArray[np.float64] = np.fft.irfft2(white / frequency**slope, s=(height, width))
    return noise / noise.std()


def write_photographs(folder: Path, count: int, width: int = 1024, height: int = 768) -> list[Path]:
    """JPEGs of quality 90 with halved chroma, as cameras and web sites write them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for seed, path in enumerate(paths):
        photograph(seed, width, height).save(path, "JPEG", quality=90, subsampling=2)
    return paths
