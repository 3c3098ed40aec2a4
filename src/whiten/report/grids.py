"""The grids of a report: queries and their hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from whiten.errors import ImageError
from whiten.media.reading import read_bytes
from whiten.media.thumbnails import thumbnail
from whiten.report.style import BAD, DPI, GOOD, INK, QUIET, short, styled

TILE = 96  # pixels: the longest side of an image in a grid
MAX_HITS = 10  # more columns would be too small
MARKS = {True: (GOOD, "✓ "), False: (BAD, "✗ "), None: ("#8C8C8C", "")}


class Found(Protocol):
    """An image that was found, and whether it is relevant (None if unknown)."""

    @property
    def path(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def correct(self) -> bool | None: ...


@styled
def retrievals(grids: Sequence[tuple[str, str, float, Sequence[Found]]]) -> Figure | None:
    """Draw one row per query: the query and its hits, best first.

    Args:
        grids: label ("best", …), path of the query, average precision, and hits.
    """
    if not grids:
        return None
    columns = min(max(len(hits) for *_, hits in grids), MAX_HITS)
    left, top, gap, pitch, fall = 112, 40, 22, TILE + 14, TILE + 40
    width, height = left + gap + pitch * (1 + max(columns, 2)), top + fall * len(grids)
    figure = Figure(figsize=(width / DPI, height / DPI))
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))  # in pixels, so that tiles are not resampled
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    axis.text(left, top - 12, "query", fontsize=8, color=QUIET)
    if columns:
        axis.text(left + pitch + gap, top - 12, "found, best first", fontsize=8, color=QUIET)
    for row, (label, query, ap, hits) in enumerate(grids):
        y = top + row * fall
        axis.text(14, y + 44, short(label, 8), fontsize=8.5, fontweight="bold")
        axis.text(14, y + 68, f"AP {ap:.2f}", fontsize=7.5, color=QUIET)
        show_image(axis, query, left, y, INK)
        for column, hit in enumerate(hits[:MAX_HITS]):
            x = left + gap + pitch * (1 + column)
            colour, mark = MARKS[hit.correct]
            show_image(axis, hit.path, x, y, colour)
            caption = f"{mark}{hit.score:.2f}"
            axis.text(x + TILE / 2, y + TILE + 20, caption, size=7.5, ha="center", color=colour)
    return figure


def show_image(axis: Axes, path: str, x: float, y: float, colour: str) -> None:
    canvas = Image.new("RGB", (TILE, TILE), "#F3F4F6")
    try:
        image = thumbnail(read_bytes(path), TILE)
        canvas.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    except (ImageError, ValueError):  # a path with a null byte is a ValueError
        canvas.paste("#D1D5DB", (0, 0, TILE, TILE))
        centre = (x + TILE / 2, y + TILE / 2)
        axis.text(*centre, "cannot\nbe read", size=6.5, color=QUIET, ha="center", va="center")
    extent = (x, x + TILE, y + TILE, y)
    axis.imshow(np.asarray(canvas), extent=extent, interpolation="nearest", aspect="auto")
    frame = Rectangle((x - 2, y - 2), TILE + 4, TILE + 4, fill=False, ec=colour, lw=2, zorder=4)
    axis.add_patch(frame)
