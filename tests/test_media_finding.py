"""Which images a folder or a table has."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whiten.datasets.collection import Item
from whiten.datasets.finding import find_items
from whiten.errors import ConfigError, ImageError, NoImagesError
from whiten.media.reading import read_bytes
from whiten.utils.names import display_path


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


def test_names_that_are_not_utf8_have_ids_of_their_own(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)  # noqa: PTH102 - a name in bytes
        for name in (b"/\xff.png", rb"/\xff.png", rb"/\x5cxff.png"):
            with open(folder + name, "wb") as file:
                file.write(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    items = {item.id: item for item in find_items(tmp_path)}
    assert {name: read_bytes(item.path) for name, item in items.items()} == {
        r"caf\xe9/\xff.png": b"/\xff.png",
        r"caf\xe9/\x5cxff.png": rb"/\xff.png",
        r"caf\xe9/\x5cx5cxff.png": rb"/\x5cxff.png",
    }
    assert {item.group for item in items.values()} == {r"caf\xe9"}
    assert display_path(items[r"caf\xe9/\xff.png"].path).endswith(r"/caf\xe9/\xff.png")


def deny(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Folders of these names cannot be listed, whoever asks; even root."""
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if isinstance(path, str) and os.path.basename(path) in names:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_cannot_be_listed_is_an_item_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/locked/x.jpg", "b/y.jpg", "a/z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    deny(monkeypatch, "locked")
    items = find_items(tmp_path)
    assert [(item.id, item.group) for item in items] == [
        ("a/locked/", "a/locked"),
        ("a/z.jpg", "a"),
        ("b/y.jpg", "b"),
    ]
    with pytest.raises(ImageError, match="permission denied"):
        read_bytes(items[0].path)
    deny(monkeypatch, tmp_path.name)
    with pytest.raises(NoImagesError, match=r"cannot be listed \(permission denied\): give access"):
        find_items(tmp_path)


def test_links_to_folders_are_followed_once_each(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.jpg").touch()
    root = tmp_path / "root"
    (root / "group").mkdir(parents=True)
    (root / "linked").symlink_to(outside)
    (root / "group" / "loop").symlink_to(root)
    (root / "group" / "b.jpg").symlink_to(outside / "a.jpg")
    (root / "again").symlink_to(root / "group")
    (outside / "back").symlink_to(root)
    found = [(item.id, item.group) for item in find_items(root)]
    assert found == [("group/b.jpg", "group"), ("linked/a.jpg", "linked")]
    (tmp_path / "link").symlink_to(root)
    assert [item.id for item in find_items(tmp_path / "link")] == [n for n, _ in found]


def test_one_image_is_a_collection(tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.touch()
    assert list(find_items(path)) == [Item("one.jpg", str(path))]


def write_parquet(file: Path, /, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_a_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(
        '\ufeffgroup,path\r\nAlhambra,z/ä.jpg\r\n,a.jpg\r\n\r\n"x, y",/abs/b.jpg\r\n'.encode()
    )
    assert list(find_items(table)) == [
        Item("/abs/b.jpg", "/abs/b.jpg", "x, y"),
        Item("a.jpg", str(tmp_path / "a.jpg"), None),
        Item("z/ä.jpg", str(tmp_path / "z/ä.jpg"), "Alhambra"),
    ]


def test_a_parquet_table(tmp_path: Path) -> None:
    table = write_parquet(
        tmp_path / "t.parquet", path=["b.jpg", "a.jpg"], group=[7, None], x=[1, 2]
    )
    assert list(find_items(table)) == [
        Item("a.jpg", str(tmp_path / "a.jpg"), None),
        Item("b.jpg", str(tmp_path / "b.jpg"), "7"),
    ]
    alone = write_parquet(tmp_path / "alone.parquet", path=["a.jpg"])
    assert find_items(alone)[0].group is None


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
