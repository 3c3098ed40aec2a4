"""Folders as benchmarks, the figures against brute force, and what an embedding costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from helpers import TEACHER, write_groups, write_image
from whiten.datasets.collection import Item
from whiten.datasets.task import Task, folder_task
from whiten.embedding.encoder import Encoder, Part
from whiten.errors import ConfigError
from whiten.evaluation.cost import measure_cost
from whiten.evaluation.evaluate import evaluate, evaluate_task, score_revisited
from whiten.metrics import bootstrap_interval, revisited
from whiten.models.stored_model import StoredModel
from whiten.models.teacher import Teacher
from whiten.retrieval.blocks import similarity_blocks
from whiten.retrieval.exact import exact_search
from whiten.utils.memory import forget
from whiten.views.rendering import Preprocess

MODULE = sys.modules["whiten.evaluation.evaluate"]
GOLDEN = Path(__file__).parent / "golden"


def make_items(groups: list[str | None]) -> list[Item]:
    return [Item(f"{i}.png", f"/nowhere/{i}.png", group) for i, group in enumerate(groups)]


# --- the folder protocol ----------------------------------------------------------------


def test_each_image_searches_the_others() -> None:
    task = folder_task(make_items(["a", "b", "a", "b", "a", None]))
    assert [item.id for item in task.queries] == [f"{i}.png" for i in range(5)]
    assert [list(p) for p in task.positives] == [[2, 4], [3], [0, 4], [1], [0, 2]]
    assert [list(j) for j in task.junk] == [[0], [1], [2], [3], [4]]
    assert len(task.gallery) == 6  # what has no group distracts
    assert task.without_positives == 0


def test_junk_is_absent_for_its_group_alone() -> None:
    task = folder_task(make_items(["a", "a", "a/junk", "b", "b"]))
    assert [item.id for item in task.queries] == ["0.png", "1.png", "3.png", "4.png"]
    assert [list(p) for p in task.positives] == [[1], [0], [4], [3]]
    assert [sorted(j) for j in task.junk] == [[0, 2], [1, 2], [3], [4]]


def test_separate_queries_do_not_leave_themselves_out() -> None:
    gallery = make_items(["a", "a/junk", "b", "a"])
    task = folder_task(gallery, [Item("q", "/q", "a"), Item("r", "/r", None), Item("s", "/s", "b")])
    assert [item.id for item in task.queries] == ["q", "s"]
    assert [list(p) for p in task.positives] == [[0, 3], [2]]
    assert [list(j) for j in task.junk] == [[1], []]


def test_a_query_in_the_gallery_does_not_find_its_own_file() -> None:
    gallery = make_items(["a", "b", "a", "b"])
    asked = [Item("renamed", "/nowhere/../nowhere/2.png", "a"), Item("1.png", "/other/1.png", "b")]
    task = folder_task(gallery, asked)
    assert [list(p) for p in task.positives] == [[0], [1, 3]]
    assert [list(j) for j in task.junk] == [[2], []]
    everything = folder_task(gallery, gallery)
    assert [list(p) for p in everything.positives] == [
        list(p) for p in folder_task(gallery).positives
    ]


def test_queries_without_positives_are_counted() -> None:
    task = folder_task(make_items(["a", "a", "b", "c"]))
    assert [item.id for item in task.queries] == ["0.png", "1.png"]
    assert task.without_positives == 2
    asked = [Item("q", "/q", "a"), Item("r", "/r", "elsewhere")]
    assert folder_task(make_items(["a", "b"]), asked).without_positives == 1
    asked.append(Item("s", "/s"))
    assert folder_task(make_items(["a", "b"]), asked).without_positives == 2


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (None, "the queries have no groups"),
        ("scene:a", "'scene:a', is in the gallery, which has 'a': give each group one name"),
    ],
)
def test_queries_of_no_group_of_the_gallery(group: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folder_task(make_items(["a", "a", "b"]), [Item("q", "/q", group)])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "a"], "has 1 group: .*at least 2"),
        ([None, None], "has 0 groups"),
        (["a", "a/junk"], "has 1 group:"),
        (["a", "b"], "two images or more"),
    ],
)
def test_nothing_to_find(groups: list[str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        folder_task(make_items(groups))


# --- figures ----------------------------------------------------------------------------


def brute_force(task: Task, queries: np.ndarray, gallery: np.ndarray) -> dict[str, list[float]]:
    """Sort every query's gallery, drop the junk, and read the figures off the labels."""
    figures: dict[str, list[float]] = {}
    for query, positives, junk in zip(queries, task.positives, task.junk, strict=True):
        order = np.argsort(-(gallery @ query), kind="stable")
        labels = np.isin([i for i in order if i not in set(junk)], positives)
        precision = np.cumsum(labels) / np.arange(1, len(labels) + 1)
        figures.setdefault("map", []).append(precision[labels].mean())
        for k in (1, 5, 10):
            found = precision[:k][labels[:k]].sum() / min(len(positives), k)
            figures.setdefault(f"map@{k}", []).append(found)
            figures.setdefault(f"recall@{k}", []).append(float(labels[:k].any()))
            figures.setdefault(f"mp@{k}", []).append(labels[:k].sum() / k)
    return figures


def make_problem(*, ties: bool) -> tuple[Task, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    groups = [f"g{i}{'/junk' if rng.random() < 0.15 else ''}" for i in rng.integers(0, 7, 83)]
    task = folder_task(make_items([*groups]))
    gallery = rng.normal(size=(83, 5)).astype(np.float32)
    if ties:
        gallery = rng.integers(-1, 2, (83, 5)).astype(np.float32)  # sums of integers are exact
    return task, gallery[[int(item.id[:-4]) for item in task.queries]], gallery


@pytest.mark.parametrize("ties", [False, True])
def test_figures_equal_brute_force(ties: bool) -> None:
    task, queries, gallery = make_problem(ties=ties)
    result = evaluate_task(task, queries, gallery, name="x")
    expected = brute_force(task, queries, gallery)
    assert set(result.figures) == set(expected)
    for name, values in expected.items():
        figure = result.figures[name]
        assert figure.value == pytest.approx(np.mean(values), abs=1e-12), name
        assert (figure.low, figure.high) == pytest.approx(bootstrap_interval(np.array(values)))
        assert figure.low <= figure.value <= figure.high
    np.testing.assert_allclose(result.aps, expected["map"], atol=1e-12)
    assert result.query_ids == [item.id for item in task.queries]
    assert (result.name, result.dim, result.gallery_size) == ("x", 5, 83)


def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task, queries, gallery = make_problem(ties=True)
    whole = evaluate_task(task, queries, gallery)
    for rows, some in ((1, 5), (7, 1), (30, 1000)):
        monkeypatch.setattr("whiten.retrieval.blocks.BLOCK_BYTES", 4 * rows * min(some, 70))
        monkeypatch.setattr(MODULE, "QUERIES", some)
        monkeypatch.setattr("whiten.retrieval.ranks._GATHERED", rows)
        assert evaluate_task(task, queries, gallery).figures == whole.figures


def test_blocks_cover_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    _, queries, gallery = make_problem(ties=True)
    monkeypatch.setattr("whiten.retrieval.blocks.BLOCK_BYTES", 4 * len(queries) * 30)
    blocks = [(start, block.copy()) for start, block in similarity_blocks(queries, gallery)]
    assert [start for start, _ in blocks] == [0, 30, 60]
    np.testing.assert_array_equal(
        np.concatenate([block for _, block in blocks], axis=1), queries @ gallery.T
    )


def test_queries_may_be_rows_of_the_gallery() -> None:
    task, queries, gallery = make_problem(ties=False)
    rows = np.array([int(item.id[:-4]) for item in task.queries])
    whole = evaluate_task(task, queries, gallery)
    assert evaluate_task(task, gallery, gallery, rows=rows).figures == whole.figures


def test_a_mapped_gallery_is_read_and_given_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(3000, 50)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    task = folder_task(make_items([f"g{i % 40}" for i in range(3000)]))
    some = slice(0, 30)
    task = Task(task.queries[some], task.gallery, task.positives[some], task.junk[some])
    for _ in range(2):
        assert (
            evaluate_task(task, gallery[some], mapped).figures
            == evaluate_task(task, gallery[some], gallery).figures
        )
    np.testing.assert_array_equal(mapped, gallery)


def test_pages_that_may_have_been_written_are_kept(tmp_path: Path) -> None:
    gallery = np.random.default_rng(0).normal(size=(3000, 50)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", gallery)
    private = np.load(tmp_path / "gallery.npy", mmap_mode="c")
    private[:] = 1
    forget(private)
    assert (private == 1).all()


def test_revisited_from_embeddings_equals_the_matrix() -> None:
    truth = json.loads((GOLDEN / "revisited.json").read_text())["gnd"]
    size = len(np.load(GOLDEN / "revisited_scores.npz")["similarity"])
    rng = np.random.default_rng(1)
    gallery = rng.integers(-3, 4, (size, 6)).astype(np.float32)  # sums of integers are exact
    queries = rng.integers(-3, 4, (len(truth), 6)).astype(np.float32)
    expected = revisited(gallery @ queries.T, truth)
    assert score_revisited(queries, gallery, truth) == expected
    with pytest.raises(ConfigError, match="pass one for each"):
        score_revisited(queries[1:], gallery, truth)


def test_nan_is_refused() -> None:
    task, queries, gallery = make_problem(ties=False)
    gallery[17, 2] = np.nan
    with pytest.raises(ConfigError, match="NaN: embed those items again"):
        evaluate_task(task, queries, gallery)


def test_bootstrap_is_deterministic() -> None:
    task, queries, gallery = make_problem(ties=False)
    first, second = (evaluate_task(task, queries, gallery) for _ in range(2))
    assert first.figures == second.figures
    assert first.figures["map"].low < first.figures["map"].high


def test_other_dimensions_are_refused() -> None:
    task, queries, gallery = make_problem(ties=False)
    with pytest.raises(ConfigError, match=r"4 dimensions.*5: embed both with the same model"):
        evaluate_task(task, queries[:, :4], gallery)


@pytest.mark.parametrize("k", [1, 4, 30, 99])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_equals_a_stable_sort(ties: bool, k: int) -> None:
    _, queries, gallery = make_problem(ties=ties)
    results = exact_search(queries, gallery, k)
    assert len(results) == len(queries)
    for query, (best, scores) in zip(queries, results, strict=True):
        similarity = gallery @ query
        order = np.argsort(-similarity, kind="stable")[:k]
        np.testing.assert_allclose(scores, similarity[order], atol=1e-5)
        if ties:  # without them, two ways of multiplying may order equals differently
            np.testing.assert_array_equal(best, order)


# --- the whole way ----------------------------------------------------------------------


def test_evaluate_a_folder(encoder: Encoder, tmp_path: Path) -> None:
    gallery = write_groups(tmp_path / "gallery", {"a": 3, "b": 2, "c": 1})
    (gallery / "a" / "broken.png").write_bytes(b"no image")
    result = evaluate(encoder, gallery)
    assert result.figures["recall@1"].value == 1.0  # variants of a pattern look alike
    assert len(result.query_ids) == 5
    assert (result.gallery_size, result.without_positives) == (6, 1)
    assert [skip.id for skip in result.skipped] == ["a/broken.png"]
    facts = result.to_json()
    assert (facts["queries"], facts["gallery"], facts["queries_without_positives"]) == (5, 6, 1)
    assert facts["map"]["value"] == result.figures["map"].value
    assert facts["skipped"][0]["id"] == "a/broken.png"


def test_evaluate_with_separate_queries(encoder: Encoder, tmp_path: Path) -> None:
    gallery = write_groups(tmp_path / "gallery", {"a": 2, "b": 2})
    queries = tmp_path / "queries"
    write_image(queries / "a" / "0.png", seed=0, variant=7)  # an id that the gallery has too
    write_image(queries / "b" / "0.png", seed=0, variant=8)  # looks like a
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        result = evaluate(encoder, gallery, queries=queries, cache=cache)
        assert result.query_ids == ["a/0.png", "b/0.png"]
        np.testing.assert_allclose(result.aps, [1.0, (1 / 3 + 2 / 4) / 2])


def test_evaluate_takes_what_load_takes(encoder: Encoder, tmp_path: Path) -> None:
    gallery = write_groups(tmp_path / "gallery", {"a": 2, "b": 2})
    assert evaluate(TEACHER, gallery) == evaluate(encoder, gallery)


# --- cost -------------------------------------------------------------------------------


def make_teacher(features: int, **options: object) -> Teacher:
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, features))
    return Teacher(
        uri="python:x:y",
        name="x",
        dim=features,
        preprocess=Preprocess(size=(8, 8)),
        weights_hash="0",
        forward=layers,
        module=layers,
        **options,  # type: ignore[arg-type]
    )


def test_cost_of_parts_adds_up() -> None:
    one = measure_cost(Encoder("one", [Part(make_teacher(4))]))
    other = measure_cost(Encoder("other", [Part(make_teacher(6))]))
    both = measure_cost(Encoder("both", [Part(make_teacher(4)), Part(make_teacher(6))]))
    assert (one.params, one.macs) == (12 * 4 + 4, 12 * 4)
    assert (both.params, both.macs) == (12 * 10 + 10, 12 * 10)
    assert one.ms_per_image is not None and 0 < one.ms_per_image < 1000
    assert other.ms_per_image is not None  # a model is measured once, so that times add up, too
    assert both.ms_per_image == one.ms_per_image + other.ms_per_image


def test_cost_of_a_stored_model_is_unknown() -> None:
    stored = StoredModel("store:s", "s", 4, Preprocess(), "0", {})
    cost = measure_cost(Encoder("stored", [Part(stored)]))
    assert (cost.params, cost.macs, cost.ms_per_image) == (None, None, None)
