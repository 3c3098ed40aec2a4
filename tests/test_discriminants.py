"""Discriminants of groups: a start in closed form where groups say what is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import write_groups
from small_runs import OPTIONS, TEACHERS, spec
from whiten.distillation import start
from whiten.distillation.discriminants import (
    choose_discriminants,
    discriminants,
    draw_groups,
)
from whiten.distillation.distill import distill
from whiten.distillation.mix import Mix, choose_mix
from whiten.distillation.ridge import Head, whitenings
from whiten.models.student import load_student
from whiten.runs.folder import RunFolder
from whiten.utils.arrays import Vectors

RNG = np.random.default_rng(0)


def hidden_groups() -> tuple[np.ndarray, np.ndarray]:
    """300 images of 100 groups, whose means differ along three axes of the least variance."""
    codes = np.repeat(np.arange(100), 3)
    features = RNG.normal(size=(300, 2, 12)) * ([0.1] * 3 + [1.0] * 9)
    features[..., :3] += RNG.normal(size=(100, 3))[codes, None]
    features[..., 3:] *= 5
    return features.astype(np.float32), codes


def test_discriminants_find_what_tells_groups_apart() -> None:
    features, codes = hidden_groups()
    head = discriminants(features, codes, 3, [1e-6])[1e-6]
    found = head(features[:, 0])
    assert np.sqrt((head(features.reshape(-1, 12)) ** 2).sum(axis=1).mean()) == pytest.approx(1)
    share = np.square(head.weight[:, :3]).sum() / np.square(head.weight).sum()
    assert share > 0.95
    apart = found - np.stack([found[codes == code].mean(axis=0) for code in codes])
    within = apart.T @ apart / len(apart)
    np.testing.assert_allclose(within, np.eye(3) * within[0, 0], atol=1e-3 * within[0, 0])
    strong = discriminants(features, codes, 12, [1e9])[1e9]  # that much leaves principal axes
    axes = whitenings(features.reshape(-1, 12), 12, [float("inf")])[float("inf")]
    np.testing.assert_allclose(
        strong(features[:, 0]) @ strong(features[:, 0]).T,
        axes(features[:, 0]) @ axes(features[:, 0]).T,
        rtol=1e-3,
        atol=1e-4,
    )


def test_images_without_groups_tell_discriminants_nothing() -> None:
    features, codes = hidden_groups()
    assert discriminants(features, np.arange(300), 3, [0.1]) == {}
    assert discriminants(features, np.full(300, -1), 3, [0.1]) == {}
    alone = np.where(np.arange(300) < 150, codes, -1)
    one, two = (
        discriminants(features, c, 3, [0.1])[0.1]
        for c in (alone, np.where(alone < 0, 1000 + np.arange(300), alone))
    )
    np.testing.assert_allclose(one.weight, two.weight)


def test_groups_of_copies_tell_discriminants_nothing() -> None:
    features, codes = hidden_groups()
    copies = features[np.arange(0, 300, 3)].repeat(3, axis=0)
    assert discriminants(copies, codes, 3, [0.1]) == {}
    names = [f"g{code}" for code in codes]
    assert choose_discriminants(copies, names, spec(), {"ridge": 0.1}) is None


def test_too_few_groups_to_measure_by_choose_no_discriminants() -> None:
    features, _ = hidden_groups()
    for count, is_enough in ((16, True), (15, False)):  # four in each fold, or three in one
        names = [f"g{row % count}" for row in range(300)]
        chosen = choose_discriminants(features, names, spec(), {"ridge": -1.0})
        assert (chosen is not None) == is_enough


def test_groups_that_teachers_know_nothing_of_are_learnt_by_discriminants() -> None:
    features, codes = hidden_groups()
    names = [f"g{code}" for code in codes]
    teachers = [RNG.normal(size=(300, 2, 12)).astype(np.float32)]
    mix, scores = choose_mix(features, teachers, names, spec())
    chosen = choose_discriminants(features, names, spec(), scores)
    assert chosen is not None
    assert chosen.score > 1.5 * scores[mix.name]
    assert len(chosen.head.weight) == min(spec().dim, 12)
    for none in (
        choose_discriminants(features, names, spec(compatible=True), scores),
        choose_discriminants(features, names, spec(start_weight=0.5), scores),
        choose_discriminants(features, names, spec(), {}),  # too few images to choose on
        choose_discriminants(features, names, spec(), {"ridge": chosen.score}),
        choose_discriminants(features, None, spec(), scores),
        choose_discriminants(features, [f"g{code}" for code in range(300)], spec(), scores),
    ):
        assert none is None


def test_groups_are_drawn_whole_but_for_large_ones() -> None:
    codes = RNG.permutation(np.repeat(np.arange(1000), 4))
    rows = draw_groups(codes, 2048, 0)
    assert len(rows) == 2048
    assert np.all(np.diff(rows) > 0)
    assert set(np.bincount(codes[rows])) == {0, 4}
    large = np.repeat(np.arange(3), 4000)
    assert np.bincount(large[draw_groups(large, 2048, 0)]).min() > 600
    assert len(np.unique(draw_groups(np.full(4000, -1), 2048, 0))) == 2048
    np.testing.assert_array_equal(draw_groups(codes, 9999, 0), np.arange(4000))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_student_that_is_not_trained_has_the_discriminants(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(features: Vectors, *_: Any, **__: Any) -> tuple[Mix, dict[str, float]]:
        """A mix that takes all images for the same."""
        head = Head(np.zeros((16, features.shape[2])), np.ones(16))
        return Mix("nothing", 0.0, head, head), {"nothing": 0.1}

    monkeypatch.setattr(start, "choose_mix", nothing)
    images = write_groups(tmp_path / "images", dict.fromkeys([f"g{k}" for k in range(30)], 4))
    options = {**OPTIONS, "student": TEACHERS[0], "start": "ridge", "held_out": 0.2, "lr": 1e-9}
    options["epochs"] = epochs
    result = distill(images, TEACHERS, tmp_path / "run", show_progress=False, **options)
    run = RunFolder(result.out)
    measured = load_student(run.student)[1].training["measured"]
    assert ("discriminants" in measured["start"]) == (epochs == 0)
    assert ("discriminants of groups" in result.gain) == (epochs == 0)
    assert measured["scores"][measured["start"]] > 0.6 or epochs  # 0.3 without any difference
    student = load_file(run.student / "model.safetensors")
    for key, value in load_file(run.start).items():
        torch.testing.assert_close(student[f"projection.{key}"], value)
