"""The training loop: it learns, changes only what it should, and refuses what cannot be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import whiten
from helpers import write_groups
from small_runs import OPTIONS, STUDENT, TEACHERS, losses, run
from whiten.distillation import training, training_set
from whiten.distillation.distill import distill
from whiten.distillation.optimizing import learning_rate
from whiten.errors import ConfigError, RunError, WhitenError
from whiten.models.student import build_student
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.utils.files import holding
from whiten.whitening.whitener import Whitener


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 4)


@pytest.mark.slow
def test_leaves_a_complete_run_folder_and_a_working_student(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    result = run(shared_images, tmp_path / "run", cache, epochs=12)
    assert result.steps == 12 * 4 == len(losses(tmp_path / "run"))
    first, last = (
        np.mean(losses(tmp_path / "run")[:4]),
        np.mean(losses(tmp_path / "run")[-4:]),
    )
    assert last < 0.8 * first  # it learns
    record = RunFolder(tmp_path / "run").read_metrics()[-1]
    assert sum(record["wins"].values()) == pytest.approx(4)
    assert record["epoch"] == 11
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "student",
        "whiteners",
    ]
    config = json.loads((result.student / "config.json").read_text())
    assert [t["name"] for t in config["teachers"]] == ["test_efficientnet", "test_resnet"]
    assert all(t["licence"] and t["fingerprint"] for t in config["teachers"])
    there = {path.name for path in result.student.iterdir()}
    assert there == {"README.md", "config.json", "model.onnx", "model.safetensors"}
    assert "- Runs without torch too: `model.onnx`" in (result.student / "README.md").read_text()
    student = whiten.load(result.student)
    paths = sorted(shared_images.rglob("*.png"))
    embeddings = student.embed(paths)
    assert embeddings.shape == (32, 8)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    as_teacher = whiten.load(f"whiten:{result.student}").embed(paths)
    np.testing.assert_allclose(as_teacher, embeddings, atol=1e-6)
    assert whiten.load(tmp_path / "run").dim == 8  # the run's folder stands for its student


def test_rounds_of_views_are_refused_where_pairs_come_from_groups(
    shared_images: Path, tmp_path: Path
) -> None:
    strays = write_groups(tmp_path / "images", {"a": 4, "b": 4, "c": 1, "d": 1})
    for pairs, images in (("groups", shared_images), ("mixed", strays)):
        with pytest.raises(ConfigError, match="rounds 3 are pairs of views of each image"):
            run(images, tmp_path / pairs, tmp_path / "cache", pairs=pairs, rounds=3)


@pytest.mark.parametrize("pairs", ["auto", "views"])
@pytest.mark.parametrize("name", ["pairs_per_class", "pairs_per_epoch", "rounds"])
def test_limits_of_pairs_are_refused_where_none_are_trained_on(
    images: Path, tmp_path: Path, name: str, pairs: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name} 3 .* 0 epochs train on none: leave out --"):
        run(images, tmp_path / "run", tmp_path / "cache", epochs=0, pairs=pairs, **{name: 3})
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["pairs_per_class", "pairs_per_epoch"])
def test_limits_of_groups_are_refused_where_pairs_are_views(
    images: Path, tmp_path: Path, name: str
) -> None:
    for pairs in ("views", "frames"):
        with pytest.raises(
            ConfigError, match=f"{name} 2 limits the pairs of a group.*leave out --"
        ):
            run(images, tmp_path / pairs, tmp_path / "cache", pairs=pairs, **{name: 2})
    flat = tmp_path / "flat"  # without groups, `auto` takes views
    flat.mkdir()
    for n, path in enumerate(sorted(images.rglob("*.*"))):
        shutil.copy(path, flat / f"{n}{path.suffix}")
    with pytest.raises(ConfigError, match=f"{name} 2 limits"):
        run(flat, tmp_path / "auto", tmp_path / "cache", **{name: 2})


@pytest.mark.slow
def test_the_recipe_depends_on_what_the_teachers_know(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    paths = [str(path.relative_to(shared_images)) for path in sorted(shared_images.rglob("*.png"))]
    for name, groups in (("known", [p[:2] for p in paths]), ("unknown", [*range(8)] * 4)):
        lines = [f"{path},{group}" for path, group in zip(paths, groups, strict=True)]
        (shared_images / f"{name}.csv").write_text("\n".join(["path,group", *lines]))
    trained = run(shared_images, tmp_path / "trained", cache, epochs=1).student
    options = {"student": f"whiten:{trained}", "epochs": 1}
    known = run(shared_images / "known.csv", tmp_path / "known", cache, **options)
    assert "the teachers know the groups" in known.recipe
    unknown = run(shared_images / "unknown.csv", tmp_path / "unknown", cache, **options)
    assert unknown.recipe.startswith("recipe labels-light-queue (")


@pytest.mark.slow
def test_online_teachers_give_the_losses_of_cached_ones(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    same = {"views": 2, "recipe": "paper"}
    run(shared_images, tmp_path / "cached", cache, **same)
    run(shared_images, tmp_path / "online", cache, **same, teachers_online=True)
    np.testing.assert_allclose(losses(tmp_path / "online"), losses(tmp_path / "cached"), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("teachers_online", [False, True])
def test_colours_on_the_device_give_the_losses_of_pillows(
    shared_images: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teachers_online: bool,
) -> None:
    options = {"recipe": "paper", "pairs": "frames", "teachers_online": teachers_online}
    run(shared_images, tmp_path / "pillow", cache, **options)
    coloured: list[int] = []

    def recolour(pixels: np.ndarray, views: list[Any], device: torch.device) -> np.ndarray:
        coloured.append(len(views))
        return on_device(pixels, views, device)

    on_device = training_set.recolour
    monkeypatch.setattr(training_set, "recolour", recolour)
    monkeypatch.setattr(training_set.TrainingSet, "_colours_on", lambda *_: True)
    run(shared_images, tmp_path / "device", cache, **options)
    steps = len(losses(tmp_path / "device"))
    assert coloured == [8] * (steps * (3 if teachers_online else 1))  # two teachers and the student
    np.testing.assert_allclose(losses(tmp_path / "device"), losses(tmp_path / "pillow"), rtol=0.05)


@pytest.mark.slow
def test_training_changes_only_what_it_should(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    student = "timm:test_resnet?pretrained=0&size=32"
    states = {}
    for name, options in (
        ("frozen", {"backbone_lr": 0.0, "pool": "gem-fixed"}),
        ("fixed", {"pool": "gem-fixed"}),
        ("learnt", {"pool": "gem"}),
    ):
        run(shared_images, tmp_path / name, cache, student=student, **options)
        start = RunFolder(tmp_path / name)
        from safetensors.torch import load_file

        states[name] = load_file(start.student / "model.safetensors")
    from whiten.models.student import build_student

    net, _ = build_student(student, dim=8)
    fresh = net.state_dict()
    backbone = [key for key in fresh if key.startswith("backbone.")]
    assert all(torch.equal(states["frozen"][key], fresh[key]) for key in backbone)
    assert any(not torch.equal(states["fixed"][key], fresh[key]) for key in backbone)
    assert states["fixed"]["power"] == 3
    assert states["learnt"]["power"] != 3


def test_a_nan_loss_stops_and_names_the_images(
    shared_images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training.objective
    calls = []

    def breaking(*args: Any) -> Any:
        calls.append(1)
        loss, wins = original(*args)
        return loss * (float("nan") if len(calls) == 6 else 1.0), wins

    monkeypatch.setattr(training, "objective", breaking)
    with pytest.raises(RunError, match=r"NaN at step 6, on \w/\d\.png.*--lr"):
        run(shared_images, tmp_path / "run", cache)
    named = (tmp_path / "run" / "nan-batch.txt").read_text().split()
    assert len(named) == 8
    assert all((shared_images / name).is_file() for name in named)


@pytest.mark.parametrize(
    "options", [{}, {"recipe": "paper"}, {"backbone_lr": 0.0, "align": 0.5, "queue": 0.5}], ids=str
)
@pytest.mark.slow
def test_two_processes_equal_one(
    shared_images: Path, cache: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    run(shared_images, tmp_path / "one", cache, device="cpu", **options)
    run(shared_images, tmp_path / "two", cache, device="cpu", devices=2, **options)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    np.testing.assert_allclose(two, one, rtol=2e-3, atol=1e-5)
    vectors = [
        whiten.load(tmp_path / name).embed(sorted(shared_images.rglob("*.png")))
        for name in ("one", "two")
    ]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.999


@pytest.mark.slow
def test_folders_in_the_way_are_refused(shared_images: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(shared_images, out, cache)
    with pytest.raises(RunError, match=r"--resume.*--overwrite"):
        run(shared_images, out, cache)
    with pytest.raises(RunError, match="another lr"):
        run(shared_images, out, cache, resume=True, lr=0.5)
    before = losses(out)
    run(shared_images, out, cache, resume=True)  # finished: nothing to do
    assert losses(out) == before
    with pytest.raises(ConfigError, match="one of the two"):
        run(shared_images, out, cache, resume=True, overwrite=True)
    assert losses(out) == before
    run(shared_images, out, cache, overwrite=True, epochs=1)
    assert len(losses(out)) == 4
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "precious.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match="will not delete"):
        run(shared_images, foreign, cache, overwrite=True)
    assert (foreign / "precious.jpg").exists()
    with pytest.raises(RunError, match="is a file"):
        run(shared_images, foreign / "precious.jpg", cache)
    with pytest.raises(RunError, match="not a run folder"):
        distill("", out=tmp_path / "absent", resume=True)


def test_two_processes_do_not_work_in_one_folder(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with holding(out), pytest.raises(RunError, match=r"another process is at work in .*run: wait"):
        run(shared_images, out, cache)
    assert list(out.iterdir()) == []
    with pytest.raises(WhitenError):
        run(tmp_path / "absent", tmp_path / "new", cache, devices=0)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_student_can_be_taught_further(shared_images: Path, cache: Path, tmp_path: Path) -> None:
    first = run(shared_images, tmp_path / "first", cache)
    again = run(
        shared_images, tmp_path / "second", cache, student=f"whiten:{first.student}", lr=1e-9
    )
    paths = sorted(shared_images.rglob("*.png"))
    before, after = whiten.load(first.student).embed(paths), whiten.load(again.student).embed(paths)
    np.testing.assert_allclose(after, before, atol=1e-3)  # its projection is kept
    with pytest.raises(ConfigError, match="--dim 8"):
        run(shared_images, tmp_path / "third", cache, student=f"whiten:{first.student}", dim=16)


def test_wrong_options_are_refused(shared_images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        DistillSpec.from_mapping({"teachers": ["x"], "temprature": 1})
    with pytest.raises(ConfigError, match="at least one teacher"):
        distill(shared_images, [], out=tmp_path / "a", epochs=1)
    with pytest.raises(ConfigError, match="divide by the number of processes"):
        distill(shared_images, TEACHERS, out=tmp_path / "a", devices=2, batch_size=5)
    with pytest.raises(ConfigError, match="did you mean 'maxmin'"):
        distill(shared_images, TEACHERS, out=tmp_path / "a", fusion="minmax")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_whitening_of_some_of_the_images(
    shared_images: Path, cache: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**OPTIONS, "epochs": 1, "cache": cache, "show_progress": False}
    fitted = {}
    for name, count in (("all", 0), ("some", 7), ("again", 7), ("more than there are", 10**6)):
        out = tmp_path / name
        distill(shared_images, TEACHERS, out=out, shrinkage=0.0, whiten_images=count, **options)
        whitener = Whitener.load(RunFolder(out).whitener(0))
        fitted[name] = (whitener.n_, whitener.mean_.tolist())
    assert fitted["some"] == fitted["again"] and fitted["all"] == fitted["more than there are"]
    assert fitted["some"][0] == 7 < fitted["all"][0]
    assert fitted["some"][1] != fitted["all"][1]


@pytest.mark.parametrize(("student", "is_alike"), [(STUDENT, True), (TEACHERS[1], False)])
def test_the_papers_recipe_normalises_each_side_of_the_pairs_alone(
    shared_images: Path, cache: Path, tmp_path: Path, student: str, is_alike: bool
) -> None:
    """Only networks with batch statistics notice; all else is the same as spelt out."""
    published = {"shrinkage": 0.0, "start": "random", "pairs_per_epoch": 1}
    options = {**OPTIONS, "student": student, "epochs": 1, "views": 2}
    options |= {"augment": "paper-images", "cache": cache}
    losses = {}
    for recipe, more in (("paper", {}), ("similarity", published)):
        out = tmp_path / recipe
        distill(
            shared_images, TEACHERS, out=out, recipe=recipe, show_progress=False, **options, **more
        )
        losses[recipe] = [record["loss"] for record in RunFolder(out).read_metrics()]
    assert (losses["paper"] == pytest.approx(losses["similarity"], rel=1e-5)) == is_alike


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_learning_rate_rises_and_falls(schedule: str) -> None:
    spec = DistillSpec(teachers=["demo:mobilenetv2"], lr=0.01, schedule=schedule, warmup=0.1)  # type: ignore[arg-type]
    rates = np.array([learning_rate(step, 1000, spec) for step in range(1000)])
    peak = int(rates.argmax())
    assert rates[peak] == pytest.approx(0.01, rel=1e-2)
    assert peak == pytest.approx(100 if schedule == "cosine" else 300, abs=2)
    assert (np.diff(rates[:peak]) > 0).all()
    assert (np.diff(rates[peak + 1 :]) < 0).all()
    assert rates[-1] < 1e-6


def test_a_checkpoint_needs_no_pretrained_weights(tmp_path: Path) -> None:
    """A run goes on where the file or the hub of its backbone cannot be reached."""
    uri = f"timm:test_resnet?weights={tmp_path / 'gone.safetensors'}&size=48"
    with pytest.raises(WhitenError, match=r"gone\.safetensors"):
        build_student(uri)
    net, config = build_student(uri, pretrained=False)
    other, same = build_student("timm:test_resnet?pretrained=0&size=48")
    assert dataclasses.replace(same, backbone=config.backbone) == config
    net.load_state_dict(other.state_dict())


def test_targets_are_mapped_once(
    shared_images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real = training_set.open_targets

    def count(path: Path) -> Any:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(training_set, "open_targets", count)
    run(shared_images, tmp_path / "run", cache, queue=1.0)
    assert opened and len(opened) == len(set(opened))
