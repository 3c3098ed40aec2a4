"""The threshold that is chosen without labels, against known truth: no, few and many copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter, ImageOps

from copies import TEACHER
from whiten.datasets.collection import Item, Items
from whiten.dedup import Collection, Deduplication, confirming, deduplicate, open_collection
from whiten.dedup import threshold as estimate
from whiten.dedup.confirming import confirmed
from whiten.dedup.counting import first_pure_groups
from whiten.dedup.pair_similarity import VectorSimilarity
from whiten.dedup.threshold import calibrate
from whiten.embedding.opening import load
from whiten.errors import ConfigError
from whiten.media.pixels import Pictures

Array = npt.NDArray[Any]
TOLERANCE = 0.01  # true precision may be lower than the stated bound by this much


def unit(rows: Array) -> npt.NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def edited(rng: np.random.Generator, rows: Array, most: float) -> npt.NDArray[np.float32]:
    """Embeddings of edits: a random direction of random length added."""
    strength = rng.uniform(0, most, (len(rows), 1))
    return unit(rows + strength * unit(rng.standard_normal(rows.shape)))


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a collection of embeddings with a share of copies; pixels know the truth."""
    monkeypatch.setattr(confirming.Pictures, "same", lambda _, a, b: a[:4] == b[:4])

    def build(copies: str, n: int = 240, kinds: int = 60) -> tuple[Collection, Array]:
        rng = np.random.default_rng(7)
        # Pictures of one kind resemble each other.
        kind = rng.standard_normal((kinds, 48)).repeat(n // kinds, axis=0)
        whole = unit(kind + 1.2 * rng.standard_normal((n, 48)))
        each = {"none": 1, "few": 1, "most": 6}[copies]
        parts = [whole, *(edited(rng, whole, 1.2) for _ in range(each - 1))]
        labels = np.tile(np.arange(n), each)
        if copies == "few":
            parts.append(edited(rng, whole[::10], 1.2))
            labels = np.concatenate([labels, np.arange(n)[::10]])
        vectors = np.concatenate(parts)
        names = [f"{label:04d}-{i}" for i, label in enumerate(labels)]
        items = Items.of([Item(name, name) for name in names])

        def views(
            _encoder: object, items: Items, _plan: object, numbers: range, *_: object, **__: object
        ) -> list[Array]:
            rows = vectors[[names.index(name) for name in items.ids.to_pylist()]]
            return [edited(rng, rows, 0.8) for _ in numbers]

        monkeypatch.setattr(estimate, "embed_views", views)
        collection = Collection(
            what="image", names=names, paths=names, groups=[None] * len(names), pictures=names,
            copy_of=np.arange(len(names)), hashes=names, similarity=VectorSimilarity(vectors),
            items=items, skipped=[], folder=Path(),
        )  # fmt: skip
        return collection, labels

    return build


def of_pairs(vectors: Array, labels: Array, threshold: float) -> tuple[int, int]:
    """(right, wrong) pairs at the threshold."""
    i, j = np.triu_indices(len(vectors), 1)
    is_above = (vectors @ vectors.T)[i, j] >= threshold
    is_same = labels[i] == labels[j]
    return int((is_above & is_same).sum()), int((is_above & ~is_same).sum())


def of_groups(found: Deduplication) -> tuple[int, int]:
    right = wrong = 0
    for group in found.groups:
        names = [member.id[:4] for member in group.members]
        for i, name in enumerate(names):
            right += sum(name == other for other in names[:i])
            wrong += sum(name != other for other in names[:i])
    return right, wrong


@pytest.mark.parametrize("target", [0.9, 0.99])
@pytest.mark.parametrize("copies", ["few", "most"])
def test_the_estimate_holds_on_the_truth(simulated: Any, copies: str, target: float) -> None:
    collection, labels = simulated(copies)
    chosen = calibrate(collection, target, positives="views", encoder=object())  # type: ignore[arg-type]
    right, wrong = of_pairs(collection.similarity.vectors, labels, chosen.threshold)
    assert right / (right + wrong) >= chosen.precision_low - TOLERANCE
    assert chosen.precision_low >= target
    in_groups = of_groups(deduplicate(collection, chosen.threshold))
    assert in_groups[0] >= target * sum(in_groups)
    assert right >= 0.5 * sum(of_pairs(collection.similarity.vectors, labels, -1)[:1])
    everything = of_pairs(collection.similarity.vectors, labels, -1)[0]
    assert chosen.copies <= everything, "only true pairs are confirmed"
    assert chosen.copies >= 0.9 * everything


def test_without_copies_nothing_is_linked(simulated: Any) -> None:
    collection, labels = simulated("none")
    chosen = calibrate(collection, 0.95, positives="views", encoder=object())  # type: ignore[arg-type]
    assert chosen.copies == 0
    # The mistakes of 12 assumed pairs.
    assert of_pairs(collection.similarity.vectors, labels, chosen.threshold)[1] <= 1


def test_copies_that_pixels_do_not_confirm_are_refused(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, _ = simulated("most")
    monkeypatch.setattr(confirming.Pictures, "same", lambda *_: False)
    with pytest.raises(ConfigError, match=r"a precision of 0\.99 cannot be shown on these images"):
        calibrate(collection, 0.99, positives="views", encoder=object())  # type: ignore[arg-type]


def test_pairs_joined_through_others_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(Pictures, "same", lambda _, a, b: bool(asked.append((a, b))) or True)
    vectors = np.ones((300, 4), np.float32)
    forest = confirmed(VectorSimilarity(vectors), [str(i) for i in range(300)])
    assert [len(group) for group in forest.groups()] == [300]
    assert len(asked) == 299


def test_groups_that_chain_need_a_higher_threshold() -> None:
    # Two pictures with two copies each on a circle, and one mistake that joins them at 30°.
    angles = np.radians([0, 10, 40, 50, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    similarity = VectorSimilarity(vectors)
    labels = np.array([0, 0, 2, 2, 4])
    low, high = np.cos(np.radians(30)), np.cos(np.radians(10))
    # At 30° six pairs are linked, of which two are right.
    assert first_pure_groups(similarity, labels, low - 0.01, 1 / 3) == low - 0.01
    assert first_pure_groups(similarity, labels, low - 0.01, 0.9) == pytest.approx(high)
    assert first_pure_groups(similarity, np.arange(5), low, 0.9) is None
    assert first_pure_groups(similarity, labels, 0.9999, 0.9) == 0.9999


# --- real images ------------------------------------------------------------------------


def edits(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    margin = (1 - 0.7**0.5) / 2
    box = (margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
    return {
        "crop": image.crop(tuple(map(round, box))),  # type: ignore[arg-type]
        "mirror": ImageOps.mirror(image),
        "flip": ImageOps.flip(image),
        "rotated": image.rotate(25, resample=Image.Resampling.BICUBIC),
        "square": image.resize((160, 160)),
    }


def picture(seed: int) -> Image.Image:
    """Overlapping patches of all sizes: as different from each other as photographs are."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (240, 180), tuple(rng.integers(0, 256, 3).tolist()))
    for _ in range(40):
        left, top = rng.integers(-40, 240), rng.integers(-40, 180)
        width, height = rng.integers(20, 120, 2)
        colour = tuple(rng.integers(0, 256, 3).tolist())
        image.paste(colour, (int(left), int(top), int(left + width), int(top + height)))  # type: ignore[arg-type]
    return image.filter(ImageFilter.GaussianBlur(2))


def test_pixels_confirm_every_edit(tmp_path: Path) -> None:
    pictures = Pictures()
    for seed in range(6):
        picture(seed).save(tmp_path / f"{seed}.png")
    for seed in range(6):
        whole = picture(seed)
        for name, image in edits(whole).items():
            path = tmp_path / f"{seed}-{name}.jpg"
            image.save(path, quality=80)
            assert pictures.same(str(tmp_path / f"{seed}.png"), str(path)), (seed, name)
            assert pictures.same(str(path), str(tmp_path / f"{seed}.png"))
            assert not pictures.same(str(tmp_path / f"{(seed + 1) % 6}.png"), str(path))


def test_flat_pictures_confirm_nothing(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (80, 60), colour).save(tmp_path / f"{colour}.png")
    assert not Pictures().same(str(tmp_path / "red.png"), str(tmp_path / "blue.png"))


@pytest.mark.slow
@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("copies", ["none", "few", "most"])
def test_the_estimate_holds_on_real_images(tmp_path: Path, copies: str) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(30 if copies == "most" else 60):
        whole = picture(seed)
        whole.save(tmp_path / "images" / f"{seed:04d}.png")
        if copies == "most" or (copies == "few" and seed % 10 == 0):
            for name, image in edits(whole).items():
                image.save(tmp_path / "images" / f"{seed:04d}-{name}.jpg", quality=85)
    model = load(TEACHER)
    with open_collection(tmp_path / "images", model, None) as collection:
        chosen = calibrate(collection, 0.9, positives="views", encoder=model)
        right, wrong = of_groups(deduplicate(collection, chosen.threshold))
    if copies == "none":
        assert (right, chosen.copies) == (0, 0) and wrong <= 1
    else:
        assert right >= (0.9 - TOLERANCE) * (right + wrong)
        assert right >= {"few": 6, "most": 30}[copies]
