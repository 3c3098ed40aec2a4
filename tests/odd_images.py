"""A folder of odd and damaged images, made anew by the tests: what is good, and what is wrong."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from pictures import encode, picture, png


def enlarged(jpeg: bytes, side: int) -> bytes:
    """A progressive JPEG whose header says that it is `side` pixels wide and high."""
    start = jpeg.index(b"\xff\xc2")
    return jpeg[: start + 5] + struct.pack(">HH", side, side) + jpeg[start + 9 :]


def good_images() -> dict[str, bytes]:
    """By name, images that must be embedded as a plain decode shows them."""
    rgb, grey = picture(1), picture(2).convert("L")
    alpha = picture(3).convert("RGBA")
    alpha.putalpha(picture(4).convert("L"))
    palette = picture(5).quantize(16)
    ramp = np.linspace(0, 1, 60 * 44, dtype=np.float32).reshape(44, 60)

    def several() -> dict[str, Any]:
        return {"save_all": True, "append_images": [picture(7), picture(8)]}

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = (np.asarray(rgb).astype(np.uint16) * 257).astype(">u2")
    made = {
        "plain.jpg": encode(rgb, "JPEG", quality=92),
        "plain.png": encode(rgb, "PNG"),
        "plain.webp": encode(rgb, "WEBP"),
        "plain.gif": encode(rgb, "GIF"),
        "plain.bmp": encode(rgb, "BMP"),
        "plain.tif": encode(rgb, "TIFF"),
        "plain.ppm": encode(rgb, "PPM"),
        "plain.tga": encode(rgb, "TGA"),
        "plain.jp2": encode(rgb, "JPEG2000"),
        "plain.avif": encode(rgb, "AVIF"),
        "UPPER.JPEG": encode(rgb, "JPEG"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "full-chroma.jpg": encode(rgb, "JPEG", subsampling=0),
        "grey.jpg": encode(grey, "JPEG"),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "two-pictures.jpg": encode(rgb, "MPO", **several()),
        "profile.jpg": encode(rgb, "JPEG", icc_profile=profile),
        "broken-profile.jpg": encode(rgb, "JPEG", icc_profile=b"no profile"),
        "junk-at-the-end.jpg": encode(rgb, "JPEG") + b"junk" * 100,
        "large.jpg": encode(picture(9, 1607, 1203), "JPEG", quality=92),
        "profile.png": encode(rgb, "PNG", icc_profile=profile),
        "one-bit.png": encode(grey.convert("1"), "PNG"),
        "grey.png": encode(grey, "PNG"),
        "grey-alpha.png": encode(alpha.convert("LA"), "PNG"),
        "alpha.png": encode(alpha, "PNG"),
        "alpha.webp": encode(alpha, "WEBP", lossless=True),
        "alpha.tif": encode(alpha, "TIFF"),
        "palette.png": encode(palette, "PNG"),
        "palette-alpha.png": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "palette-alpha.gif": encode(palette, "GIF", transparency=3),
        "palette-alpha.tga": encode(alpha.quantize(16, Image.Quantize.FASTOCTREE), "TGA"),
        "transparent-colour.png": encode(grey, "PNG", transparency=int(np.asarray(grey)[3, 3])),
        "16-bit-grey.png": encode(Image.fromarray((ramp * 65535).astype(np.uint16)), "PNG"),
        "16-bit-rgb.png": png(60, 44, 16, 2, lambda y: deep[y].tobytes()),
        "16-bit.tif": encode(Image.fromarray((ramp * 65535).astype(np.uint16)), "TIFF"),
        "32-bit.tif": encode(Image.fromarray((ramp * 65535).astype(np.int32)), "TIFF"),
        "float.tif": encode(Image.fromarray(ramp), "TIFF"),
        "cmyk.tif": encode(rgb.convert("CMYK"), "TIFF"),
        "pages.tif": encode(picture(6), "TIFF", compression="tiff_lzw", **several()),
        "moving.gif": encode(picture(6), "GIF", **several()),
        "moving.webp": encode(picture(6), "WEBP", **several()),
        "moving.png": encode(picture(6), "PNG", **several()),
        "a-png.jpg": encode(rgb, "PNG"),
        "a-jpeg.png": encode(rgb, "JPEG"),
        "one-pixel.png": encode(Image.new("RGB", (1, 1), "teal"), "PNG"),
        "one-pixel.jpg": encode(Image.new("RGB", (1, 1), "teal"), "JPEG"),
        "strip.png": encode(picture(10, 20_000, 10), "PNG"),
        "strip.jpg": encode(picture(10, 10, 20_000), "JPEG"),
    }
    for orientation in range(1, 9):
        tag = Image.Exif()
        tag[0x0112] = orientation
        made[f"orientation-{orientation}.jpg"] = encode(picture(11), "JPEG", exif=tag)
        made[f"orientation-{orientation}.png"] = encode(picture(11), "PNG", exif=tag)
    return made


def bad_images() -> dict[str, tuple[bytes, str]]:
    """By name, content that must be skipped, and a pattern of its reason."""
    rgb = picture(1, 300, 200)
    damaged = {
        f"cut.{kind}": (encode(rgb, name)[: -len(encode(rgb, name)) // 3], "damaged|not an image")
        for kind, name in [
            ("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("gif", "GIF"), ("bmp", "BMP"),
            ("tif", "TIFF"), ("ppm", "PPM"), ("jp2", "JPEG2000"), ("avif", "AVIF"),
        ]
    }  # fmt: skip
    wrong_sum = bytearray(encode(rgb, "PNG"))
    wrong_sum[16] ^= 1  # in the header
    bomb = png(30_000, 30_000, 1, 0, lambda y: bytes(3750))
    return {
        **damaged,
        "nothing.jpg": (b"", "empty file"),
        "text.jpg": (b"The quick brown fox", "not an image"),
        "zeros.png": (bytes(5000), "not an image|damaged"),
        "page.webp": (b"<!doctype html><title>404</title>", "not an image"),
        "header-alone.jpg": (encode(rgb, "JPEG")[:30], "not an image|damaged"),
        "wrong-sum.png": (bytes(wrong_sum), "not an image|damaged"),
        "bomb.png": (bomb, "30000x30000 pixels, above the limit of 200,000,000"),
        "bomb.jpg": (enlarged(encode(rgb, "JPEG", progressive=True), 30_000), "30000x30000 pixels"),
    }


def plain_decode(data: bytes) -> Image.Image:
    """What a user would write: Pillow alone, image by image."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":
            white = 1.0 if image.mode == "F" else 65535.0
            grey = np.asarray(image, np.float64) / white * 255
            return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            layered = image.convert("RGBA")
            white_page = Image.new("RGBA", layered.size, (255, 255, 255, 255))
            white_page.alpha_composite(layered)
            return white_page.convert("RGB")
        return image.convert("RGB")


def odd_names() -> list[bytes]:
    """Names that a file system takes; some of them are no UTF-8."""
    names = [
        b"with space.png", b" leading.png", b"new\nline.png", b"tab\t.png", b"quote\".png",
        b"-dash.png", b"*.png", b"$(id).png", "ünïcode-画像.png".encode(), b"%2e.png",
        b"back\\slash.png", b"\xff.png", b"\\xff.png", b"caf\xe9.png", b"n" * 251 + b".png",
    ]  # fmt: skip
    return [name for name in names if _takes(name)]


def _takes(name: bytes) -> bool:
    return os.name == "posix" or name.decode(errors="replace").isalnum()


def write_all(folder: Path, images: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)
