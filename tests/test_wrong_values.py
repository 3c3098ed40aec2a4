"""Values of a wrong kind that callers pass from Python: refused in one line, or taken as meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import whiten
from helpers import TEACHER
from whiten import metrics
from whiten.errors import ConfigError, ImageError, TeacherError, WhiteningError
from whiten.export import export
from whiten.index import Index
from whiten.index.query import Query, SearchOptions
from whiten.models.torch_file import read_torch_file
from whiten.serve import Settings
from whiten.whitening.whitener import Whitener

ROWS = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)


@pytest.fixture
def index(images: Path, tmp_path: Path, colour_teachers: None) -> Index:
    return Index.build(TEACHER, images, tmp_path / "index")


# --- numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Whitener(dim="3"), "whitening dim must be a whole number, not '3'"),  # type: ignore[arg-type]
        (lambda: Whitener(dim=2.5), "whitening dim must be a whole number, not 2.5"),  # type: ignore[arg-type]
        (lambda: Whitener(shrinkage="x"), "shrinkage must be a number, not 'x'"),  # type: ignore[arg-type]
        (lambda: whiten.near_duplicates(ROWS, "0.9"), "threshold must be a number, not '0.9'"),  # type: ignore[arg-type]
        (
            lambda: whiten.diagnose("images", [TEACHER], sample="3"),  # type: ignore[arg-type]
            "sample must be a whole number, not '3'",
        ),
        (
            lambda: Index.build(TEACHER, "images", "index", recall="1"),  # type: ignore[arg-type]
            "recall must be a number, not '1'",
        ),
        (lambda: whiten.load(TEACHER, batch_size="8"), "batch_size must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_numbers_of_another_kind_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_numbers_of_numpy_are_taken(index: Index) -> None:
    assert Whitener(np.int64(3), shrinkage=np.float32(0)).fit(ROWS).projection_.shape == (3, 12)  # type: ignore[arg-type]
    assert len(index.search_vectors(ROWS[:1], np.int64(2))[0]) == 2  # type: ignore[arg-type]
    for k in ("3", 2.5, None, True):
        with pytest.raises(ConfigError, match="k must be a whole number"):
            index.search_vectors(ROWS[:1], k)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 2.5}, "k must be a whole number, not 2.5"),
        ({"k": "3"}, "k must be a whole number, not '3'"),
        ({"threshold": True}, "threshold must be a number, not True"),
        ({"threshold": "0.5"}, "threshold must be a number, not '0.5'"),
        ({"expand": 1.5}, "expand must be a whole number, not 1.5"),
        ({"expand": 1, "alpha": "2"}, "alpha must be a number, not '2'"),
        ({"alpha": 2}, "alpha weights the hits that expand adds"),
    ],
)
def test_options_of_a_search(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchOptions(**options)


def test_a_filter_is_a_text(index: Index) -> None:
    for where, message in ((3, "not 3"), (["id == 'a'"], "not \\["), ("", "the filter is empty")):
        with pytest.raises(ConfigError, match=message):
            index.search_vectors(ROWS[:1], where=where)  # type: ignore[arg-type]


def test_pages_have_a_size(index: Index) -> None:
    for size, message in ((0, "at least 1, not 0"), (-1, "at least 1"), (1.5, "a whole number")):
        with pytest.raises(ConfigError, match=f"size must be {message}"):
            index.pages(size)  # type: ignore[arg-type]
    pages = list(index.pages(np.int64(5)))  # type: ignore[arg-type]
    assert [len(page) for page in pages[:-1]] == [5] * (len(index) // 5)


def test_ways_to_combine(images: Path) -> None:
    with pytest.raises(ConfigError, match="combine must be mean or max, not 'sum'"):
        Query([images / "a" / "0.png"], combine="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("use", ["fingerprint", "save", "transform", "with_settings"])
def test_a_whitener_before_its_fit(use: str, tmp_path: Path) -> None:
    arguments = {"save": [tmp_path / "w"], "transform": [ROWS]}.get(use, [])
    with pytest.raises(WhiteningError, match="no samples to fit a whitening on: fit on"):
        getattr(Whitener(), use)(*arguments)


def test_a_cache_may_be_named_by_a_text(
    images: Path, tmp_path: Path, colour_teachers: None
) -> None:
    whiten.evaluate(TEACHER, images, cache=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir())


# --- one name where several may be ------------------------------------------------------


def test_one_text_is_one_name(index: Index, images: Path, tmp_path: Path) -> None:
    assert index.items("a/0.png") == index.items(["a/0.png"])
    assert np.array_equal(index.vectors("a/0.png"), index.vectors(["a/0.png"]))
    query = Query(images=images / "a" / "0.png", ids="a/0.png")  # type: ignore[arg-type]
    assert (query.images, query.ids) == ((images / "a" / "0.png",), ("a/0.png",))
    settings = Settings(hosts="example.org", roots=str(images))  # type: ignore[arg-type]
    assert (settings.hosts, settings.roots) == (("example.org",), (images,))
    with pytest.raises(ConfigError, match="no column 'price' to drop"):
        Index.build(TEACHER, images, index.place, drop_columns="price")
    with pytest.raises(TeacherError, match="nowhere"):
        export("nowhere", tmp_path / "out", formats="onnx", precisions="fp32")


# --- masked arrays ----------------------------------------------------------------------


TAKERS: list[Callable[[Any], object]] = [
    lambda rows: Whitener().fit(rows),
    lambda rows: Whitener().fit(iter([ROWS, rows])),
    lambda rows: Whitener().fit(list(rows)),
    lambda rows: Whitener().fit(ROWS).transform(rows),
    lambda rows: whiten.choose_whitening(ROWS, others=[rows]),
    lambda rows: whiten.near_duplicates(rows, 0.9),
    lambda rows: metrics.set_similarity(rows, [60], ROWS, [60]),
    lambda rows: metrics.revisited(rows, [{}] * 12),
    lambda rows: metrics.positive_ranks(rows[1], [0]),
    lambda rows: metrics.micro_average_precision(rows[1], np.ones(12)),
]


@pytest.mark.parametrize("take", TAKERS)
def test_masked_values_are_refused(take: Callable[[Any], object]) -> None:
    mask = np.zeros(ROWS.shape, bool)
    mask[1, 2] = True
    with pytest.raises(ConfigError, match="some values are masked"):
        take(np.ma.masked_array(ROWS, mask))


@pytest.mark.parametrize("take", TAKERS)
def test_tensors_without_values_are_refused(take: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"device meta has no values|no array of numbers: .*meta"):
        take(torch.empty(ROWS.shape, device="meta"))


def test_models_and_images_without_values_are_refused(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"model": {"0.weight": torch.empty(3, 2, device="meta")}}, tmp_path / "m.pth")
    with pytest.raises(TeacherError, match="tensors of the device meta, which have no values"):
        read_torch_file(tmp_path / "m.pth")
    (tmp_path / "empty_factory.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(3, 2, device='meta')\n"
    )
    with pytest.raises(TeacherError, match="a module on the device meta, which has no weights"):
        whiten.load("python:empty_factory:make")
    with pytest.raises(ImageError, match="on the device meta has no pixels"):
        index.encoder.embed(torch.empty(3, 8, 8, device="meta"))
    with pytest.raises(ConfigError, match="on the device meta has no values"):
        index.search_arrays(torch.empty(1, index.facts.dim, device="meta"))


def test_queries_and_transformers_refuse_masked_values(index: Index) -> None:
    from whiten.sklearn import WhitenerTransformer

    masked = np.ma.masked_greater(ROWS, 1)
    with pytest.raises(ConfigError, match="some values are masked"):
        index.search_arrays(masked)
    with pytest.raises(ConfigError, match="some values are masked"):
        WhitenerTransformer().fit(masked)
    unmasked = np.ma.masked_array(ROWS)
    assert np.array_equal(Whitener().fit(unmasked).mean_, Whitener().fit(ROWS).mean_)
