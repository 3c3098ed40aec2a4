"""The whole way through an S3 server that fails, with processes that are killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers import TEACHER, write_factory
from torture_storage import make_images, torture


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kills_and_faults_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_factory(tmp_path / "code")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}{os.pathsep}{before}")
    folder = make_images(tmp_path / "images", 24)
    found = torture(folder, tmp_path, model=TEACHER, kills=3, faults=9, layouts=["tar"])
    assert (found["images"], found["kills"]) == (24, 3)
    assert found["faults"] >= 4
