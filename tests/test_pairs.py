"""Pairs: right ones, no false negatives, the same every time."""

from __future__ import annotations

from collections import Counter

import pytest

from whiten.distillation.pairs import plan_pairs
from whiten.errors import ConfigError

SIZES = [2, 3, 4, 4, 7, 12]
GROUPS = [f"g{g}" for g, size in enumerate(SIZES) for _ in range(size)]
CONTENTS = [str(i) for i in range(len(GROUPS))]


def test_groups_make_pairs_of_two_items_of_a_group() -> None:
    plan = plan_pairs(GROUPS, CONTENTS, batch_size=3)
    assert plan.source == "groups"
    for epoch in range(5):
        for batch in plan.epoch(epoch):
            assert len(batch) == 3
            groups = [GROUPS[pair.x] for pair in batch]
            assert len(set(groups)) == len(groups)  # no false negatives
            assert all(GROUPS[p.x] == GROUPS[p.y] and p.x != p.y for p in batch)


def test_an_epoch_uses_images_at_most_once_and_large_groups_more() -> None:
    plan = plan_pairs(GROUPS, CONTENTS, batch_size=2)
    pairs = [pair for batch in plan.epoch(0) for pair in batch]
    used = Counter(i for pair in pairs for i in (pair.x, pair.y))
    assert max(used.values()) == 1
    per_group = Counter(GROUPS[pair.x] for pair in pairs)
    assert per_group["g5"] > per_group["g0"]
    # 15 pairs can be made; taking large groups first leaves at most one behind.
    assert len(pairs) >= 14


def test_views_make_pairs_of_one_image_in_two_views() -> None:
    plan = plan_pairs([None] * 50, [str(i) for i in range(50)], views=3, batch_size=16)
    assert plan.source == "views"
    batches = plan.epoch(0)
    assert [len(batch) for batch in batches] == [16, 16, 16]
    for batch in batches:
        assert all(p.x == p.y and p.x_view != p.y_view for p in batch)
    seen = Counter(v for b in batches for p in b for v in (p.x_view, p.y_view))
    assert set(seen) == {0, 1, 2}


def test_copies_never_meet_as_negatives() -> None:
    contents = [str(i // 2) for i in range(40)]  # every content twice
    plan = plan_pairs([None] * 40, contents, views=2, batch_size=8)
    assert plan.classes == 20
    for batch in plan.epoch(0):
        used = [contents[pair.x] for pair in batch]
        assert len(set(used)) == len(used)


def test_epochs_differ_and_repeat() -> None:
    one, other = (plan_pairs(GROUPS, CONTENTS, batch_size=3, seed=s) for s in (1, 2))
    again = plan_pairs(GROUPS, CONTENTS, batch_size=3, seed=1)
    assert list(one.epoch(4)) == list(again.epoch(4))
    assert list(one.epoch(4)) != list(one.epoch(5))
    assert list(one.epoch(4)) != list(other.epoch(4))
    # Resuming counts steps, so all epochs must be of one length.
    assert len({len(one.epoch(e)) for e in range(20)}) == 1


def test_batches_divide_among_processes() -> None:
    plan = plan_pairs(GROUPS, CONTENTS, batch_size=6, processes=4)
    assert plan.batch_size == 4


def test_auto_takes_groups_only_where_there_are_any() -> None:
    ungrouped = plan_pairs([None] * 6, CONTENTS[:6], views=2)
    assert ungrouped.source == "views"
    assert plan_pairs(GROUPS, CONTENTS).source == "groups"
    assert plan_pairs(GROUPS, CONTENTS, source="views", views=2).source == "views"


@pytest.mark.parametrize("source", ["auto", "groups"])
def test_one_group_is_refused_with_the_remedy(source: str) -> None:
    with pytest.raises(ConfigError, match=r"at least 2 groups.*--pairs views"):
        plan_pairs(["a"] * 9, CONTENTS[:9], source=source)


def test_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="views 2"):
        plan_pairs([None] * 9, CONTENTS[:9], source="views", views=1)
    with pytest.raises(ConfigError, match="too few"):
        plan_pairs([None] * 9, ["same"] * 9, source="views", views=2)


def test_mixed_batches_hold_groups_and_single_images() -> None:
    groups = GROUPS + [None] * 40
    plan = plan_pairs(groups, [str(i) for i in range(len(groups))], views=2, batch_size=8)
    assert plan.source == "mixed"
    batches = plan.epoch(3)
    assert len(batches) == 40 // 4  # every single image once, groups as often as needed
    for batch in batches:
        labelled = [pair for pair in batch if pair.label < plan.grouped]
        assert len(labelled) == 4
        assert all(groups[p.x] == groups[p.y] and p.x != p.y for p in labelled)
        assert all(p.x == p.y and p.x_view != p.y_view for p in batch if p not in labelled)
        assert len({p.label for p in batch}) == len(batch)


def test_a_class_may_give_several_pairs_to_a_batch() -> None:
    plan = plan_pairs(GROUPS, CONTENTS, batch_size=4, pairs_per_class=2)
    for batch in plan.epoch(0):
        assert len(batch) == 4
        assert max(Counter(pair.label for pair in batch).values()) == 2
        assert all(GROUPS[p.x] == GROUPS[p.y] for p in batch)


def test_few_labels_never_leave_a_mixed_epoch_waiting() -> None:
    groups = ["a", "a", "b", "b", *[None] * 30]
    contents = [str(i) for i in range(len(groups))]
    plan = plan_pairs(groups, contents, views=2, batch_size=16, pairs_per_class=2)
    assert [len(batch) for batch in plan.epoch(0)] == [16, 16]


def test_a_few_strays_do_not_cost_a_second_view() -> None:
    assert plan_pairs([*GROUPS, None], [*CONTENTS, "stray"]).source == "groups"


def test_a_mixed_batch_has_room_for_the_only_single_image() -> None:
    groups = [*(f"g{n // 2}" for n in range(40)), None]
    contents = [str(i) for i in range(len(groups))]
    plan = plan_pairs(groups, contents, source="mixed", views=2, batch_size=4)
    [batch] = plan.epoch(0)
    assert [pair.label < plan.grouped for pair in batch].count(False) == 1


def test_frames_are_one_image_of_each_group_in_two_views() -> None:
    groups = [*GROUPS, None, None]
    contents = [*CONTENTS, "stray", "stray"]
    plan = plan_pairs(groups, contents, source="frames", views=2, batch_size=7)
    assert (plan.source, plan.classes) == ("views", 7)  # the strays are copies
    seen = set()
    for epoch in range(60):
        [batch] = plan.epoch(epoch)
        assert all(p.x == p.y and {p.x_view, p.y_view} == {0, 1} for p in batch)
        assert len({groups[p.x] for p in batch}) == 7
        seen |= {pair.x for pair in batch}
    assert seen == set(range(len(groups)))  # each epoch another image of the group


def test_views_may_be_one_even_and_one_odd() -> None:
    plain = {"source": "views", "views": 6, "batch_size": 8}
    contents = [str(i) for i in range(64)]
    plan = plan_pairs([None] * 64, contents, **plain, opposite_views=True)
    pairs = [pair for epoch in range(6) for batch in plan.epoch(epoch) for pair in batch]
    assert all((p.x_view + p.y_view) % 2 == 1 for p in pairs)
    assert {(p.x_view, p.y_view) for p in pairs} == {
        (x, y) for x in range(6) for y in range(6) if (x + y) % 2
    }
    with pytest.raises(ConfigError, match="an even number of --views, not 3"):
        plan_pairs([None] * 9, CONTENTS[:9], source="views", views=3, opposite_views=True)


@pytest.mark.parametrize("pairs_per_class", [1, 2])
def test_who_meets_whom_is_drawn_anew_in_every_epoch(pairs_per_class: int) -> None:
    sizes = [8, 6, 4, *[2] * 40]  # large groups come first, and small ones fill their batches
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    contents = [str(i) for i in range(len(groups))]
    plan = plan_pairs(groups, contents, batch_size=8, pairs_per_class=pairs_per_class)
    met: Counter[int] = Counter()
    for epoch in range(60):
        for batch in plan.epoch(epoch):
            labels = {pair.label for pair in batch}
            if 0 in labels:
                met.update(label for label in labels if label > 2)
    assert set(met) == set(range(3, 43))
    assert max(met.values()) < 4 * min(met.values()) + 10


def test_a_group_gives_as_many_pairs_to_an_epoch_as_asked() -> None:
    plan = plan_pairs(GROUPS, CONTENTS, batch_size=3, pairs_per_epoch=1)
    met: dict[str, set[tuple[int, int]]] = {group: set() for group in GROUPS}
    for number in range(30):
        pairs = [pair for batch in plan.epoch(number) for pair in batch]
        assert len(pairs) == len(SIZES)  # 6 groups in 2 batches
        assert sorted(GROUPS[pair.x] for pair in pairs) == sorted(met)
        for pair in pairs:
            met[GROUPS[pair.x]].add((pair.x, pair.y))
    assert len(met["g5"]) > 20  # drawn from all of its images, anew in every epoch
    assert plan_pairs(GROUPS, CONTENTS, batch_size=64, pairs_per_epoch=1).batch_size == 6


def test_a_mixed_epoch_counts_no_rounds_that_it_does_not_draw() -> None:
    groups = [f"g{n // 2}" for n in range(200)] + [None] * 300
    contents = [str(n) for n in range(500)]
    one, more = (plan_pairs(groups, contents, views=8, rounds=rounds) for rounds in (1, 4))
    assert more.source == "mixed"
    assert (more.batch_size, more.batches_per_epoch) == (one.batch_size, one.batches_per_epoch)
    assert more.batches_per_epoch >= 16
