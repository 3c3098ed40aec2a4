"""The page of benchmarks says what was measured."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()

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


@pytest.fixture(scope="module")
def table() -> ModuleType:
    path = ROOT / "benchmarks" / "table.py"
    spec = importlib.util.spec_from_file_location("benchmarks_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(table: ModuleType) -> None:
    assert table.fill(PAGE, table.read_results(table.RESULTS)) == PAGE, "run benchmarks/table.py"


def test_its_commands_are_there() -> None:
    commands = re.findall(
        r"python (benchmarks/(\w+)\.py) --out benchmarks/results/(\w+)\.json", PAGE
    )
    assert [script for _, script, _ in commands] == re.findall(r"<!-- table: (\w+) -->", PAGE)
    for path, script, result in commands:
        assert (ROOT / path).is_file()
        assert script == result


def test_a_comparison_is_shown(table: ModuleType) -> None:
    page = "Text.\n<!-- table: x -->\nold\n<!-- end -->\n<!-- table: y -->\nold\n<!-- end -->\n"
    filled = table.fill(page, {"x": COMPARISON})
    assert "| **whiten** | 12.5 ms | 1× |  |" in filled
    assert "| sorting | 2 s | 160× | ≥ 30× |" in filled
    assert "largest error 1.5e-12." in filled
    assert filled.endswith(f"<!-- table: y -->\n{table.MISSING}\n<!-- end -->\n")
    assert table.fill(filled, {"x": COMPARISON}) == filled


def test_memory_is_shown(table: ModuleType) -> None:
    filled = table.fill("<!-- table: memory -->\n<!-- end -->\n", {"memory": MEMORY})
    assert "| peak, MB | 1,000, D=64 | 1,000, D=512 | bytes an image | and dimension |" in filled
    assert "| fit | 50 | 61 | 123 | 0.02 |" in filled


def test_a_result_without_a_table_is_refused(table: ModuleType) -> None:
    with pytest.raises(ValueError, match="no table on the page for x"):
        table.fill("nothing", {"x": COMPARISON})
