"""Progress: a line per stage with rate and time left, silence, and a log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import prints
from whiten.distillation.distill import distill
from whiten.errors import RunError
from whiten.utils import progress as shown
from whiten.utils.progress import announce, be_quiet, is_quiet, logging_to, note, progress

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    yield
    be_quiet(False)


def work(total: int = 4) -> None:
    with progress("embed x", unit="images") as update:
        for done in range(1, total + 1):
            update(done, total)


def test_a_stage_has_one_line_with_its_rate(capsys: Captured) -> None:
    work()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("embed x: 4/4, 0 s images ") and line.endswith("/s")


def test_a_long_stage_says_what_is_left(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(0, 1000, 30))
    monkeypatch.setattr(shown.time, "monotonic", lambda: next(moments))
    with progress("embed x") as update:
        update(1, 4)
        update(4, 4)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("embed x: 1/4, ") and first.endswith(" s left")
    assert last.startswith("embed x: 4/4, ") and last.endswith(" s")


def test_quiet_shows_nothing_and_the_log_has_it_all(tmp_path: Path, capsys: Captured) -> None:
    be_quiet(True)
    with logging_to(tmp_path / "log.txt"), warnings.catch_warnings():
        warnings.simplefilter("always")
        work()
        announce("teachers have equal weights")
        logging.getLogger("whiten.datasets").warning("a folder cannot be\nlisted")
    note("after the block")
    assert "teachers" not in capsys.readouterr().err
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:].split(",")[0] for line in lines] == [
        "embed x: 4/4",
        "teachers have equal weights",
        "warning: a folder cannot be listed",
    ]
    assert all(line[:2] == "20" and line[10] == " " for line in lines)


def test_warnings_and_the_end_of_a_failed_run_are_logged(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *_, **__: None
        with pytest.raises(ValueError, match="no"), logging_to(tmp_path / "log.txt"):
            warnings.warn("few images", stacklevel=1)
            raise ValueError("no disk")
    text = (tmp_path / "log.txt").read_text()
    assert "warning: few images" in text and "ended early: no disk" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_log_on_a_full_disk_hides_no_error(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with logging_to(tmp_path / "log.txt"):
        note("a line")
    with pytest.raises(RunError, match="no room"), logging_to(tmp_path / "log.txt"):
        raise RunError("no room for a checkpoint")


def test_a_run_has_a_log(
    colour_teachers: None, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    from helpers import TEACHER
    from small_runs import OPTIONS

    (images / "a" / "broken.png").write_bytes(b"none")
    be_quiet(True)
    options = {**OPTIONS, "epochs": 1}
    distill(images, [TEACHER], out=tmp_path / "run", **options)
    assert capsys.readouterr().err == ""
    text = (tmp_path / "run" / "log.txt").read_text()
    for part in ("embed ", "distil: ", "recipe ", "gain: ", "skipped a/broken.png: "):
        assert part in text, part
    assert text.count("recipe ") == 1


def test_options_of_a_training_that_is_left_out_are_told(
    colour_teachers: None, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    from helpers import TEACHER
    from small_runs import STUDENT

    options = {"student": STUDENT, "dim": 8, "epochs": 0}
    distill(images, [TEACHER], out=tmp_path / "a", lr=0.1, batch_size=4, **options)
    told = "0 epochs train nothing, so that --batch-size, --lr changes nothing: leave it out"
    assert told in capsys.readouterr().err
    found = distill(images, [TEACHER], out=tmp_path / "b", **options)
    told = capsys.readouterr().err
    assert "changes nothing" not in told and "recipe" not in told
    assert found.recipe == "random projection: 0 epochs train nothing"
    assert found.recipe in told


def test_quiet_on_the_command_line(
    colour_teachers: None, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    from helpers import TEACHER

    command = ("index", images, "--model", TEACHER, "--out", tmp_path / "index")
    _, loud = prints(capsys, *command)
    assert "index: 16/16" in loud
    (images / "a" / "0.png").unlink()
    _, quiet = prints(capsys, *command, "--quiet")
    assert "index:" not in quiet
    assert not is_quiet()  # a call from Python that follows shows its progress
