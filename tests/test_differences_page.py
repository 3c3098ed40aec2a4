"""The page of differences says what was measured, and its claims about defaults hold."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from whiten.runs.recipes import RECIPES, complete
from whiten.runs.spec import DistillSpec

ROOT = Path(__file__).parent.parent


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("differences_page")


def test_the_page_is_up_to_date(page: ModuleType) -> None:
    text, found = page.PAGE.read_text(), json.loads(page.RESULTS.read_text())
    assert page.fill(text, page.effects(found)) == text, "run benchmarks/differences_page.py"


def test_an_effect_without_a_place_is_refused(page: ModuleType) -> None:
    assert page.fill("a <!-- m: x -->old<!-- /m --> b", {"x": "new"}) == (
        "a <!-- m: x -->new<!-- /m --> b"
    )
    for text in ("", "<!-- m: x --><!-- /m --> <!-- m: y --><!-- /m -->"):
        with pytest.raises(ValueError, match="places and effects differ"):
            page.fill(text, {"x": "new"})


def test_the_published_way_is_what_the_recipe_does() -> None:
    given = DistillSpec.from_mapping({"teachers": ["demo:mobilenetv2"], "recipe": "paper"})
    default = DistillSpec.from_mapping({"teachers": ["demo:mobilenetv2"], "recipe": "similarity"})
    for source, augment in (("groups", "paper-images"), ("views", "paper-frames")):
        paper, ours = complete(given, source)[0], complete(default, source)[0]
        assert (paper.shrinkage, paper.start, paper.pairs_per_epoch) == (0.0, "random", 1)
        assert (ours.shrinkage, ours.start, ours.pairs_per_epoch) == ("auto", "principal", 0)
        assert (paper.augment, ours.augment) == (augment, "light")
        same = ("fusion", "temperature", "pairs_per_class", *RECIPES["similarity"])
        assert all(getattr(paper, name) == getattr(ours, name) for name in same)
