"""The README's commands and code blocks, run as a reader would, on a small folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clips import near_duplicates, segments, write_lines, write_video
from documents import blocks, commands, run
from miniature import write_distractors, write_gldv2, write_revisited
from whiten.demo.images import extract_drawings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def write_clips(root: Path) -> None:
    """`clips/*.mp4`, and `near.csv` which says what are near-duplicates."""
    rows = ["path,group"]
    for number, segment in enumerate(segments("bigbuckbunny")):
        for video, frames, quality in near_duplicates("bunny", number, segment):
            path = write_video(root / "clips" / f"{video}.mp4", frames, quality=quality)
            rows.append(f"{path.relative_to(root)},{number}")
    write_lines(root / "near.csv", rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's working folder, with the folders and files that the README speaks of."""
    root = tmp_path_factory.mktemp("reader")
    extract_drawings(root / "emoji", groups=20)
    (root / "emoji" / "train").rename(root / "photos")
    (root / "emoji" / "test").rename(root / "holdout")
    write_clips(root)
    write_gldv2(root / "data" / "gldv2", 12)
    write_revisited(root / "data", "roxford5k", 6)
    write_distractors(root / "data", 8)
    query = next((root / "holdout").rglob("*.webp"))
    (root / "query.webp").write_bytes(query.read_bytes())
    return root


def test_the_first_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make (\w+)", blocks(README, "sh")[0])
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
def test_the_commands_run_in_their_order(folder: Path) -> None:
    lines = commands(README)
    verbs = [command.split()[1] for command in lines]
    assert {"teachers", "embed", "distill", "evaluate", "search", "frames", "datasets"} <= set(
        verbs
    )
    for command in lines:
        run(command, folder)


@pytest.mark.slow  # with what the commands have made
def test_the_python_blocks_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = blocks(README, "python")
    assert found
    scope: dict[str, object] = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), scope)


def test_the_tables_are_those_of_a_demo() -> None:
    """Copied from `make demo`, not written: their columns line up as the program prints them."""
    photos, drawings = (block for block in blocks(README, "text") if "mAP" in block)
    tables = [*photos.split("\n\n"), drawings]
    rows = [("student, closed form", 1), ("whitened fusion", 1), ("asymmetric", 0)]
    expected = [rows, rows, [("student, groups  ", 1), ("whitened fusion", 1), ("asymmetric", 1)]]
    for table, names in zip(tables, expected, strict=True):
        lines = table.splitlines()
        assert lines[0].split()[0] == "name"
        assert [(name, sum(name in line for line in lines)) for name, _ in names] == names
        assert len({len(line) for line in lines}) == 1
