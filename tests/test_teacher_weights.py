"""Weights of teachers: chosen, given, and the same wherever teachers are fused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import whiten
from helpers import TEACHER, write_groups
from whiten.datasets.finding import find_items
from whiten.distillation.losses import similarity_kl
from whiten.distillation.objective import Batch, objective, relational_kl
from whiten.distillation.targets import open_targets
from whiten.distillation.training_set import TrainingSet, fused_path
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError, RunError, TeacherError, WhiteningError
from whiten.evaluation.run_encoders import start_features
from whiten.models.registry import open_teacher
from whiten.models.student import load_student
from whiten.runs.folder import RunFolder
from whiten.runs.recipes import complete
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import normalize_rows
from whiten.whitening.weighting import choose_weights, judge_of
from whiten.whitening.whitener import Whitener

TEACHERS = [TEACHER, f"{TEACHER}?seed=1&dim=5"]
STUDENT = "timm:test_vit?pretrained=0&size=32"
RNG = np.random.default_rng(0)


def spec(weights: str | None, **options: object) -> DistillSpec:
    return DistillSpec.from_mapping({"teachers": TEACHERS, "teacher_weights": weights, **options})


def test_weights_have_a_mean_of_one() -> None:
    assert spec("1,3").weights == [0.5, 1.5]
    for text in (None, "auto", "equal", "2,2"):
        assert spec(text).weights == [1.0, 1.0]


@pytest.mark.parametrize("text", ["1", "1,2,3", "1,0", "1,-1", "1,nan", "1,inf", "1;2", "", "Auto"])
def test_wrong_weights_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="teacher_weights is auto, equal, or 2 numbers above 0"):
        spec(text)


def test_recipes_leave_the_choice_open_but_for_the_papers() -> None:
    assert complete(spec(None), "views")[0].teacher_weights == "auto"
    assert complete(spec(None, recipe="paper"), "views")[0].teacher_weights == "equal"
    assert complete(spec("1,2", recipe="paper"), "views")[0].teacher_weights == "1,2"


def test_a_weak_teacher_weighs_little_and_equal_ones_the_same() -> None:
    centres = RNG.normal(size=(40, 8)).repeat(4, axis=0)
    names = [f"g{i}" for i in range(40) for _ in range(4)]

    def teacher(noise: float) -> np.ndarray:
        return normalize_rows(centres + noise * RNG.normal(size=centres.shape))

    alike = [teacher(1.0), teacher(1.0)]
    for weak, expected in ((teacher(100.0), False), (teacher(1.0), True)):
        teachers = [*alike, weak]
        judge = judge_of(teachers, [None] * 3, groups=names)
        assert judge is not None
        weights = choose_weights(judge, 3)
        assert (weights == [1.0, 1.0, 1.0]) == expected
        assert max(weights) == 1 and (expected or weights.index(min(weights)) == 2)
        assert judge.scores(weights).mean() >= judge.scores([1.0] * 3).mean() - 0.01
    # The same by second views.
    views = [normalize_rows(t + 0.1 * RNG.normal(size=t.shape)) for t in alike]
    views.append(normalize_rows(RNG.normal(size=centres.shape)))
    judge = judge_of([*alike, teacher(100.0)], [None] * 3, second_views=views)
    assert judge is not None
    assert choose_weights(judge, 3)[:2] == [1.0, 1.0]
    assert choose_weights(judge, 3)[2] < 1


@pytest.mark.usefixtures("colour_teachers")
def test_an_encoder_takes_the_weighted_mean_of_cosines() -> None:
    parts = [Part(open_teacher(uri)) for uri in TEACHERS]
    plain, weighted = Encoder("x", parts), Encoder("x", parts, weights=[0.5, 1.5])
    blocks = [normalize_rows(RNG.normal(size=(4, d)).astype(np.float32)) for d in (12, 5)]
    joined = weighted.join(blocks)
    expected = 0.25 * blocks[0] @ blocks[0].T + 0.75 * blocks[1] @ blocks[1].T
    np.testing.assert_allclose(joined @ joined.T, expected, atol=1e-6)
    other = Encoder("x", parts, weights=[1.5, 0.5])
    assert len({e.fingerprint() for e in (plain, weighted, other)}) == 3


def test_means_of_the_objective_take_the_weights() -> None:
    def sides(*dims: int) -> list[torch.Tensor]:
        return [F.normalize(torch.from_numpy(RNG.normal(size=(4, d))).float()) for d in dims]

    (x, y), xs, ys = sides(6, 6), sides(5, 3), sides(5, 3)
    batch = Batch(x, y, xs, ys, torch.arange(4), weights=[0.5, 1.5])
    terms = dict.fromkeys(("kl", "labels", "relational", "align", "queue"), 0.0)

    def value(on: Batch, **options: object) -> float:
        full, _ = complete(spec(None, pairs_per_class=1, **{**terms, **options}), "groups")
        return float(objective(on, full, torch.Generator())[0])

    mean = 0.25 * xs[0] @ ys[0].T + 0.75 * xs[1] @ ys[1].T
    assert value(batch, kl=1.0, fusion="mean") == pytest.approx(
        float(similarity_kl(x @ y.T, mean, 0.05)), rel=1e-5
    )
    joined = [torch.cat(pair) for pair in zip(xs, ys, strict=True)]
    both = torch.cat([x, y])
    mean = 0.25 * joined[0] @ joined[0].T + 0.75 * joined[1] @ joined[1].T
    expected = relational_kl(both @ both.T, mean, torch.arange(4).repeat(2), 0.05)
    assert value(batch, relational=1.0) == pytest.approx(float(expected), rel=1e-5)
    equal = dataclasses.replace(batch, weights=None)
    assert value(batch, kl=1.0, fusion="maxmin") == value(equal, kl=1.0, fusion="maxmin")


@pytest.mark.usefixtures("colour_teachers")
def test_the_targets_the_gallery_and_the_fusion_of_a_run_have_the_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingSet, "remove", lambda self: None)
    monkeypatch.delitem(sys.modules, "colour_teachers", raising=False)  # of another test
    options = {"student": STUDENT, "dim": 5, "whiten_dim": 3, "batch_size": 4, "epochs": 1}
    options |= {"backbone_lr": 0.0, "precision": "32", "compatible": True}
    run = RunFolder(tmp_path / "run")
    whiten.distill(
        images, TEACHERS, run.root, teacher_weights="1,3", show_progress=False, **options
    )
    assert run.read_weights() == [0.5, 1.5]
    items = find_items(images)
    gallery = whiten.load(f"fuse:compatible:{run.root}")
    _, vectors, _ = embed_rows(gallery, items, cache=run.embeddings)
    np.testing.assert_allclose(vectors, open_targets(fused_path(run))[:, 0], atol=1e-5)
    student = whiten.load(run.student)
    assert student.can_query(gallery.fingerprint())
    assert load_student(run.student)[1].training["teacher_weights"] == "1,3"
    fusion = whiten.load(f"fuse:whitened:{run.root}")
    _, joined, _ = embed_rows(fusion, items, cache=run.embeddings)
    lengths = (joined[:, :3] ** 2).sum(axis=1), (joined[:, 3:] ** 2).sum(axis=1)
    np.testing.assert_allclose(lengths, [[0.25] * 16, [0.75] * 16], atol=1e-5)
    run.weights.write_text("[1")
    with pytest.raises(RunError, match=r"weights\.json is damaged"):
        whiten.load(f"fuse:whitened:{run.root}")
    other = Whitener.load(run.whitener(0))
    other.metadata["fingerprint"] = "another"
    other.save(run.whitener(0))  # as if the teacher had been replaced since
    with pytest.raises(WhiteningError, match="has other weights or sees images otherwise"):
        whiten.load(f"fuse:whitened:{run.root}")
    module = tmp_path / "code" / "colour_teachers.py"
    module.write_text(module.read_text().replace("normal_(", "uniform_("))
    for kind in ("raw", "whitened", "compatible"):
        with pytest.raises(TeacherError, match="has other weights, or sees images otherwise, than"):
            whiten.load(f"fuse:{kind}:{run.root}")


@pytest.mark.slow
@pytest.mark.usefixtures("colour_teachers")
def test_a_start_with_other_weights_by_now_is_refused(tmp_path: Path) -> None:
    file, run = tmp_path / "own.pth", RunFolder(tmp_path / "run")
    net = timm.create_model("test_vit", pretrained=False, img_size=32)
    torch.save(net.state_dict(), file)
    images = write_groups(tmp_path / "images", {f"g{i}": 4 for i in range(4)})
    student = f"timm:test_vit?pretrained=0&size=32&weights={file}"
    options = {"student": student, "dim": 8, "epochs": 1, "batch_size": 4}
    whiten.distill(images, TEACHERS, run.root, **options)
    spec = run.read_config()[1]
    assert start_features(run, spec).dim == 64
    net.patch_embed.proj.weight.data += 1
    torch.save(net.state_dict(), file)
    with pytest.raises(RunError, match=r"has other weights than when .* began with it: restore it"):
        start_features(run, spec)


@pytest.mark.slow
@pytest.mark.usefixtures("colour_teachers")
def test_a_run_tells_the_gist_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_groups(tmp_path / "images", {f"g{i}": 4 for i in range(24)})
    run = RunFolder(tmp_path / "run")
    options = {"student": STUDENT, "dim": 8, "epochs": 1, "batch_size": 8, "backbone_lr": 0.0}
    whiten.distill(images, TEACHERS, run.root, **options)
    told = capsys.readouterr().err
    assert told.index("effective rank") < told.index("student features")
    assert "of nearest neighbours in common" in told
    assert told.count("teachers have equal weights") + told.count("teachers are weighted") == 1
    chosen = load_student(run.student)[1].training["teacher_weights"]
    assert chosen == "equal" or len(chosen.split(",")) == 2
    assert (run.read_weights() is None) == (chosen == "equal")
