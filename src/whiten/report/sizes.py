"""A plot of accuracy by bytes per vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from whiten.report.style import TEACHERS, short, styled


class Mark(NamedTuple):
    """One storage kind, its accuracy, and the interval of the accuracy."""

    kind: str
    bytes: int
    value: float
    low: float
    high: float


@styled
def sizes(marks: Sequence[Mark], title: str, metric: str) -> Figure | None:
    """Draw accuracy by bytes per vector, one colour per family ("pca" of "pca:64")."""
    figure = Figure(figsize=(6.4, 3.8))
    axis = figure.add_subplot()
    families: dict[str, str] = {}
    count: dict[int, int] = {}  # number of kinds by size
    for mark in sorted(marks, key=lambda mark: mark.value, reverse=True):
        family = mark.kind.partition(":")[0]
        colour = families.setdefault(family, TEACHERS[len(families)])
        errors = [[max(0.0, mark.value - mark.low)], [max(0.0, mark.high - mark.value)]]
        axis.errorbar(
            mark.bytes, mark.value, errors, fmt="o", ms=4, color=colour, ecolor=colour, lw=1
        )
        nth = count[mark.bytes] = count.get(mark.bytes, -1) + 1
        axis.annotate(
            mark.kind,
            (mark.bytes, mark.value),
            (6, 4 - 11 * nth),  # the best of each size above its mark, others below
            textcoords="offset points",
            size=7.5,
            color=colour,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(count), [f"{size:,}" for size in sorted(count)])
    axis.minorticks_off()
    axis.margins(x=0.1)
    axis.set_xlabel("bytes per vector")
    axis.set_ylabel(metric)
    axis.set_title(short(title, 60))
    return figure
