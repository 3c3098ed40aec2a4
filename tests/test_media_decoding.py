"""Reading and decoding images: any kind of image ends upright, RGB and of 8 bits."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import distance, encode, picture, png
from whiten.errors import ImageError
from whiten.media import decoding, reading
from whiten.media.decoding import decode, decode_scaled, upright_rgb
from whiten.media.reading import read_bytes


def smooth(width: int = 48, height: int = 36, seed: int = 0) -> Image.Image:
    return picture(seed, width, height)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def test_cmyk_jpeg() -> None:
    data = encode(smooth().convert("CMYK"), "JPEG", quality=95)
    assert distance(decode(data), smooth()) < 3


def test_sixteen_bit_png() -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    bright = decode(encode(Image.fromarray(grey * 257), "PNG"))
    assert np.array_equal(np.asarray(bright)[..., 1], grey)
    # A dark picture stays dark, though its values would fit 8 bits.
    dark = decode(encode(Image.fromarray(grey), "PNG"))
    assert np.asarray(dark).max() == 1


@pytest.mark.parametrize("most", [256, 1000, 4095, 65535])
@pytest.mark.parametrize("magic", [b"P2", b"P5"])
def test_a_pgm_is_scaled_by_its_maximum_even_if_it_is_dark(magic: bytes, most: int) -> None:
    for brightest in (255, most):
        grey = np.linspace(0, brightest, 64).astype(np.uint16)
        text = " ".join(map(str, grey)).encode()
        content = text if magic == b"P2" else grey.astype(">u2").tobytes()
        data = magic + b" 8 8 %d\n" % most + content
        expected = np.round(grey * (255 / most)).reshape(8, 8)
        for image in (decode(data), upright_rgb(Image.open(io.BytesIO(data)))):
            assert np.abs(np.asarray(image)[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("brightest", [255, 1000, 32767])
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_tiff_of_16_bits_is_scaled_as_such_even_if_it_is_dark(
    mode: str, is_signed: bool, brightest: int
) -> None:
    grey = np.linspace(0, brightest, 64).reshape(8, 8)
    pixels = grey.astype("<u2" if mode == "I;16" else ">u2").tobytes()
    data = encode(
        Image.frombytes(mode, (8, 8), pixels), "TIFF", tiffinfo={339: 2} if is_signed else {}
    )
    assert Image.open(io.BytesIO(data)).mode == ("I" if is_signed else mode)
    for image in (decode(data), upright_rgb(Image.open(io.BytesIO(data)))):
        assert np.abs(np.asarray(image)[..., 0] - grey * (255 / 65535)).max() <= 1


def with_tag(tiff: bytes, tag: int, before: int, after: int) -> bytes:
    """A little-endian TIFF with another short number in a tag that Pillow chooses itself."""
    entry = struct.pack("<HHI", tag, 3, 1)
    assert tiff.count(entry + struct.pack("<H", before)) == 1
    return tiff.replace(entry + struct.pack("<H", before), entry + struct.pack("<H", after))


def test_a_tiff_of_16_bits_may_have_0_for_white() -> None:
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    data = with_tag(encode(Image.fromarray(65535 - grey), "TIFF"), 262, 1, 0)
    for image in (decode(data), upright_rgb(Image.open(io.BytesIO(data)))):
        assert np.abs(np.asarray(image)[..., 0] - grey / 257.0).max() <= 1


@pytest.mark.parametrize("brightest", [70_000, 2**31 - 1, 2**32 - 1])
def test_a_tiff_of_32_bits_is_scaled_to_its_brightest_pixel(brightest: int) -> None:
    grey = np.linspace(0, brightest, 64).reshape(8, 8)
    data = encode(Image.fromarray(grey.astype(np.uint32).view(np.int32)), "TIFF")
    for unsigned in (True, False) if brightest < 2**31 else (True,):
        image = decode(with_tag(data, 339, 2, 1) if unsigned else data)
        assert np.abs(np.asarray(image)[..., 0] - grey * (255 / brightest)).max() <= 1


def test_a_tiff_that_pillow_does_not_know_is_called_one() -> None:
    data = with_tag(encode(Image.new("F", (8, 8)), "TIFF"), 258, 32, 64)
    with pytest.raises(ImageError, match="a TIFF of a kind that is not read"):
        decode(data)


@pytest.mark.parametrize("brightest", [1.0, 40.0])
def test_float_tiff(brightest: float) -> None:
    values = np.linspace(0, brightest, 64, dtype=np.float32).reshape(8, 8)
    decoded = np.asarray(decode(encode(Image.fromarray(values), "TIFF")))
    assert np.array_equal(decoded[..., 0], np.round(values * 255 / brightest))


def test_float_tiff_with_nan_is_no_warning() -> None:
    values = np.array([[np.nan, 0.5], [1.0, -3.0]], np.float32)
    decoded = np.asarray(decode(encode(Image.fromarray(values), "TIFF")))[..., 2]
    assert decoded.tolist() == [[0, 128], [255, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    decoded = decode(encode(image.convert(mode), "PNG"))
    assert [decoded.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (255,) * 3, (204,) * 3]


def test_a_transparent_colour_is_white() -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    rgb = palette.convert("RGB")
    for data in (
        encode(palette, "PNG", transparency=0),
        encode(palette, "PNG", transparency=b"\x00\xff"),
        encode(palette, "GIF", transparency=0),
        encode(rgb, "PNG", transparency=(255, 0, 0)),
    ):
        decoded = decode(data)
        assert decoded.getpixel((0, 0)) == (255, 255, 255)
        assert decoded.getpixel((1, 0)) == (0, 0, 255)


def test_a_palette_may_be_transparent_by_itself() -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 51, 0, 0, 255, 255], "RGBA")
    palette.putpixel((1, 0), 1)
    files = [encode(palette, "PNG"), encode(palette, "TGA")]
    if files[-1][7] != 32:  # bits of a colour: older versions of Pillow know no alpha there
        del files[-1]
    for image in (upright_rgb(palette), *map(decode, files)):
        assert [image.getpixel((x, 0)) for x in range(2)] == [(204,) * 3, (0, 0, 255)]


@pytest.mark.parametrize("kind", ["TGA", "BMP"])
def test_an_alpha_channel_of_zeros_is_not_used(kind: str) -> None:
    """Screenshots and tools leave it so, and viewers show the colours; of a PNG they show none."""
    image = smooth()
    unset = image.convert("RGBA")
    unset.putalpha(0)
    data = encode(unset, kind)
    if kind == "BMP":  # of a header that names the bits of alpha; Pillow writes an older one
        pixels = unset.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
        head = struct.pack("<IiiHHIIiiII", 108, *image.size, 1, 32, 3, len(pixels), 1, 1, 0, 0)
        size = 14 + len(head) + len(masks)
        data = b"BM" + struct.pack("<IHHI", size + len(pixels), 0, 0, size) + head + masks + pixels
    assert distance(decode(data), image) == 0
    assert distance(upright_rgb(Image.open(io.BytesIO(data))), image) == 0
    assert decode(encode(unset, "PNG")).getextrema() == ((255, 255),) * 3


def test_premultiplied_transparency() -> None:
    grey = Image.merge("LA", (Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 51)))
    for image in (grey.convert("La"), grey.convert("RGBA").convert("RGBa")):
        assert upright_rgb(image).getpixel((0, 0)) == (204,) * 3


def test_one_bit_and_one_pixel() -> None:
    image = Image.new("1", (2, 1), 1)
    image.putpixel((0, 0), 0)
    decoded = decode(encode(image, "PNG"))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]
    assert decode(encode(Image.new("RGB", (1, 1), "red"), "PNG")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = smooth(64, 40)
    lying = {  # what a camera stores: undone by the tag
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(lying[orientation])
    data = encode(stored, kind, exif=exif(orientation).tobytes(), quality=95)
    decoded, picture = decode_scaled(data, min_side=None)
    assert picture == (0, 0, 64, 40)
    assert distance(decoded, upright) < 4
    assert distance(upright_rgb(decoded), upright) < 4  # it is not turned once more


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0XX*\0\0\0\0\x08", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01"]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_exif_block_loses_no_image(kind: str, damage: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = encode(smooth(), kind, exif=damage, quality=95)
    assert distance(decode(data), smooth()) < 4


def test_a_damaged_exif_block_beside_the_orientation() -> None:
    block = exif(6)
    block[0x010F] = "maker"
    width_as_text = block.tobytes().replace(b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02")
    assert width_as_text != block.tobytes()
    data = encode(smooth().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=width_as_text)
    assert distance(decode(data), smooth()) < 4


def test_threads_leave_the_warning_filters_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"first": encode(smooth(), "PNG"), "second": encode(smooth(seed=1), "PNG")}
    inside = {name: threading.Event() for name in data}
    leave = {name: threading.Event() for name in data}
    original = Image.open

    def wait_inside(file: io.BytesIO, **options: object) -> Image.Image:
        name = "first" if file.getvalue() == data["first"] else "second"
        inside[name].set()
        assert leave[name].wait(10)
        return original(file, **options)

    monkeypatch.setattr(Image, "open", wait_inside)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:  # the first to come is the first to go
        running = {}
        for name in data:
            running[name] = pool.submit(decode, data[name])
            assert inside[name].wait(10)
        for name in data:
            leave[name].set()
            running[name].result()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    assert distance(decode(data), frames[0]) < 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(smooth(400, 300), "JPEG")[:-2000], "damaged"),
        (encode(smooth(400, 300), "PNG")[:-2000], "damaged"),
        (b"GIF89a", "not an image|damaged"),
        (b"The quick brown fox, as .jpg", "not an image"),
    ],
)
def test_a_bad_file_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


def test_unreadable_files_have_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "large.jpg").write_bytes(b"12345678")
    reasons = {
        "empty.jpg": "empty file",
        "missing.jpg": "no such file or directory",
        "loop.jpg": "too many levels of symbolic links",
        "nul\0.jpg": "embedded null byte",
        "x" * 300: "file name too long",
        "": "is a directory",
        "large.jpg": "8 bytes, above the limit of 7",
    }
    monkeypatch.setattr(reading, "MAX_BYTES", 7)
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=f"^{reason}$"):
            read_bytes(f"{tmp_path}/{name}")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes and devices among its files")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(ImageError, match="not a file but a pipe or a device"):
            read_bytes(str(tmp_path / name))


def black_png(width: int, height: int) -> bytes:
    return png(width, height, 8, 0, lambda y: bytes(width))


def test_a_pixel_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("decoded")

    bomb = black_png(20_000, 10_001)
    assert len(bomb) < 2_000_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    with pytest.raises(ImageError, match="20000x10001 pixels, above the limit of 200,000,000"):
        decode(bomb)


@pytest.mark.skipif(sys.platform != "linux", reason="measures the address space")
def test_a_pixel_bomb_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(black_png(20_000, 10_001))
    script = (
        "import resource, sys\n"
        "from whiten.errors import ImageError\n"
        "from whiten.media.decoding import decode\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)\n"
        "try: decode(data)\n"
        "except ImageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bomb.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "above the limit" in done.stdout


def test_a_jpeg_above_the_limit_is_shrunk_by_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(smooth(640, 480), "JPEG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100_000)
    with pytest.raises(ImageError, match="640x480 pixels"):
        decode(data)
    image, picture = decode_scaled(data, min_side=100)
    assert (image.size, picture) == ((160, 120), (0, 0, 160, 120))


def test_a_progressive_jpeg_is_in_memory_at_its_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(smooth(640, 480), "JPEG", progressive=True)
    assert decode_scaled(data, min_side=100)[0].size == (160, 120)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100_000)
    with pytest.raises(ImageError, match="640x480 pixels"):
        decode_scaled(data, min_side=100)


# Of 803x602 pixels the decoder gives 201x151, which would be 804x604: where is the picture?
PICTURES = {
    1: (0, 0, 200.75, 150.5),
    2: (0.25, 0, 201, 150.5),
    3: (0.25, 0.5, 201, 151),
    4: (0, 0.5, 200.75, 151),
    5: (0, 0, 150.5, 200.75),
    6: (0.5, 0, 151, 200.75),
    7: (0.5, 0.25, 151, 201),
    8: (0, 0.25, 150.5, 201),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_shrunk_decode_equals_a_plain_one(orientation: int) -> None:
    data = encode(smooth(803, 602), "JPEG", quality=92, exif=exif(orientation).tobytes())
    plain = decode(data)
    shrunk, picture = decode_scaled(data, min_side=120)
    assert picture == PICTURES[orientation]
    assert sorted(shrunk.size) == [151, 201]
    small = plain.resize((100, 100), Image.Resampling.BICUBIC)
    assert distance(shrunk.resize(small.size, Image.Resampling.BICUBIC, box=picture), small) < 1


def test_other_formats_and_small_images_are_not_shrunk() -> None:
    assert decode_scaled(encode(smooth(80, 60), "PNG"), min_side=10)[0].size == (80, 60)
    assert decode_scaled(encode(smooth(80, 60), "JPEG"), min_side=60)[0].size == (80, 60)
