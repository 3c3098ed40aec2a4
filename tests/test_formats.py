"""Images that an extra reads: with it, and without it."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pictures import encode, picture
from whiten.datasets import walking
from whiten.datasets.finding import find_items
from whiten.errors import ImageError, UnreadableError
from whiten.media import decoding, formats
from whiten.media.decoding import decode, stored_size
from whiten.media.formats import jpeg_xl_size

pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")

KINDS = {"heic": "HEIF", "avif": "AVIF", "jxl": "JXL"}


def smooth(width: int = 60, height: int = 44) -> Image.Image:
    return (
        picture(1, width, height).resize((9, 7)).resize((width, height), Image.Resampling.BICUBIC)
    )


@pytest.mark.parametrize("suffix", KINDS)
def test_the_extra_reads_it(tmp_path: Path, suffix: str) -> None:
    options: dict[str, Any] = {"lossless": True} if suffix == "jxl" else {"quality": 95}
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encode(smooth(), KINDS[suffix], **options))
    assert [item.id for item in find_items(tmp_path)] == [path.name]
    shown = np.asarray(decode(path.read_bytes()), np.int16)
    assert np.abs(shown - np.asarray(smooth(), np.int16)).mean() < 4
    assert stored_size(path.read_bytes()) == (60, 44)
    with pytest.raises(ImageError):
        decode(path.read_bytes()[:60])


@pytest.mark.parametrize("size", [(1, 1), (60, 44), (64, 64), (256, 256), (320, 180), (3000, 7)])
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(size: tuple[int, int]) -> None:
    for options in ({}, {"use_container": True}):
        data = encode(smooth(*size), "JXL", **options)
        assert jpeg_xl_size(data) == size
    with pytest.raises(ValueError, match="no codestream"):
        jpeg_xl_size(b"\x00\x00\x00\x0cJXL \r\n\x87\n")


def test_a_large_jpeg_xl_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(smooth(), "JXL")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="60x44 pixels, above the limit"):
        decode(data)


def test_a_turned_heic_is_upright() -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    data = encode(smooth(), "HEIF", exif=tag.tobytes(), quality=95)
    turned = np.asarray(decode(data), np.int16)
    expected = np.asarray(smooth().transpose(Image.Transpose.ROTATE_270), np.int16)
    assert turned.shape == expected.shape
    assert np.abs(turned - expected).mean() < 4


def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [name for name in formats.FORMATS if name not in ("HEIF", "JXL")]
    for module in (formats, decoding):
        monkeypatch.setattr(module, "FORMATS", left)
    gone = {".heic", ".heif", ".hif", ".jxl"}
    suffixes = formats.SUFFIXES - gone
    monkeypatch.setattr("whiten.datasets.finding.SUFFIXES", suffixes)
    kinds = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL"}
    monkeypatch.setattr(walking, "unread_kind", lambda suffix: kinds.get(suffix))


def test_without_the_extra_one_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_the_extra(monkeypatch)
    for number in range(3):
        (tmp_path / f"{number}.HEIC").write_bytes(encode(smooth(), "HEIF"))
    (tmp_path / "a.jpg").write_bytes(encode(smooth(), "JPEG"))
    with caplog.at_level(logging.WARNING):
        assert [item.id for item in find_items(tmp_path)] == ["a.jpg"]
    [record] = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: not read: 3 HEIC; HEIC: pip install 'whiten[formats]'"
    )
    # The content tells, whatever the name; and once the extra is there, it is tried again.
    for kind, name in (("HEIF", "HEIC"), ("JXL", "JPEG XL")):
        with pytest.raises(UnreadableError, match=rf"{name} needs .* pip install 'whiten\[formats"):
            decode(encode(smooth(), kind))
    with pytest.raises(ImageError, match="not an image") as caught:
        decode(io.BytesIO(b"ftypheic").getvalue())
    assert not isinstance(caught.value, UnreadableError)
