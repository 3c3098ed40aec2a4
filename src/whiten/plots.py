"""The figures of a report: plain data in, the bytes of a PNG out, or None with nothing to draw.

Drawn with matplotlib's object interface under this module's own style: a caller's figures,
backend and settings are neither used nor changed. Equal data give equal bytes.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, Protocol

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from PIL import Image

from whiten.errors import ImageError
from whiten.media import decode_scaled, read_bytes

DPI = 150
TILE = 96  # pixels: the longest side of an image in a grid
MAX_HITS = 10  # more columns would be too small to see

# Okabe & Ito's palette for the kinds, and Paul Tol's "muted" one for teachers, its light colours
# darkened for white paper: colour-blind readers can tell both apart. Runs have their own, so that
# no line of one figure seems to be that of another.
KINDS = {
    "teacher": ("#8A94A6", "o"),
    "fusion-raw": ("#E69F00", "s"),
    "fusion-whitened": ("#0072B2", "D"),
    "student": ("#009E73", "^"),
}
_TEACHERS = [
    "#332288", "#CC6677", "#44AA99", "#C2A83E", "#882255",
    "#62B5E5", "#117733", "#AA4499", "#8A8A2E",
]  # fmt: skip
_RUNS = ["#1F2430", "#EE3377", "#33BBEE", "#A6761D", "#762A83", "#8C8C8C"]
_DASHES = ("-", "--", ":", "-.")  # tell lines apart once the colours repeat
_GOOD, _BAD = "#009E73", "#D55E00"
_MARKS = {True: (_GOOD, "✓ "), False: (_BAD, "✗ "), None: ("#8C8C8C", "")}
_INK, _QUIET, _GRID = "#1F2430", "#6B7280", "#E5E7EB"

_STYLE: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"} | {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9CA3AF",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "font.size": 9,
    "grid.color": _GRID,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": _INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
}

Array = npt.NDArray[Any]
Curve = tuple[Array, Array]  # x and y, both (n,)
P = ParamSpec("P")


class Result(Protocol):
    """What the figures need of a line of the result table."""

    name: str
    kind: Literal["teacher", "fusion-raw", "fusion-whitened", "student"]
    map: float
    map_ci: tuple[float, float]
    params: int | None
    ms_per_image: float | None
    dim: int


class Found(Protocol):
    """An image that was found, and whether it should have been (None: not known)."""

    path: str
    score: float
    correct: bool | None


def _styled(draw: Callable[P, Figure | None]) -> Callable[P, bytes | None]:
    """Draw and save under the style above; ticks are made as late as in saving."""

    @functools.wraps(draw)
    def png(*args: P.args, **kwargs: P.kwargs) -> bytes | None:
        with matplotlib.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            if figure is None:
                return None
            buffer = io.BytesIO()
            # Without matplotlib's version in it, the file depends on the picture alone.
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            return buffer.getvalue()

    return png


def short(text: str, length: int = 34) -> str:
    """`text` on one line, cut in the middle if long, a box for what the font cannot show."""
    font = get_font(findfont("DejaVu Sans"))  # a missing glyph would be a warning in every figure
    text = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in text)
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 5
    return f"{text[: length - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"


def teacher_colours(names: Iterable[str]) -> dict[str, str]:
    """One colour a teacher, to be used in every figure of a report."""
    return {name: _TEACHERS[i % len(_TEACHERS)] for i, name in enumerate(dict.fromkeys(names))}


@_styled
def similarities(
    samples: Mapping[str, tuple[Array, Array, Array, Array]], colours: Mapping[str, str]
) -> Figure | None:
    """Histograms of pairs' similarities, a column a teacher: raw above whitened.

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
            _histogram(axis, sample[2 * half + 1], edges[half], _BAD)
            _histogram(axis, sample[2 * half], edges[half], _GOOD)
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
    handles: list[Any] = [Patch(color=colour, alpha=0.6) for colour in (_GOOD, _BAD)]
    handles.append(Line2D([], [], color=_QUIET, linestyle="--", linewidth=1.2))
    labels = ["positive pairs", "negative pairs", "their medians"]
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return figure


def _bins(samples: Iterable[Array]) -> Array:
    """Bins that all histograms of a row share."""
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
    """(n,) float64 without NaN and infinity."""
    array = np.asarray(values, np.float64).ravel()
    return array[np.isfinite(array)]


@_styled
def spectra(eigenvalues: Mapping[str, Array], colours: Mapping[str, str]) -> Figure | None:
    """Eigenvalues of the teachers' covariances over their rank, both axes logarithmic."""
    kept = {name: values[values > 0] for name, v in eigenvalues.items() if len(values := finite(v))}
    kept = {name: values for name, values in kept.items() if len(values)}
    if not kept:
        return None
    figure = Figure(figsize=(8, 4.2))
    axis = figure.subplots()
    labels = []  # given with the lines: an automatic legend leaves out names such as "_a"
    for i, (name, values) in enumerate(kept.items()):
        # The participation ratio: how many equal eigenvalues would spread the variance as well.
        effective = values.sum() ** 2 / (values**2).sum()
        labels.append(f"{short(name)}: {len(values)} axes, effective dimension {effective:.0f}")
        ranks = np.arange(1, len(values) + 1)
        axis.plot(ranks, values, _dash(i, _TEACHERS), color=colours[name], linewidth=2)
    axis.set(xscale="log", yscale="log", xlabel="axis, by falling variance", ylabel="eigenvalue")
    _plain_log_ticks(axis)
    axis.legend(axis.get_lines(), labels, loc="lower left")
    return figure


def _dash(i: int, palette: Sequence[str]) -> str:
    return _DASHES[i // len(palette) % len(_DASHES)]


def _plain_log_ticks(axis: Axes) -> None:
    for ticks in (axis.xaxis, axis.yaxis):
        if ticks.get_scale() == "log":
            ticks.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ticks.set_minor_formatter(NullFormatter())


@_styled
def wins(shares: Mapping[str, Mapping[str, Curve]], colours: Mapping[str, str]) -> Figure | None:
    """Each teacher's share of the positives over the steps, a panel a run.

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
        lines["equal shares"] = axis.axhline(equal, color=_QUIET, linestyle=(0, (1, 2)))
        for i, (name, (steps, share)) in enumerate(shares[run].items()):
            axis.plot(steps, 100 * share, color=colours[name], linewidth=0.6, alpha=0.25)
            (lines[name],) = axis.plot(
                steps, 100 * smooth(share), _dash(i, _TEACHERS), color=colours[name], linewidth=2
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


@_styled
def loss(curves: Mapping[str, Curve]) -> Figure | None:
    """The loss over the steps, as it was and smoothed, a line a run."""
    if not curves:
        return None
    figure = Figure(figsize=(8, 3.8))
    axis = figure.subplots()
    for i, (steps, losses) in enumerate(curves.values()):
        colour = _RUNS[i % len(_RUNS)]
        axis.plot(steps, smooth(losses), _dash(i, _RUNS), color=colour, linewidth=2)
        axis.plot(steps, losses, color=colour, linewidth=0.7, alpha=0.25, zorder=1.9)
    axis.set(xlabel="step", ylabel="loss")
    axis.margins(x=0.01)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _legend(figure, dict(zip(curves, axis.get_lines()[::2], strict=True)), columns=3)
    return figure


def smooth(values: Array) -> Array:
    """Centred moving average over a 25th of the curve; the window is cut at the ends."""
    reach, at = len(values) // 50, np.arange(len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    average: Array = (total[high] - total[low]) / (high - low)
    return average


@_styled
def accuracy_latency(rows: Sequence[Result]) -> Figure | None:
    """mAP over the time an image takes: a point a row, with its interval and its name."""
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
    axis.set(xscale="log", xlabel="time for an image, ms (left is faster)", ylabel="mAP, %")
    axis.set_xlim(fastest / 1.6, slowest * 2.2)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _plain_log_ticks(axis)
    _kind_legend(figure, [r.kind for r, _ in timed], markers=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels must not move the axes that they are placed in
    _place_labels(figure, axis, timed, sizes)
    return figure


def _kind_legend(figure: Figure, kinds: Sequence[str], *, markers: bool) -> None:
    handles: dict[str, Any] = {}
    for kind, (colour, marker) in KINDS.items():
        if kind in kinds:
            dot = Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7)
            handles[kind.replace("fusion-", "teachers fused, ")] = (
                dot if markers else Patch(color=colour)
            )
    _legend(figure, handles, columns=4)


def _legend(figure: Figure, handles: Mapping[str, Any], *, columns: int) -> None:
    """Above the axes, where it hides nothing."""
    labels = [short(name, 28) for name in handles]
    where: Any = "outside upper center"
    figure.legend(list(handles.values()), labels, loc=where, ncols=min(columns, len(labels)))


def _place_labels(
    figure: Figure, axis: Axes, timed: Sequence[tuple[Result, float]], sizes: Sequence[float]
) -> None:
    """Put each name at the free place nearest to its point; far ones get a line to it."""
    point = DPI / 72  # in pixels, as all lengths here
    centres = [axis.transData.transform((ms, 100 * r.map)) for r, ms in timed]
    radii = [0.7 * math.sqrt(size) * point for size in sizes]
    taken = [_box(c, 2 * r, 2 * r) for c, r in zip(centres, radii, strict=True)]
    for r, ms in timed:
        ends = axis.transData.transform([(ms, 100 * end) for end in r.map_ci])
        if np.isfinite(ends).all():
            taken.append(Bbox([ends[0] - 2, ends[1] + 2]))
    for i in sorted(range(len(timed)), key=lambda i: -centres[i][1]):
        label = figure.text(0, 0, short(timed[i][0].name), size=8.5, transform=None)
        drawn = label.get_window_extent()
        best, place, gap = math.inf, drawn, 0.0
        for distance in np.arange(0, 80, 3) * point:
            if best <= distance:
                break  # no farther place can be better
            for angle in np.deg2rad([0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90]):
                way = np.round([math.cos(angle), math.sin(angle)], 6)
                reach = radii[i] + 3 * point + distance
                middle = centres[i] + way * reach + np.sign(way) * drawn.size / 2
                box = _box(middle, drawn.width, drawn.height + 2)
                outside = box.width * box.height - _overlap(box, axis.bbox)
                cost = distance + 5 * (outside + sum(_overlap(box, other) for other in taken))
                if cost < best:
                    best, place, gap = cost, box, distance
        taken.append(place)
        label.set_position((place.x0, place.y0 + 1 - drawn.y0))
        if gap > 8 * point:
            near = np.clip(centres[i], place.min, place.max)
            xs, ys = zip(centres[i], near, strict=True)
            figure.add_artist(Line2D(xs, ys, color=_QUIET, linewidth=0.7, transform=None))


def _box(centre: Any, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)


def _overlap(a: Any, b: Any) -> float:
    common = Bbox.intersection(a, b)
    return 0.0 if common is None else float(common.width * common.height)


@_styled
def results(rows: Sequence[Result]) -> Figure | None:
    """Bars of mAP with their intervals, by kind, and beside them what an answer costs."""
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
            text, (1, place), (points, 0), xycoords=("axes fraction", "data"), color=_QUIET,
            textcoords="offset points", ha="right", va="center_baseline", annotation_clip=False,
        )  # fmt: skip

    for place, r in zip(places, order, strict=True):
        low, high = (100 * end for end in r.map_ci)
        axis.plot([low, high], [place, place], color=_INK, linewidth=1.4, solid_capstyle="butt")
        end = np.nanmax([0.0, 100 * r.map, high])
        number = f"{100 * r.map:.1f}" if np.isfinite(r.map) else "not measured"
        weight = "bold" if r.map == best else "normal"
        axis.text(end + 0.6, place, number, va="center_baseline", fontweight=weight)
        ms = r.ms_per_image
        beside(str(r.dim), 44, place)
        beside("–" if ms is None else f"{ms:#.2g}" if ms < 9.95 else f"{ms:,.0f}", 96, place)
    beside("dim", 44, -0.8)
    beside("ms/image", 96, -0.8)
    axis.set_yticks(places, [short(r.name) for r in order], color=_INK)
    axis.set(xlabel="mAP, %", xlim=(0, 100 * max(ends, default=1.0) * 1.1 + 1))
    axis.set_ylim(places[-1] + 0.6, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(length=0)
    axis.spines["bottom"].set_visible(False)
    _kind_legend(figure, kinds, markers=False)
    return figure


@_styled
def retrievals(grids: Sequence[tuple[str, str, float, Sequence[Found]]]) -> Figure | None:
    """Rows of a query and what was found for it, best first.

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
    axis = figure.add_axes((0, 0, 1, 1))  # in pixels, so that tiles are shown as they are
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    axis.text(left, top - 12, "query", fontsize=8, color=_QUIET)
    if columns:
        axis.text(left + pitch + gap, top - 12, "found, best first", fontsize=8, color=_QUIET)
    for row, (label, query, ap, hits) in enumerate(grids):
        y = top + row * fall
        axis.text(14, y + 44, short(label, 8), fontsize=8.5, fontweight="bold")
        axis.text(14, y + 68, f"AP {ap:.2f}", fontsize=7.5, color=_QUIET)
        _show(axis, query, left, y, _INK)
        for column, hit in enumerate(hits[:MAX_HITS]):
            x = left + gap + pitch * (1 + column)
            colour, mark = _MARKS[hit.correct]
            _show(axis, hit.path, x, y, colour)
            caption = f"{mark}{hit.score:.2f}"
            axis.text(x + TILE / 2, y + TILE + 20, caption, size=7.5, ha="center", color=colour)
    return figure


def _show(axis: Axes, path: str, x: float, y: float, colour: str) -> None:
    canvas = Image.new("RGB", (TILE, TILE), "#F3F4F6")
    try:
        image, _ = decode_scaled(read_bytes(path), min_side=TILE)
        image.thumbnail((TILE, TILE))
        canvas.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    except (ImageError, ValueError):  # a path with a null byte is a ValueError
        canvas.paste("#D1D5DB", (0, 0, TILE, TILE))
        centre = (x + TILE / 2, y + TILE / 2)
        axis.text(*centre, "cannot\nbe read", size=6.5, color=_QUIET, ha="center", va="center")
    extent = (x, x + TILE, y + TILE, y)
    axis.imshow(np.asarray(canvas), extent=extent, interpolation="nearest", aspect="auto")
    frame = Rectangle((x - 2, y - 2), TILE + 4, TILE + 4, fill=False, ec=colour, lw=2, zorder=4)
    axis.add_patch(frame)
