"""A threshold for a precision: counted by hand, bounded, and refused where it cannot be shown."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import beta

from command_line import Captured, fails, prints
from helpers import TEACHER
from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import find_items
from whiten.dedup import Collection, confirming
from whiten.dedup.counting import count_pairs
from whiten.dedup.pair_similarity import VectorSimilarity
from whiten.dedup.threshold import COPIES, calibrate
from whiten.embedding.encoder import Encoder, embed_views
from whiten.embedding.opening import load
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError
from whiten.whitening.whitener import Whitener

Array = npt.NDArray[Any]


def grouped(seed: int, groups: int = 60, each: int = 4, noise: float = 0.5) -> Collection:
    """Vectors around a centre for each group; the noisier, the more they mix."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((groups, 12)).repeat(each, axis=0)
    vectors = (vectors + noise * rng.standard_normal(vectors.shape)).astype(np.float32)
    names = [f"{i // each}/{i % each}.png" for i in range(len(vectors))]
    items = Items.of([Item(name, name, name.split("/")[0]) for name in names])
    return Collection(
        what="image",
        names=names,
        paths=names,
        groups=[item.group for item in items],
        pictures=names,
        copy_of=np.arange(len(names)),
        hashes=names,
        similarity=VectorSimilarity(vectors, block_rows=50),
        items=items,
        skipped=[],
        folder=Path(),
    )


def by_hand(collection: Collection) -> tuple[Array, Array]:
    """Similarities of all pairs, and whether they are of one group."""
    assert isinstance(collection.similarity, VectorSimilarity)
    vectors = collection.similarity.vectors.astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), 1)
    groups = np.array(collection.groups)
    return (unit @ unit.T)[i, j], groups[i] == groups[j]


def test_pairs_are_counted_once_by_similarity() -> None:
    collection = grouped(0)
    values, is_same = by_hand(collection)
    rows = np.arange(len(collection.names))
    same, different = count_pairs(collection.similarity, rows, rows // 4)
    assert same.sum() == is_same.sum() == 60 * 6
    assert different.sum() == (~is_same).sum()
    for bin_, value in ((15_000, 0.5), (19_000, 0.9)):
        assert abs(same[bin_:].sum() - (values[is_same] >= value).sum()) <= 1
        assert abs(different[bin_:].sum() - (values[~is_same] >= value).sum()) <= 1


@pytest.mark.parametrize("target", [0.8, 0.95])
def test_the_threshold_is_the_lowest_whose_bound_is_enough(target: float) -> None:
    collection = grouped(1)
    chosen = calibrate(collection, target, positives="groups")
    values, is_same = by_hand(collection)

    def bound(least: float) -> float:
        right, wrong = (int((values[part] >= least).sum()) for part in (is_same, ~is_same))
        return float(beta.ppf(0.05, right, wrong + 1))  # Clopper and Pearson

    above = values >= chosen.threshold
    assert chosen.precision == pytest.approx((is_same & above).sum() / above.sum(), abs=0.005)
    assert chosen.precision_low == pytest.approx(bound(chosen.threshold), abs=0.005)
    assert target <= chosen.precision_low < chosen.precision
    assert bound(chosen.threshold - 0.02) < target
    assert chosen.recall == pytest.approx((is_same & above).sum() / is_same.sum(), abs=0.01)
    assert (chosen.same, chosen.different) == (is_same.sum(), (~is_same).sum())
    assert f"counted on {chosen.same} pairs of a group" in chosen.line()


def test_higher_precision_takes_a_higher_threshold() -> None:
    collection = grouped(2)
    chosen = [calibrate(collection, p, positives="groups") for p in (0.5, 0.8, 0.95)]
    assert chosen[0].threshold < chosen[1].threshold < chosen[2].threshold
    assert chosen[0].recall > chosen[1].recall > chosen[2].recall


def test_what_cannot_be_reached_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no threshold reaches a precision of 0\.95"):
        calibrate(grouped(0, noise=4.0), 0.95, positives="groups")
    alone = grouped(0, groups=10, each=1)
    with pytest.raises(ConfigError, match="no two groups with two images each"):
        calibrate(alone, 0.9, positives="groups")
    for target in (0.0, 1.0, 2.0):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            calibrate(grouped(0), target, positives="groups")
    with pytest.raises(ConfigError, match="add --model"):
        calibrate(grouped(0), 0.9, positives="views")


# --- from views -------------------------------------------------------------------------


@pytest.fixture
def drawings(tmp_path: Path, colour_teachers: None) -> Path:
    """Drawings, and re-encoded copies of some."""
    folder = tmp_path / "images"
    folder.mkdir()
    with resources.as_file(resources.files("whiten") / "demo" / "data" / "emoji.parquet") as path:
        table = pq.read_table(path, columns=["group", "vendor", "image"])
    rows = [row for row in table.to_pylist() if row["vendor"] == "noto"][::20]
    for number, row in enumerate(rows[:60]):
        path = folder / f"{row['group']}.webp"
        path.write_bytes(row["image"])
        if number % 6 == 0:
            Image.open(path).save(folder / f"{row['group']}-copy.jpg", quality=80)
    return folder


@pytest.mark.slow
def test_views_of_the_images_give_a_threshold(
    drawings: Path, capsys: Captured, tmp_path: Path
) -> None:
    command = ("dedup", drawings, "--student", TEACHER, "--embeddings", tmp_path / "cache")
    out, _ = prints(capsys, *command, "--target-precision", 0.3)
    said = re.search(r"threshold (\S+): precision (\S+), at 95 % confidence at least (\S+);", out)
    assert said is not None
    value, precision, low = map(float, said.groups())
    assert 0.3 <= low <= precision <= 1 and -1 < value <= 1
    assert "views of one image" in out and "pairs whose pixels agree count as copies" in out
    # The same again, from what is kept.
    assert prints(capsys, *command, "--target-precision", 0.3)[0] == out


def test_views_are_embedded_as_images_are(drawings: Path, tmp_path: Path) -> None:
    parts = [part for seed in "01" for part in load(f"{TEACHER}?seed={seed}").parts]
    items = find_items(drawings)
    _, joined, _ = embed_rows(Encoder("both", parts, weights=[1.9, 0.1]), items)
    rotation = Whitener(4, shrinkage=0.0).fit(joined)
    for rotated in (None, rotation):
        encoder = Encoder("both", parts, rotation=rotated, weights=[1.9, 0.1])
        [whole] = embed_views(encoder, items, COPIES, [0], tmp_path, show_progress=False)
        kept, vectors, _ = embed_rows(encoder, items)
        assert kept.ids == items.ids
        np.testing.assert_allclose(whole, vectors, atol=1e-6)


def test_a_model_that_cannot_tell_is_refused(
    drawings: Path, capsys: Captured, tmp_path: Path
) -> None:
    # Colours of quarters alone say little about drawings.
    command = ("dedup", drawings, "--student", TEACHER, "--target-precision", 0.999)
    progress = fails_after_progress(capsys, *command)
    assert "a precision of 0.999 cannot be shown on these images" in progress


def fails_after_progress(capsys: Captured, *arguments: object) -> str:
    from whiten import cli

    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_few_images_are_too_few(tmp_path: Path, colour_teachers: None, capsys: Captured) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "a.png")
    said = fails(
        capsys, "dedup", "images", "--student", TEACHER, "--target-precision", 0.9,
        progress="embed",
    )  # fmt: skip
    assert "50 different images or more, and there is 1: give --threshold" in said


def test_copies_do_not_count_as_mistakes(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    command = ("dedup", drawings, "--student", TEACHER, "--embeddings", tmp_path / "cache")
    prints(capsys, *command, "--target-precision", 0.3)
    monkeypatch.setattr(confirming.Pictures, "same", lambda *pair: False)
    said = fails_after_progress(capsys, *command, "--target-precision", 0.3)
    assert "a precision of 0.3 cannot be shown" in said
