"""The table of kinds as a picture: what is lost, by bytes."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from whiten.compact.table import NEIGHBOURS, Costs
from whiten.plot_style import KINDS, QUIET, TEACHERS, styled
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
    is_map = costs.labelled > 0
    families: dict[str, str] = {}
    for row in costs.rows:
        if row.overlap is None or row.bytes is None:
            continue
        value, low, high = row.overlap.value, row.overlap.low, row.overlap.high
        if row.map is not None and row.map_loss is not None:
            base = row.map + row.map_loss.value
            value, low, high = row.map, base - row.map_loss.high, base - row.map_loss.low
        family = row.kind.partition(":")[0]
        colour = families.setdefault(family, [*TEACHERS, KINDS["student"][0]][len(families)])
        errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.errorbar(row.bytes, value, errors, fmt="o", ms=5, color=colour, ecolor=colour, lw=1)
        axis.annotate(
            row.kind, (row.bytes, value), (5, -9), textcoords="offset points", size=7.5, color=QUIET
        )
    axis.set_xscale("log", base=2)
    axis.set_xlabel("bytes a vector")
    axis.set_ylabel("mAP" if is_map else f"of the {NEIGHBOURS} nearest found")
    axis.set_title(costs.name)
    return figure
