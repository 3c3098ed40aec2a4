"""Names beside the points of a plot, placed where they hide nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from whiten.report.style import DPI, QUIET, short

_PIXELS = DPI / 72  # per point of type; all lengths below are in pixels
_FARTHEST = 80  # points between a name and its dot
_ANGLES = np.deg2rad([0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90])  # best first
_CROWDING = 5  # cost of a pixel of overlap, in pixels of distance


@dataclass(frozen=True)
class Labelled:
    """A point of a plot, in the units of its axes.

    Attributes:
        ends: of the vertical interval through it; not finite if there is none.
    """

    name: str
    x: float
    y: float
    ends: Sequence[float]


def place_labels(
    figure: Figure, axis: Axes, points: Sequence[Labelled], sizes: Sequence[float]
) -> None:
    """Put each name at the free position nearest to its dot; distant ones get a line to it.

    Args:
        figure: laid out already, and drawn once: text is measured with its canvas.
        sizes: of the dots, in square points, as `Axes.scatter` takes them.
    """
    centres = [axis.transData.transform((point.x, point.y)) for point in points]
    radii = [0.7 * math.sqrt(size) * _PIXELS for size in sizes]
    taken = [_box(c, 2 * r, 2 * r) for c, r in zip(centres, radii, strict=True)]
    for point in points:
        ends = axis.transData.transform([(point.x, end) for end in point.ends])
        if np.isfinite(ends).all():
            taken.append(Bbox([ends[0] - 2, ends[1] + 2]))
    for i in sorted(range(len(points)), key=lambda i: -centres[i][1]):
        label = figure.text(0, 0, short(points[i].name), size=8.5, transform=None)
        drawn = label.get_window_extent()
        place, gap = _nearest_free(drawn, centres[i], radii[i], axis.bbox, taken)
        taken.append(place)
        label.set_position((place.x0, place.y0 + 1 - drawn.y0))
        if gap > 8 * _PIXELS:
            near = np.clip(centres[i], place.min, place.max)
            xs, ys = zip(centres[i], near, strict=True)
            figure.add_artist(Line2D(xs, ys, color=QUIET, linewidth=0.7, transform=None))


def _nearest_free(
    drawn: Bbox, centre: Any, radius: float, inside: Bbox, taken: Sequence[Bbox]
) -> tuple[Bbox, float]:
    """Return the cheapest box for a name, and its distance from the dot."""
    best, place, gap = math.inf, drawn, 0.0
    for distance in np.arange(0, _FARTHEST, 3) * _PIXELS:
        if best <= distance:
            break  # no later position can be better
        for angle in _ANGLES:
            way = np.round([math.cos(angle), math.sin(angle)], 6)
            reach = radius + 3 * _PIXELS + distance
            middle = centre + way * reach + np.sign(way) * drawn.size / 2
            box = _box(middle, drawn.width, drawn.height + 2)
            outside = box.width * box.height - _overlap(box, inside)
            cost = distance + _CROWDING * (outside + sum(_overlap(box, other) for other in taken))
            if cost < best:
                best, place, gap = cost, box, distance
    return place, gap


def _box(centre: Any, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)


def _overlap(a: Any, b: Any) -> float:
    common = Bbox.intersection(a, b)
    return 0.0 if common is None else float(common.width * common.height)
