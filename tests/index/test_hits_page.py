"""The page of hits stands alone, and shows no markup of names."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers import draw, write_image
from whiten.index import Match
from whiten.index.hits_page import write_hits_page


class Page(HTMLParser):
    """Sources of the images, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_hits_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    query = write_image(tmp_path / "<b>&query.png", seed=1)
    near = write_image(tmp_path / "near.png", seed=2)
    matches = [
        Match("<script>alert(1)</script>.png", str(near), 0.98765),
        Match("gone.png", str(tmp_path / "gone.png"), 0.5),
    ]
    written = write_hits_page([query], matches)
    html = written.read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "b" not in page.tags
    assert "<b>&query.png" in page.text
    assert "<script>alert(1)</script>.png" in page.text
    assert "0.988" in page.text and "0.500" in page.text
    assert len(page.sources) == 3
    assert [source[:23] for source in page.sources[:2]] == ["data:image/jpeg;base64,"] * 2
    assert page.sources[2] == ""  # gone since
    assert not re.search(r"https?://|url\(|@import", html)


def test_a_query_whose_name_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    query = tmp_path / os.fsdecode(b"caf\xe9.png")
    draw(1).save(tmp_path / "plain.png")
    try:
        (tmp_path / "plain.png").rename(query)
    except OSError:
        pytest.skip("the file system takes text names only")
    page = write_hits_page([query], []).read_text(encoding="utf-8")
    assert r"caf\xe9.png" in page
