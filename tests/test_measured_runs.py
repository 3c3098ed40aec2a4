"""Runs measure themselves on held-out images, and keep the best student that they saw."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import TEACHER, write_groups, write_image
from small_runs import OPTIONS, STUDENT, TEACHERS, spec
from whiten.datasets.finding import find_items
from whiten.distillation import best, training
from whiten.distillation.distill import DistillResult, distill
from whiten.distillation.optimizing import learning_rate
from whiten.errors import ConfigError, NoImagesError
from whiten.evaluation.run import measure_run
from whiten.models.student import StudentNet, build_student, load_student
from whiten.report.run_page import write_report
from whiten.retrieval.held_out import BY_GROUPS_AND_CROPS
from whiten.runs.folder import RunFolder
from whiten.runs.measured import AS_IT_IS, best_starts
from whiten.runs.recipes import complete


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return {f"g{number}": 4 for number in range(30)}


def run(images: Path, out: Path, cache: Path, **options: Any) -> DistillResult:
    return distill(
        images,
        TEACHERS,
        out=out,
        cache=cache,
        show_progress=False,
        **{**OPTIONS, "epochs": 2, "batch_size": 16, "start": "ridge", **options},
    )


def pretrained(student: str) -> StudentNet:
    """The network that a run starts from."""
    torch.manual_seed(0)  # as a run is seeded
    return build_student(student, dim=OPTIONS["dim"])[0]


def weights(result: DistillResult) -> dict[str, torch.Tensor]:
    return load_student(result.student)[0].state_dict()


@pytest.mark.slow
def test_a_run_measures_itself_and_keeps_the_best(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    result = run(shared_images, tmp_path / "run", cache, epochs=3)
    records = RunFolder(result.out).read_metrics()
    measured = [(r["step"], r["held_out"]) for r in records if "held_out" in r]
    last_of_epoch = [r["step"] for r, later in pairwise(records) if r["epoch"] < later["epoch"]]
    assert [step for step, _ in measured] == [*last_of_epoch, records[-1]["step"]]
    training = load_student(result.student)[1].training
    assert training["images"] == 96
    assert result.gain.startswith(f"{BY_GROUPS_AND_CROPS}: start ")
    starts = best_starts(training["measured"])
    assert next(iter(starts)) == AS_IT_IS
    best = max(score for _, score in measured)
    taken = starts[training["measured"]["start"]]
    assert (f"student {best:.3f} after epoch" in result.gain) != ("gained nothing" in result.gain)
    assert best > taken or "gained nothing" in result.gain
    assert json.loads(json.dumps(training))  # plain values alone


def test_without_epochs_the_student_is_the_closed_form(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    result = run(shared_images, tmp_path / "run", cache, epochs=0)
    assert result.steps == 0 and result.recipe == "closed form: 0 epochs train nothing"
    net, config = load_student(result.student)
    start = pretrained(STUDENT)
    for name, value in start.backbone.state_dict().items():
        torch.testing.assert_close(net.backbone.state_dict()[name], value)
    taken = config.training["measured"]["start"]
    assert "ridge" in taken or "features" in taken
    assert "gained nothing" not in result.gain  # nothing was tried


@pytest.mark.slow
def test_the_student_is_the_mean_of_its_start_and_what_training_made_of_it(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    options = {"pairs": "views", "held_out": 0.0, "backbone_lr": 1.0}
    trained, between, start = (
        weights(run(shared_images, tmp_path / str(share), cache, **options, keep_start=share))
        for share in (0.0, 0.25, 1.0)
    )
    untrained = run(shared_images, tmp_path / "untrained", cache, **{**options, "epochs": 0})
    for name, value in weights(untrained).items():
        torch.testing.assert_close(start[name], value)
        if value.is_floating_point():
            torch.testing.assert_close(between[name], 0.75 * trained[name] + 0.25 * value)
    assert not torch.allclose(trained["projection.weight"], start["projection.weight"])


@pytest.mark.parametrize(
    ("options", "source", "share"),
    [
        ({}, "views", 0.5),
        ({}, "frames", 0.5),
        ({}, "groups", 0.0),
        ({}, "mixed", 0.0),
        ({"backbone_lr": 0.0}, "views", 0.0),
        ({"compatible": True}, "views", 0.0),
        ({"recipe": "paper"}, "views", 0.0),
        ({"student": STUDENT}, "views", 0.0),
        ({"keep_start": 0.2}, "views", 0.2),
    ],
)
def test_a_whole_network_without_groups_keeps_half_of_its_start(
    options: dict[str, Any], source: str, share: float
) -> None:
    asked = spec(**{"student": "timm:test_resnet", **options})
    assert complete(asked, source)[0].keep_start == share


@pytest.mark.slow
def test_batch_statistics_stay_as_they_are_unless_they_may_move(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    student = TEACHERS[0]
    start = pretrained(student)
    name = next(n for n in start.state_dict() if n.endswith("running_mean"))
    means = {}
    for how in ("frozen", "moving"):
        options = {"student": student, "batch_statistics": how, "held_out": 0.0, "lr": 1e-9}
        means[how] = weights(run(shared_images, tmp_path / how, cache, **options))[name]
    torch.testing.assert_close(means["frozen"], start.state_dict()[name])
    assert not torch.allclose(means["moving"], means["frozen"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"backbone_lr": 0.0}, {"backbone_lr": 1.0}, {"lr": 3.0, "clip": 0.0, "epochs": 4}],
    ids=["frozen", "whole", "started again"],
)
def test_a_resumed_run_keeps_the_same_best(
    shared_images: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    whole = run(shared_images, tmp_path / "whole", cache, **options)
    with monkeypatch.context() as patch:
        steps = whole.steps

        def fails(step: int, *arguments: Any) -> float:
            if step == steps * 2 // 3:
                raise KeyboardInterrupt
            return learning_rate(step, *arguments)

        patch.setattr(training, "learning_rate", fails)
        with pytest.raises(KeyboardInterrupt):
            run(shared_images, tmp_path / "cut", cache, **options)
    resumed = run(shared_images, tmp_path / "cut", cache, **options, resume=True)
    assert resumed.gain == whole.gain
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value)
    for key in ("loss", "lr"):
        both = [
            [record[key] for record in RunFolder(r.out).read_metrics()] for r in (whole, resumed)
        ]
        np.testing.assert_allclose(both[1], both[0], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_keep_the_same_best_as_one(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    """Rank 0 measures while the other waits; both stop where it says."""
    options: dict[str, Any] = {"device": "cpu", "epochs": 3}
    alone = run(shared_images, tmp_path / "alone", cache, **options)
    both = run(shared_images, tmp_path / "both", cache, **options, devices=2)
    measured = [
        [
            record["held_out"]
            for record in RunFolder(result.out).read_metrics()
            if "held_out" in record
        ]
        for result in (alone, both)
    ]
    assert len(measured[1]) == 3
    np.testing.assert_allclose(measured[1], measured[0], atol=0.02)


def test_training_stops_when_nothing_is_gained(
    shared_images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best, "PATIENCE", 2)
    monkeypatch.setattr(best, "is_gain", lambda *_: False)
    result = run(shared_images, tmp_path / "run", cache, epochs=9)
    assert RunFolder(result.out).read_metrics()[-1]["epoch"] == 1
    assert "training gained nothing over that: " in result.gain


@pytest.mark.slow
def test_a_learning_rate_that_is_too_high_is_lowered(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    options = {"epochs": 8, "lr": 3.0, "clip": 0.0}
    result = run(shared_images, tmp_path / "run", cache, **options)
    lr = [record["lr"] for record in RunFolder(result.out).read_metrics() if "held_out" in record]
    steps = [record["step"] for record in RunFolder(result.out).read_metrics()]
    per_epoch = len(steps) // len(lr)
    planned = [
        learning_rate(per_epoch * (k + 1) - 1, 8 * per_epoch, spec(**options)) for k in range(8)
    ]
    # Whole thirds, which never rise; two epochs that are worse come before each.
    thirds = np.log(np.array(planned) / lr) / np.log(3)
    assert thirds[:2].tolist() == [0, 0] and thirds[5] >= 1
    assert set(np.diff(thirds).round(6)) <= {0, 1}
    assert (np.diff(np.flatnonzero(np.diff(thirds) > 0.5)) >= 2).all()


def test_the_best_student_counts_what_followed() -> None:
    good, bad = np.full(50, 0.8), np.full(50, 0.2) + np.linspace(0, 0.01, 50)
    student = best.Best({"w": torch.zeros(1)}, 0, [0.5] * 50, [0.5] * 50)
    assert not student.see(4, good, {"w": torch.ones(1)})
    assert (student.step, student.model["w"].item(), student.score) == (4, 1, pytest.approx(0.8))
    assert not student.see(8, bad, {})
    assert student.see(12, bad, {})  # twice in a row: start again from the best
    assert student.pace == pytest.approx(1 / 3)
    assert student.model["w"].item() == 1
    assert not student.is_over(16, batches_per_epoch=4)
    assert student.is_over(12 + 5 * 4, batches_per_epoch=4)
    again = best.Best.of(vars(student))
    assert again == student


@pytest.mark.slow
def test_other_images_are_learnt_on_but_never_held_out(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    alone = run(shared_images, tmp_path / "alone", cache, epochs=0)
    others = write_groups(tmp_path / "others", {"g0": 8, "other": 12})  # ids that meet the first
    for n, path in enumerate(sorted(others.glob("*/*.png"))):  # and not their contents
        write_image(path, seed=800 + n)
    both = run(shared_images, tmp_path / "both", cache, epochs=1, unlabelled=[str(others)])
    trained = [load_student(result.student)[1].training for result in (alone, both)]
    assert [training["images"] for training in trained] == [96, 96 + 20]
    assert [training["pairs"] for training in trained] == [
        "images of a group",
        "images of a group, and two views of ungrouped images",
    ]
    with pytest.raises(NoImagesError):
        run(shared_images, tmp_path / "none", cache, unlabelled=[str(tmp_path / "missing")])
    with pytest.raises(ConfigError, match="--unlabelled"):
        spec(pairs="frames", unlabelled=["a"])


def test_copies_of_own_images_in_a_transfer_set_never_train(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    """Otherwise held-out images would train."""
    again = shutil.copytree(shared_images, tmp_path / "again")
    write_image(again / "new" / "0.png", seed=900)
    result = run(shared_images, tmp_path / "run", cache, epochs=0, unlabelled=[str(again)])
    training = load_student(result.student)[1].training
    assert training["held_out"] > 0
    assert training["images"] == 96 + 1


@pytest.mark.slow
def test_the_report_draws_the_curve(shared_images: Path, cache: Path, tmp_path: Path) -> None:
    result = run(shared_images, tmp_path / "run", cache)
    page = write_report(measure_run(result.out), result.out)
    assert (result.out / "figures" / "held_out.png").is_file()
    assert "What training gains" in page.read_text()


def test_teachers_of_one_name_are_told_apart(
    shared_images: Path, colour_teachers: None, tmp_path: Path
) -> None:
    options = {**OPTIONS, "epochs": 0}
    teachers = [TEACHER, f"{TEACHER}?seed=1"]
    distill(shared_images, teachers, tmp_path / "run", show_progress=False, **options)
    data = measure_run(tmp_path / "run", test=shared_images)
    names = ["colour_teachers:make", "colour_teachers:make (2)"]
    assert [row.name for row in data.rows if row.kind == "teacher"] == names
    assert list(data.similarities) == list(data.spectra) == names


def test_the_plots_of_a_run_among_its_images_are_no_images(images: Path, tmp_path: Path) -> None:
    own = [item.id for item in find_items(images)]
    out = images / "run"
    distill(images, TEACHERS[:1], out, show_progress=False, **{**OPTIONS, "epochs": 0})
    write_report(measure_run(out, test=images), out)
    assert list((out / "figures").glob("*.png"))
    assert [item.id for item in find_items(images)] == own
    write_image(images / "figures" / "0.png", 0)  # no run's, and so an image
    assert len(find_items(images)) == len(own) + 1
