"""The faster JPEG decoder: not a pixel and not a verdict differs from Pillow's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from odd_images import bad_images, good_images
from pictures import encode, picture
from whiten.errors import ImageError
from whiten.media import decoding
from whiten.media.decoding import decode_scaled

simplejpeg = pytest.importorskip("simplejpeg")


def outcome(data: bytes, min_side: int | None) -> tuple[object, ...]:
    """The pixels and the box, or the reason why there are none."""
    try:
        image, box = decode_scaled(data, min_side=min_side)
    except ImageError as error:
        return (str(error),)
    return image.mode, image.size, box, image.tobytes()


def jpegs() -> dict[str, bytes]:
    """All kinds of them, whole and cut off."""
    found = {}
    sizes = [(1, 1), (7, 9), (64, 48), (333, 257)]
    for size, quality, subsampling, progressive in itertools.product(
        sizes, (30, 95), (0, 1, 2), (False, True)
    ):
        image = picture(sum(size), *size)
        for mode in ("RGB", "L"):
            exif = Image.Exif()
            exif[0x0112] = 1 + (size[0] + quality) % 8
            found[f"{size} {quality} {subsampling} {progressive} {mode}"] = encode(
                image.convert(mode),
                "JPEG",
                quality=quality,
                subsampling=subsampling,
                progressive=progressive,
                exif=exif,
            )
    return found


@pytest.mark.parametrize("min_side", [None, 20, 100])
def test_the_same_pixels_and_the_same_reasons(
    monkeypatch: pytest.MonkeyPatch, min_side: int | None
) -> None:
    rng = np.random.default_rng(0)
    bad = {name: data for name, (data, _) in bad_images().items()}
    images = {**jpegs(), **good_images(), **bad}
    for name, data in list(images.items()):
        images[f"{name}, cut off"] = data[: int(len(data) * rng.uniform(0.1, 1))]
        broken = bytearray(data)
        if len(data) > 40:
            broken[int(rng.integers(30, len(data)))] ^= 0xFF
        images[f"{name}, a byte wrong"] = bytes(broken)
    fast = {name: outcome(data, min_side) for name, data in images.items()}
    monkeypatch.setattr(decoding, "simplejpeg", None)
    for name, data in images.items():
        assert outcome(data, min_side) == fast[name], name


def test_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *a, **k: used.append(1) or decode(*a, **k)
    )
    for data in jpegs().values():
        decode_scaled(data, min_side=20)
    assert len(used) >= 20
