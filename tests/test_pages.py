"""The pages of benchmarks and studies say what was measured, and the defaults are what they say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import pages
from whiten.runs.recipes import KNOWN, RECIPES, complete
from whiten.runs.spec import TERMS, DistillSpec

trials = importlib.import_module("trials")  # on the path once `pages` is imported

SOURCES = {"label-free": "views", "labelled": "groups", "partly": "mixed", "strong": "groups"}

COMPARISON: dict[str, Any] = {
    "machine": {"cpu": "A CPU", "cores": 2, "python": "3.11.0"},
    "comparisons": [
        {
            "setting": "n=10",
            "ours": "whiten",
            "rounds": 3,
            "rivals": {
                "whiten": {"median_s": 0.0125, "ratio_to_ours": 1.0},
                "sorting": {"median_s": 2.0, "ratio_to_ours": 160.0},
            },
            "targets": {"sorting": 30.0},
            "targets_met": {"sorting": True},
            "largest_error": 1.5e-12,
        }
    ],
}
MEMORY: dict[str, Any] = {
    "rows": [
        {"stage": "fit", "n": 1000, "dim": 64, "peak_mb": 50.4},
        {"stage": "fit", "n": 1000, "dim": 512, "peak_mb": 61.0},
    ],
    "growth": {"fit": {"bytes_an_image": 123.4, "bytes_a_dimension": 0.024}},
}


@pytest.mark.parametrize(
    ("page", "texts"), list(pages.texts()), ids=lambda x: getattr(x, "stem", "")
)
def test_a_page_is_up_to_date(page: Path, texts: dict[str, str]) -> None:
    text = page.read_text()
    assert pages.fill(text, texts) == text, "run tools/pages.py"


def test_the_commands_of_the_benchmarks_exist() -> None:
    page = (pages.DOCS / "benchmarks.md").read_text()
    commands = re.findall(
        r"python (benchmarks/(\w+)\.py) --out benchmarks/results/(\w+)\.json", page
    )
    assert [script for _, script, _ in commands] == re.findall(r"<!-- fill: (\w+) -->", page)
    for path, script, result in commands:
        assert (pages.ROOT / path).is_file()
        assert script == result


def test_a_comparison_is_shown() -> None:
    text = pages.table.render(COMPARISON)
    assert "| **whiten** | 12.5 ms | 1× |  |" in text
    assert "| sorting | 2 s | 160× | ≥ 30× |" in text
    assert text.endswith("largest error 1.5e-12.")


def test_memory_is_shown() -> None:
    text = pages.table.render(MEMORY)
    assert "| peak, MB | 1,000, D=64 | 1,000, D=512 | bytes an image | and dimension |" in text
    assert "| fit | 50 | 61 | 123 | 0.02 |" in text


def test_texts_replace_what_is_marked() -> None:
    page = "a <!-- fill: x -->old<!-- end --> b\n<!-- fill: y-z -->\nold\nold\n<!-- end -->\n"
    filled = pages.fill(page, {"x": "new", "y-z": "| new |"})
    assert filled == (
        "a <!-- fill: x -->new<!-- end --> b\n<!-- fill: y-z -->\n| new |\n<!-- end -->\n"
    )
    assert pages.fill(filled, {"x": "new", "y-z": "| new |"}) == filled


@pytest.mark.parametrize("page", ["", "<!-- fill: x --><!-- end --> <!-- fill: y --><!-- end -->"])
def test_a_text_without_a_marker_and_a_marker_without_a_text_are_refused(page: str) -> None:
    with pytest.raises(ValueError, match="markers and texts differ"):
        pages.fill(page, {"x": "new"})


@pytest.mark.parametrize("setting", SOURCES)
@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_the_defaults_of_the_page_are_those_of_the_product(start: str, setting: str) -> None:
    student = trials.STARTS[start]["student"]
    spec = DistillSpec.from_mapping({"teachers": ["demo:mobilenetv2"], "student": student})
    full, _ = complete(spec, SOURCES[setting], KNOWN if setting == "strong" else None)
    stated = trials.RECIPES[trials.DEFAULTS[start][setting]]
    assert {term: getattr(full, term) for term in TERMS} == {term: stated[term] for term in TERMS}


def test_the_published_way_is_what_the_recipe_does() -> None:
    given = DistillSpec.from_mapping({"teachers": ["demo:mobilenetv2"], "recipe": "paper"})
    default = DistillSpec.from_mapping({"teachers": ["demo:mobilenetv2"], "recipe": "similarity"})
    for source, augment in (("groups", "paper-images"), ("views", "paper-frames")):
        paper, ours = complete(given, source)[0], complete(default, source)[0]
        assert (paper.shrinkage, paper.start, paper.pairs_per_epoch) == (0.0, "random", 1)
        assert (ours.shrinkage, ours.start, ours.pairs_per_epoch) == ("auto", "ridge", 0)
        assert (paper.augment, ours.augment) == (augment, "light")
        same = ("fusion", "temperature", "pairs_per_class", *RECIPES["similarity"])
        assert all(getattr(paper, name) == getattr(ours, name) for name in same)
