"""The plots of a diagnosis: how teachers agree, and what each adds to their fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from whiten.report.style import BAD, GOOD, INK, QUIET, short, styled
from whiten.utils.arrays import Array


@styled
def agreement(names: Sequence[str], shares: Array) -> Figure | None:
    """Draw the (K, K) shares of common neighbours, from 0 to 1, as a table of colours."""
    if len(names) < 2:
        return None
    side = 1.6 + 0.75 * len(names)
    figure = Figure(figsize=(side + 1.6, side))
    axis = figure.subplots()
    hidden = np.ma.masked_where(np.eye(len(names), dtype=bool), shares)
    axis.imshow(hidden, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(shares.shape):
        if i != j:
            colour = "white" if shares[i, j] > 0.6 else INK
            text = f"{100 * shares[i, j]:.0f} %"
            axis.text(j, i, text, ha="center", va="center", color=colour)
    labels = [short(name, 22) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=30, ha="right", color=INK)
    axis.set_yticks(range(len(names)), labels, color=INK)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


@styled
def contributions(adds: Mapping[str, tuple[float, float]]) -> Figure | None:
    """Draw what each teacher adds to the fusion, in points, with two standard errors.

    Args:
        adds: difference and its standard error by teacher, both of scores from 0 to 1.
    """
    if not adds:
        return None
    figure = Figure(figsize=(8, 1.1 + 0.42 * len(adds)))
    axis = figure.subplots()
    for place, (value, error) in enumerate(adds.values()):
        is_sure = abs(value) > 2 * error
        colour = QUIET if not is_sure else GOOD if value > 0 else BAD
        axis.barh(place, 100 * value, height=0.6, color=colour)
        ends = [100 * (value - 2 * error), 100 * (value + 2 * error)]
        axis.plot(ends, [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(range(len(adds)), [short(name) for name in adds], color=INK)
    axis.set_ylim(len(adds) - 0.4, -0.6)
    axis.set_xlabel("points that the fusion loses without this teacher (line: two standard errors)")
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    return figure
