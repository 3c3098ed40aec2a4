"""A plot of two videos: which moments of one resemble which moments of the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from whiten.report.grids import TILE, show_image
from whiten.report.style import DPI, INK, QUIET, short, styled

_PITCH = TILE + 12  # pixels between the frames along a side
_LARGEST = 640  # pixels of the matrix's longer side


@styled
def alignment(
    cosines: npt.NDArray[np.float32],
    names: tuple[str, str],
    paths: tuple[Sequence[str], Sequence[str]],
    times: tuple[Sequence[int] | None, Sequence[int] | None],
) -> Figure:
    """Draw the cosines of the frames of two videos, with some of the frames along the sides.

    A copied scene is a bright line, steeper if the copy is faster; a scene that is only similar is
    a spot. Rings mark the best match of each query frame; the chamfer similarity is their mean.

    Args:
        cosines: (query frames, match frames).
        names, paths: names of the query and its match; paths of their frames.
        times: times of the frames in ms; None if unknown.
    """
    rows, columns = cosines.shape
    cell = min(float(_PITCH), _LARGEST / max(rows, columns))
    width, height = columns * cell, rows * cell
    left, top, right, bottom = 104 + _PITCH, 70 + _PITCH, 130, 70
    canvas = (max(left + width, left + 330) + right, top + max(height, 160) + bottom)
    figure = Figure(figsize=(canvas[0] / DPI, canvas[1] / DPI))
    figure.set_layout_engine("none")
    page = figure.add_axes((0, 0, 1, 1))  # in pixels, so that frames are not resampled
    page.set(xlim=(0, canvas[0]), ylim=(canvas[1], 0))
    page.axis("off")
    for side, (name, y) in enumerate(zip(names, (24, 50), strict=True)):
        what = ("query, downwards", "best match, across")[side]
        page.text(14, y, f"{what}: {short(name, 44)}", fontsize=8.5, color=(INK, QUIET)[side])
    for row in _spread(rows, cell):
        show_image(page, paths[0][row], 14, top + (row + 0.5) * cell - TILE / 2, INK)
    for column in _spread(columns, cell):
        show_image(page, paths[1][column], left + (column + 0.5) * cell - TILE / 2, 66, INK)
    box = (left / canvas[0], 1 - (top + height) / canvas[1], width / canvas[0], height / canvas[1])
    axis = figure.add_axes(box)
    axis.grid(visible=False)
    image = axis.imshow(cosines, cmap="viridis", vmax=1, aspect="auto", interpolation="nearest")
    size = min(7.0, 72 * cell / DPI / 3)
    best = cosines.argmax(axis=1)
    axis.plot(best, range(rows), "o", ms=size, mfc="none", mec="#EE3377", mew=1.6)
    _label(axis, times, (rows, columns), cell)
    bar_box = ((left + width + 24) / canvas[0], box[1], 14 / canvas[0], box[3])
    bar = figure.colorbar(image, cax=figure.add_axes(bar_box))
    bar.set_label("cosine", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    return figure


def _label(
    axis: Axes,
    times: tuple[Sequence[int] | None, Sequence[int] | None],
    shape: tuple[int, int],
    cell: float,
) -> None:
    """Label both sides in seconds, or by frame number."""
    for side, (known, n) in enumerate(zip(times, shape, strict=True)):
        shown = range(0, n, max(1, round(48 / cell)))
        labels = [str(i) if known is None else f"{known[i] / 1000:.3g}" for i in shown]
        unit = "frame" if known is None else "seconds"
        lengthwise = axis.yaxis if side == 0 else axis.xaxis
        lengthwise.set_ticks(list(shown), labels, fontsize=7.5)
        lengthwise.set_label_text(unit, fontsize=8)


def _spread(n: int, cell: float) -> range:
    """Choose frames that are far enough apart to display."""
    return range(0, n, max(1, math.ceil(_PITCH / cell)))
