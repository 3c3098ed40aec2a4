"""The start in closed form, and what held-out images measure."""

from __future__ import annotations

import numpy as np
import pytest

import whiten
from small_runs import spec
from whiten.distillation.held_out import ENOUGH, FEWEST, HeldOut, hold_out, without_trained
from whiten.distillation.mix import choose_mix, criterion_of
from whiten.distillation.pairs import enough_views, plan_pairs
from whiten.distillation.ridge import Head, Ridge, whitenings
from whiten.errors import ConfigError
from whiten.retrieval.held_out import BY_GROUPS_AND_CROPS
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
    joined = Head.concatenated(heads)
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


def test_crops_count_as_much_as_whole_images_in_finding_their_group() -> None:
    teachers = normalize_rows(RNG.normal(size=(40, 6)))
    held_out = HeldOut.of(teachers, [f"g{i // 4}" for i in range(40)], has_crops=True)
    assert held_out.criterion == BY_GROUPS_AND_CROPS
    grouped = np.repeat(np.eye(10), 4, axis=0)
    assert held_out.score(grouped) == pytest.approx(1)  # a start that leaves nothing to gain …
    lost = RNG.normal(size=(40, 2, 10))
    worse = held_out.score(grouped, lost)
    assert 0.5 < worse < 0.8  # … but for its crops
    assert worse < held_out.score(grouped, np.stack([grouped, lost[:, 0]], axis=1)) < 1
    own = np.stack([grouped, grouped], axis=1)
    assert held_out.score(grouped, own) == pytest.approx(1)
    assert held_out.score(grouped, np.roll(own, 1, axis=0)) < 1  # some look like other groups


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


def test_the_users_own_images_are_half_of_what_features_are_whitened_by() -> None:
    features = RNG.normal(size=(360, 2, 8)).astype(np.float32)
    teachers = normalize_rows(features @ RNG.normal(size=(8, 12))).astype(np.float32)
    features[120:, :, 4:] *= 50  # a transfer set that differs where the user's images do not
    own = np.arange(360) < 120
    found, _ = choose_mix(features, [teachers], None, spec(start_weight=0.5), mine=own)
    balanced = np.concatenate([features[own], features[own], features[~own]]).reshape(-1, 8)
    expected = whitenings(balanced, spec().dim, [0.3])[0.3]
    np.testing.assert_allclose(found.own.weight, expected.weight, rtol=1e-5, atol=1e-7)
    alone, _ = choose_mix(features[own], [teachers[own]], None, spec(start_weight=0.5))
    expected = whitenings(features[own].reshape(-1, 8), spec().dim, [0.3])[0.3]
    np.testing.assert_allclose(alone.own.weight, expected.weight)


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
