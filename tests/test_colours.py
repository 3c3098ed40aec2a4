"""Colours are converted to sRGB where a file says that they are something else."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from colour_profiles import P3, PROPHOTO, grey_profile, matrix_profile
from counting_teacher import make_teacher, seen
from pictures import distance, encode, picture, png_chunk
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.media.boxes import Box, crop
from whiten.media.decoding import decode, decode_scaled, upright_rgb
from whiten.media.thumbnails import thumbnail
from whiten.models.inputs import show
from whiten.store.store import Store
from whiten.views.rendering import Preprocess

SRGB = ImageCms.createProfile("sRGB")


def opened(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def inside(image: Image.Image, profile: bytes, mode: str = "RGB") -> Image.Image:
    """The picture's colours as numbers of another profile."""
    converted = ImageCms.profileToProfile(image, SRGB, opened(profile), outputMode=mode)
    assert converted is not None
    return converted


def muted(number: int = 1) -> Image.Image:
    """Colours that every profile here has."""
    return Image.blend(picture(number), Image.new("RGB", picture(number).size, "gray"), 0.4)


@pytest.mark.parametrize("profile", [P3, PROPHOTO], ids=["P3", "ProPhoto"])
@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [
        ("PNG", {}, 0.6),
        ("TIFF", {}, 0.6),
        ("WEBP", {"lossless": True}, 0.6),
        ("JPEG", {"quality": 98, "subsampling": 0}, 2),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}, 2),
        ("AVIF", {"quality": 98}, 3),
        ("MPO", {"quality": 98, "subsampling": 0, "save_all": True}, 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_picture_is_itself_in_every_colour_space(
    profile: bytes, kind: str, options: dict[str, Any], most: float
) -> None:
    image = muted()
    data = encode(inside(image, profile), kind, icc_profile=profile, **options)
    assert distance(inside(image, profile), image) > 4
    assert distance(decode(data), image) < most
    # A picture that the user has opened is converted as well, and once.
    with Image.open(io.BytesIO(data)) as by_user:
        assert distance(upright_rgb(by_user), decode(data)) < 0.01
    assert distance(upright_rgb(crop(decode(data), Box(0, 0, *image.size))), decode(data)) == 0


def test_every_way_to_the_pixels_converts() -> None:
    """Scaled decoding, thumbnails, views and inputs, of one large JPEG."""
    image = muted().resize((800, 640), Image.Resampling.BICUBIC)
    data = encode(inside(image, P3), "JPEG", icc_profile=P3, quality=98)
    plain = encode(image, "JPEG", quality=98)
    for small in (100, 300):
        scaled = [decode_scaled(one, min_side=small)[0] for one in (data, plain)]
        assert distance(*scaled) < 2
    assert distance(thumbnail(data, 64), thumbnail(plain, 64)) < 2
    shown = [Image.fromarray(show(d, Preprocess(size=(64, 64)))) for d in (data, plain)]
    assert distance(*shown) < 2


def test_what_is_srgb_keeps_its_bytes() -> None:
    srgb = ImageCms.ImageCmsProfile(SRGB).tobytes()
    own = matrix_profile((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), None)  # another sRGB
    for kind in ("PNG", "JPEG", "WEBP"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        plain = decode(encode(picture(2), kind, **options)).tobytes()
        for profile in (srgb, own, b"no profile", srgb[:200]):
            data = encode(picture(2), kind, icc_profile=profile, **options)
            assert decode(data).tobytes() == plain


def test_grey_cmyk_transparent_and_deep_pictures() -> None:
    bright = grey_profile(1.0)  # linear light
    grey = picture(3).convert("L")
    shown = np.asarray(decode(encode(grey, "PNG", icc_profile=bright)))
    light = np.asarray(grey, np.float64) / 255
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(shown[..., 0] - 255 * expected).max() < 1.5
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    assert np.abs(np.asarray(decode(encode(deep, "PNG", icc_profile=bright))) - shown).max() <= 1
    # A grey picture may keep the profile of its colours; grey is grey in P3, too.
    assert distance(decode(encode(grey, "JPEG", icc_profile=P3)), decode(encode(grey, "JPEG"))) < 1
    # The profile of another kind of pixels is ignored.
    wrong = encode(picture(3), "PNG", icc_profile=bright)
    assert decode(wrong).tobytes() == picture(3).tobytes()
    cmyk = encode(picture(3).convert("CMYK"), "JPEG")
    odd = encode(picture(3).convert("CMYK"), "JPEG", icc_profile=P3)
    assert decode(odd).tobytes() == decode(cmyk).tobytes()
    layered = inside(muted(), P3).convert("RGBA")
    layered.putalpha(picture(4).convert("L"))
    own = muted().convert("RGBA")
    own.putalpha(picture(4).convert("L"))
    assert distance(decode(encode(layered, "PNG", icc_profile=P3)), decode(encode(own, "PNG"))) < 1
    palette = muted().quantize(16)
    colours = np.asarray(palette.convert("RGB"))
    found = decode(encode(palette, "PNG", icc_profile=PROPHOTO))
    as_rgb = decode(encode(Image.fromarray(colours), "PNG", icc_profile=PROPHOTO))
    assert found.tobytes() == as_rgb.tobytes()


def with_chunks(image: Image.Image, **chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    data = encode(image, "PNG")
    made = b"".join(png_chunk(name.encode(), content) for name, content in chunks.items())
    return data[:33] + made + data[33:]


def test_a_png_may_say_so_in_chunks() -> None:
    image = muted()
    p3 = struct.pack(">8I", *(31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
    gamma = struct.pack(">I", 45455)
    assert distance(decode(with_chunks(inside(image, P3), gAMA=gamma, cHRM=p3)), image) < 0.6
    linear = decode(with_chunks(image, gAMA=struct.pack(">I", 100_000)))
    with_profile = decode(encode(image, "PNG", icc_profile=matrix_profile(*_SRGB, 1.0)))
    assert distance(linear, with_profile) < 0.6 and distance(linear, image) > 20
    usual = struct.pack(">8I", *(31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    for chunks in (
        {"gAMA": gamma},
        {"gAMA": gamma, "cHRM": usual},
        {"sRGB": b"\0", "cHRM": p3},
        {"cHRM": bytes(32)},
        {"gAMA": bytes(4)},
    ):
        assert decode(with_chunks(image, **chunks)).tobytes() == image.tobytes()


_SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))


def age(store: Path) -> None:
    """Make a store one of a version that ignored profiles, which recorded nothing of colours."""
    for path in store.glob("*.parquet"):
        table = pq.read_table(path)
        metadata = dict(table.schema.metadata)
        facts = json.loads(metadata[b"whiten"])
        del facts["colours"], metadata[b"whiten.check"]
        metadata[b"whiten"] = json.dumps(facts, sort_keys=True).encode()
        pq.write_table(table.replace_schema_metadata(metadata), path)


def test_an_earlier_store_embeds_what_was_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        profile = {"icc_profile": PROPHOTO} if number == 2 else {}
        (images / f"{number}.png").write_bytes(encode(picture(number), "PNG", **profile))
    items = find_items(images)
    embed(items, make_teacher(), tmp_path / "store")
    before = Store.open(tmp_path / "store").gather(["0.png", "1.png", "2.png", "3.png"])
    age(tmp_path / "store")
    teacher = make_teacher()
    embed(items, teacher, tmp_path / "store")
    assert seen(teacher) == 1 and "1 image" in caplog.text
    after = Store.open(tmp_path / "store").gather(["0.png", "1.png", "2.png", "3.png"])
    assert np.array_equal(before, after)
    caplog.clear()
    embed(items, teacher, tmp_path / "store")
    assert seen(teacher) == 1 and not caplog.text
    assert {shard.colours for shard in Store.open(tmp_path / "store").shards} == {1}
