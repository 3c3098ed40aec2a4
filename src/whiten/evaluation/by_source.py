"""Metrics of the queries of each source (shop, camera, year), in the gallery of all sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whiten.datasets.collection import Item
from whiten.datasets.sources import Sources
from whiten.metrics import Figure, Scores, figures
from whiten.report.table import aligned, printable

_MOST = 32  # columns of a source's name on a terminal


@dataclass(frozen=True)
class SourceResult:
    """Metrics of the queries of one source.

    Attributes:
        queries: number of queries; without any there are no figures.
        figures: as in `Evaluation`.
    """

    queries: int
    figures: dict[str, Figure]

    def to_json(self) -> dict[str, Any]:
        return {
            "queries": self.queries,
            **{name: dataclasses.asdict(figure) for name, figure in self.figures.items()},
        }


@dataclass(frozen=True)
class BySource:
    """Metrics per source, by name.

    Attributes:
        column: the column that names the sources.
        results: by source; what each of its queries finds in the whole gallery.
    """

    column: str
    results: dict[str, SourceResult]

    @property
    def measured(self) -> str:
        """One sentence on what is measured."""
        return (
            f"By {self.column}: the queries of one source search the gallery of all sources; "
            f"'{self.total}' is all queries"
        )

    @property
    def total(self) -> str:
        """Name of the row of all queries, which is no source's."""
        name = "all"
        while name in self.results:
            name = f"({name})"
        return name

    def to_json(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "measured": self.measured,
            "sources": {name: result.to_json() for name, result in self.results.items()},
        }

    def cells(self, queries: int, overall: Mapping[str, Figure]) -> list[list[str]]:
        """Return the rows of a table, its heading first and all queries last."""
        names = list(overall)
        everything = SourceResult(queries, dict(overall))
        rows = [[self.column, "queries", *names]]
        for source, result in [*self.results.items(), (self.total, everything)]:
            figures = [_shown(name, result.figures.get(name)) for name in names]
            rows.append([printable(source), f"{result.queries:,}", *figures])
        return rows

    def lines(self, queries: int, overall: Mapping[str, Figure]) -> Iterator[str]:
        """Yield lines for display."""
        yield f"{self.measured}."
        for line in aligned(self.cells(queries, overall), _MOST):
            yield f"  {line}"


def _shown(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    interval = f" [{figure.low:.3f}, {figure.high:.3f}]" if name == "map" else ""
    return f"{figure.value:.3f}{interval}"


def split_scores(
    sources: Sources, queries: Sequence[Item], scores: Mapping[str, Scores]
) -> BySource:
    """Split the metrics of all queries by their source.

    Args:
        scores: each metric, (q,) per query.
    """
    of_query = np.array([sources.of_image[item.id] for item in queries], object)
    results = {}
    for name in sources.known:
        rows = np.flatnonzero(of_query == name)
        own = {metric: values[rows] for metric, values in scores.items()}
        results[name] = SourceResult(len(rows), figures(own) if len(rows) else {})
    return BySource(sources.column, results)
