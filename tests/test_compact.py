"""Compact embeddings: codes by hand, what they lose, and the verb."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from command_line import Captured, fails, prints
from helpers import TEACHER
from whiten.compact import (
    bytes_per_vector,
    default_kinds,
    fit,
    measure_costs,
)
from whiten.datasets.collection import Item, Items
from whiten.datasets.task import folder_task
from whiten.errors import ConfigError, MissingExtraError
from whiten.evaluation.evaluate import evaluate_task
from whiten.index import Index
from whiten.index.local.storage.kinds import from_state
from whiten.retrieval.exact import exact_search
from whiten.utils.arrays import normalize_rows

Array = npt.NDArray[Any]
HAS_FAISS = True
try:
    import faiss  # noqa: F401
except ImportError:
    HAS_FAISS = False
PQ = [pytest.param("pq:8", marks=pytest.mark.skipif(not HAS_FAISS, reason="no FAISS"))]
KINDS = ["float32", "float16", "int8", "binary", "pca:12", *PQ]


def vectors_of(n: int = 600, dim: int = 32, seed: int = 0, groups: int = 150) -> Array:
    """Unit vectors in groups, off centre and of falling variance."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(1, 0.2, dim)
    centres = rng.standard_normal((groups, dim)) * spread + 0.3
    vectors = centres[np.arange(n) % groups] + 0.4 * rng.standard_normal((n, dim)) * spread
    return normalize_rows(vectors).astype(np.float32)


def items_of(n: int, groups: int | None = 150) -> Items:
    return Items.of(
        Item(f"{i:05d}", f"/{i:05d}.png", None if groups is None else str(i % groups))
        for i in range(n)
    )


# --- codes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "closeness"),
    [
        ("float32", 128, 1 - 1e-6),
        ("float16", 64, 1 - 1e-6),
        ("int8", 32, 0.9995),
        ("binary", 4, 0.7),
        ("pca:12", 24, 0.8),
        *[pytest.param("pq:8", 8, 0.9, marks=param.marks) for param in PQ],
    ],
)
def test_size_and_closeness(kind: str, size: int, closeness: float) -> None:
    vectors = vectors_of()
    codec = fit(kind, vectors)
    codes = codec.encode(vectors)
    assert codec.kind == kind and codes.shape == (600, codec.width) and codes.dtype == codec.dtype
    assert bytes_per_vector(codec) == codes[0].nbytes == size
    decoded = codec.decode(codes)
    assert decoded.dtype == np.float32 and decoded.shape == vectors.shape
    cosines = (normalize_rows(decoded) * vectors).sum(axis=1)
    assert closeness <= cosines.mean() <= 1 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_is_what_its_state_says(kind: str) -> None:
    vectors = vectors_of()
    codec = fit(kind, vectors)
    again = from_state(kind, 32, codec.state())
    codes = codec.encode(vectors[:50])
    assert np.array_equal(again.encode(vectors[:50]), codes)
    assert np.array_equal(again.decode(codes), codec.decode(codes))
    scores = [c.queries(vectors[:5]) @ c.rows(codes).T for c in (codec, again)]
    assert scores[0].dtype == np.float32 and np.array_equal(*scores)


def test_int8_by_hand() -> None:
    sample = np.array([[0.5, -0.254], [-1.27, 0.1]], np.float32)
    codec = fit("int8", np.tile(sample, (128, 1)))
    vectors = np.array([[0.5, 0.1], [9.0, -9.0]], np.float32)
    codes = codec.encode(vectors)
    assert codes.tolist() == [[50, 50], [127, -127]]  # beyond the sample's range it is clipped
    np.testing.assert_allclose(codec.decode(codes), [[0.5, 0.1], [1.27, -0.254]], rtol=1e-6)
    assert fit("int8", sample).encode(vectors).tolist() == [[50, 10], [127, -127]]  # of a few


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_cosines_with_what_is_decoded(kind: str) -> None:
    vectors, queries = vectors_of(), vectors_of(seed=9)[:5]
    codec = fit(kind, vectors)
    codes = codec.encode(vectors)
    expected = queries @ normalize_rows(codec.decode(codes)).T
    np.testing.assert_allclose(codec.queries(queries) @ codec.rows(codes).T, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_what_was_decoded_changes_nothing(kind: str) -> None:
    codec = fit(kind, vectors_of())
    codes = codec.encode(vectors_of(seed=9))
    again = codec.encode(codec.decode(codes))
    assert (again == codes).mean() > 0.99 and np.allclose(again, codes, atol=1e-6)


def test_binary_by_hand() -> None:
    vectors = vectors_of(dim=20)
    mean = vectors.mean(axis=0)
    bits = vectors > mean
    codec = fit("binary", vectors)
    codes = codec.encode(vectors)
    assert codes.shape == (600, 3)
    assert np.array_equal(np.unpackbits(codes, axis=1)[:, :20].astype(bool), bits)
    step = np.linalg.norm(vectors - mean, axis=1).mean() / np.sqrt(20)
    np.testing.assert_allclose(codec.decode(codes), np.where(bits, step, -step) + mean, atol=1e-6)


def test_axes_are_the_principal_ones() -> None:
    vectors = vectors_of()
    codec = fit("pca:12", vectors)
    mean = vectors.mean(axis=0)
    centred = (vectors - mean).astype(np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    strongest = axes[:, ::-1][:, :12]
    expected = centred @ strongest @ strongest.T + mean
    np.testing.assert_allclose(codec.decode(codec.encode(vectors)), expected, atol=1e-3)


@pytest.mark.skipif(not HAS_FAISS, reason="no FAISS")
def test_product_codes_are_those_of_faiss() -> None:
    import faiss

    vectors = vectors_of()
    codec = fit("pq:8", vectors)
    index = faiss.ProductQuantizer(32, 8, 8)
    faiss.copy_array_to_vector(codec.state()["codebooks"].reshape(-1), index.centroids)
    codes = index.compute_codes(vectors)
    assert (codec.encode(vectors) == codes).mean() > 0.999  # but for ties in rounding
    np.testing.assert_array_equal(codec.decode(codes), index.decode(codes))


def test_kinds_that_there_are_not() -> None:
    vectors = vectors_of()
    for kind in ("int4", "pca", "pca:0", "pca:x", "pq:", "float32:3"):
        with pytest.raises(ConfigError, match="there is no kind"):
            fit(kind, vectors)
    with pytest.raises(ConfigError, match="did you mean 'binary'"):
        fit("binray", vectors)
    assert {"float16", "int8", "binary", "pca:128", "pq:32"} <= set(default_kinds(256))
    assert all(300 % int(k[3:]) == 0 for k in default_kinds(300) if k.startswith("pq:"))


@pytest.mark.skipif(not HAS_FAISS, reason="no FAISS")
def test_product_quantisation_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="cannot cut 32 dimensions into equal parts"):
        fit("pq:5", vectors_of())
    with pytest.raises(ConfigError, match="needs 256 different vectors"):
        fit("pq:8", vectors_of(n=100))


def test_without_faiss_the_others_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    vectors = vectors_of()
    with pytest.raises(MissingExtraError, match=r"pip install 'whiten\[faiss\]'"):
        fit("pq:8", vectors)
    costs = measure_costs(vectors, items_of(600), ["float32", "int8", "pq:8"])
    assert [row.kind for row in costs.rows] == ["float32", "int8", "pq:8"]
    assert "pip install 'whiten[faiss]'" in costs.rows[2].unavailable
    assert costs.rows[1].overlap is not None and costs.rows[1].overlap.value > 0.95
    assert "whiten[faiss]" in "\n".join(costs.lines())


# --- what is lost -----------------------------------------------------------------------


def nearest(queries: Array, gallery: Array) -> list[set[int]]:
    """Of each the ten nearest others."""
    found = (rows for rows, _ in exact_search(queries, gallery, 11))
    return [set(rows[rows != own][:10].tolist()) for own, rows in enumerate(found)]


def test_losses_are_those_of_the_evaluation() -> None:
    vectors, items = vectors_of(), items_of(600)
    costs = measure_costs(vectors, items, ["int8", "binary"], name="a model")
    assert (costs.images, costs.labelled, costs.queries, costs.dim) == (600, 600, 600, 32)
    task = folder_task(items)
    whole = evaluate_task(task, vectors, vectors).aps
    by_kind = {row.kind: row for row in costs.rows}
    for kind in ("int8", "binary"):
        codec = fit(kind, vectors)
        rows = codec.rows(codec.encode(vectors))
        asked = codec.queries(vectors)
        aps = evaluate_task(task, asked, rows).aps
        row = by_kind[kind]
        assert row.map == pytest.approx(aps.mean()) and row.map_loss is not None
        assert row.map_loss.value == pytest.approx((whole - aps).mean())
        assert row.map_loss.low <= row.map_loss.value <= row.map_loss.high
        shares = [
            len(a & b) / 10
            for a, b in zip(nearest(vectors, vectors), nearest(asked, rows), strict=True)
        ]
        assert row.overlap is not None and row.overlap.value == pytest.approx(np.mean(shares))
    assert by_kind["binary"].map_loss is not None and by_kind["binary"].map_loss.low > 0.01
    assert by_kind["binary"].bytes == 4


def test_without_groups_there_is_the_overlap_alone() -> None:
    costs = measure_costs(vectors_of(), items_of(600, None), ["float32", "int8"])
    assert costs.labelled == 0 and [row.map for row in costs.rows] == [None, None]
    assert costs.rows[0].overlap is not None and costs.rows[0].overlap.value == 1
    assert "no groups are known" in "\n".join(costs.lines())


def test_queries_of_their_own() -> None:
    vectors = vectors_of(n=620)
    gallery, queries = vectors[:600], vectors[600:]
    who = Items.of(Item(f"q{i}", f"q{i}.png", str((600 + i) % 150)) for i in range(20))
    costs = measure_costs(gallery, items_of(600), ["float32"], queries=(who, queries))
    expected = evaluate_task(folder_task(items_of(600), who), queries, gallery)
    assert costs.labelled == costs.queries == 20
    assert costs.rows[0].map == pytest.approx(expected.figures["map"].value)


@pytest.mark.parametrize("groups", [150, None])
def test_queries_that_are_in_the_gallery_do_not_find_themselves(groups: int | None) -> None:
    vectors, items = vectors_of(), items_of(600, groups)
    kinds = ["float32", "binary", "binary+float32"]
    who = Items.of(Item(f"q/{item.id}", item.path, item.group) for item in items)
    costs = measure_costs(vectors, items, kinds, queries=(who, vectors))
    assert costs.rows == measure_costs(vectors, items, kinds).rows


def test_many_queries_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whiten.compact.table.QUERIES", 50)
    monkeypatch.setattr("whiten.index.local.storage.coded.SAMPLE_ROWS", 300)
    costs = measure_costs(vectors_of(), items_of(600), ["float32", "int8"])
    assert (costs.queries, costs.labelled, costs.fitted_on) == (50, 50, 300)
    assert costs.rows[0].overlap is not None and costs.rows[0].overlap.value == 1
    assert costs.rows[1].overlap is not None and costs.rows[1].overlap.value > 0.95


@pytest.mark.skipif(not HAS_FAISS, reason="no FAISS")
def test_codebooks_that_know_the_images_by_heart_are_named() -> None:
    costs = measure_costs(vectors_of(), items_of(600), ["int8", "pq:8"])
    assert costs.remarks == costs.to_json()["remarks"]
    assert "fitted on 2.3 vectors per centroid, and 39 are advised" in costs.remarks[0]
    assert measure_costs(vectors_of(), items_of(600), ["int8"]).remarks == []


def test_too_few_vectors() -> None:
    with pytest.raises(ConfigError, match="2 vectors tell nothing"):
        measure_costs(vectors_of(2), items_of(2), ["int8"])


def test_kinds_of_which_none_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"^none of the kinds is possible: pca:99: .*; pq:7: "):
        measure_costs(vectors_of(), items_of(600), ["pca:99", "pq:7"])


# --- the verb ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcde", 4)


@pytest.mark.usefixtures("colour_teachers")
def test_the_verb_prints_a_table(images: Path, capsys: Captured, tmp_path: Path) -> None:
    command = ("compact", images, "--student", TEACHER, "--cache", "cache")
    out, _ = prints(capsys, *command, "--kinds", "float32", "int8", "pca:3", "--plot", "p.png")
    lines = out.splitlines()
    assert lines[0].endswith("20 vectors of 12 dimensions, fitted on 20")
    assert "mAP by the groups of 20 queries" in lines[1]
    assert [line.split()[:2] for line in lines[-3:]] == [
        ["float32", "48"], ["int8", "12"], ["pca:3", "6"],
    ]  # fmt: skip
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(prints(capsys, *command, "--kinds", "int8", "--json")[0])
    assert [row["kind"] for row in found["rows"]] == ["int8"]
    assert found["rows"][0]["map_loss"]["low"] <= found["rows"][0]["map_loss"]["value"]
    # The default kinds, some of which cannot be had of so little.
    assert "needs 256 different vectors" in prints(capsys, *command)[0] or not HAS_FAISS
    shutil.copytree(images, "asked")
    Path("asked/a/broken.png").write_bytes(b"no image")
    out, said = prints(capsys, *command, "--kinds", "float32", "--queries", "asked")
    assert "20 queries" in out and "a/broken.png" in said


@pytest.mark.usefixtures("colour_teachers")
def test_the_verb_writes_an_index(
    images: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compact", images, "--student", TEACHER, "--cache", "cache", "--out", "index")
    out, _ = prints(capsys, *command, "--kinds", "int8")
    assert out.splitlines()[-2].split()[:2] == ["int8", "12"]
    assert out.splitlines()[-1] == "index: 20 images stored as int8"
    hits = json.loads(
        prints(capsys, "search", images / "c" / "2.png", "--index", "index", "--json")[0]
    )
    assert hits[0]["id"] == "c/2.png" and hits[0]["path"] == str(images / "c" / "2.png")
    # It is brought up to date like any other index, and its storage stays.
    (images / "c" / "2.png").unlink()
    again = ("index", images, "--student", TEACHER, "--out", "index", "--json")
    facts = json.loads(prints(capsys, *again)[0])
    assert (facts["removed"], facts["unchanged"], facts["storage"]) == (1, 19, "int8")
    assert facts["loss"]["overlap"]["low"] <= facts["loss"]["overlap"]["value"]
    # What is in the cache is not embedded again.
    embed = lambda *_, **__: pytest.fail("embedded")  # noqa: E731
    monkeypatch.setattr("whiten.models.teacher.Teacher.embed", embed)
    found = json.loads(
        prints(capsys, *command[:-1], "other", "--kinds", "binary+float32", "--json")[0]
    )
    assert (found["out"], found["count"], found["storage"]) == ("other", 19, "binary+float32")
    assert found["rows"][0]["kind"] == "binary+float32" and found["rows"][0]["map"] is None


@pytest.mark.usefixtures("colour_teachers")
def test_the_verb_writes_an_index_of_a_store(images: Path, capsys: Captured) -> None:
    prints(capsys, "embed", images, "--teacher", TEACHER, "--out", "store")
    out, _ = prints(capsys, "compact", "store", "--kinds", "pca:3", "--out", "index")
    assert out.splitlines()[-1] == "index: 20 images stored as pca:3"
    assert Index.open("index").storage == "pca:3"


@pytest.mark.usefixtures("colour_teachers")
def test_index_says_what_its_storage_costs(images: Path, capsys: Captured) -> None:
    command = ("index", images, "--student", TEACHER, "--out", "index")
    lines = prints(capsys, *command, "--storage", "int8")[0].splitlines()
    assert lines[1].startswith("storage: int8, 12 bytes per vector, same@10 ")
    assert ", mAP lost " in lines[1] and lines[1].endswith("]")
    refused = fails(capsys, *command, "--storage", "float16")
    assert "is stored as int8, its full vectors are gone: leave --storage out" in refused
    assert "there is no kind 'int4'" in fails(capsys, *command, "--storage", "int4")


@pytest.mark.usefixtures("colour_teachers")
def test_mistakes_are_one_line(images: Path, capsys: Captured) -> None:
    command = ("compact", images, "--student", TEACHER)
    assert "there is no kind 'int4'" in fails(capsys, *command, "--kinds", "int4")
    assert "name it with --kinds KIND" in fails(capsys, *command, "--out", "x")
    several = fails(capsys, *command, "--out", "x", "--kinds", "int8", "--kinds", "binary")
    assert "name it with --kinds KIND" in several
    assert "add --model" in fails(capsys, "compact", images)
