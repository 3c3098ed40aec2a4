"""GLDv2-clean in its own layout, as a collection like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from command_line import Captured, fails, prints
from helpers import TEACHER
from miniature import drawing, write_gldv2
from whiten.datasets.catalogue import find_datasets
from whiten.datasets.finding import find_items
from whiten.distillation.pairs import resolve_source
from whiten.errors import ConfigError, NoImagesError
from whiten.media.decoding import decode
from whiten.media.reading import read_bytes
from whiten.store.store import Store

ONE, OTHER, THIRD = "0a1b2c3d4e5f6071", "0a1b2c3d4e5f6072", "f0e1d2c3b4a59687"


def write_list(root: Path, *rows: str, folder: str = ".") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "train_clean.csv").write_text("\n".join(["landmark_id,images", *rows]) + "\n")
    return root


def test_images_of_a_landmark_are_a_group(tmp_path: Path) -> None:
    named = write_gldv2(tmp_path, 5)
    said: list[str] = []
    items = find_items(tmp_path, said.append)
    assert said == ["GLDv2-clean: 21 images of 5 landmarks"]
    assert items.ids.to_pylist() == sorted(name for names in named for name in names)
    of_id = {item.id: item for item in items}
    for number, names in enumerate(named[:5]):
        assert {of_id[name].group for name in names} == {str(100 + number)}
    [alone] = named[5]
    assert of_id[alone].group is None  # a landmark of one image has no pair
    assert resolve_source(items.groups, "auto") == "groups"
    shown = decode(read_bytes(of_id[named[3][1]].path))
    drawn = drawing("train", 3, "twemoji")
    assert np.abs(np.asarray(shown, float) - np.asarray(drawn, float)).mean() < 6


@pytest.mark.parametrize("folder", [".", "meta", "metadata", "train"])
def test_the_list_may_lie_in_several_places(tmp_path: Path, folder: str) -> None:
    (tmp_path / "train").mkdir()
    items = find_items(write_list(tmp_path, f"7,{THIRD} {ONE}", f"9,{OTHER}", folder=folder))
    assert [(i.id, i.group) for i in items] == [(ONE, "7"), (OTHER, None), (THIRD, "7")]
    assert items[2].path == f"{tmp_path}/train/f/0/e/{THIRD}.jpg"


def test_the_folder_of_images_may_be_the_root(tmp_path: Path) -> None:
    items = find_items(write_list(tmp_path, f"7,{ONE}  {OTHER} "))
    assert [item.path for item in items] == [
        f"{tmp_path}/0/a/1/{name}.jpg" for name in (ONE, OTHER)
    ]


def test_the_folder_of_images_beside_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its folders, named by letters of the ids, would be groups."""
    write_gldv2(tmp_path, 2)
    expected = find_items(tmp_path)
    assert list(find_items(tmp_path / "train")) == list(expected)
    monkeypatch.chdir(tmp_path / "train")
    assert find_items(Path()).groups.equals(expected.groups)
    found = find_datasets(tmp_path / "train")[0]
    assert found.there[0] == "../train_clean.csv: GLDv2-clean: 9 images of 2 landmarks"
    assert not found.missing


def test_a_landmark_in_two_rows_is_one(tmp_path: Path) -> None:
    items = find_items(write_list(tmp_path, f"7,{ONE}", f"8,{THIRD}", f"7,{OTHER}"))
    assert [item.group for item in items] == ["7", "7", None]


def test_a_landmark_of_a_great_many_images(tmp_path: Path) -> None:
    names = [f"{number:016x}" for number in range(200_000)]  # a row of 3.4 MB
    items = find_items(write_list(tmp_path, f"7,{' '.join(names)}", f"8,{'f' * 16}"))
    assert len(items) == 200_001
    assert items[123_456].id == names[123_456] and items[123_456].group == "7"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((f"7,{ONE} ../../secret",), r"'\.\./\.\./secret', which is no image id"),
        ((f"7,{ONE} ab",), "'ab', which is no image id"),
        ((f"7,{ONE}", f"8,{ONE}"), f"lists '{ONE}' twice"),
        ((f"7,{ONE},more,columns",), "cannot read .*train_clean.csv"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_items(write_list(tmp_path, *rows))


def test_another_table_of_that_name_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "train_clean.csv").write_text("id,url\n1,2\n")
    with pytest.raises(ConfigError, match=r"columns landmark_id,images.*rename it"):
        find_items(tmp_path)
    with pytest.raises(NoImagesError, match="lists no image"):
        find_items(write_list(tmp_path))


def test_missing_images_are_skipped_on_the_command_line(
    capsys: Captured, tmp_path: Path, colour_teachers: None
) -> None:
    named = write_gldv2(tmp_path / "gld", 2)
    gone = named[1][2]
    (tmp_path / "gld" / "train" / gone[0] / gone[1] / gone[2] / f"{gone}.jpg").unlink()
    out = tmp_path / "store"
    _, err = prints(capsys, "embed", tmp_path / "gld", "--teacher", TEACHER, "--out", out)
    assert err.splitlines()[0] == "GLDv2-clean: 9 images of 2 landmarks"
    assert f"1 image skipped:\n  {gone}: no such file or directory" in err
    assert len(Store.open(out)) == 8
    (tmp_path / "gld" / "train_clean.csv").write_bytes(b"\xff\xfe\x00")
    assert "train_clean.csv" in fails(
        capsys, "embed", tmp_path / "gld", "--teacher", TEACHER, "--out", out
    )
