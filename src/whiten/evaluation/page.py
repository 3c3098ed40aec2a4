"""Write the report page of an evaluation: its metrics, overall and per source."""

from __future__ import annotations

from html import escape
from pathlib import Path

from whiten.evaluation.evaluate import Evaluation
from whiten.report.page import PAGE, STYLE, section
from whiten.report.table import printable
from whiten.utils.files import write_atomically


def write_evaluation(evaluation: Evaluation, path: Path) -> Path:
    """Write a self-contained page, atomically."""
    title = escape(f"{printable(evaluation.name)}: finding images")
    facts = [
        ("queries", f"{len(evaluation.query_ids):,}"),
        ("images searched", f"{evaluation.gallery_size:,}"),
        *(
            (name, f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]")
            for name, figure in evaluation.figures.items()
        ),
    ]
    listed = "</div><div>".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    parts = [f"<h1>{title}</h1>", f"<dl><div>{listed}</div></dl>"]
    if (split := evaluation.by_source) is not None:
        rows = split.cells(len(evaluation.query_ids), evaluation.figures)
        parts.append(section("Sources", f"{split.measured}.", _table(rows)))
    page = PAGE.format(title=title, style=STYLE, body="\n".join(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode("utf-8", "backslashreplace"))
    return path


def _table(rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = ""
    for name, *cells in rows[1:]:
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(name)}</th>{numbers}</tr>\n'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'
