"""The plots of a report: from plain data to the bytes of a PNG, or None without data.

Drawn with matplotlib's object interface under the style of `report.style`: a caller's figures,
backend and settings are neither used nor changed. Equal data give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from whiten.report.labels import Labelled, place_labels
from whiten.report.style import (
    BAD,
    DASHES,
    DPI,
    GOOD,
    INK,
    KINDS,
    QUIET,
    RUNS,
    TEACHERS,
    short,
    styled,
)
from whiten.utils.arrays import Array
from whiten.whitening.profile import effective_rank

Curve = tuple[Array, Array]  # x and y, both (n,)
_ROUNDING = 1e-12  # of the largest eigenvalue; float32 embeddings leave less than this by rounding


class Result(Protocol):
    """The fields of a result row that the plots need."""

    name: str
    kind: Literal["teacher", "fusion-raw", "fusion-whitened", "student", "asymmetric"]
    map: float
    map_ci: tuple[float, float]
    params: int | None
    ms_per_image: float | None
    dim: int


def teacher_colours(names: Iterable[str]) -> dict[str, str]:
    """Assign one colour per teacher, the same in every plot of a report."""
    return {name: TEACHERS[i % len(TEACHERS)] for i, name in enumerate(dict.fromkeys(names))}


@styled
def similarities(
    samples: Mapping[str, tuple[Array, Array, Array, Array]], colours: Mapping[str, str]
) -> Figure | None:
    """Draw histograms of the similarities of pairs, one column per teacher, raw above whitened.

    Args:
        samples: teacher to raw positives, raw negatives, whitened positives and negatives.
    """
    if not samples:
        return None
    across = min(len(samples), 4)
    down = 2 * math.ceil(len(samples) / across)
    figure = Figure(figsize=(max(6.0, 0.8 + 2.5 * across), 0.8 + 1.6 * down))
    axes = figure.subplots(down, across, squeeze=False)
    edges = [_bins([s[i] for s in samples.values() for i in pair]) for pair in ((0, 1), (2, 3))]
    for axis in axes.flat[:]:
        axis.set_visible(False)
    for n, (name, sample) in enumerate(samples.items()):
        for half, state in enumerate(("raw", "whitened")):
            axis = axes[2 * (n // across) + half, n % across]
            _histogram(axis, sample[2 * half + 1], edges[half], BAD)
            _histogram(axis, sample[2 * half], edges[half], GOOD)
            axis.set(xlim=(edges[half][0], edges[half][-1]), yticks=[], visible=True)
            axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
            axis.spines["left"].set_visible(False)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            if half == 0:
                axis.set_title(short(name, 28), fontweight="bold")
                axis.spines["top"].set(visible=True, color=colours[name], linewidth=4)
            else:
                axis.set_xlabel("similarity")
            if n % across == 0:
                axis.set_ylabel(state, fontsize=9.5)
    handles: list[Any] = [Patch(color=colour, alpha=0.6) for colour in (GOOD, BAD)]
    handles.append(Line2D([], [], color=QUIET, linestyle="--", linewidth=1.2))
    labels = ["positive pairs", "negative pairs", "their medians"]
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return figure


def _bins(samples: Iterable[Array]) -> Array:
    """Compute the bins that all histograms of a row share."""
    values = np.concatenate([finite(sample) for sample in samples])
    low, high = (values.min(), values.max()) if len(values) else (-1.0, 1.0)
    edges: Array = np.linspace(low - 0.01, high + 0.01, 61)
    return edges


def _histogram(axis: Axes, sample: Array, edges: Array, colour: str) -> None:
    values = finite(sample)
    if len(values):
        density, _ = np.histogram(values, edges, density=True)
        axis.stairs(density, edges, color=colour, alpha=0.45, fill=True)
        axis.stairs(density, edges, color=colour)
        axis.axvline(float(np.median(values)), color=colour, linestyle="--", linewidth=1.2)


def finite(values: Any) -> Array:
    """Convert to (n,) float64 without NaN and infinity."""
    array = np.asarray(values, np.float64).ravel()
    return array[np.isfinite(array)]


@styled
def spectra(eigenvalues: Mapping[str, Array], colours: Mapping[str, str]) -> Figure | None:
    """Draw the eigenvalues of the teachers' covariances by rank, both axes logarithmic."""
    kept = {}
    for name, v in eigenvalues.items():
        values = finite(v)
        # Fewer images than dimensions span fewer axes: the others are rounding errors.
        values = values[values > max(0.0, _ROUNDING * values.max(initial=0.0))]
        if len(values):
            kept[name] = values
    if not kept:
        return None
    figure = Figure(figsize=(8, 4.2))
    axis = figure.subplots()
    labels = []  # given with the lines: an automatic legend omits names such as "_a"
    for i, (name, values) in enumerate(kept.items()):
        rank = effective_rank(values)
        labels.append(f"{short(name)}: {len(values)} axes, effective rank {rank:.0f}")
        ranks = np.arange(1, len(values) + 1)
        axis.plot(ranks, values, _dash(i, TEACHERS), color=colours[name], linewidth=2)
    axis.set(xscale="log", yscale="log", xlabel="axis, by falling variance", ylabel="eigenvalue")
    _plain_log_ticks(axis)
    axis.legend(axis.get_lines(), labels, loc="lower left")
    return figure


@styled
def whitening_choices(
    curves: Mapping[str, tuple[Array, Array, int]], colours: Mapping[str, str]
) -> Figure | None:
    """Draw the held-out score by shrinkage: (shrinkages, scores, chosen index) per teacher."""
    if not curves:
        return None
    figure = Figure(figsize=(8, 3.8))
    axis = figure.subplots()
    steps = sorted({float(value) for shrinkages, _, _ in curves.values() for value in shrinkages})
    place = {value: i for i, value in enumerate(steps)}  # 0 and infinity do not fit a log axis
    for i, (name, (shrinkages, scores, chosen)) in enumerate(curves.items()):
        at = [place[float(value)] for value in shrinkages]
        axis.plot(at, scores, _dash(i, TEACHERS), color=colours[name], linewidth=2)
        axis.plot(at[chosen], scores[chosen], "o", color=colours[name], markersize=8)
    axis.set_xticks(range(len(steps)), [_shrinkage(value) for value in steps])
    axis.set(xlabel="shrinkage c in 1/√(λ + c·mean λ)", ylabel="mAP on held-out images")
    labels = [short(name) for name in curves]
    lines = axis.get_lines()[::2]
    axis.legend(lines, labels, loc="best")
    return figure


def _shrinkage(value: float) -> str:
    ends = {0.0: "0\nwhitened", math.inf: "∞\ncentred"}
    return ends.get(value, f"{value:g}")


def _dash(i: int, palette: Sequence[str]) -> str:
    return DASHES[i // len(palette) % len(DASHES)]


def _plain_log_ticks(axis: Axes) -> None:
    for ticks in (axis.xaxis, axis.yaxis):
        if ticks.get_scale() == "log":
            ticks.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ticks.set_minor_formatter(NullFormatter())


@styled
def wins(shares: Mapping[str, Mapping[str, Curve]], colours: Mapping[str, str]) -> Figure | None:
    """Draw each teacher's share of the positives by step, one panel per run.

    Args:
        shares: run to teacher to steps and shares (0 to 1).
    """
    if not shares:
        return None
    across = len(shares) if len(shares) <= 3 else 2
    down = math.ceil(len(shares) / across)
    figure = Figure(figsize=(8, 0.8 + 2.4 * down))
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    lines = {}
    for n, (axis, run) in enumerate(zip(axes.flat, shares, strict=False)):
        equal = 100 / len(shares[run])
        lines["equal shares"] = axis.axhline(equal, color=QUIET, linestyle=(0, (1, 2)))
        for i, (name, (steps, share)) in enumerate(shares[run].items()):
            axis.plot(steps, 100 * share, color=colours[name], linewidth=0.6, alpha=0.25)
            (lines[name],) = axis.plot(
                steps, 100 * smooth(share), _dash(i, TEACHERS), color=colours[name], linewidth=2
            )
        axis.set_title(short(run, 26))
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.margins(x=0.02)
        axis.set(xlabel="step", ylabel="" if n % across else "positives won, %")
    axes[0, 0].set_ylim(0, None)
    for axis in axes.flat[len(shares) :]:
        axis.set_visible(False)
    _legend(figure, lines, columns=4)
    return figure


@styled
def loss(curves: Mapping[str, Curve]) -> Figure | None:
    """Draw the loss by step, raw and smoothed, one line per run."""
    if not curves:
        return None
    figure = Figure(figsize=(8, 3.8))
    axis = figure.subplots()
    for i, (steps, losses) in enumerate(curves.values()):
        colour = RUNS[i % len(RUNS)]
        axis.plot(steps, smooth(losses), _dash(i, RUNS), color=colour, linewidth=2)
        axis.plot(steps, losses, color=colour, linewidth=0.7, alpha=0.25, zorder=1.9)
    axis.set(xlabel="step", ylabel="loss")
    axis.margins(x=0.01)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _legend(figure, dict(zip(curves, axis.get_lines()[::2], strict=True)), columns=3)
    return figure


@styled
def held_out(curves: Mapping[str, Curve], starts: Mapping[str, float]) -> Figure | None:
    """Draw the score on held-out images by step, one line per run, and those of its starts."""
    if not curves and not starts:
        return None
    figure = Figure(figsize=(8, 3.8))
    axis = figure.subplots()
    handles: dict[str, Line2D] = {}
    for i, (run, (steps, scores)) in enumerate(curves.items()):
        handles[run] = axis.plot(
            steps, scores, _dash(i, RUNS), marker="o", color=RUNS[i % len(RUNS)], linewidth=2
        )[0]
    for i, (name, score) in enumerate(starts.items()):
        style = DASHES[(i + 1) % len(DASHES)]
        handles[name] = axis.axhline(score, color=INK, linewidth=1.2, linestyle=style)
    axis.set(xlabel="step", ylabel="score on held-out images")
    axis.margins(x=0.01)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _legend(figure, handles, columns=2)
    return figure


def smooth(values: Array) -> Array:
    """Smooth by a centred moving average over a 25th of the curve, cut at the ends."""
    reach, at = len(values) // 50, np.arange(len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    average: Array = (total[high] - total[low]) / (high - low)
    return average


@styled
def accuracy_latency(rows: Sequence[Result]) -> Figure | None:
    """Draw mAP by time per image: one point per row, with its interval and its name."""
    timed = [(r, r.ms_per_image) for r in rows if r.ms_per_image and np.isfinite(r.map)]
    timed = [(r, ms) for r, ms in timed if 0 < ms < math.inf]
    if not timed:
        return None
    figure = Figure(figsize=(8, 5.2), dpi=DPI)
    FigureCanvasAgg(figure)  # to measure text with
    axis = figure.subplots()
    largest = max(r.params or 0 for r, _ in timed) or 1
    sizes = [40 + 220 * (r.params or 0) / largest for r, _ in timed]
    for (r, ms), size in zip(timed, sizes, strict=True):
        colour, marker = KINDS[r.kind]
        axis.plot([ms, ms], [100 * end for end in r.map_ci], color=colour, lw=1.5, alpha=0.55)
        axis.scatter(ms, 100 * r.map, size, colour, marker=marker, edgecolors="w", zorder=3)
    fastest, slowest = min(ms for _, ms in timed), max(ms for _, ms in timed)
    axis.set(xscale="log", xlabel="time per image, ms (left is faster)", ylabel="mAP, %")
    axis.set_xlim(fastest / 1.6, slowest * 2.2)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _plain_log_ticks(axis)
    _kind_legend(figure, [r.kind for r, _ in timed], markers=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels must not move the axes that they are placed in
    points = [Labelled(r.name, ms, 100 * r.map, [100 * end for end in r.map_ci]) for r, ms in timed]
    place_labels(figure, axis, points, sizes)
    return figure


def _kind_legend(figure: Figure, kinds: Sequence[str], *, markers: bool) -> None:
    handles: dict[str, Any] = {}
    for kind, (colour, marker) in KINDS.items():
        if kind in kinds:
            dot = Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7)
            handles[kind.replace("fusion-", "teachers fused, ")] = (
                dot if markers else Patch(color=colour)
            )
    _legend(figure, handles, columns=5)


def _legend(figure: Figure, handles: Mapping[str, Any], *, columns: int) -> None:
    """Place the legend above the axes, where it hides nothing."""
    labels = [short(name, 28) for name in handles]
    where: Any = "outside upper center"
    figure.legend(list(handles.values()), labels, loc=where, ncols=min(columns, len(labels)))


@styled
def results(rows: Sequence[Result]) -> Figure | None:
    """Draw bars of mAP with their intervals, coloured by kind, and the cost of each encoder."""
    order = sorted(rows, key=lambda r: list(KINDS).index(r.kind))
    if not order:
        return None
    kinds = [r.kind for r in order]
    gaps = np.cumsum([i > 0 and kinds[i] != kinds[i - 1] for i in range(len(order))])
    places = np.arange(len(order)) + 0.45 * gaps
    ends = finite([end for r in order for end in (r.map, *r.map_ci)])
    best = max(finite([r.map for r in order]), default=math.nan)
    figure = Figure(figsize=(8, 0.95 + 0.3 * (places[-1] + 1)))
    axis = figure.subplots()
    lengths = np.nan_to_num([100 * r.map for r in order])
    axis.barh(places, lengths, height=0.74, color=[KINDS[kind][0] for kind in kinds])

    def beside(text: str, points: int, place: float) -> None:
        """Right-align `text` this far from the right edge of the axes."""
        axis.annotate(
            text, (1, place), (points, 0), xycoords=("axes fraction", "data"), color=QUIET,
            textcoords="offset points", ha="right", va="center_baseline", annotation_clip=False,
        )  # fmt: skip

    for place, r in zip(places, order, strict=True):
        low, high = (100 * end for end in r.map_ci)
        axis.plot([low, high], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
        end = np.nanmax([0.0, 100 * r.map, high])
        number = f"{100 * r.map:.1f}" if np.isfinite(r.map) else "not measured"
        weight = "bold" if r.map == best else "normal"
        axis.text(end + 0.6, place, number, va="center_baseline", fontweight=weight)
        ms = r.ms_per_image
        beside(str(r.dim), 44, place)
        beside("–" if ms is None else f"{ms:#.2g}" if ms < 9.95 else f"{ms:,.0f}", 96, place)
    beside("dim", 44, -0.8)
    beside("ms/image", 96, -0.8)
    axis.set_yticks(places, [short(r.name) for r in order], color=INK)
    axis.set(xlabel="mAP, %", xlim=(0, 100 * max(ends, default=1.0) * 1.1 + 1))
    axis.set_ylim(places[-1] + 0.6, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(length=0)
    axis.spines["bottom"].set_visible(False)
    _kind_legend(figure, kinds, markers=False)
    return figure
