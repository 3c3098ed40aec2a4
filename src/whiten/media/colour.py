"""Convert the colours of an image to sRGB where its file says that they are something else.

As viewers do: an ICC profile counts first, then the sRGB, cHRM and gAMA chunks of a PNG. A profile
that is broken, or of another kind than the pixels, is ignored.
"""

from __future__ import annotations

import io
import math
import struct
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

VERSION = 1
"""Version of the conversion; embeddings of version 0 ignored profiles."""

_SAME = 2  # levels: a profile that changes no colour by more is sRGB
_KEPT = 32  # transforms; all images of a camera share one
_KINDS = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_SOURCES = ("icc_profile", "gamma", "chromaticity", "srgb")  # in `Image.info`

_SRGB_XY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue
_SRGB_GAMMA = 1 / 2.2
_CLOSE = 0.05  # relative difference of gammas that libpng ignores


def is_foreign(image: Image.Image) -> bool:
    """Return whether the header of an opened image says that its colours are not sRGB."""
    return image.mode == "LAB" or _transform(image) is not None


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an opened image of any mode to sRGB, with an alpha channel if it has one.

    Returns:
        The image itself if its colours are sRGB or unknown; else an RGB or RGBA image.
    """
    if image.mode == "LAB":
        return _apply(_from_lab(), image, "LAB")
    found = _transform(image)
    if found is None:
        return image
    transform, kind = found
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa", "P") or "transparency" in image.info:
        layered = image.convert("RGBA")
        alpha = layered.getchannel("A")
        converted = _apply(transform, layered.convert("RGB"), kind)
        if alpha.getextrema() != (255, 255):
            converted.putalpha(alpha)
        return converted
    return _apply(transform, image, kind)


def forget_source(image: Image.Image) -> Image.Image:
    """Drop what says that colours are not sRGB, once they are."""
    image.info = {name: value for name, value in image.info.items() if name not in _SOURCES}
    return image


def _apply(transform: Any, image: Image.Image, kind: str) -> Image.Image:
    converted = ImageCms.applyTransform(image.convert(kind), transform)
    assert converted is not None
    return converted


def is_grey(mode: str) -> bool:
    """Return whether Pillow's mode has no colours: that of big-endian TIFF is `I;16B`."""
    return mode in ("1", "L", "LA", "La") or mode.startswith(("I", "F"))


def _transform(image: Image.Image) -> tuple[Any, str] | None:
    """Return the transform to sRGB and the mode that it takes; None if none is needed."""
    info = image.info
    if isinstance(profile := info.get("icc_profile"), bytes) and profile:
        # A grey image may have the profile of the colour image that it was made from.
        found = _of_profile(profile)
        if found is None or (found[1] == "CMYK") != (image.mode == "CMYK"):
            return None
        if found[1] == "L" and not is_grey(image.mode):
            return None
        return found
    if "srgb" in info or not {"gamma", "chromaticity"} & info.keys():  # chunks of a PNG
        return None
    xy = tuple(info.get("chromaticity", _SRGB_XY))
    profile_of_chunks = _matrix_profile(xy, float(info.get("gamma", _SRGB_GAMMA)))
    return None if profile_of_chunks is None else _of_profile(profile_of_chunks)


@lru_cache(_KEPT)
def _of_profile(profile: bytes) -> tuple[Any, str] | None:
    """Return a profile's transform to sRGB and the mode that it takes; None if it is not needed.

    Colours decide what is sRGB: there are many profiles of that, and many names.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        kind = _KINDS[source.profile.xcolor_space]
        if kind == "LAB":
            return None
        # Perceptual, the default of viewers; it matters to profiles with tables, as those of CMYK.
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), kind, "RGB")
        if kind != "CMYK":
            probe = _probe().convert(kind)
            moved = np.asarray(_apply(transform, probe, kind), np.int16)
            if np.abs(moved - np.asarray(probe.convert("RGB"), np.int16)).max() <= _SAME:
                return None
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return None
    return transform, kind


@lru_cache(1)
def _from_lab() -> Any:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )


def _probe() -> Image.Image:
    """Return an image of 9³ colours that fill the cube, and 256 greys."""
    levels = np.linspace(0, 255, 9).round()
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    greys = np.repeat(np.arange(256)[:, None], 3, axis=1)
    return Image.fromarray(np.concatenate([cube, greys])[None].astype(np.uint8))


@lru_cache(_KEPT)
def _matrix_profile(xy: tuple[float, ...], gamma: float) -> bytes | None:
    """Build the ICC profile of a PNG's cHRM and gAMA chunks; None if they are those of sRGB.

    Args:
        xy: chromaticities of white, red, green and blue, two numbers each.
        gamma: exponent of the encoding, 1/2.2 for most.
    """
    is_srgb_curve = abs(gamma / _SRGB_GAMMA - 1) <= _CLOSE
    if is_srgb_curve and np.allclose(xy, _SRGB_XY, atol=0.002):
        return None
    if len(xy) != 8 or not math.isfinite(gamma) or not 0.05 < gamma < 20 or min(xy[1::2]) <= 0:
        return None
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in zip(xy[::2], xy[1::2], strict=True)])
    white, primaries = xyz[0], xyz[1:].T
    try:
        colorants = primaries * np.linalg.solve(primaries, white)
    except np.linalg.LinAlgError:
        return None
    adapted = _adaptation(white) @ colorants
    tags = {
        b"desc": b"desc" + struct.pack(">4xI", 4) + b"PNG\0" + bytes(79),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(_D50),
        **{name: _xyz(adapted[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma, is_srgb_curve)),
    }
    return _icc(tags)


_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def _adaptation(white: np.ndarray) -> np.ndarray:
    """Return Bradford's matrix, (3, 3), that takes XYZ under a white to D50, ICC's white."""
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    matrix: np.ndarray = np.linalg.solve(_BRADFORD, scale[:, None] * _BRADFORD)
    return matrix


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in values)


def _curve(gamma: float, is_srgb: bool) -> bytes:
    """Return the tone curve: sRGB's own (IEC 61966-2-1), or a power."""
    if is_srgb:
        numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        return b"para" + struct.pack(">4xHH", 3, 0) + b"".join(map(_fixed, numbers))
    return b"para" + struct.pack(">4xHH", 0, 0) + _fixed(1 / gamma)


def _fixed(value: float) -> bytes:
    """Encode an s15Fixed16Number."""
    return struct.pack(">i", round(float(value) * 65536))


def _icc(tags: dict[bytes, bytes]) -> bytes:
    """Assemble a display profile of version 4 (ICC.1:2010, clause 7)."""
    table, data = struct.pack(">I", len(tags)), b""
    first = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", first + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = first + len(data)
    header = struct.pack(">I4xI", size, 0x04200000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(_fixed(value) for value in _D50)
    return header.ljust(128, b"\0") + table + data
