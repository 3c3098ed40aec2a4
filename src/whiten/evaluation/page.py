"""Write the report page of an evaluation: its metrics, overall and per source."""

from __future__ import annotations

from pathlib import Path

from whiten.evaluation.evaluate import Evaluation
from whiten.report.page import cells, facts_list, page, section, table, write_page
from whiten.report.table import printable


def write_evaluation(evaluation: Evaluation, path: Path) -> Path:
    """Write a self-contained page, atomically."""
    facts = [
        ("queries", f"{len(evaluation.query_ids):,}"),
        ("images searched", f"{evaluation.gallery_size:,}"),
        *(
            (name, f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]")
            for name, figure in evaluation.figures.items()
        ),
    ]
    parts = [facts_list(facts)]
    if (split := evaluation.by_source) is not None:
        headings, *rows = split.cells(len(evaluation.query_ids), evaluation.figures)
        shown = table(headings, [(name, cells(numbers)) for name, *numbers in rows])
        parts.append(section("Sources", f"{split.measured}.", shown))
    return write_page(path, page(f"{printable(evaluation.name)}: finding images", parts))
