"""File systems without locks or fsync, and terminals that lack the characters of a name."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import TEACHER, write_factory, write_groups, write_image
from whiten.cli.terminal import list_duplicates, list_skipped
from whiten.errors import StoreError
from whiten.index import Index
from whiten.media.reading import Skipped
from whiten.utils import files


@pytest.fixture
def photos(tmp_path: Path, colour_teachers: None) -> Path:
    return write_groups(tmp_path / "photos", {"a": 2, "b": 2})


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_named(
    photos: Path, tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        index = Index.build(TEACHER, photos, tmp_path / "index")
    assert len(index) == 4
    assert "on a file system without locks" in caplog.text


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_is_told_apart(photos: Path, tmp_path: Path, number: int) -> None:
    def held(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", held)
        patch.setattr(Index, "patience", 0.0)
        with pytest.raises(StoreError, match="another process is changing"):
            Index.build(TEACHER, photos, tmp_path / "index")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_what_cannot_be_flushed_is_tolerated(photos: Path, tmp_path: Path, number: int) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", refuse)
        index = Index.build(TEACHER, photos, tmp_path / "index", storage="int8+float32")
    assert len(Index.open(tmp_path / "index")) == len(index) == 4


def test_a_disk_that_fails_is_no_odd_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.flush(1)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_names_that_the_terminal_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    write_factory(tmp_path)
    folder = tmp_path / "photos"
    names = ["画像😀.png", "é.png"]
    try:
        with open(os.fsencode(folder.parent) + b"/\xff", "wb"):
            names.append(os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pass
    for number, name in enumerate(names):
        write_image(folder / name, number)
    environment = {
        **os.environ,
        "PYTHONIOENCODING": encoding,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "whiten", *arguments]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        return done

    query = str(folder / "é.png")
    common = ("--in", str(folder), "--model", TEACHER, "--index", str(tmp_path / "index"))
    hits = json.loads(run("search", query, *common, "--json").stdout.decode(encoding))
    assert {hit["path"].split("/")[-1] for hit in hits} == set(names)
    shown = run("search", query, *common, "--paths-only").stdout
    assert len(shown.splitlines()) == len(names)
    if encoding == "ascii":
        assert rb"\u753b\u50cf\U0001f600.png" in shown
    if len(names) == 3:
        assert b"caf\xe9.png" in shown  # names keep their bytes


def test_long_lists_end_after_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    skipped = [Skipped(f"{number}.jpg", "empty file") for number in range(3000)]
    list_skipped(skipped[:10])
    assert len(capsys.readouterr().err.splitlines()) == 11
    list_skipped(skipped)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "3,000 images skipped:" and lines[10] == "  9.jpg: empty file"
    assert len(lines) == 12 and lines[11].startswith("  … and 2,990 more: all are in ")
    [path] = tmp_path.iterdir()
    assert str(path) in lines[11]
    assert path.read_text("utf-8").splitlines() == [f"{n}.jpg: empty file" for n in range(3000)]
    list_duplicates([["a", "b"]] * 30)
    assert len(capsys.readouterr().err.splitlines()) == 12
