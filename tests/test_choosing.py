"""The whitening that chooses itself finds the right end of the knob, and says how."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from whiten.errors import WhiteningError
from whiten.utils.arrays import normalize_rows
from whiten.whitening.choosing import (
    GROUPS,
    NEIGHBOURS,
    VIEWS,
    choose,
    choose_whitening,
    sample_rows,
)

DIMS, D, MEMBERS = (8, 16, 32), 32, 4


def embeddings(groups: int, *, seed: int = 0, nuisance: float, view: int = 0) -> np.ndarray:
    """Groups along all axes alike, and a nuisance of any strength along four of them.

    With much nuisance whitening helps: it silences the strong axes. With axes that hold noise alone
    it hurts: it raises them to the others' height.
    """
    rng = np.random.default_rng([1, groups])
    centres = rng.normal(size=(groups, D))
    noise = np.random.default_rng([2, seed, view])
    points = np.repeat(centres, MEMBERS, axis=0)
    points = points + 0.9 * noise.normal(size=points.shape)
    if nuisance:
        points[:, :4] += nuisance * noise.normal(size=(len(points), 4))
    else:
        points[:, 12:] = 0.1 * noise.normal(size=(len(points), D - 12))
    return normalize_rows((points + 3).astype(np.float32))


def names(groups: int) -> list[str]:
    return [f"g{i // MEMBERS}" for i in range(groups * MEMBERS)]


@pytest.mark.parametrize(("nuisance", "wants_whitening"), [(15.0, True), (0.0, False)])
def test_held_out_groups_find_the_right_end(nuisance: float, wants_whitening: bool) -> None:
    found = embeddings(250, nuisance=nuisance)
    whitener, choice = choose_whitening(found, groups=names(250), dims=DIMS)
    assert choice.criterion == f"mAP on {GROUPS}"
    assert choice.shrinkage <= 1 if wants_whitening else choice.shrinkage >= 1
    assert whitener.shrinkage == choice.shrinkage
    assert whitener.projection_.shape == (choice.dim, D)
    scores = np.array(choice.scores)
    assert scores.shape == (len(choice.dims), len(choice.shrinkages))
    chosen = scores[choice.dims.index(choice.dim), choice.shrinkages.index(choice.shrinkage)]
    assert chosen > scores.max() - 0.01
    assert choice.evidence == {GROUPS: pytest.approx(chosen, abs=1e-5)}
    # The other end is clearly worse: the choice mattered.
    assert chosen > scores[:, -1 if wants_whitening else 0].max() + 0.02


@pytest.mark.parametrize(("nuisance", "wants_whitening"), [(15.0, True), (0.0, False)])
def test_other_teachers_stand_in_for_groups(nuisance: float, wants_whitening: bool) -> None:
    teachers = [embeddings(250, nuisance=nuisance, seed=s) for s in range(3)]
    choice = choose(teachers[0], others=teachers[1:], dims=DIMS)
    assert choice.criterion == f"mAP on {NEIGHBOURS}"
    assert choice.shrinkage <= 3 if wants_whitening else choice.shrinkage >= 1


@pytest.mark.parametrize("seed", range(3))
def test_little_evidence_changes_little(seed: int) -> None:
    found = embeddings(10, nuisance=0.5, seed=seed)
    choice = choose(found, groups=names(10), dims=DIMS)
    assert 0.1 <= choice.shrinkage <= 10


def test_one_teacher_without_groups_uses_two_views() -> None:
    first = embeddings(100, nuisance=5.0)
    second = first + 0.05 * np.random.default_rng(0).normal(size=first.shape).astype(np.float32)
    choice = choose(first, second_views=second, dims=DIMS)
    assert choice.criterion == f"mAP on {VIEWS}"
    assert choice.scores


@pytest.mark.filterwarnings("ignore:whitening .* dimensions on")
@pytest.mark.parametrize("n", [2, 3, 5, 9, 24])
def test_very_few_images_get_a_whitening_all_the_same(n: int) -> None:
    whitener, choice = choose_whitening(embeddings(10, nuisance=1.0)[:n], groups=names(10)[:n])
    assert choice.dim < n
    assert np.isfinite(whitener.transform(embeddings(10, nuisance=1.0))).all()
    assert "shrinkage" in str(choice)


def test_one_image_is_refused() -> None:
    with pytest.raises(WhiteningError, match="give more images"):
        choose_whitening(np.ones((1, 4), np.float32))


def test_the_choice_is_the_same_every_time() -> None:
    found = embeddings(60, nuisance=4.0)
    one, two = (choose(found, groups=names(60), dims=DIMS, seed=3) for _ in range(2))
    assert one == two


def test_a_sample_holds_whole_groups() -> None:
    groups = [f"g{i % 3000}" for i in range(9000)]
    rows = sample_rows(9000, groups, seed=0)
    counts = np.unique([groups[row] for row in rows], return_counts=True)[1]
    assert len(rows) == 4096
    assert (counts == 3).sum() >= 1365
    assert (np.diff(rows) > 0).all()


def test_ungrouped_images_are_distractors() -> None:
    found = embeddings(60, nuisance=4.0)
    groups: list[str | None] = [*names(60)[:120], *[None] * 120]
    choice = choose(found, groups=groups, dims=DIMS)
    assert choice.criterion == f"mAP on {GROUPS}"
    assert math.isfinite(max(map(max, choice.scores)))


@pytest.mark.parametrize("name", ["groups", "others", "second_views"])
def test_what_describes_other_rows_is_refused(name: str) -> None:
    """Three labels for 500 rows once gave a whitening of the first three rows: two axes."""
    found = embeddings(125, nuisance=1.0)
    given = {"groups": ["a", "b", "c"], "others": [found[:3]], "second_views": found[:3]}[name]
    with pytest.raises(WhiteningError, match=f"{name} has 3 rows for 500 embeddings"):
        choose_whitening(found, **{name: given})


def test_few_groups_keep_all_axes() -> None:
    """Three groups are too few to hold one out; the whitening is the default, not one of groups."""
    found = embeddings(125, nuisance=1.0)
    whitener, choice = choose_whitening(found, groups=[f"g{i % 3}" for i in range(500)], dims=DIMS)
    assert (choice.dim, len(whitener.projection_)) == (32, 32)
    assert not choice.scores


def test_labels_of_any_type_are_the_same_groups() -> None:
    found = embeddings(60, nuisance=4.0)
    codes = [None if i % 7 == 0 else i // MEMBERS for i in range(240)]
    expected = choose_whitening(
        found, groups=[None if code is None else f"g{code}" for code in codes], dims=DIMS
    )[1]
    assert expected.scores
    floats = np.array([np.nan if code is None else code for code in codes])
    masked = np.ma.masked_invalid(floats)
    given = [codes, floats, masked, list(floats), tuple(codes), pa.array(codes), np.array(codes)]
    given.append(pa.chunked_array([codes[:9], codes[9:]]))
    with contextlib.suppress(ImportError):
        import pandas as pd

        given += [
            pd.Series(codes, index=range(1000, 1240)),
            pd.Series(codes, dtype="Int64"),
            pd.Series(codes).astype("category"),
            pd.Categorical([None if code is None else f"g{code}" for code in codes]),
            pd.Index([None if code is None else f"g{code}" for code in codes]),
        ]
    for groups in given:
        assert choose_whitening(found, groups=groups, dims=DIMS)[1] == expected, type(groups)


def test_embeddings_of_any_kind() -> None:
    found, groups = embeddings(20, nuisance=15.0), names(20)
    other = embeddings(20, nuisance=0.0)
    expected = choose_whitening(found, groups=groups, others=[other], dims=DIMS)[1]
    for convert in (torch.from_numpy, list, np.ndarray.tolist):
        given = {"others": [convert(other)], "groups": groups, "dims": DIMS}
        choice = choose_whitening(convert(found), **given)[1]
        assert (choice.shrinkage, choice.dim) == (expected.shrinkage, expected.dim), convert
