"""Plot the table of storage kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from whiten.compact.table import Costs
from whiten.index.local.storage.loss import NEIGHBOURS
from whiten.utils.files import write_atomically

if TYPE_CHECKING:
    from whiten.report.sizes import Mark


def write_plot(costs: Costs, path: Path) -> Path:
    """Draw the plot into a PNG, written atomically."""
    from whiten.report.sizes import sizes  # matplotlib is slow to import

    metric = "mAP" if costs.labelled else f"share of the {NEIGHBOURS} nearest found"
    png = sizes(list(_marks(costs)), costs.name, metric)
    assert png is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png)
    return path


def _marks(costs: Costs) -> Iterator[Mark]:
    from whiten.report.sizes import Mark

    for row in costs.rows:
        if row.overlap is None or row.bytes is None:
            continue
        if row.map is None or row.map_loss is None:
            yield Mark(row.kind, row.bytes, row.overlap.value, row.overlap.low, row.overlap.high)
        else:
            base = row.map + row.map_loss.value
            low, high = base - row.map_loss.high, base - row.map_loss.low
            yield Mark(row.kind, row.bytes, row.map, low, high)
