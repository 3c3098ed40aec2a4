"""`distill` and `report` on the command line, configuration files, interrupts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line import SMALL, STUDENT, Captured, fails, prints
from helpers import TEACHER
from whiten import cli
from whiten.models.registry import open_teacher
from whiten.runs.folder import RunFolder


def saved_options(root: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load(RunFolder(root).config.read_text())
    return options


@pytest.mark.slow
def test_distill_and_report(capsys: Captured, run: Path) -> None:
    assert (run / "student" / "model.safetensors").is_file()
    assert (run / "report.html").is_file()
    options = saved_options(run)
    assert (options["dim"], options["epochs"], options["teachers"]) == (4, 1, [TEACHER])
    out, _ = prints(capsys, "report", run)
    assert out == f"report   {run / 'report.html'}\n"
    out, _ = prints(capsys, "report", run, "--test", run.parent / "images")
    for kind in ("teacher", "fusion-raw", "fusion-whitened", "student"):
        assert any(f"  {kind}  " in line for line in out.splitlines()), kind
    assert out.splitlines()[-1] == f"report   {run / 'report.html'}"


@pytest.mark.slow
def test_a_report_without_the_training_images(capsys: Captured, run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "run")
    options = saved_options(moved) | {"images": "elsewhere"}
    RunFolder(moved).config.write_text(yaml.safe_dump(options))
    out, err = prints(capsys, "report", moved, "--test", run.parent / "images")
    assert "student's start, whitened is left out: the images that" in err
    assert "student's start" in out and "student's start, whitened" not in out
    assert "put them back" in fails(capsys, "report", moved)


@pytest.mark.slow
def test_a_report_opens_each_model_once(
    capsys: Captured, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "whiten.models.opening.open_teacher",
        lambda uri: opened.append(str(uri)) or open_teacher(uri),
    )
    prints(capsys, "report", run, "--test", run.parent / "images")
    assert TEACHER in opened and len(opened) == len(set(opened))


@pytest.mark.slow
def test_resume_a_finished_run(capsys: Captured, run: Path) -> None:
    out, _ = prints(capsys, "distill", "--out", run, "--resume")
    assert out.splitlines()[-2] == f"student  {run / 'student'}"


def test_resume_with_options(capsys: Captured, run: Path) -> None:
    prints(capsys, "distill", "--out", run, "--resume", "--micro-batch", 4, "--workers", 1)
    line = fails(capsys, "distill", "--out", run, "--resume", "--lr", "0.5")
    assert "was begun with another lr" in line


@pytest.mark.slow
def test_resuming_a_finished_run_keeps_its_results(capsys: Captured, run: Path) -> None:
    prints(capsys, "report", run, "--test", run.parent / "images")
    page = (run / "report.html").read_text()
    assert "<table" in page
    prints(capsys, "distill", "--out", run, "--resume")
    assert (run / "report.html").read_text() == page


@pytest.mark.slow
def test_a_run_and_its_report_embed_once_into_the_cache(
    capsys: Captured, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("distill", images, "--teachers", TEACHER, "--student", STUDENT, *SMALL)
    prints(capsys, *command, "--cache", "cache", "--out", "run")
    assert list(Path("run/embeddings").glob("*")) == []
    assert RunFolder(Path("run")).cache == Path("cache").absolute()
    # A run that was killed before its first checkpoint finds them again, from anywhere.
    options = Path("run/config.yaml").read_bytes()
    Path("begun").mkdir()
    Path("begun/config.yaml").write_bytes(options)
    begun = Path("begun").absolute()
    monkeypatch.chdir(images)
    prints(capsys, "distill", "--out", begun, "--resume")
    assert list((begun / "embeddings").glob("*")) == []
    assert saved_options(begun) == yaml.safe_load(options)


@pytest.mark.slow
def test_results_as_json(capsys: Captured, run: Path) -> None:
    images = run.parent / "images"
    command = ("distill", "--out", run, "--resume", "--test", images, "--json")
    facts = json.loads(prints(capsys, *command)[0])
    assert facts["student"] == str(run / "student")
    assert facts["report"] == str(run / "report.html")
    assert facts["steps"] > 0 and facts["loss"] > 0 and facts["skipped"] == []
    assert "student" in [row["kind"] for row in facts["rows"]]
    again = json.loads(prints(capsys, "report", run, "--test", images, "--json")[0])
    assert [row["map"] for row in again["rows"]] == [row["map"] for row in facts["rows"]]


def test_a_student_is_evaluated_and_searches(capsys: Captured, run: Path) -> None:
    images = run.parent / "images"
    for model in (run / "student", f"whiten:{run / 'student'}", run, f"fuse:whitened:{run}"):
        facts = json.loads(prints(capsys, "evaluate", images, "--model", model, "--json")[0])
        assert facts["queries"] == 16
    query = images / "c" / "1.png"
    out, _ = prints(capsys, "search", query, "--student", run / "student", "--in", images)
    assert out.splitlines()[0] == f"1.0000  {query}"
    [index] = (run / "index").iterdir()
    assert index.name.startswith("images-")


@pytest.mark.slow
def test_configuration_is_used_and_flags_win(capsys: Captured, images: Path) -> None:
    config = {
        "teachers": [TEACHER, f"{TEACHER}?seed=1"],
        "student": STUDENT,
        "dim": 8,
        "whiten_dim": 3,
        "batch_size": 4,
        "epochs": 3,
        "whiten": False,
        "lr": 1e-4,
        "teachers_online": True,
        "size": None,
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    command = ("distill", images, "--config", "c.yaml", "--out", "run")
    out, _ = prints(capsys, *command, "--epochs", "1", "--no-teachers-online", "--lr=0.002")
    assert "student  run/student" in out
    options = saved_options(Path("run"))
    won = {"epochs": 1, "teachers_online": False, "lr": 0.002}
    assert options == {**options, **config, **won}


def test_an_interrupt_is_one_line_that_says_how_to_go_on(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whiten.datasets.frames.find_items", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["embed", str(images), "--teacher", TEACHER, "--out", "store"])
    assert stop.value.code == 130
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "the same command continues" in lines[0]
