"""The gallery of a compatible student: what its encoder is, who may ask it, and the start."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import whiten
from command_line import STUDENT
from helpers import TEACHER
from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.distillation.losses import alignment_loss
from whiten.distillation.targets import open_targets
from whiten.distillation.training_set import TrainingSet, fused_path
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.rows import embed_rows
from whiten.evaluation.evaluate import evaluate
from whiten.media.reading import Skipped
from whiten.models.student import build_student
from whiten.runs.folder import RunFolder
from whiten.runs.recipes import COMPATIBLE, RECIPES, complete
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import Vectors
from whiten.whitening.whitener import Whitener

pytestmark = pytest.mark.usefixtures("colour_teachers")

TEACHERS = [TEACHER, f"{TEACHER}?seed=1&dim=5"]


def distil(
    images: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: object
) -> tuple[RunFolder, Vectors]:
    """A tiny run, and the targets that its student has learnt from."""
    monkeypatch.setattr(TrainingSet, "remove", lambda self: None)
    defaults = {"whiten_dim": 3, "dim": 5, "epochs": 1, "batch_size": 4, "backbone_lr": 0.0}
    defaults |= {"precision": "32", "compatible": True, "student": STUDENT}
    whiten.distill(
        images,
        TEACHERS,
        out=out,
        show_progress=False,
        **{**defaults, **options},
    )
    run = RunFolder(out)
    targets = open_targets(fused_path(run))[:, 0] if fused_path(run).exists() else np.zeros(0)
    return run, targets


@pytest.mark.parametrize("whitens", [True, False])
def test_the_gallery_s_encoder_makes_the_targets(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whitens: bool
) -> None:
    run, targets = distil(images, tmp_path / "run", monkeypatch, whiten=whitens)
    gallery = whiten.load(f"fuse:compatible:{run.root}")
    items = find_items(images)
    assert (gallery.dim, targets.shape) == (5, (16, 5))
    np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(gallery.embed([i.path for i in items]), targets, atol=2e-3)
    _, vectors, _ = embed_rows(gallery, items, cache=run.embeddings)  # what training had cached
    np.testing.assert_allclose(vectors, targets, atol=1e-5)
    # An index and an evaluation write it to disk, a block of each part at a time.
    built = whiten.Index.build(gallery, items, tmp_path / "index")
    np.testing.assert_allclose(built.vectors(built.ids()), vectors, atol=1e-5)
    assert evaluate(gallery, images).figures["map"].value > 0.5


def test_one_teacher_is_rotated_too(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_compatible.TEACHERS", [TEACHER])
    run, targets = distil(images, tmp_path / "run", monkeypatch, dim=2)
    gallery = whiten.load(f"fuse:compatible:{run.root}")
    built = whiten.Index.build(gallery, find_items(images), tmp_path / "index")
    np.testing.assert_allclose(built.vectors(built.ids()), targets, atol=2e-3)


@pytest.mark.slow
def test_who_can_query(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = distil(images, tmp_path / "run", monkeypatch)
    gallery, student = whiten.load(f"fuse:compatible:{run.root}"), whiten.load(run.root)
    fingerprint = gallery.fingerprint()
    assert gallery.can_query(fingerprint) and student.can_query(fingerprint)
    assert student.can_query(student.fingerprint()) and not gallery.can_query(student.fingerprint())
    plain, _ = distil(images, tmp_path / "plain", monkeypatch, compatible=False)
    others = [whiten.load(plain.root), whiten.load(TEACHER)]
    others += [whiten.load(f"fuse:whitened:{run.root}")]
    others += [Encoder("two", [*student.parts, *student.parts])]
    whitener = Whitener(3).fit(np.random.default_rng(0).standard_normal((99, 5)))
    others += [Encoder("whitened", [Part(student.parts[0].teacher, whitener)])]
    others += [Encoder("rotated", student.parts, rotation=whitener)]
    assert not any(other.can_query(fingerprint) for other in others)
    # Another start of the same run learns from the same gallery; another whitening is another one.
    again, _ = distil(images, tmp_path / "again", monkeypatch, epochs=2)
    assert whiten.load(again.root).can_query(fingerprint)
    other, _ = distil(images, tmp_path / "other", monkeypatch, shrinkage=0.5)
    assert not whiten.load(other.root).can_query(fingerprint)


def test_one_model_on_both_sides_is_as_ever(images: Path) -> None:
    alone = evaluate(TEACHER, images)
    both = evaluate(TEACHER, images, gallery_encoder=TEACHER)
    assert both.figures == alone.figures and both.query_ids == alone.query_ids
    asked = evaluate(TEACHER, images, queries=images, gallery_encoder=TEACHER)
    assert asked.figures == evaluate(TEACHER, images, queries=images).figures


def test_what_one_side_cannot_read_is_left_out(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def loses_one(encoder: Encoder, items: Items, *args: Any, **options: Any) -> Any:
        calls.append(encoder)
        if len(calls) < 2:
            return embed_rows(encoder, items, *args, **options)
        others = [item for item in items if item.id != "b/2.png"]
        kept, vectors, _ = embed_rows(encoder, others, *args, **options)
        return kept, vectors, [Skipped("b/2.png", "of another kind")]

    monkeypatch.setattr(sys.modules["whiten.evaluation.evaluate"], "embed_rows", loses_one)
    found = evaluate(TEACHER, images, gallery_encoder=TEACHER)
    assert (found.gallery_size, len(found.query_ids)) == (15, 15)
    assert [skip.id for skip in found.skipped] == ["b/2.png"]
    monkeypatch.undo()
    (images / "b" / "2.png").unlink()
    assert found.figures == evaluate(TEACHER, images).figures


@pytest.mark.slow
def test_a_student_that_learns_on_without_it_leaves_the_gallery(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = distil(images, tmp_path / "run", monkeypatch)
    more = {"student": f"whiten:{run.student}", "compatible": False}
    later, _ = distil(images, tmp_path / "later", monkeypatch, **more)
    assert whiten.load(later.root).parts[0].teacher.compatible_with == ()


@pytest.mark.slow
def test_a_finished_student_is_turned_towards_the_gallery(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = distil(images, tmp_path / "plain", monkeypatch, compatible=False)
    still = {"student": f"whiten:{plain.student}", "lr": 1e-9}
    turned, targets = distil(images, tmp_path / "turned", monkeypatch, **still)
    paths = [item.path for item in find_items(images)]
    before, after = (whiten.load(run.root).embed(paths) for run in (plain, turned))
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-4)
    assert (after * targets).sum() > (before * targets).sum()
    assert whiten.load(turned.root).can_query(
        whiten.load(f"fuse:compatible:{turned.root}").fingerprint()
    )


def test_turning_the_start_brings_it_nearer_and_changes_no_similarity() -> None:
    net, _ = build_student(STUDENT, dim=6)
    generator = np.random.default_rng(0)
    width = net.projection.in_features
    features = generator.standard_normal((40, width)).astype(np.float32)
    targets = generator.standard_normal((40, 6)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)

    def embed() -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = net.projection(torch.from_numpy(features))
        return out

    before = embed()
    net.turn_projection(features, targets)
    after = embed()
    torch.testing.assert_close(after @ after.T, before @ before.T, atol=1e-4, rtol=1e-4)
    wanted = torch.from_numpy(targets)
    assert alignment_loss(after, wanted) < alignment_loss(before, wanted)
    # No small rotation of it is nearer.
    for seed in range(5):
        angle = 0.05 * torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
        turned = after @ torch.matrix_exp(angle - angle.T)
        assert alignment_loss(turned, wanted) > alignment_loss(after, wanted)
    # Targets that are a rotation of the embeddings are met.
    net.turn_projection(features, torch.nn.functional.normalize(before, dim=1).numpy())
    torch.testing.assert_close(embed(), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_adds_one_term_to_any_recipe(recipe: str) -> None:
    options = {"teachers": TEACHERS, "recipe": recipe}
    plain, _ = complete(DistillSpec.from_mapping(options), "groups")
    asked = DistillSpec.from_mapping({**options, "compatible": True})
    full, why = complete(asked, "groups")
    assert full == dataclasses.replace(plain, align=COMPATIBLE, compatible=True)
    assert re.search(r"\balign\b", why)
    weighed, _ = complete(dataclasses.replace(asked, align=0.5), "groups")
    assert weighed.align == 0.5
