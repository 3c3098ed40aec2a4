"""The style of all plots: colours, fonts, and how they are saved."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

DPI = 150

# Okabe & Ito's palette for kinds, and Paul Tol's "muted" one for teachers, its light colours
# darkened for white paper: both are safe for colour-blind readers. Runs have their own colours, so
# that lines of different plots are not confused.
KINDS = {
    "teacher": ("#8A94A6", "o"),
    "fusion-raw": ("#E69F00", "s"),
    "fusion-whitened": ("#0072B2", "D"),
    "student": ("#009E73", "^"),
    "asymmetric": ("#CC79A7", "v"),
}
TEACHERS = [
    "#332288", "#CC6677", "#44AA99", "#C2A83E", "#882255",
    "#62B5E5", "#117733", "#AA4499", "#8A8A2E",
]  # fmt: skip
RUNS = ["#1F2430", "#EE3377", "#33BBEE", "#A6761D", "#762A83", "#8C8C8C"]
DASHES = ("-", "--", ":", "-.")  # distinguish lines once colours repeat
GOOD, BAD = "#009E73", "#D55E00"
INK, QUIET, GRID = "#1F2430", "#6B7280", "#E5E7EB"

STYLE: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"} | {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9CA3AF",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": ["DejaVu Sans"],  # bundled with matplotlib: the same on every machine
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names may contain dollar signs
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure | None]) -> Callable[P, bytes | None]:
    """Draw and save under the style above; saving creates the ticks, so both need it."""

    @functools.wraps(draw)
    def png(*args: P.args, **kwargs: P.kwargs) -> bytes | None:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            if figure is None:
                return None
            buffer = io.BytesIO()
            # Omit matplotlib's version, so that the file depends only on the picture.
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            return buffer.getvalue()

    return png


def short(text: str, length: int = 34) -> str:
    """Fit `text` on one line: cut in the middle if long, boxes for characters the font lacks."""
    font = get_font(findfont("DejaVu Sans"))  # a missing glyph would warn in every plot
    text = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in text)
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 5
    return f"{text[: length - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"
