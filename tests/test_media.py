"""Finding and decoding images, and mapping on threads."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from whiten import media
from whiten.errors import ConfigError, ImageError, NoImagesError
from whiten.media import Item, decode, decode_scaled, find_items, ordered_map, read_bytes


def smooth(width: int = 48, height: int = 36, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(a: Image.Image, b: Image.Image) -> float:
    """Mean difference in grey levels."""
    assert a.size == b.size
    assert a.mode == b.mode == "RGB"
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).mean())


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


# --- finding ----------------------------------------------------------------------------------


def test_folders_are_groups_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "cats/2.webp", "cats/tabby/1.tiff", "dogs/x.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (".hidden.jpg", ".git/x.jpg", "cats/.thumbs/x.jpg", "cats/notes.txt", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [(item.id, item.group) for item in find_items(tmp_path)] == [
        ("a.jpg", None),
        ("b.PNG", None),
        ("cats/2.webp", "cats"),
        ("cats/tabby/1.tiff", "cats/tabby"),
        ("dogs/x.jpeg", "dogs"),
    ]
    assert all(Path(item.path).is_file() for item in find_items(tmp_path))


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)  # noqa: PTH102 - a name in bytes
        with open(folder + b"/\xff.png", "wb") as file:
            file.write(encode(smooth(), "PNG"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (item,) = find_items(tmp_path)
    assert (item.id, item.group) == ("caf\\xe9/\\xff.png", "caf\\xe9")
    assert decode(read_bytes(item.path)).size == (48, 36)
    assert media.display_path(item.path).encode().endswith(rb"/caf\xe9/\xff.png")


def test_links_to_folders_are_not_followed_links_to_images_are(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.jpg").touch()
    root = tmp_path / "root"
    (root / "group").mkdir(parents=True)
    (root / "linked").symlink_to(outside)
    (root / "group" / "loop").symlink_to(root)
    (root / "group" / "b.jpg").symlink_to(outside / "a.jpg")
    assert [item.id for item in find_items(root)] == ["group/b.jpg"]
    (tmp_path / "link").symlink_to(root)
    assert [item.id for item in find_items(tmp_path / "link")] == ["group/b.jpg"]


def test_one_image_is_a_collection(tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.touch()
    assert find_items(path) == [Item("one.jpg", str(path))]


def write_parquet(file: Path, /, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_a_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(
        '\ufeffgroup,path\r\nAlhambra,z/ä.jpg\r\n,a.jpg\r\n\r\n"x, y",/abs/b.jpg\r\n'.encode()
    )
    assert find_items(table) == [
        Item("/abs/b.jpg", "/abs/b.jpg", "x, y"),
        Item("a.jpg", str(tmp_path / "a.jpg"), None),
        Item("z/ä.jpg", str(tmp_path / "z/ä.jpg"), "Alhambra"),
    ]


def test_a_parquet_table(tmp_path: Path) -> None:
    table = write_parquet(
        tmp_path / "t.parquet", path=["b.jpg", "a.jpg"], group=[7, None], x=[1, 2]
    )
    assert find_items(table) == [
        Item("a.jpg", str(tmp_path / "a.jpg"), None),
        Item("b.jpg", str(tmp_path / "b.jpg"), "7"),
    ]
    alone = write_parquet(tmp_path / "alone.parquet", path=["a.jpg"])
    assert find_items(alone)[0].group is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,group\na.jpg,x\n", "no column 'path'"),
        (b"path\na.jpg\nb.jpg\na.jpg\n", "lists 'a.jpg' twice"),
        (b"group,path\nx,a.jpg\ny\n", "no path in row 2"),
        (b"path,group\n,x\n", "no path in row 1"),
        (b"path\ncaf\xe9.jpg\n", "CSV in UTF-8"),
    ],
)
def test_a_wrong_csv_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        find_items(table)


def test_a_wrong_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column 'path'"):
        find_items(write_parquet(tmp_path / "a.parquet", file=["a.jpg"]))
    with pytest.raises(ConfigError, match="no path in row 2"):
        find_items(write_parquet(tmp_path / "b.parquet", path=["a.jpg", None]))
    with pytest.raises(ConfigError, match="twice"):
        find_items(write_parquet(tmp_path / "c.parquet", path=["a.jpg", "a.jpg"]))
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot read"):
        find_items(tmp_path / "d.parquet")


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(NoImagesError, match="does not exist: name a folder"):
        find_items(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NoImagesError, match="holds no image file"):
        find_items(tmp_path)
    table = tmp_path / "list.csv"
    table.write_text("path,group\n")
    with pytest.raises(NoImagesError, match="no rows"):
        find_items(table)


# --- decoding ---------------------------------------------------------------------------------


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
    decoded, full_size = decode_scaled(data, min_side=None)
    assert full_size == (64, 40)
    assert distance(decoded, upright) < 4


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


def test_unreadable_files_have_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="empty file"):
        read_bytes(str(tmp_path / "empty.jpg"))
    with pytest.raises(ImageError, match="no such file"):
        read_bytes(str(tmp_path / "missing.jpg"))
    with pytest.raises(ImageError, match="directory"):
        read_bytes(str(tmp_path))


def png(width: int, height: int) -> bytes:
    """A valid PNG of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packer = zlib.compressobj(1)
    row = bytes(width + 1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def test_a_pixel_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("decoded")

    bomb = png(20_000, 10_001)
    assert len(bomb) < 2_000_000
    start = time.perf_counter()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    with pytest.raises(ImageError, match="20000x10001 pixels, above the limit of 200,000,000"):
        decode(bomb)
    assert time.perf_counter() - start < 0.2


@pytest.mark.skipif(sys.platform != "linux", reason="measures the address space")
def test_a_pixel_bomb_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(20_000, 10_001))
    script = (
        "import resource, sys\n"
        "from whiten.errors import ImageError\n"
        "from whiten.media import decode\n"
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
    monkeypatch.setattr(media, "MAX_PIXELS", 100_000)
    with pytest.raises(ImageError, match="640x480 pixels"):
        decode(data)
    image, full_size = decode_scaled(data, min_side=100)
    assert (image.size, full_size) == ((160, 120), (640, 480))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_shrunk_decode_equals_a_plain_one(orientation: int) -> None:
    data = encode(smooth(803, 602), "JPEG", quality=92, exif=exif(orientation).tobytes())
    plain = decode(data)
    shrunk, full_size = decode_scaled(data, min_side=120)
    assert full_size == plain.size
    assert 120 <= min(shrunk.size) < min(plain.size)
    side = (100, 100)
    assert distance(*(i.resize(side, Image.Resampling.BICUBIC) for i in (plain, shrunk))) < 2


def test_other_formats_and_small_images_are_not_shrunk() -> None:
    assert decode_scaled(encode(smooth(80, 60), "PNG"), min_side=10)[0].size == (80, 60)
    assert decode_scaled(encode(smooth(80, 60), "JPEG"), min_side=60)[0].size == (80, 60)


# --- mapping ----------------------------------------------------------------------------------


def test_ordered_map_keeps_the_order() -> None:
    def slow_when_early(number: int) -> int:
        time.sleep(0.002 * (10 - number % 10))
        return number * number

    out = ordered_map(slow_when_early, range(50), workers=4, ahead=8)
    assert list(out) == [n * n for n in range(50)]
    assert list(ordered_map(slow_when_early, [], workers=4, ahead=8)) == []


def test_ordered_map_looks_ahead_no_further_than_asked() -> None:
    started: list[int] = []
    lead = []
    for taken, _ in enumerate(ordered_map(started.append, range(100), workers=3, ahead=5)):
        time.sleep(0.001)  # time enough for threads that would run away
        lead.append(len(started) - (taken + 1))
    assert len(started) == 100
    assert 0 < max(lead) <= 5


def test_ordered_map_hands_on_exceptions_in_order_and_stops() -> None:
    started: list[int] = []

    def fail_at_seven(number: int) -> int:
        started.append(number)
        if number == 7:
            raise ValueError("seven")
        return number

    got = []
    with pytest.raises(ValueError, match="seven"):
        for number in ordered_map(fail_at_seven, range(1000), workers=2, ahead=4):
            got.append(number)
    assert got == list(range(7))
    assert len(started) <= 12


def test_ordered_map_ends_its_threads_when_it_is_left() -> None:
    results = ordered_map(lambda n: n, range(1000), workers=2, ahead=4)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("whiten-media")]
