"""The page of recipes says what was measured, and the defaults are what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from whiten.runs.recipes import KNOWN, complete
from whiten.runs.spec import TERMS, DistillSpec

ROOT = Path(__file__).parent.parent
SOURCES = {"label-free": "views", "labelled": "groups", "partly": "mixed", "strong": "groups"}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("recipes_page")


def test_the_page_is_up_to_date(page: ModuleType) -> None:
    text = page.PAGE.read_text()
    assert page.filled(text, page.read_results()) == text, "run benchmarks/recipes_page.py"


@pytest.mark.parametrize("setting", SOURCES)
@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_the_defaults_are_those_of_the_product(page: ModuleType, start: str, setting: str) -> None:
    trials = importlib.import_module("trials")
    student = trials.STARTS[start]["student"]
    spec = DistillSpec.from_mapping({"teachers": ["demo:mobilenetv2"], "student": student})
    full, _ = complete(spec, SOURCES[setting], KNOWN if setting == "strong" else None)
    stated = trials.RECIPES[trials.DEFAULTS[start][setting]]
    assert {term: getattr(full, term) for term in TERMS} == {term: stated[term] for term in TERMS}
