"""The script that deletes copies: hostile names, files that changed since, no tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from copies import HOSTILE, hostile_copies, run, shell
from helpers import write_image
from whiten.dedup import Deduplication
from whiten.dedup.page import groups_page
from whiten.dedup.script import deletion_script
from whiten.dedup.writing import write_results

pytestmark = pytest.mark.usefixtures("small_pictures")


def test_the_script_deletes_copies_of_hostile_names(tmp_path: Path) -> None:
    expected = list(hostile_copies(tmp_path))
    found = run(tmp_path / "images", 0.999)
    script = write_results(found, tmp_path / "out")[2]
    empty = tmp_path / "elsewhere"
    empty.mkdir()

    done = shell(script, cwd=empty)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"would delete ") == len(HOSTILE)
    assert f"{len(HOSTILE)} would be deleted, 0 left alone".encode() in done.stdout
    assert all(copy.exists() and kept.exists() for kept, copy in expected)

    assert shell(script, "--no", cwd=empty).returncode == 2
    assert all(copy.exists() for _, copy in expected)

    done = shell(script, "--yes", cwd=empty)
    assert done.returncode == 0, done.stderr
    assert f"{len(HOSTILE)} deleted, 0 left alone".encode() in done.stdout
    assert [kept for kept, copy in expected if copy.exists() or not kept.exists()] == []
    assert list(empty.iterdir()) == [], "nothing that stands in a name was run"
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["big"]


def test_the_script_leaves_alone_what_has_changed(tmp_path: Path) -> None:
    expected = list(hostile_copies(tmp_path))
    script = write_results(run(tmp_path / "images", 0.999), tmp_path / "out")[2]
    (kept_gone, a), (kept_other, b), (_, changed), (linked, c), (hard, d) = expected[:5]
    kept_gone.unlink()
    kept_other.write_bytes(b"something else")
    changed.write_bytes(changed.read_bytes() + b"more")
    moved = linked.with_name("moved")  # the content is right, but a link may go astray
    linked.rename(moved)
    linked.symlink_to(moved)
    d.unlink()
    os.link(hard, d)
    done = shell(script, "--yes", cwd=tmp_path)
    assert done.returncode == 0
    assert all(path.exists() for path in (a, b, changed, c, d))
    assert f"{len(HOSTILE) - 5} deleted, 5 left alone".encode() in done.stdout
    for reason in (b"the kept file is gone or has changed", b"it has changed", b"only a link"):
        assert reason in done.stderr
    assert sum(copy.exists() for _, copy in expected) == 5


def test_one_file_under_two_names_is_never_deleted(tmp_path: Path) -> None:
    image = write_image(tmp_path / "images" / "a.png", 1)
    again = shutil.copytree(tmp_path / "images", tmp_path / "again")
    table = tmp_path / "table.csv"
    table.write_text("path\nimages/a.png\nagain/a.png\n")
    script = write_results(run(table, 0.99), tmp_path / "out")[2]
    shutil.rmtree(again)  # one file under two names only now: a table of both is one image
    again.symlink_to(tmp_path / "images")
    done = shell(script, "--yes", cwd=tmp_path)
    assert image.exists()
    assert b"it is the kept file itself" in done.stderr and b"0 deleted, 1 left" in done.stdout


def test_links_to_copies_are_deleted_with_them(tmp_path: Path) -> None:
    first = write_image(tmp_path / "images" / "a.png", 1)
    copy = first.with_name("b.png")
    shutil.copy(first, copy)
    link = first.with_name("c.png")
    link.symlink_to("b.png")
    script = write_results(run(tmp_path / "images", 0.99), tmp_path / "out")[2]
    done = shell(script, "--yes", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"2 deleted, 0 left alone" in done.stdout
    assert [path.name for path in first.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("file", ["a.png", "b.png"])
def test_chains_of_links_are_deleted_from_their_end(tmp_path: Path, file: str) -> None:
    """To a copy, and to the kept file."""
    first = write_image(tmp_path / "images" / "a.png", 1)
    shutil.copy(first, first.with_name("b.png"))
    (first.parent / "sub").mkdir()
    for link, target in (("c.png", file), ("sub/d.png", "../c.png"), ("e.png", "sub/d.png")):
        (first.parent / link).symlink_to(target)
    script = write_results(run(tmp_path / "images", 0.99), tmp_path / "out")[2]
    done = shell(script, "--yes", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"4 deleted, 0 left alone" in done.stdout
    assert sorted(path.name for path in first.parent.iterdir()) == ["a.png", "sub"]
    assert not list((first.parent / "sub").iterdir())


def test_the_script_without_b2sum(tmp_path: Path) -> None:
    [(kept, copy), *_] = hostile_copies(tmp_path)
    script = write_results(run(tmp_path / "images", 0.999), tmp_path / "out")[2]
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "rm", "cut"):
        path = shutil.which(name)
        assert path is not None
        (tools / name).symlink_to(path)
    (tools / "python3").write_text(f'#!{tools}/sh\nexec {sys.executable} "$@"\n')
    (tools / "python3").chmod(0o755)
    done = subprocess.run(
        ["sh", script, "--yes"], env={"PATH": str(tools)}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert kept.exists() and not copy.exists()
    (tools / "python3").unlink()
    done = subprocess.run(["sh", script], env={"PATH": str(tools)}, capture_output=True, timeout=60)
    assert done.returncode == 2 and b"needs b2sum" in done.stderr


def test_an_empty_script_runs(tmp_path: Path) -> None:
    nothing = Deduplication("image", 3, 0.9, None, [], [])
    (tmp_path / "delete.sh").write_bytes(deletion_script(nothing))
    done = shell(tmp_path / "delete.sh", "--yes", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == b"0 deleted, 0 left alone\n"
    page = groups_page(nothing, "groups.csv")
    assert "0 groups" in page and "try a lower threshold" in page
