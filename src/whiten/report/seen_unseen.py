"""The table that shows what models are worth on sources that a student has seen, and on others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from whiten.report import page
from whiten.report.table import Kind, aligned, printable

_MOST = 60  # columns of a name on a terminal


class Score(NamedTuple):
    """A mean over queries, 0 to 1, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.value:.1f} [{low:.1f}, {high:.1f}]"


@dataclass(frozen=True)
class SeenUnseenRow:
    """One model; a score is None where nothing could be measured."""

    name: str
    kind: Kind
    seen: Score | None
    unseen: Score | None


@dataclass(frozen=True)
class SeenUnseen:
    """Scores on images of sources that the student was trained on, and of held-out ones.

    Attributes:
        criterion: what the scores are.
        seen, unseen: the images that they are measured on, in words.
        rows: one per model.
    """

    criterion: str
    seen: str
    unseen: str
    rows: list[SeenUnseenRow]

    @property
    def measured(self) -> str:
        """Say what is measured, in sentences."""
        return (
            f"{self.criterion}, in points with the 95 % interval over queries. Seen: {self.seen}. "
            f"Unseen: {self.unseen}. Compare within a column, with the start: the two galleries "
            "are not equally hard."
        )

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "name": row.name,
                "kind": row.kind,
                "seen": row.seen and row.seen._asdict(),
                "unseen": row.unseen and row.unseen._asdict(),
            }
            for row in self.rows
        ]
        return {**dataclasses.asdict(self), "rows": rows}

    def cells(self) -> list[list[str]]:
        """Return the rows of a table, its heading first."""
        rows = [
            [printable(row.name), *(str(score or "–") for score in (row.seen, row.unseen))]
            for row in self.rows
        ]
        return [["name", "seen sources", "unseen sources"], *rows]

    def lines(self) -> Iterator[str]:
        """Yield lines for display."""
        yield self.measured
        yield from aligned(self.cells(), _MOST)

    def html(self) -> str:
        """Return the table for a page."""
        [name, *columns], *rows = self.cells()
        shown = [
            (text, f'<td class="{row.kind}">{row.kind}</td>{page.cells(scores)}')
            for row, (text, *scores) in zip(self.rows, rows, strict=True)
        ]
        return page.table([name, "kind", *columns], shown)
