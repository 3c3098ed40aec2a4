"""What cannot be read for want of memory, handles or access is not damaged, and tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageFile

from counting_teacher import make_teacher, seen
from helpers import write_image
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.errors import ImageError, UnreadableError
from whiten.media import reading
from whiten.media.decoding import decode
from whiten.media.reading import Unread, read_bytes

PASSING = (
    "EIO", "EMFILE", "ENFILE", "ESTALE", "EACCES", "ETIMEDOUT", "ENOMEM", "EAGAIN", "ENXIO",
    "ENODEV", "EHOSTDOWN",
)  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", number)
    return tmp_path / "images"


def cannot_open(name: str, number: int) -> Callable[[str, int], int]:
    def opener(path: str, flags: int) -> int:
        if os.path.basename(path) == name:
            raise OSError(number, os.strerror(number), path)
        return os.open(path, flags)

    return opener


def no_memory(*_: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("name", PASSING)
def test_a_store_tries_again(images: Path, tmp_path: Path, name: str) -> None:
    items = find_items(images)
    with pytest.MonkeyPatch.context() as patch:
        number = getattr(errno, name)
        patch.setattr(reading, "_open_at_once", cannot_open("2.png", number))
        store = embed(items, make_teacher(), tmp_path / "store")
    assert [skip.id for skip in store.skipped] == ["2.png"]
    assert store.skipped[0].reason == os.strerror(number).lower()
    teacher = make_teacher()
    store = embed(items, teacher, tmp_path / "store")
    assert (seen(teacher), len(store), store.skipped) == (1, 4, [])


def test_memory_that_runs_out_while_decoding_passes(images: Path, tmp_path: Path) -> None:
    items = find_items(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", no_memory)
        patch.setattr("PIL.PngImagePlugin.PngImageFile.load", no_memory)
        with pytest.raises(UnreadableError, match="out of memory"):
            decode((images / "0.png").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whiten.views.rendering.render", no_memory)
        embed_one = items[:1]
        (images / "broken.png").write_bytes(b"text")
        with pytest.raises(Exception, match="out of memory"):
            embed(embed_one, make_teacher(), tmp_path / "store")
    items = find_items(images)
    store = embed(items, make_teacher(), tmp_path / "store")
    assert [skip.id for skip in store.skipped] == ["broken.png"]


def test_a_verdict_on_content_is_remembered(images: Path, tmp_path: Path) -> None:
    (images / "2.png").write_bytes(b"text")
    items = find_items(images)
    embed(items, make_teacher(), tmp_path / "store")
    looked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "whiten.embedding.row_makers.read_bytes",
            lambda path: looked.append(path) or read_bytes(path),
        )
        store = embed(items, make_teacher(), tmp_path / "store")
    assert looked == [] and [type(skip) for skip in store.skipped] != [Unread]


def test_reasons_of_reading(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="no such file"):
        read_bytes(str(tmp_path / "none.png"))
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty file") as caught:
        read_bytes(str(tmp_path / "empty.png"))
    assert not isinstance(caught.value, UnreadableError)
