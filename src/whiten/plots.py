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

# Okabe & Ito's palette for the kinds, Paul Tol's "muted" for teachers and "vibrant" for runs:
# all three survive colour blindness, and none shares a colour with another.
KINDS = {
    "teacher": ("#8A94A6", "o"),
    "fusion-raw": ("#E69F00", "s"),
    "fusion-whitened": ("#0072B2", "D"),
    "student": ("#009E73", "^"),
}
_TEACHERS = "#332288 #CC6677 #44AA99 #DDCC77 #882255 #88CCEE #117733 #AA4499 #999933".split()
_RUNS = "#0077BB #EE7733 #009988 #EE3377 #33BBEE #CC3311".split()
_DASHES = ("-", "--", ":", "-.")  # tell lines apart once the colours repeat
_GOOD, _BAD = "#009E73", "#D55E00"
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
            axis.spines["left"].set_visible(False)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            if half == 0:
                axis.set_title(short(name, 28), color=colours[name], fontweight="bold")
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
    for i, (name, values) in enumerate(kept.items()):
        # The participation ratio: how many equal eigenvalues would spread the variance as well.
        worth = f"{len(values)} axes, spread of {values.sum() ** 2 / (values**2).sum():.0f}"
        ranks, label = np.arange(1, len(values) + 1), f"{short(name)}: {worth}"
        axis.plot(ranks, values, _dash(i, _TEACHERS), color=colours[name], lw=2, label=label)
    axis.set(xscale="log", yscale="log", xlabel="axis, by falling variance", ylabel="eigenvalue")
    _plain_log_ticks(axis)
    axis.legend(loc="lower left")
    return figure


def _dash(i: int, palette: Sequence[str]) -> str:
    return _DASHES[i // len(palette) % len(_DASHES)]


def _plain_log_ticks(axis: Axes) -> None:
    for ticks in (axis.xaxis, axis.yaxis):
        if ticks.get_scale() == "log":
            ticks.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ticks.set_minor_formatter(NullFormatter())


@_styled
def wins(
    shares: Mapping[str, Mapping[str, Curve]], colours: Mapping[str, str]
) -> Figure | None:
    """Each teacher's share of the positives over the steps, a panel a run.

    Args:
        shares: run to teacher to steps and shares (0 to 1).
    """
    if not shares:
        return None
    across = min(len(shares), 2)
    figure = Figure(figsize=(8, 0.8 + 2.5 * math.ceil(len(shares) / across)))
    axes = figure.subplots(math.ceil(len(shares) / across), across, squeeze=False, sharey=True)
    lines = {}
    for n, (axis, run) in enumerate(zip(axes.flat, shares, strict=False)):
        equal = 100 / len(shares[run])
        lines["equal shares"] = axis.axhline(equal, color=_QUIET, linestyle=(0, (1, 2)))
        for i, (name, (steps, share)) in enumerate(shares[run].items()):
            axis.plot(steps, 100 * share, color=colours[name], linewidth=0.6, alpha=0.25)
            (lines[short(name, 28)],) = axis.plot(
                steps, 100 * smooth(share), _dash(i, _TEACHERS), color=colours[name], linewidth=2
            )
        axis.set_title(short(run, 44))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set(xlabel="step", ylabel="" if n % across else "positives won, %")
    axes[0, 0].set_ylim(0, None)
    for axis in axes.flat[len(shares) :]:
        axis.set_visible(False)
    where: Any = "outside upper center"
    figure.legend(list(lines.values()), list(lines), loc=where, ncols=min(4, len(lines)))
    return figure


@_styled
def loss(curves: Mapping[str, Curve]) -> Figure | None:
    """The loss over the steps, as it was and smoothed, a line a run."""
    if not curves:
        return None
    figure = Figure(figsize=(8, 3.8))
    axis = figure.subplots()
    for i, (run, (steps, losses)) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": _RUNS[i % len(_RUNS)], "linestyle": _dash(i, _RUNS)}
        axis.plot(steps, losses, color=look["color"], linewidth=0.7, alpha=0.25)
        axis.plot(steps, smooth(losses), **look, linewidth=2, label=short(run, 48))
    axis.set(xlabel="step", ylabel="loss")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.legend(loc="upper right")
    return figure


def smooth(values: Array) -> Array:
    """Centred moving average over a fifteenth of the curve; the window shrinks at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(len(values) // 30, np.minimum(at, len(values) - 1 - at))
    average: Array = (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)
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
    where: Any = "outside upper center"
    figure.legend(list(handles.values()), list(handles), loc=where, ncols=len(handles))


def _place_labels(
    figure: Figure, axis: Axes, timed: Sequence[tuple[Result, float]], sizes: Sequence[float]
) -> None:
    """Put each name at the free place nearest to its point; far ones get a line to it."""
    point = DPI / 72  # in pixels, as all lengths here
    centres = [axis.transData.transform((ms, 100 * r.map)) for r, ms in timed]
    radii = [math.sqrt(size) / 2 * point for size in sizes]
    taken = [_box(c, 2 * r, 2 * r) for c, r in zip(centres, radii, strict=True)]
    for r, ms in timed:
        ends = axis.transData.transform([(ms, 100 * end) for end in r.map_ci])
        if np.isfinite(ends).all():
            taken.append(Bbox([ends[0] - 2, ends[1] + 2]))
    for i in sorted(range(len(timed)), key=lambda i: -centres[i][1]):
        label = figure.text(0, 0, short(timed[i][0].name), fontsize=8.5, transform=None)
        drawn = label.get_window_extent()
        best, place, gap = math.inf, drawn, 0.0
        for distance in np.arange(0, 80, 3) * point:
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
    beside = axis.get_yaxis_transform()
    for place, r in zip(places, order, strict=True):
        low, high = (100 * end for end in r.map_ci)
        axis.plot([low, high], [place, place], color=_INK, linewidth=1.4, solid_capstyle="butt")
        end = np.nanmax([0.0, 100 * r.map, high])
        number = f"{100 * r.map:.1f}" if np.isfinite(r.map) else "not measured"
        weight = "bold" if r.map == best else "normal"
        axis.text(end + 0.6, place, number, va="center", fontweight=weight)
        ms = r.ms_per_image
        time = "–" if ms is None else f"{ms:.2g}" if ms < 9.5 else f"{ms:.0f}"
        for x, cost in ((1.07, str(r.dim)), (1.19, time)):
            axis.text(x, place, cost, va="center", ha="right", transform=beside, color=_QUIET)
    for x, heading in ((1.07, "dim"), (1.19, "ms/image")):
        axis.text(x, -0.85, heading, ha="right", transform=beside, color=_QUIET, fontsize=8)
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
    left, top, gap, pitch, fall = 92, 36, 22, TILE + 14, TILE + 40
    width, height = left + gap + pitch * (1 + columns), top + fall * len(grids)
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
        axis.text(12, y + 44, short(label, 8), fontsize=8.5, fontweight="bold")
        axis.text(12, y + 68, f"AP {ap:.2f}", fontsize=7.5, color=_QUIET)
        _show(axis, query, left, y, _INK)
        for column, hit in enumerate(hits[:MAX_HITS]):
            x = left + gap + pitch * (1 + column)
            colour, mark = {True: (_GOOD, "✓ "), False: (_BAD, "✗ "), None: ("#9CA3AF", "")}[
                hit.correct
            ]
            _show(axis, hit.path, x, y, colour)
            axis.text(
                x + TILE / 2, y + TILE + 20, f"{mark}{hit.score:.2f}",
                fontsize=7.5, ha="center", color=colour,
            )  # fmt: skip
    return figure


def _show(axis: Axes, path: str, x: float, y: float, colour: str) -> None:
    canvas = Image.new("RGB", (TILE, TILE), "#F3F4F6")
    try:
        image, _ = decode_scaled(read_bytes(path), min_side=TILE)
        image.thumbnail((TILE, TILE))
        canvas.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    except (ImageError, ValueError):  # a path with a null byte is a ValueError
        canvas.paste("#D1D5DB", (0, 0, TILE, TILE))
        axis.text(x + TILE / 2, y + TILE / 2, "cannot\nbe read", fontsize=6.5, color=_QUIET,
                  ha="center", va="center", zorder=3)  # fmt: skip
    axis.imshow(np.asarray(canvas), extent=(x, x + TILE, y + TILE, y), interpolation="nearest",
                aspect="auto")  # fmt: skip
    frame = Rectangle((x - 2, y - 2), TILE + 4, TILE + 4, fill=False, ec=colour, lw=2, zorder=4)
    axis.add_patch(frame)
