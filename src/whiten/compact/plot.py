"""The table of kinds as a picture: what is lost, by bytes."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from whiten.compact.table import NEIGHBOURS, Cost, Costs
from whiten.plot_style import TEACHERS, short, styled
from whiten.report import write_whole


def write_plot(costs: Costs, path: Path) -> Path:
    """Draw into a PNG, whole or not at all."""
    png = _draw(costs)
    assert png is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, png)
    return path


@styled
def _draw(costs: Costs) -> Figure | None:
    figure = Figure(figsize=(6.4, 3.8))
    axis = figure.add_subplot()
    families: dict[str, str] = {}
    sizes: dict[int, int] = {}  # bytes, and how many kinds take as many
    for row in sorted(costs.rows, key=_height, reverse=True):
        if row.overlap is None or row.bytes is None:
            continue
        value, low, high = row.overlap.value, row.overlap.low, row.overlap.high
        if row.map is not None and row.map_loss is not None:
            base = row.map + row.map_loss.value
            value, low, high = row.map, base - row.map_loss.high, base - row.map_loss.low
        family = row.kind.partition(":")[0]
        colour = families.setdefault(family, TEACHERS[len(families)])
        errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.errorbar(row.bytes, value, errors, fmt="o", ms=4, color=colour, ecolor=colour, lw=1)
        nth = sizes[row.bytes] = sizes.get(row.bytes, -1) + 1
        axis.annotate(
            row.kind,
            (row.bytes, value),
            (6, 4 - 11 * nth),  # the best of a size above its mark, the others below
            textcoords="offset points",
            size=7.5,
            color=colour,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(sizes), [f"{size:,}" for size in sorted(sizes)])
    axis.minorticks_off()
    axis.margins(x=0.1)
    axis.set_xlabel("bytes a vector")
    axis.set_ylabel("mAP" if costs.labelled else f"share of the {NEIGHBOURS} nearest found")
    axis.set_title(short(costs.name, 60))
    return figure


def _height(row: Cost) -> float:
    return row.map or (row.overlap.value if row.overlap else 0.0)
