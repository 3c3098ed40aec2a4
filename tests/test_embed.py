"""Embedding collections: resumed runs equal uninterrupted ones, bad images are counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from counting_teacher import contents, make_teacher, plain, seen, spoil
from store_helpers import content_hashes
from whiten.datasets.finding import find_items
from whiten.embedding import begun, row_makers
from whiten.embedding import embed as embed_module
from whiten.embedding.embed import embed
from whiten.errors import ConfigError, NoImagesError, StoreError, TeacherError
from whiten.models.sources import stored
from whiten.models.uri import parse_uri
from whiten.store.store import Store
from whiten.utils.hashing import content_hash
from whiten.views.plan import ViewPlan

ImageFolder = Callable[..., Path]


# --- what is stored ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_embeddings_equal_a_plain_loop(mixed_images: Path, tmp_path: Path, workers: int) -> None:
    items, plan = find_items(mixed_images), ViewPlan(seed=5)
    store = embed(
        items, make_teacher(), tmp_path / "s", views=(0, 1, 2), plan=plan, workers=workers
    )
    for view in (0, 1, 2):
        expected = plain(make_teacher(), items, view, plan)
        np.testing.assert_allclose(store.gather([i.id for i in items], view), expected, atol=1e-5)
    assert np.abs(store.gather([items[0].id], 0) - store.gather([items[0].id], 1)).max() > 1e-3
    assert content_hashes(store) == {i.id: content_hash(Path(i.path).read_bytes()) for i in items}
    assert store.origin.plan == plan.fingerprint()


def test_float16_halves_the_vectors(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    ids = [item.id for item in items]
    half = embed(items, make_teacher(), tmp_path / "h", dtype="float16").gather(ids)
    full = embed(items, make_teacher(), tmp_path / "f").gather(ids)
    assert np.array_equal(half, full.astype(np.float16).astype(np.float32))
    with pytest.raises(ConfigError, match="float32 or float16"):
        embed(items, make_teacher(), tmp_path / "x", dtype="int8")
    assert not (tmp_path / "x").exists()


def test_progress_counts_rows(mixed_images: Path, tmp_path: Path, small_shards: None) -> None:
    calls: list[tuple[int, int]] = []
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s", views=(0, 1), progress=lambda *n: calls.append(n))
    assert calls[-1] == (24, 24)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {planned for _, planned in calls} == {24}


def test_precision_is_that_of_the_store(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    embed(items[:2], make_teacher(), tmp_path / "s", precision="bf16")
    assert embed(items, make_teacher(), tmp_path / "s").origin.precision == "bf16"
    with pytest.raises(StoreError, match="another precision, bf16, not 32"):
        embed(items, make_teacher(), tmp_path / "s", precision="32")


@pytest.mark.parametrize("gains", [True, False])
def test_precision_is_chosen_by_what_is_faster(
    mixed_images: Path, tmp_path: Path, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "computes_faster_in_bf16", lambda module, device: gains)
    items = find_items(mixed_images)
    chosen, other = ("bf16", "32") if gains else ("32", "bf16")
    store = embed(items, make_teacher(), tmp_path / "new", precision="auto")
    assert store.origin.precision == chosen
    embed(items[:2], make_teacher(), tmp_path / "old", precision=other)
    store = embed(items, make_teacher(), tmp_path / "old", precision="auto")
    assert store.origin.precision == other


# --- bad images -------------------------------------------------------------------------------


def test_bad_images_are_skipped_with_reasons(mixed_images: Path, tmp_path: Path) -> None:
    reasons = spoil(mixed_images)
    items = find_items(mixed_images)
    store = embed(items, make_teacher(), tmp_path / "s", views=(0, 1))
    assert len(items) == 16
    assert len(store) == 24
    assert {s.id: s.reason for s in store.skipped}.keys() == reasons.keys()
    for skip in store.skipped:
        assert skip.reason.startswith(reasons[skip.id])
    good = [item for item in items if item.id not in reasons]
    expected = plain(make_teacher(), good, 0, ViewPlan())
    np.testing.assert_allclose(store.gather([i.id for i in good]), expected, atol=1e-5)

    before = contents(tmp_path / "s")
    teacher = make_teacher()
    again = embed(items, teacher, tmp_path / "s", views=(0, 1))
    assert seen(teacher) == 0
    assert contents(tmp_path / "s") == before
    assert len(again.skipped) == 4


def test_no_readable_image(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("text")
    items = find_items(tmp_path)
    for _ in range(2):
        with pytest.raises(
            NoImagesError, match=r"none of 2 images .* first 'a\.jpg': not an image"
        ):
            embed(items, make_teacher(), tmp_path / "s")
    with pytest.raises(NoImagesError, match="no images"):
        embed([], make_teacher(), tmp_path / "t")


# --- going on ---------------------------------------------------------------------------------


def test_only_missing_views_are_computed(mixed_images: Path, tmp_path: Path) -> None:
    items, ids = find_items(mixed_images), [item.id for item in find_items(mixed_images)]
    first, second = make_teacher(), make_teacher()
    embed(items, first, tmp_path / "s", views=range(2))
    assert seen(first) == 24
    store = embed(items, second, tmp_path / "s", views=range(3))
    assert seen(second) == 12
    at_once = embed(items, make_teacher(), tmp_path / "t", views=range(3))
    for view in range(3):
        np.testing.assert_allclose(store.gather(ids, view), at_once.gather(ids, view), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_interrupted_shard_goes_on_where_it_was(
    mixed_images: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begun, "SECONDS", 0.0)
    monkeypatch.setattr(row_makers, "BATCH", 4)
    spoil(mixed_images)
    shutil.copy(mixed_images / find_items(mixed_images)[0].id, mixed_images / "zz-again.png")
    items = find_items(mixed_images)
    options: dict[str, Any] = {"views": (0, 1), "dtype": dtype}
    whole = make_teacher()
    embed(items, whole, tmp_path / "whole", **options)

    def interrupt(done: int, _planned: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    first, second, third = make_teacher(), make_teacher(), make_teacher()
    with pytest.raises(KeyboardInterrupt):
        embed(items, first, tmp_path / "s", progress=interrupt, **options)
    assert [path.name for path in (tmp_path / "s").iterdir()] == [begun.NAME]
    shutil.copytree(tmp_path / "s", tmp_path / "changed")
    counts: list[int] = []
    embed(items, second, tmp_path / "s", progress=lambda n, _: counts.append(n), **options)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    assert 0 < seen(first) < seen(whole)
    assert seen(first) + seen(second) == seen(whole)
    assert counts[-1] == 2 * len(items)
    # What differs begins anew.
    name = items[0].path
    Image.new("RGB", (40, 30), "teal").save(name)
    embed(items, third, tmp_path / "changed", **options)
    embed(items, make_teacher(), tmp_path / "other", **options)
    assert contents(tmp_path / "changed") == contents(tmp_path / "other")


@pytest.mark.parametrize("damage", [b"", b"PAR1 half a shard"])
def test_a_damaged_beginning_is_begun_anew(
    mixed_images: Path, tmp_path: Path, damage: bytes
) -> None:
    items = find_items(mixed_images)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / begun.NAME).write_bytes(damage)
    embed(items, make_teacher(), tmp_path / "s")
    embed(items, make_teacher(), tmp_path / "t")
    assert contents(tmp_path / "s") == contents(tmp_path / "t")


def test_new_images_are_added(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    embed(items[:9], make_teacher(), tmp_path / "s")
    before = contents(tmp_path / "s")
    teacher = make_teacher()
    store = embed(items, teacher, tmp_path / "s")
    assert seen(teacher) == 3
    assert contents(tmp_path / "s").items() > before.items()
    expected = plain(make_teacher(), items, 0, ViewPlan())
    np.testing.assert_allclose(store.gather([i.id for i in items]), expected, atol=1e-5)


@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("stops", [[1], [4], [5], [6, 1, 4], [11], [2, 2, 2], [12]])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    mixed_images: Path, tmp_path: Path, small_shards: None, stops: list[int], spoiled: bool
) -> None:
    if spoiled:
        spoil(mixed_images)
    items = find_items(mixed_images)
    options: dict[str, Any] = {"views": (0, 1), "plan": ViewPlan(seed=2)}
    embed(items, make_teacher(), tmp_path / "whole", **options)
    assert len(contents(tmp_path / "whole")) >= 6

    for stop in stops:
        calls = 0

        def interrupt(done: int, planned: int, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt

        try:
            embed(items, make_teacher(), tmp_path / "parts", progress=interrupt, **options)
        except KeyboardInterrupt:
            written = contents(tmp_path / "parts")
            assert written.items() <= contents(tmp_path / "whole").items()
        else:
            raise AssertionError("was not interrupted")
    embed(items, make_teacher(), tmp_path / "parts", **options)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_another_model_or_plan_is_refused(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "s", views=(0, 1), plan=ViewPlan(seed=1))
    before = contents(tmp_path / "s")
    with pytest.raises(StoreError, match="another model, python:tests:conv0"):
        embed(items, make_teacher(1), tmp_path / "s", plan=ViewPlan(seed=1))
    with pytest.raises(StoreError, match="another view plan"):
        embed(items, make_teacher(), tmp_path / "s", views=(0, 1), plan=ViewPlan(seed=2))
    assert contents(tmp_path / "s") == before
    embed(items, make_teacher(), tmp_path / "s", plan=ViewPlan(seed=2))  # whole images only
    assert contents(tmp_path / "s") == before


# --- teachers that hold embeddings ------------------------------------------------------------


def test_a_store_teaches_by_content(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    source = embed(items, make_teacher(), tmp_path / "source")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, item in enumerate(items):
        shutil.copy(item.path, renamed / f"{number:02d}{Path(item.path).suffix}")
    Image.new("RGB", (9, 9)).save(renamed / "99.png")
    teacher = stored.open_uri(parse_uri(f"store:{tmp_path / 'source'}"))
    store = embed(find_items(renamed), teacher, tmp_path / "s")
    ids = [i.id for i in find_items(renamed)]
    assert np.array_equal(store.gather(ids[:-1]), source.gather([i.id for i in items]))
    assert [(s.id, s.reason[:13]) for s in store.skipped] == [("99.png", "view 0 is not")]
    with pytest.raises(TeacherError, match="knows image files, not pixels"):
        teacher.embed_files([np.zeros((224, 224, 3), np.uint8)])
    with pytest.raises(ConfigError, match="has no option"):
        stored.open_uri(parse_uri(f"store:{tmp_path / 'source'}?size=3"))


def test_a_store_teaches_the_views_of_its_own_plan_only(mixed_images: Path, tmp_path: Path) -> None:
    items, ids = find_items(mixed_images), [i.id for i in find_items(mixed_images)]
    plan = ViewPlan(seed=1)
    source = embed(items, make_teacher(), tmp_path / "source", views=(0, 1), plan=plan)
    teacher = stored.open_uri(parse_uri(f"store:{tmp_path / 'source'}"))
    store = embed(items, teacher, tmp_path / "s", views=(0, 1), plan=plan)
    assert np.array_equal(store.gather(ids, 1), source.gather(ids, 1))

    with pytest.raises(StoreError, match=r"store:.* holds views of another view plan.*seed 2"):
        embed(items, teacher, tmp_path / "t", views=(0, 1), plan=ViewPlan(seed=2))
    assert not (tmp_path / "t").exists()
    whole = embed(items, teacher, tmp_path / "t", plan=ViewPlan(seed=2))
    assert np.array_equal(whole.gather(ids), source.gather(ids))


def test_a_stored_view_is_no_view_of_an_image_of_another_name(
    mixed_images: Path, tmp_path: Path
) -> None:
    # The student would draw another crop: views depend on the id.
    items = find_items(mixed_images)
    embed(items, make_teacher(), tmp_path / "source", views=(0, 1))
    twin = mixed_images / "group0" / "twin.jpg"
    shutil.copy(mixed_images / "group0" / "000.jpg", twin)
    teacher = stored.open_uri(parse_uri(f"store:{tmp_path / 'source'}"))
    store = embed(find_items(mixed_images), teacher, tmp_path / "s", views=(0, 1))
    assert [s.id for s in store.skipped] == ["group0/twin.jpg"]
    assert "view 1 is not in" in store.skipped[0].reason
    whole = embed(find_items(mixed_images), teacher, tmp_path / "t")
    assert np.array_equal(*whole.gather(["group0/000.jpg", "group0/twin.jpg"])[:, None])


def test_copies_of_an_image_keep_their_own_views(mixed_images: Path, tmp_path: Path) -> None:
    shutil.copy(mixed_images / "group0" / "000.jpg", mixed_images / "group0" / "twin.jpg")
    items, ids = find_items(mixed_images), ["group0/000.jpg", "group0/twin.jpg"]
    source = embed(items, make_teacher(), tmp_path / "source", views=(0, 1))
    teacher = stored.open_uri(parse_uri(f"store:{tmp_path / 'source'}"))
    store = embed(items, teacher, tmp_path / "s", views=(0, 1))
    assert np.array_equal(store.gather(ids, 1), source.gather(ids, 1))
    assert not np.array_equal(*source.gather(ids, 1)[:, None])


def test_a_store_is_opened_as_it_was_left(mixed_images: Path, tmp_path: Path) -> None:
    items = find_items(mixed_images)
    made = embed(items, make_teacher(), tmp_path / "s", views=(0, 1))
    opened = Store.open(tmp_path / "s")
    assert opened.origin == made.origin
    assert opened.origin.uri == "python:tests:conv0"
    ids = [item.id for item in items]
    assert np.array_equal(opened.gather(ids, 1), made.gather(ids, 1))
