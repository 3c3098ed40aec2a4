"""How many test images training saw is said, in the report and in evaluations of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import whiten
from command_line import SMALL, STUDENT, Captured, prints
from helpers import TEACHER
from pictures import picture
from whiten.datasets.finding import find_items
from whiten.embedding.opening import load
from whiten.evaluation import overlap
from whiten.evaluation.overlap import find_overlap, training_images
from whiten.runs.folder import RunFolder


@pytest.fixture
def run(
    tmp_path: Path, colour_teachers: None, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> Path:
    """A student of 8 photographs; of 6 test images 2 are among them, and 1 is a smaller copy."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        save(Path(f"photos/{'ab'[number % 2]}/{number}.png"), picture(number, 96, 72))
    for place in ("test/a", "test/b"):
        Path(place).mkdir(parents=True)
    shutil.copy("photos/a/0.png", "test/a/copy.png")
    shutil.copy("photos/b/1.png", "test/b/other-name.png")
    save(Path("test/a/small.jpg"), picture(2, 96, 72).resize((64, 48)))
    for number in (20, 21, 22):
        save(Path(f"test/b/{number}.png"), picture(number, 96, 72))
    command = ("distill", "photos", "--teachers", TEACHER, "--student", STUDENT, *SMALL)
    prints(capsys, *command, "--out", "run")
    return Path("run")


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


LINE = (
    "Of 6 test images 2 equal a training image, and 1 more are near-duplicates of one: metrics on "
    "them are too good."
)


@pytest.mark.slow
def test_the_report_says_it(run: Path, capsys: Captured) -> None:
    out, err = prints(capsys, "report", run, "--test", "test", "--json")
    assert json.loads(out)["overlap"] == {"images": 6, "equal": 2, "near": 1}
    assert err.count(LINE) == 1
    assert LINE in (run / "report.html").read_text("utf-8")


def test_an_evaluation_of_a_run_says_it(run: Path, capsys: Captured) -> None:
    for model in (run, run / "student"):
        _, err = prints(capsys, "evaluate", "test", "--model", model)
        assert LINE in err
    found = whiten.evaluate(load(run), "test")
    assert found.to_json()["overlap"] == {"images": 6, "equal": 2, "near": 1}
    assert "overlap" not in whiten.evaluate(TEACHER, "test").to_json()
    shutil.move("photos", "moved")  # then it is not known
    assert "overlap" not in whiten.evaluate(load(run), "test").to_json()


def test_among_very_many_images_only_equal_ones_are_looked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "MOST", 7)
    encoder, test = load(run), find_items("test")
    training = training_images(RunFolder(run))
    assert training is not None and len(training) == 8
    vectors = encoder.embed([item.path for item in test])
    found = find_overlap(encoder, test, vectors, training)
    assert (found.equal, found.near) == (2, None)
    assert "near-duplicates were not looked for" in found.line()
