"""Runs that were interrupted or killed go on where they were, on the same trajectory."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from exporting import write_student
from helpers import write_groups, write_image
from small_runs import OPTIONS, TEACHERS, interrupted_at, losses, run
from whiten.distillation import training
from whiten.distillation.distill import distill
from whiten.distillation.training_set import facts_path
from whiten.embedding.opening import load
from whiten.errors import ImageError, RunError, TeacherError
from whiten.evaluation.overlap import training_images
from whiten.models.module import load_module
from whiten.runs.folder import RunFolder


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 4)


def raising(error: type[BaseException]) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


WAYS: list[dict[str, Any]] = [
    {"pairs": "views"},
    {"backbone_lr": 0.0},
    {"backbone_lr": 0.0, "pairs": "views", "align": 1.0},
    {"ema": 0.9, "schedule": "onecycle", "optimizer": "adam"},
    {"fusion": "maxrand", "views": 2, "whiten": False},
    {"student": "timm:test_resnet?pretrained=0&size=32", "pool": "gem"},
    {"student": "timm:test_resnet?pretrained=0&size=32", "pool": "gem-fixed", "clip": 0.0},
    {"precision": "bf16", "batch_size": 5},
    {"teachers_online": True, "views": 3},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_an_interrupted_run_resumes_on_the_same_trajectory(
    shared_images: Path,
    cache: Path,
    tmp_path: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(shared_images, tmp_path / "whole", cache, **options)
    with interrupted_at(5):
        run(shared_images, tmp_path / "parts", cache, **options)
    assert len(losses(tmp_path / "parts")) == 5
    for open_student in (load, load_module):
        with pytest.raises(TeacherError, match=r"parts has no student, as it is not finished: go"):
            open_student(tmp_path / "parts")
    # The options are in the run folder and need not be repeated.
    distill("", out=tmp_path / "parts", cache=cache, resume=True, show_progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    weights = [
        (tmp_path / name / "student" / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    ]
    assert weights[0] == weights[1]
    assert whole.steps == len(losses(tmp_path / "parts"))


@pytest.mark.slow
def test_training_goes_on_after_its_targets_are_lost(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    run(shared_images, tmp_path / "whole", cache)
    with interrupted_at(5):
        run(shared_images, tmp_path / "parts", cache)
    begun = RunFolder(tmp_path / "parts")
    facts_path(begun).write_text("{")
    options = {"out": begun.root, "cache": cache, "resume": True, "show_progress": False}
    with pytest.raises(RunError, match="delete it and run again with --resume"):
        distill("", **options)
    shutil.rmtree(begun.targets)
    with interrupted_at(5):  # it did not begin again
        distill("", **options)
    assert begun.load_checkpoint()["step"] == 4
    distill("", **options)
    assert losses(begun.root) == losses(tmp_path / "whole")


def test_what_a_killed_preparation_left_is_no_part_of_a_run_with_other_options(
    shared_images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"start": "random", "labels": 1.0, "recipe": "labels", "epochs": 1}
    first = RunFolder(tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save_checkpoint", raising(KeyboardInterrupt))
        run(shared_images, first.root, cache, pairs="views", start="ridge", epochs=0)
    assert first.whitener(1).exists() and not first.checkpoint.exists()
    first.start.write_bytes(b"of other options")
    for name in ("killed", "fresh"):
        distill(
            shared_images,
            TEACHERS[:1],
            tmp_path / name,
            cache=cache,
            show_progress=False,
            **{**OPTIONS, **options},
        )
    left, fresh = (
        {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")}
        for name in ("killed", "fresh")
    )
    assert left == fresh
    assert losses(tmp_path / "killed") == losses(tmp_path / "fresh")


@pytest.mark.slow
def test_a_run_goes_on_with_less_memory(
    shared_images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(shared_images, tmp_path / "whole", cache)
    with interrupted_at(5):
        run(shared_images, tmp_path / "parts", cache)
    sizes: list[int] = []
    original = training.MicroBatches
    monkeypatch.setattr(
        training,
        "MicroBatches",
        lambda *given: sizes.append(given[-1]) or original(*given),
    )
    options = {"cache": cache, "resume": True, "show_progress": False}
    with pytest.raises(RunError, match="begun with another lr"):
        distill("", out=tmp_path / "parts", micro_batch=3, lr=0.5, **options)
    distill("", out=tmp_path / "parts", micro_batch=3, **options)
    assert set(sizes) == {3}
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_the_images_and_teachers_that_it_began_with(
    cache: Path, tmp_path: Path
) -> None:
    images, out = write_groups(tmp_path / "images", dict.fromkeys("abcd", 4)), tmp_path / "run"
    with interrupted_at(3):
        run(images, out, cache, teachers_online=True)
    ready = facts_path(RunFolder(out))
    began = ready.read_text()
    fingerprint = json.loads(began)["teachers"][1]["fingerprint"]
    ready.write_text(began.replace(fingerprint, "another"))
    with pytest.raises(RunError, match=r"test_resnet.* has changed since the run was begun"):
        distill("", out=out, resume=True, show_progress=False)
    ready.write_text(began)
    for path in images.rglob("*.png"):
        write_image(path, 9)
    with pytest.raises(RunError, match=r"images/.*\.png has changed since the run was begun"):
        distill("", out=out, resume=True, show_progress=False)
    shutil.rmtree(images)
    with pytest.raises(ImageError, match=r"cannot read .*images/.*\.png: no such file"):
        distill("", out=out, resume=True, show_progress=False)


@pytest.mark.slow
def test_a_sigkill_leaves_a_loadable_checkpoint(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "epochs": 40}
    distill(
        shared_images, TEACHERS, out=tmp_path / "whole", cache=cache, show_progress=False, **options
    )
    program = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from whiten.distillation.distill import distill\n"
        "images, out, cache, teachers, options = json.loads(sys.argv[1])\n"
        "distill(images, teachers, out=out, cache=cache, show_progress=False, **options)\n"
    )
    out = tmp_path / "killed"
    arguments = json.dumps([str(shared_images), str(out), str(cache), TEACHERS, options])
    process = subprocess.Popen([sys.executable, "-c", program, arguments])
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 7:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    state = RunFolder(out).load_checkpoint()
    assert 0 < state["step"] < 160
    distill("", out=out, cache=cache, resume=True, show_progress=False)
    np.testing.assert_allclose(losses(out), losses(tmp_path / "whole"), rtol=1e-6)


def test_a_run_finds_its_images_from_any_folder(
    shared_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, other, away = tmp_path / "begun", tmp_path / "other", tmp_path / "away"
    shutil.copytree(shared_images, begun / "photos")
    write_groups(begun / "more", {"x": 3})
    write_groups(other / "photos", {"y": 4})
    out = tmp_path / "run"
    options: dict[str, Any] = {"unlabelled": ["more"], "epochs": 1, "pairs": "groups"}
    monkeypatch.chdir(begun)
    with interrupted_at(1):
        run(Path("photos"), out, tmp_path / "cache", **options)
    folder = RunFolder(out)
    assert folder.read_config()[0] == "photos"
    # Another folder of this name is not taken for it.
    monkeypatch.chdir(other)
    images, spec = folder.read_config()
    assert (images, spec.unlabelled) == (str(begun / "photos"), [str(begun / "more")])
    again = {**options, "resume": True}
    with pytest.raises(RunError, match="was begun with another unlabelled"):
        run(Path("../begun/photos"), out, tmp_path / "cache", **again)
    again["unlabelled"] = ["../begun/more"]
    with pytest.raises(RunError, match="was begun with another images"):
        run(Path("photos"), out, tmp_path / "cache", **again)
    run(Path("../begun/photos"), out, tmp_path / "cache", **again)
    known = training_images(folder)
    assert known is not None and len(known) == sum(1 for _ in begun.rglob("*.png"))
    # Where all has moved, relative paths are those of the current folder.
    begun.rename(away)
    monkeypatch.chdir(away)
    assert folder.read_config()[0] == "photos"
    moved = training_images(folder)
    assert moved is not None and len(moved) == len(known)


def test_a_run_finds_its_models_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, away, out = tmp_path / "begun", tmp_path / "away", tmp_path / "run"
    images = write_groups(begun / "photos", dict.fromkeys("abc", 4))
    write_student(begun / "earlier" / "student")
    weights = timm.create_model("test_resnet", pretrained=False).state_dict()
    torch.save(weights, begun / "own.pth")
    teachers = ["timm:test_resnet?weights=own.pth&size=32", "earlier/student"]
    options = {**OPTIONS, "student": "earlier/student", "epochs": 1, "pairs": "groups"}
    monkeypatch.chdir(begun)
    with interrupted_at(0):  # the images are named absolutely: the models alone lead from here
        distill(images, teachers, out, show_progress=False, **options)
    away.mkdir()
    monkeypatch.chdir(away)
    _, spec = RunFolder(out).read_config()
    student = f"whiten:{begun}/earlier/student"
    assert spec.teachers == [f"timm:test_resnet?weights={begun}/own.pth&size=32", student]
    assert spec.student == student
    with pytest.raises(RunError, match="was begun with another teachers"):
        distill(images, spec.teachers[:1], out, resume=True, **{**options, "student": student})
    monkeypatch.chdir(tmp_path)
    again = ["timm:test_resnet?weights=begun/own.pth&size=32", "whiten:begun/earlier/student"]
    options["student"] = "begun/earlier/student"
    distill(images, again, out, resume=True, show_progress=False, **options)
    assert load(f"fuse:whitened:{out}").dim == 16
    # Where all has moved, relative paths are those of the current folder.
    away.rmdir()
    begun.rename(away)
    monkeypatch.chdir(away)
    assert RunFolder(out).read_config()[1].teachers == teachers
