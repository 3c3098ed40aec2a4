"""The page for newcomers: its commands run in their order, on the bundled drawings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from documents import commands, run
from whiten.demo.images import extract_drawings

PAGE = (Path(__file__).parent.parent / "docs" / "quickstart.md").read_text()


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    extract_drawings(tmp_path / "emoji", groups=12)
    (tmp_path / "emoji" / "train").rename(tmp_path / "photos")
    (tmp_path / "emoji" / "test").rename(tmp_path / "labelled")
    shutil.copy(next((tmp_path / "photos").rglob("*.webp")), tmp_path / "query.jpg")
    lines = commands(PAGE)
    verbs = {line.split()[1] for line in lines}
    assert {"distill", "evaluate", "index", "search", "dedup", "export"} <= verbs
    for line in lines:
        run(line, tmp_path)
    assert (tmp_path / "runs" / "mine" / "student" / "model.safetensors").is_file()
