"""`whiten datasets`: what is there, what is missing, where it is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clips import write_lines
from command_line import Captured, fails, prints
from miniature import write_distractors, write_gldv2, write_revisited
from whiten.datasets.catalogue import DataSet, find_datasets

NAMES = ["GLDv2-clean", "ROxford5k", "RParis6k", "R1M", "SVD"]


def found(root: Path) -> dict[str, DataSet]:
    return {one.name: one for one in find_datasets(root)}


def test_nothing_there_says_what_belongs_there(tmp_path: Path) -> None:
    sets = found(tmp_path)
    assert list(sets) == NAMES
    assert all(one.root is None and one.missing and not one.there for one in sets.values())
    assert "train_clean.csv" in sets["GLDv2-clean"].missing
    assert "roxford5k/gnd_roxford5k.pkl" in sets["ROxford5k"].missing
    pages = ["cvdfoundation/google-landmark", *["cmp.felk.cvut.cz/revisitop"] * 3, "svdbase"]
    for one, page in zip(sets.values(), pages, strict=True):
        assert page in one.published
    assert "595 GB" in sets["GLDv2-clean"].size and sets["R1M"].size == "unstated"


def test_a_folder_that_is_not_there(capsys: Captured, tmp_path: Path) -> None:
    assert "typo is no folder" in fails(capsys, "datasets", tmp_path / "typo")


def test_complete_sets_below_one_folder(tmp_path: Path) -> None:
    write_gldv2(tmp_path / "gldv2", 3)
    write_revisited(tmp_path, "roxford5k", 4)
    write_revisited(tmp_path, "rparis6k", 2, json_form=True)
    write_distractors(tmp_path, 5)
    sets = found(tmp_path)
    assert [one.root for one in sets.values()] == [
        *(str(tmp_path / name) for name in ("gldv2", "roxford5k", "rparis6k", "revisitop1m")),
        None,
    ]
    assert all(not one.missing for one in sets.values() if one.root)
    assert sets["GLDv2-clean"].there == [
        "train_clean.csv: GLDv2-clean: 13 images of 3 landmarks",
        "13 of 13 images",
    ]
    assert sets["ROxford5k"].there == [
        "gnd_roxford5k.pkl: 4 queries, 12 images",
        "12 of 12 images",
        "4 of 4 queries",
    ]
    assert sets["RParis6k"].there[0] == "gnd_rparis6k.json: 2 queries, 6 images"
    assert sets["R1M"].there == ["revisitop1m.txt: 5 images", "5 of 5 images"]


def test_missing_images_are_counted_and_the_first_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_distractors(tmp_path, 9)
    images = sorted((folder / "jpg").rglob("*.jpg"))
    for image in images[3:]:
        image.unlink()
    one = found(folder)["R1M"]  # the folder itself
    assert one.there[-1] == "3 of 9 images"
    assert one.missing == [f"6 of these images, first {images[3]}"]
    monkeypatch.setattr("whiten.datasets.catalogue.SAMPLE", 5)
    one = found(tmp_path)["R1M"]
    assert one.there[-1] == "2 of 5 images looked for, of 9"  # the first, third, …, ninth
    assert one.missing == [f"3 of these images, first {images[4]}"]


def test_a_damaged_list_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "roxford5k").mkdir()
    (tmp_path / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "train_clean.csv").write_text("id,url\n")
    sets = found(tmp_path)
    assert (
        "is refused" in sets["ROxford5k"].missing[0] and "os.system" in sets["ROxford5k"].missing[0]
    )
    assert "cannot read" in sets["GLDv2-clean"].missing[0]


def test_svd_as_its_reader_takes_it(tmp_path: Path) -> None:
    root, lists = tmp_path / "svd", tmp_path / "svd" / "metadata-release"
    lists.mkdir(parents=True)
    for name in ("query-id", "labeled-data-id", "unlabeled-data-id"):
        write_lines(lists / name, [f"{name}-{n}.mp4" for n in range(3)])
    truth = lists / "test_groundtruth"
    write_lines(truth, ["query-id-0.mp4 labeled-data-id-1.mp4 1"])
    one = found(tmp_path)["SVD"]
    assert one.root == str(root)
    assert one.there == ["lists: 3 queries, 3 labelled and 3 unlabelled videos", "test_groundtruth"]
    assert one.missing[0] == "train_groundtruth" and "frames/VIDEO/0000.jpg" in one.missing[1]

    (root / "videos").mkdir()
    (root / "videos" / "query-id-0.mp4").write_bytes(b"")
    one = found(root)["SVD"]
    assert "videos" in one.there and f"whiten frames {root} --out" in one.missing[1]

    for name in ("query-id-0", "labeled-data-id-1"):
        (root / "frames" / name).mkdir(parents=True)
    one = found(tmp_path)["SVD"]
    assert one.there[-1] == "2 of 9 folders of frames"
    assert one.missing[-1] == f"7 of these folders of frames, first {root}/frames/query-id-1"

    truth.write_text("one word")
    assert "line 1 must be" in found(tmp_path)["SVD"].missing[-1]


def test_the_command(capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_revisited(tmp_path, "roxford5k", 2)
    monkeypatch.chdir(tmp_path)
    out, _ = prints(capsys, "datasets")
    assert "ROxford5k: roxford5k\n  there      gnd_roxford5k.pkl: 2 queries, 6 images\n" in out
    assert "R1M: not found\n  missing    revisitop1m/revisitop1m.txt\n" in out
    facts = json.loads(prints(capsys, "datasets", tmp_path, "--json")[0])
    assert [one["name"] for one in facts] == NAMES
    assert facts[1]["root"] == str(tmp_path / "roxford5k") and facts[1]["missing"] == []
