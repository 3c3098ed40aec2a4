"""Mistakes in runs of distillation on the command line: one line, and exit code 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from command_line import STUDENT, Captured, fails
from helpers import TEACHER
from whiten.errors import RunError
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec


def test_no_teachers_or_images(capsys: Captured, images: Path) -> None:
    assert "name at least one teacher" in fails(capsys, "distill", images, "--out", "run")
    assert "name the images" in fails(capsys, "distill", "--teachers", TEACHER, "--out", "run")
    assert "name at least one teacher" in fails(
        capsys, "distill", images, "--out", "run", "--dim", "8"
    )


def test_existing_run(capsys: Captured, images: Path, run: Path) -> None:
    line = fails(capsys, "distill", images, "--teachers", TEACHER, "--out", run)
    assert "is not empty" in line and "--resume" in line and "--overwrite" in line
    foreign = images / "a"
    line = fails(capsys, "distill", images, "--teachers", TEACHER, "--out", foreign, "--overwrite")
    assert "is not a run, so --overwrite will not delete it" in line
    assert len(list(foreign.iterdir())) == 4


def test_resume_needs_a_run(capsys: Captured, tmp_path: Path) -> None:
    assert "is not a run folder" in fails(capsys, "distill", "--out", "nothing", "--resume")
    assert "is not a run folder" in fails(capsys, "report", "nothing")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").touch()
    line = fails(capsys, "distill", "photos", "--teachers", TEACHER, "--out", foreign, "--resume")
    assert "holds no run to go on with: name another --out" in line


def test_a_finished_run_without_its_checkpoint_is_still_finished(tmp_path: Path) -> None:
    """People delete it, as it is the largest file."""
    run, spec = RunFolder(tmp_path / "run"), DistillSpec(teachers=[TEACHER])
    run.begin("photos", spec, resume=False, overwrite=False)
    run.student.mkdir()
    (run.student / "config.json").touch()
    assert run.begin("photos", spec, resume=True, overwrite=False) == spec
    with pytest.raises(RunError, match="was begun with another images"):
        run.begin("others", spec, resume=True, overwrite=False)


def test_a_resumed_run_keeps_the_parts_that_its_budget_planned(tmp_path: Path) -> None:
    run, spec = RunFolder(tmp_path / "run"), DistillSpec(teachers=[TEACHER], budget="10m")
    planned = replace(spec, epochs=3, micro_batch=8)
    run.begin("photos", spec, resume=False, overwrite=False)
    run.write_config("photos", planned, None)
    run.save_checkpoint({})
    assert run.begin("photos", spec, resume=True, overwrite=False) == planned
    smaller = replace(spec, micro_batch=4, device="cpu")
    expected = replace(planned, micro_batch=4, device="cpu")
    assert run.begin("photos", smaller, resume=True, overwrite=False) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "0"], "dim must be at least 1, not 0"),
        (["--whiten-dim", "0"], "whiten_dim must be at least 1, not 0"),
        (["--fusion", "maxmim"], "maxmin"),
        (["--batch-size", "1"], "batch_size must be at least 2"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--temperature", "inf"], "temperature must be a finite number"),
        (["--kl", "inf"], "kl must be a finite number"),
        (["--size", "0"], "size must be at least 1, not 0"),
        (["--size", "99999999999"], "size must be at most 10000 pixels, not 99999999999"),
        (["--dim", "70000"], "dim must be at most 65536, not 70000"),
        (["--shrinkage", "-1"], "shrinkage must be at least 0, not -1"),
        (["--views", "0"], "views must be at least 1, not 0"),
        (["--checkpoint-every", "0"], "checkpoint_every must be at least 1, not 0"),
        (["--seed", "-1"], "seed must be from 0 to 9223372036854775807, not -1"),
        (["--seed", str(2**64)], "seed must be from 0 to"),
        (["--backbone-lr", "-1"], "backbone_lr must be at least 0, not -1"),
        (["--weight-decay", "-1"], "weight_decay must be at least 0, not -1"),
        (["--clip", "-1"], "clip must be at least 0, not -1"),
        (["--warmup", "2"], "warmup is a share from 0 to 1, not 2"),
        (["--ema", "1"], "ema must be at least 0 and below 1, not 1"),
        (["--device", "cpu:1"], "device must be one of auto, cpu, cuda, mps, or cuda:1"),
    ],
)
def test_options_of_distill(
    capsys: Captured, images: Path, options: list[str], message: str
) -> None:
    command = ("distill", images, "--teachers", TEACHER, "--student", STUDENT, "--out", "run")
    assert message in fails(capsys, *command, *options)
    assert not Path("run").exists()


def test_test_images_are_looked_at_before_the_run(capsys: Captured, images: Path) -> None:
    command = ("distill", images, "--teachers", TEACHER, "--student", STUDENT, "--out", "run")
    assert "nothing does not exist" in fails(capsys, *command, "--test", "nothing")
    assert "the gallery has 0 groups" in fails(capsys, *command, "--test", images / "a")
    assert not Path("run").exists()


def test_a_student_as_start_stays_as_it_is(capsys: Captured, images: Path, run: Path) -> None:
    student = f"whiten:{run / 'student'}"
    command = ("distill", images, "--teachers", TEACHER, "--student", student, "--out", "other")
    assert "use --dim 4" in fails(capsys, *command, "--dim", "16")
    line = fails(capsys, *command, "--dim", "4", "--size", "96")
    assert "px, size=96 does not fit: leave it out" in line
    line = fails(capsys, *command, "--dim", "4", "--pool", "avg")
    assert "pool=avg does not fit" in line


def test_whitening_that_does_not_fit(capsys: Captured, images: Path) -> None:
    uri = f"fuse:whitened:{TEACHER}"
    assert "add --whiten-on" in fails(capsys, "evaluate", images, "--model", uri)
    command = ("evaluate", images, "--model", uri, "--whiten-on", images)
    assert "dim" in fails(capsys, *command, "--whiten-dim", "0")
    assert "shrinkage" in fails(capsys, *command, "--shrinkage", "-1")
