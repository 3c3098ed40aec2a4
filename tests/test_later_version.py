"""What a later version wrote is whole: the message asks for an upgrade, and never to delete it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import TEACHER, write_groups
from whiten.errors import RunError, StoreError, TeacherError, WhitenError
from whiten.index import Index
from whiten.models.exported import read_manifest
from whiten.models.student import load_student
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.utils import files
from whiten.whitening.whitener import Whitener


def refusal(error: type[WhitenError], use: Callable[[], Any]) -> str:
    with pytest.raises(error, match=r"later version of whiten: upgrade") as caught:
        use()
    message = str(caught.value)
    assert "delete" not in message and "again" not in message and "\n" not in message
    return message


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_an_index(colour_teachers: None, tmp_path: Path, storage: str) -> None:
    images, place = write_groups(tmp_path / "images", {"a": 3, "b": 3}), tmp_path / "index"
    Index.build(TEACHER, images, place, storage=storage)
    file = place / "manifest.json"
    file.write_text(json.dumps({"format": 5, "shards": {}}))
    for use in (
        lambda: Index.open(place),
        lambda: Index.build(TEACHER, images, place),
        lambda: Index.build(TEACHER, images, place, remove_missing=True),
    ):
        assert f"{place} has index format 5, this version reads 3 and 4" in refusal(StoreError, use)


def test_an_index_with_columns_of_a_later_kind(colour_teachers: None, tmp_path: Path) -> None:
    images, place = write_groups(tmp_path / "images", {"a": 3}), tmp_path / "index"
    Index.build(TEACHER, images, place)
    file = place / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["facts"]["columns"] = {"where": "polygon"}
    file.write_text(json.dumps(manifest))
    assert "columns of type polygon" in refusal(StoreError, lambda: Index.open(place))


def test_a_student_without_the_files_of_today(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 3}))
    message = refusal(TeacherError, lambda: load_student(tmp_path))
    assert f"{tmp_path} has student format 3, this version reads 1 and 2" in message


def test_an_export(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps({"format": 2}))
    message = refusal(TeacherError, lambda: read_manifest(tmp_path))
    assert f"{tmp_path} has export format 2, this version reads 1" in message


def test_a_whitener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "whitener.safetensors"
    fitted = Whitener(dim=4).fit(np.random.default_rng(0).normal(size=(200, 8)))
    with monkeypatch.context() as patch:
        patch.setattr(files, "_HEADER", "whiten.3")
        fitted.save(path)
    assert str(path) in refusal(StoreError, lambda: Whitener.load(path))


def test_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin("images", DistillSpec(teachers=[TEACHER]), resume=False, overwrite=False)
    text = run.config.read_text()
    run.config.write_text(text + "unheard_of: 3\n")
    with pytest.raises(RunError, match="is damaged"):
        run.read_config()
    run.config.write_text(text.replace("version: ", "version: 9.") + "unheard_of: 3\n")
    assert "was written by version 9." in refusal(RunError, run.read_config)
