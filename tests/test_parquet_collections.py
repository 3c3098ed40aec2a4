"""Parquet tables that hold the images themselves, wherever a folder of images is taken."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import fails, prints
from helpers import TEACHER
from shard_makers import samples, write_parquets
from whiten.datasets.finding import find_items
from whiten.datasets.sources import read_sources
from whiten.errors import ConfigError, ImageError
from whiten.media.reading import read_bytes


@pytest.fixture
def tables(shared_images: Path, tmp_path: Path) -> Path:
    return write_parquets(tmp_path / "tables", samples(shared_images))


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return tmp_path / "one.parquet"


@pytest.mark.parametrize("name", ["", "/*.parquet", "/train-{0..1}.parquet"])
def test_a_folder_a_glob_and_a_range_are_the_same_images(
    tables: Path, shared_images: Path, name: str
) -> None:
    items = find_items(f"{tables}{name}")
    found = sorted(read_bytes(item.path) for item in items)
    assert found == sorted(data for _, data, _ in samples(shared_images))
    assert (items[0].id, items[0].group) == ("train-0.parquet/000000000", "a")
    assert items[15].id == "train-1.parquet/000000007"


def test_plain_bytes_an_id_and_a_missing_image(one: Path, shared_images: Path) -> None:
    _, data, _ = samples(shared_images)[0]
    pq.write_table(pa.table({"jpg": [data, None], "id": ["x", "y"], "digest": [b"1", b"2"]}), one)
    first, second = find_items(one)
    assert (first.id, first.group) == ("one.parquet/x", None)
    assert read_bytes(first.path) == data
    with pytest.raises(ImageError, match="the row holds no image"):
        read_bytes(second.path)


@pytest.mark.parametrize("first", [None, b"", b"no image"])
def test_a_table_whose_first_image_is_damaged(
    one: Path, shared_images: Path, first: bytes | None
) -> None:
    _, data, _ = samples(shared_images)[0]
    pq.write_table(pa.table({"jpg": [first, data]}), one)
    for source in (one, one.parent):
        items = find_items(source)
        assert [item.id for item in items] == [f"one.parquet/00000000{n}" for n in range(2)]
    pq.write_table(pa.table({"path": ["a.png"], "digest": [b"no image"]}), one)
    assert [item.id for item in find_items(one)] == ["a.png"]


def test_a_missing_number_is_no_group_and_no_id(one: Path, shared_images: Path) -> None:
    data = [data for _, data, _ in samples(shared_images)[:3]]
    pq.write_table(pa.table({"image": data, "group": [7.0, float("nan"), None]}), one)
    assert [item.group for item in find_items(one)] == ["7", None, None]
    pq.write_table(pa.table({"image": data, "id": [7.0, float("nan"), 8.0]}), one)
    with pytest.raises(ConfigError, match="has no id in row 2"):
        find_items(one)


def test_a_table_of_paths_with_bytes_stays_one(one: Path, shared_images: Path) -> None:
    path = str(shared_images / "a" / "0.png")
    pq.write_table(pa.table({"path": [path], "thumbnail": [Path(path).read_bytes()]}), one)
    assert [item.id for item in find_items(one)] == [path]


def test_a_column_that_may_be_the_groups_is_named(
    one: Path, shared_images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, data, _ = samples(shared_images)[0]
    pq.write_table(pa.table({"jpg": [data], "label": [5]}), one)
    find_items(one)
    # An index does read it, as one of its columns.
    assert "no groups are known; 'label' is not taken for it" in caplog.text


def test_columns_that_are_not_clear_are_refused(one: Path, shared_images: Path) -> None:
    _, data, _ = samples(shared_images)[0]
    pq.write_table(pa.table({"front": [data], "back": [data]}), one)
    with pytest.raises(ConfigError, match="several columns of images, 'front', 'back'"):
        find_items(one)
    pq.write_table(pa.table({"image": [data, data], "id": ["x", "x"]}), one)
    with pytest.raises(ConfigError, match="lists 'x' twice"):
        find_items(one)
    pq.write_table(pa.table({"image": [data], "id": [None]}), one)
    with pytest.raises(ConfigError, match="has no id in row 1"):
        find_items(one)


def test_a_damaged_table_is_refused_alone_and_told_in_a_folder(
    tables: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tables / "train-1.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    assert "must be Parquet" in fails(
        capsys, "embed", path, "--model", "demo:mobilenetv2", "--out", tables / "out"
    )
    items = {item.id: item.path for item in find_items(tables)}
    assert len(items) == 8 + 1
    with pytest.raises(ImageError, match="damaged table"):
        read_bytes(items["train-1.parquet/"])


def test_other_columns_are_metadata_and_sources(
    colour_teachers: None,
    tables: Path,
    shared_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "index"
    prints(capsys, "index", tables, "--model", TEACHER, "--out", out, "--kind", "exact")
    query = shared_images / "a" / "0.png"
    found, _ = prints(capsys, "search", query, "--index", out, "--where", "price < 1", "-k", "20")
    assert {line.rpartition("/")[2] for line in found.splitlines()} == {"000000000", "000000001"}
    again, _ = prints(capsys, "index", tables, "--out", out)
    assert "0 added" in again and "0 updated" in again
    items = find_items(tables)
    captions = read_sources(tables, items, "caption")
    assert captions.of_image["train-0.parquet/000000003"] == "image 3"


@pytest.mark.slow
def test_a_distillation_and_its_test_take_tables(
    colour_teachers: None, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prints(
        capsys,
        "distill",
        tables,
        "--teachers",
        TEACHER,
        "--out",
        tmp_path / "run",
        "--student",
        "timm:test_efficientnet?pretrained=0&size=64",
        "--dim",
        "4",
        "--whiten-dim",
        "3",
        "--epochs",
        "0",
        "--test",
        tables,
    )
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
