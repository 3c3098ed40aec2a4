"""The start in closed form, and what held-out images measure."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import whiten
from helpers import TEACHER, write_groups, write_image
from small_runs import OPTIONS, STUDENT, TEACHERS
from whiten.distillation import best, training
from whiten.distillation.distill import DistillResult, distill
from whiten.distillation.held_out import ENOUGH, FEWEST, HeldOut, hold_out, without_trained
from whiten.distillation.mix import choose_mix, criterion_of
from whiten.distillation.pairs import enough_views, plan_pairs
from whiten.distillation.ridge import Head, Ridge, whitenings
from whiten.distillation.training import learning_rate
from whiten.errors import ConfigError, NoImagesError
from whiten.evaluation.run import measure_run
from whiten.models.student import StudentNet, build_student, load_student
from whiten.report.run_page import write_report
from whiten.runs.folder import RunFolder
from whiten.runs.measured import AS_IT_IS, best_starts
from whiten.runs.recipes import complete
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import normalize_rows

RNG = np.random.default_rng(0)


def test_a_ridge_of_no_strength_is_least_squares() -> None:
    features = RNG.normal(size=(60, 2, 5)).astype(np.float32)
    first, second = (RNG.normal(size=(60, 2, d)).astype(np.float32) for d in (3, 4))
    head = Ridge(features, [first, second]).head(0.0, to_unit=False)
    x = np.hstack([features.reshape(-1, 5), np.ones((120, 1))])
    y = np.concatenate([first, second], axis=2).reshape(-1, 7)
    expected = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(head(features.reshape(-1, 5)), expected, atol=1e-4)


@pytest.mark.parametrize(("images", "features"), [(60, 5), (9, 40), (1, 40)])
def test_a_ridge_solves_its_normal_equations(images: int, features: int) -> None:
    x, y = (RNG.normal(size=(images, 2, d)).astype(np.float32) for d in (features, 3))
    x[: images // 2, 1] = x[: images // 2, 0]  # equal views span fewer axes
    head = Ridge(x, [y]).head(0.1, to_unit=False)
    flat, wanted = x.reshape(-1, features).astype(float), y.reshape(-1, 3).astype(float)
    centred = flat - flat.mean(axis=0)
    scatter = centred.T @ centred
    scatter += 0.1 * np.trace(scatter) / features * np.eye(features)
    weight = np.linalg.solve(scatter, centred.T @ (wanted - wanted.mean(axis=0)))
    np.testing.assert_allclose(head.weight, weight.T, atol=1e-10)
    np.testing.assert_allclose(head(flat), wanted.mean(axis=0) + centred @ weight, atol=1e-10)


def test_a_strong_ridge_is_the_mean() -> None:
    features, targets = (RNG.normal(size=(60, 1, d)).astype(np.float32) for d in (5, 3))
    head = Ridge(features, [targets]).head(1e12, to_unit=False)
    np.testing.assert_allclose(head(features[:, 0])[0], targets[:, 0].mean(axis=0), atol=1e-5)


def test_to_unit_gives_a_length_of_one() -> None:
    features, targets = (RNG.normal(size=(60, 1, d)).astype(np.float32) for d in (5, 3))
    for head in (
        Ridge(features, [targets]).head(0.3, to_unit=True),
        whitenings(features[:, 0], 4, [1.0])[1.0],
    ):
        assert (head(features[:, 0]) ** 2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)


def test_heads_side_by_side_and_rotated() -> None:
    heads = [Head(RNG.normal(size=(d, 5)), RNG.normal(size=d)) for d in (2, 3)]
    x = RNG.normal(size=(7, 5))
    joined = Head.beside(heads)
    np.testing.assert_allclose(joined(x), np.hstack([head(x) for head in heads]))
    rotation = whiten.Whitener(3, shrinkage=float("inf")).fit(joined(RNG.normal(size=(40, 5))))
    np.testing.assert_allclose(joined.then(rotation)(x), rotation.transform(joined(x)), atol=1e-6)


def test_groups_and_copies_are_held_out_whole() -> None:
    groups = [f"g{i // 4}" if i < 200 else None for i in range(400)]
    contents = [f"c{i // 2}" for i in range(400)]
    held = hold_out(groups, contents, 0.1, seed=0)
    assert FEWEST <= held.sum() <= ENOUGH
    for names in (groups[:200], contents):
        flags: dict[str | None, set[bool]] = {}
        for name, flag in zip(names, held, strict=False):
            flags.setdefault(name, set()).add(bool(flag))
        assert all(len(each) == 1 for each in flags.values())
    assert not hold_out(groups, contents, 0.0, seed=0).any()
    assert not hold_out(groups[:80], contents[:80], 0.1, seed=0).any()  # too few to spare any


def test_held_out_images_do_not_train_as_copies_in_other_groups() -> None:
    groups = [f"g{i // 4}" for i in range(400)]
    contents = [f"c{i}" for i in range(400)]
    held = hold_out(groups, contents, 0.1, seed=0)
    [first, *_], [other, *_] = np.flatnonzero(held), np.flatnonzero(~held)
    contents[first] = contents[other]
    kept, left = without_trained(held, contents)
    assert np.flatnonzero(~kept) == [first]
    assert left.tolist() == np.delete(held, first).tolist()
    # Nothing could be measured: all images train.
    kept, left = without_trained(held, [f"c{i % 4}" for i in range(400)])
    assert kept.all() and not left.any() and len(left) == 400
    # Unknown contents are not copies of each other.
    kept, left = without_trained(held, [None] * 400)
    assert kept.all() and (left == held).all()


def test_held_out_images_measure_by_groups_or_by_the_teachers() -> None:
    teachers = normalize_rows(RNG.normal(size=(40, 6)))
    by_groups = HeldOut.of(teachers, [f"g{i // 4}" for i in range(40)])
    assert by_groups.criterion == "mAP of held-out groups"
    grouped = np.repeat(np.eye(10), 4, axis=0)
    assert by_groups.score(grouped) == pytest.approx(1)
    assert by_groups.score(RNG.normal(size=(40, 6))) < 0.5
    for groups in (None, [None] * 40):
        alone = HeldOut.of(teachers, groups)
        assert "teachers" in alone.criterion
        assert alone.score(teachers) == pytest.approx(1)
        assert alone.score(RNG.normal(size=(40, 6))) < 0.5


def test_crops_count_beside_the_teachers_neighbours() -> None:
    teachers = normalize_rows(RNG.normal(size=(40, 6)))
    held_out = HeldOut.of(teachers, None, has_crops=True)
    assert "crops" in held_out.criterion
    own = np.stack([teachers, teachers], axis=1)
    assert held_out.score(teachers, own) == pytest.approx(1)
    others = np.roll(own, 1, axis=0)  # crops that look like other images
    assert 0.5 < held_out.score(teachers, others) < 0.8
    half = np.stack([teachers, others[:, 0]], axis=1)
    between = (held_out.score(teachers, own) + held_out.score(teachers, others)) / 2
    assert held_out.score(teachers, half) == pytest.approx(between)


def test_the_mix_with_the_best_score_is_taken() -> None:
    features = RNG.normal(size=(200, 1, 8)).astype(np.float32)
    teachers = normalize_rows(features[:, 0] @ RNG.normal(size=(8, 12)))[:, None]
    groups = [f"g{number}" for number in np.argmax(teachers[:, 0], axis=1)]
    mix, scores = choose_mix(features, [teachers.astype(np.float32)], groups, spec())
    assert scores[mix.name] == max(scores.values())
    assert mix.share < 1  # the teachers are linear in the features, and know the groups


def test_the_criterion_says_what_each_fold_was_measured_by() -> None:
    enough = [f"g{number % 20}" for number in range(200)]
    fewer = [f"g{number % 14}" for number in range(200)]  # 4, 4, 3 and 3 in the four folds
    few = [f"g{number % 6}" for number in range(200)]
    neighbours = "agreement with the fused teachers' neighbours on held-out images"
    assert criterion_of(200, enough, 0) == "mAP of held-out groups"
    assert criterion_of(200, fewer, 0) == (
        f"mAP of held-out groups in 2 of 4 folds, {neighbours} in the others"
    )
    assert criterion_of(200, few, 0) == neighbours
    assert "crops" in criterion_of(200, None, 0)


def test_without_groups_the_mix_is_fixed_and_only_measured() -> None:
    features = RNG.normal(size=(200, 1, 8)).astype(np.float32)
    teachers = [RNG.normal(size=(200, 1, 12)).astype(np.float32)]
    mix, scores = choose_mix(features, teachers, None, spec())
    assert (mix.name, scores) == ("ridge 0.1 and 0.7 features whitened (0.3)", {})
    crops = np.repeat(features, 2, axis=1)
    measured, scores = choose_mix(features, teachers, None, spec(), crops)
    assert measured.name == mix.name
    assert {mix.name, "1 features", "1 features whitened (0.3)"} < scores.keys()
    few, scores = choose_mix(features[:50], [teachers[0][:50]], None, spec(), crops[:50])
    assert (few.name, scores) == ("ridge 0.1 and 0.7 features", {})


@pytest.mark.parametrize(
    ("images", "source", "views"),
    [(100, "views", 8), (1000, "views", 4), (5000, "views", 2), (900, "groups", 4)],
)
def test_few_images_are_shown_in_more_views(images: int, source: str, views: int) -> None:
    assert enough_views(images, source) == views


def test_few_images_make_small_batches_and_epochs_of_all_views() -> None:
    names = [None] * 360
    contents = [f"c{i}" for i in range(360)]
    few = plan_pairs(names, contents, source="views", views=8, rounds=4)
    assert few.batch_size == 4 * 360 // 16
    assert few.batches_per_epoch == 4 * (360 // few.batch_size)
    sides = [(pair.x, pair.x_view) for batch in few.epoch(0) for pair in batch]
    assert np.bincount([item for item, _ in sides]).max() == 4
    for batch in few.epoch(0):
        assert len({pair.x for pair in batch}) == len(batch)  # no image is its own negative
    many = plan_pairs([None] * 5000, [f"c{i}" for i in range(5000)], source="views", views=2)
    assert many.batch_size == 128


def spec(**options: object) -> DistillSpec:
    return DistillSpec.from_mapping({"teachers": [TEACHER], **options})


@pytest.mark.parametrize(
    "options",
    [
        {"held_out": 0.6},
        {"held_out": -0.1},
        {"start_weight": 1.5},
        {"keep_start": 1.1},
        {"epochs": -1},
    ],
)
def test_shares_are_shares(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        spec(**options)


def test_a_gallery_of_the_teachers_has_no_place_for_the_start() -> None:
    with pytest.raises(ConfigError, match="--start-weight"):
        spec(compatible=True, start_weight=0.3)


# --- whole runs -------------------------------------------------------------------------


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
    assert result.gain.startswith("mAP of held-out groups: start ")
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
    assert result.steps == 0
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
