"""Which images patterns choose, on every verb that takes a folder; and what is left out anyway."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from command_line import SMALL, STUDENT, Captured, fails, prints
from helpers import TEACHER, write_groups, write_image
from whiten.datasets.finding import find_items, find_videos
from whiten.datasets.patterns import Choice
from whiten.errors import NoImagesError
from whiten.index import Index


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(root: Path, **patterns: list[str]) -> list[str]:
    return [item.id for item in find_items(root, **patterns)]


NAMES = ("a.jpg", "b.png", "x/a.jpg", "x/c.gif", "x/y/a.jpg", "y/a.png")


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*.png", ["b.png", "y/a.png"]),
        ("a.*", ["a.jpg", "x/a.jpg", "x/y/a.jpg", "y/a.png"]),
        ("y", ["x/y/a.jpg", "y/a.png"]),
        ("y/", ["x/y/a.jpg", "y/a.png"]),
        ("x/y", ["x/y/a.jpg"]),
        ("/x", ["x/a.jpg", "x/c.gif", "x/y/a.jpg"]),
        ("x/*", ["x/a.jpg", "x/c.gif", "x/y/a.jpg"]),
        ("x/*.jpg", ["x/a.jpg"]),
        ("x/**/*.jpg", ["x/a.jpg", "x/y/a.jpg"]),
        ("**/y/*", ["x/y/a.jpg", "y/a.png"]),
        ("*/*.[jp][pn]g", ["x/a.jpg", "y/a.png"]),
        ("./x/a.jpg", ["x/a.jpg"]),
        ("?.PNG", []),
    ],
)
def test_what_a_pattern_matches(tmp_path: Path, pattern: str, matched: list[str]) -> None:
    touch(tmp_path, *NAMES)
    assert ids(tmp_path, exclude=[pattern]) == [n for n in sorted(NAMES) if n not in matched]
    if matched:
        assert ids(tmp_path, include=[pattern]) == matched
    assert [Choice(include=[pattern]).takes(name) for name in NAMES] == [
        name in matched for name in NAMES
    ]


def test_both_and_tables_and_videos(tmp_path: Path) -> None:
    touch(tmp_path, *NAMES, "films/a.mp4", "films/b.mp4")
    assert ids(tmp_path, include=["x", "*.png"], exclude=["y"]) == ["b.png", "x/a.jpg", "x/c.gif"]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(NAMES))
    assert ids(tmp_path / "list.csv", exclude=["x"]) == ["a.jpg", "b.png", "y/a.png"]
    assert [v.id for v in find_videos(tmp_path, exclude=["b.*"])] == ["films/a"]


@pytest.mark.parametrize("pattern", ["x", "x/*", "/data/x", "**/x/*.jpg"])
def test_patterns_are_compared_with_the_paths_of_a_table(tmp_path: Path, pattern: str) -> None:
    rows = ["1,x/a.jpg", "2,./x/b.jpg", "3,/data/x/c.jpg", "4,y//../x/d.jpg", "5,y/x.jpg"]
    (tmp_path / "list.csv").write_text("id,path\n" + "\n".join(rows))
    left = {"x": "5", "x/*": "35", "/data/x": "1245", "**/x/*.jpg": "5"}[pattern]
    assert "".join(ids(tmp_path / "list.csv", exclude=[pattern])) == left


def test_a_pattern_that_matches_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *NAMES)
    with caplog.at_level(logging.WARNING):
        ids(tmp_path, exclude=["*.bmp", "x"], include=["*.jpg", "*.png"])
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"--exclude '*.bmp' matches nothing in {tmp_path}"
    with pytest.raises(NoImagesError, match="leave nothing of"):
        ids(tmp_path, exclude=["*"])


def test_rubbish_is_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/1.jpg",
        "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "a/.thumbnails/1.jpg",
        "a/._1.jpg",
        "__MACOSX/a/1.jpg",
        "#recycle/2.jpg",
        "@Recycle/2.jpg",
        "$RECYCLE.BIN/S-1/2.jpg",
        ".Trash-1000/files/2.jpg",
        ".Trashes/501/2.jpg",
        "System Volume Information/2.jpg",
        "lost+found/2.jpg",
        "a/Thumbs.db",
        "a/.DS_Store",
    )
    assert ids(tmp_path) == ["a/1.jpg"]
    # Whoever names such a folder means it.
    assert ids(tmp_path / "#recycle") == ["2.jpg"]


def test_what_looks_like_an_image_and_is_not_read_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg", "b.NEF", "c.cr2", "x/d.psd", "x/e.svg", "x/y/f.dng", "notes.txt")
    assert ids(tmp_path) == ["a.jpg"]
    [record] = caplog.records
    assert record.getMessage() == f"{tmp_path}: not read: 1 PSD, 3 RAW, 1 SVG"
    caplog.clear()
    ids(tmp_path, exclude=["x"])
    assert caplog.records[0].getMessage().endswith("not read: 2 RAW")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(NoImagesError, match="no image that is read, but 1 PSD, 3 RAW, 1 SVG"):
        find_items(tmp_path)


def test_kinds_that_are_not_read_are_named_where_patterns_leave_no_other(tmp_path: Path) -> None:
    touch(tmp_path, "a.nef", "b.jpg")
    with pytest.raises(NoImagesError, match="no image that is read, but 1 RAW"):
        ids(tmp_path, exclude=["*.jpg"])


def test_videos_beside_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "x/b.mp4", "x/c.MOV", "y/d.mkv")
    ids(tmp_path, exclude=["y"])
    [record] = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}: not read: 2 videos; take frames")
    caplog.clear()
    assert len(find_videos(tmp_path)) == 3
    assert not caplog.records


def test_links_that_lead_nowhere_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "album").symlink_to("/nowhere/album")
    assert ids(tmp_path) == ["a.jpg"]
    [record] = caplog.records
    assert "links that lead nowhere: album -> /nowhere/album" in record.getMessage()


# --- on the command line ----------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path, colour_teachers: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two groups of four, and a folder of drafts that are left out."""
    monkeypatch.chdir(tmp_path)
    folder = write_groups(tmp_path / "photos", {"a": 4, "b": 4})
    for number in range(3):
        write_image(folder / "drafts" / f"{number}.png", 50 + number)
    (folder / "drafts" / "raw.nef").touch()
    return Path("photos")


OUT = ("--exclude", "drafts", "--exclude", "none*")


@pytest.mark.parametrize(
    ("command", "count"),
    [
        (("embed", "photos", "--model", TEACHER, "--out", "s", "--json"), ("embeddings", 8)),
        (("index", "photos", "--model", TEACHER, "--out", "i", "--json"), ("images", 8)),
        (("evaluate", "photos", "--model", TEACHER, "--json"), ("gallery", 8)),
        (("dedup", "photos", "--model", TEACHER, "--threshold", "1.0", "--json"), ("count", 8)),
        (("compact", "photos", "--model", TEACHER, "--kinds", "int8", "--json"), ("images", 8)),
        (("diagnose", "photos", "--teachers", TEACHER, "--json"), ("images", 8)),
    ],
    ids=lambda value: value[0] if isinstance(value[1], str) else "",
)
def test_the_verbs_take_patterns(
    photos: Path, capsys: Captured, command: tuple[str, ...], count: tuple[str, int]
) -> None:
    out, err = prints(capsys, *command, *OUT)
    facts = json.loads(out)
    assert facts[count[0]] == count[1]
    assert "--exclude 'none*' matches nothing in photos" in err
    assert "RAW" not in err
    _, err = prints(capsys, *command)
    assert "photos: not read: 1 RAW" in err


def test_search_in_a_folder(photos: Path, capsys: Captured) -> None:
    query = "photos/drafts/0.png"
    command = ("search", query, "--in", "photos", "--model", TEACHER, "--index", "i", "--json")
    hits = json.loads(prints(capsys, *command, *OUT)[0])
    assert {hit["id"].split("/")[0] for hit in hits} == {"a", "b"}
    assert json.loads(prints(capsys, *command)[0])[0]["id"] == "drafts/0.png"
    line = fails(capsys, "search", query, "--index", "i", *OUT)
    assert "--exclude and --include choose among the images of --in" in line


def test_what_is_left_out_later_is_removed(photos: Path) -> None:
    index = Index.build(TEACHER, photos, "i")
    assert len(index) == 11
    index = Index.build(TEACHER, photos, "i", exclude=["drafts"])
    assert (len(index), index.changes.removed) == (8, 3)
    assert Index.build(TEACHER, photos, "i", include=["a", "b"]).changes.unchanged == 8


@pytest.mark.slow
def test_a_run_remembers_its_patterns(photos: Path, capsys: Captured) -> None:
    command = ("distill", "photos", "--teachers", TEACHER, "--student", STUDENT, *SMALL)
    prints(capsys, *command, "--exclude", "drafts", "--out", "run", "--json")
    config = json.loads(Path("run/student/config.json").read_text())
    assert config["training"]["images"] <= 8
    assert "exclude:\n- drafts" in Path("run/config.yaml").read_text()
    write_groups(Path("test"), {"c": 2, "d": 2})
    touch(Path("test"), "skip/x.png")
    facts = json.loads(
        prints(capsys, "report", "run", "--test", "test", "--exclude", "skip", "--json")[0]
    )
    assert facts["overlap"] == {"images": 4, "equal": 4, "near": 0}
