"""The table of results as plain text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["teacher", "fusion-raw", "fusion-whitened", "student", "asymmetric"]

TABLE_WIDTH = 110  # columns of a terminal


@dataclass
class Row:
    """One row of the result table.

    Attributes:
        kind: asymmetric is a student that queries a gallery of its teachers' embeddings.
        map: mean average precision, 0 to 1, with its interval `map_ci`; NaN if not measured.
        recall_at_1: fraction of queries whose first hit is relevant, 0 to 1.
        params, macs, ms_per_image: cost of the encoder of the queries; None if unknown.
        dim: embedding dimension.
    """

    name: str
    kind: Kind
    map: float
    map_ci: tuple[float, float]
    recall_at_1: float
    params: int | None
    macs: int | None
    ms_per_image: float | None
    dim: int


HEADINGS = ("name", "kind", "mAP, %", "R@1, %", "params", "MACs", "ms/image", "dim")


def format_table(rows: Sequence[Row]) -> str:
    """Format the result table as plain text, at most TABLE_WIDTH columns wide."""
    cells = [cells_of(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *cells, strict=True)]
    room = TABLE_WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)
    names = [fit(name, room) for name in [HEADINGS[0], *(cell[0] for cell in cells)]]
    widths[0] = max(map(width_of, names))
    lines = []
    for name, (_, kind, *numbers) in zip(names, [HEADINGS, *cells], strict=True):
        start = name + " " * (widths[0] - width_of(name)) + "  " + kind.ljust(widths[1])
        ends = [n.rjust(width) for n, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join([start, *ends]))
    return "\n".join(lines)


def cells_of(row: Row) -> list[str]:
    mean = _percent(row.map)
    if np.isfinite([row.map, *row.map_ci]).all():
        mean += " [{}, {}]".format(*map(_percent, row.map_ci))
    ms = math.nan if row.ms_per_image is None else row.ms_per_image
    time = "–" if not math.isfinite(ms) else f"{ms:#.2g}" if ms < 9.95 else f"{ms:,.0f}"
    costs = [_count(row.params), _count(row.macs), time, str(row.dim)]
    return [printable(row.name), row.kind, mean, _percent(row.recall_at_1), *costs]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else "–"


def _count(number: int | None) -> str:
    """Format with at least two digits and the unit: 3.4M, 33M, 1.2G."""
    if number is None:
        return "–"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.{1 if number < 9.95 * unit else 0}f}{letter}"
    return str(number)


def printable(text: str) -> str:
    """Replace characters that break a line or, as lone surrogates, a file's encoding."""
    return "".join(c if c.isprintable() else "□" for c in text)


def width_of(text: str) -> int:
    """Count the columns on a terminal: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def aligned(rows: Sequence[Sequence[str]], most: int) -> Iterator[str]:
    """Yield the lines of a table: names to the left, at most `most` columns wide, then numbers.

    Args:
        rows: name and numbers of each row, the heading first.
    """
    cells = [[fit(name, most), *numbers] for name, *numbers in rows]
    widths = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
    for name, *numbers in cells:
        ends = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([name + " " * (widths[0] - width_of(name)), *ends])


def fit(name: str, room: int) -> str:
    """Cut the middle of a long name, because the ends tell names apart."""
    fitted, kept = name, len(name)
    while width_of(fitted) > room:
        kept -= 1
        fitted = f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
    return fitted
