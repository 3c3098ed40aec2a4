"""Does the whitening choose well, in either regime and however few images it is fitted on?

    python studies/whitening_choice.py --quality runs/quality --strong runs/strong-teachers

For 100 to all training images: the fused teachers' mAP on the test split, whitened as chosen with
groups, as chosen without, as in the paper (shrinkage 0, at most 256 axes), centred, and raw.
Nothing is chosen on the test split. Needs the teachers and the cache that `finetune_teachers.py`
and `quality.py run` make. `--plot FILE` draws it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from emoji import load_split, mean_average_precision
from matplotlib.figure import Figure
from regimes import OF_THE_DOMAIN, OFF_THE_SHELF, Embedded, read, teachers_of

from whiten.report.style import QUIET, styled
from whiten.utils.arrays import normalize_rows
from whiten.whitening.choosing import choose_whitening
from whiten.whitening.whitener import Whitener

SIZES = (100, 200, 500, 1500, 4712)
WAYS = {
    "chosen, groups": ("#0072B2", "-", "o"),
    "chosen, no labels": ("#009E73", "-", "s"),
    "paper's": ("#D55E00", "-", "^"),
    "centred": ("#E69F00", "--", None),
    "raw": (QUIET, ":", None),
}


def sample(groups: np.ndarray, n: int, seed: int) -> np.ndarray:
    """About n rows, whole groups."""
    numbers = np.random.default_rng(seed).permutation(groups.max() + 1)
    return np.flatnonzero(np.isin(groups, numbers[: round(n * len(numbers) / len(groups))]))


def fit(way: str, k: int, teachers: list[Embedded], rows: np.ndarray, names: list[str]) -> Any:
    """A whitener for the k-th teacher, and in words what was chosen."""
    whole = teachers[k].whole[rows]
    if way == "paper's" or way == "centred":
        shrinkage = 0.0 if way == "paper's" else math.inf
        dim = min(256 if way == "paper's" else 512, len(rows) - 1, whole.shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # too few images: that is the question
            return Whitener(dim, shrinkage=shrinkage).fit(whole), None
    known: dict[str, Any] = {
        "others": [other.whole[rows] for j, other in enumerate(teachers) if j != k]
    }
    if way == "chosen, groups":
        known["groups"] = [names[i] for i in rows]
    else:
        known["second_views"] = teachers[k].view[rows]
    whitener, choice = choose_whitening(whole, **known)
    return whitener, f"{choice.shrinkage:g}/{choice.dim}"


def measure(way: str, teachers: list[Embedded], rows: np.ndarray, splits: Any) -> dict[str, Any]:
    """mAP of the concatenation on test, and the choices."""
    parts, choices = [], []
    for k, teacher in enumerate(teachers):
        if way == "raw":
            parts.append(normalize_rows(teacher.test))
            continue
        whitener, choice = fit(way, k, teachers, rows, splits["names"])
        parts.append(normalize_rows(whitener.transform(teacher.test)))
        choices += [choice] if choice else []
    mean = mean_average_precision(np.concatenate(parts, axis=1), splits["test"])
    return {"test": mean, "choices": choices}


@styled
def draw(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8.4, 3.6))
    axes = figure.subplots(1, 2)
    for axis, regime in zip(axes, (OFF_THE_SHELF, OF_THE_DOMAIN), strict=True):
        for way, (colour, dash, marker) in WAYS.items():
            found = [row for row in rows if (row["regime"], row["way"]) == (regime, way)]
            sizes = sorted({row["n"] for row in found})
            means = [
                100 * float(np.mean([row["test"] for row in found if row["n"] == n])) for n in sizes
            ]
            axis.plot(sizes, means, dash, color=colour, marker=marker, markersize=5, label=way)
        axis.set_xscale("log")
        axis.set_xticks(SIZES, [f"{n:,}" for n in SIZES])
        axis.minorticks_off()
        axis.set_title(f"teachers {regime}")
        axis.set_xlabel("images that the whitening is fitted on")
    axes[0].set_ylabel("test mAP of the fusion, %")
    axes[1].legend(loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--quality", type=Path, default=Path("runs/quality"))
    parser.add_argument("--strong", type=Path, default=Path("runs/strong-teachers"))
    parser.add_argument("--draws", type=int, default=2, help="samples of each size")
    parser.add_argument("--plot", type=Path, help="draw it here (PNG)")
    options = parser.parse_args()
    train = load_split("train").groups
    splits = {"names": [f"g{group}" for group in train], "test": load_split("test").groups}
    rows = []
    for regime in (OFF_THE_SHELF, OF_THE_DOMAIN):
        teachers = read(teachers_of(regime, options.strong), options.quality)
        for n in SIZES[:2] if options.quick else SIZES:
            for draw_number in range(1 if n >= len(train) or options.quick else options.draws):
                kept = sample(train, n, draw_number)
                for way in WAYS:
                    found = measure(way, teachers, kept, splits)
                    rows.append({"regime": regime, "n": n, "draw": draw_number, "way": way} | found)
                    print(
                        f"{regime:<15}{n:>5}  {way:<18}{100 * found['test']:.1f}  "
                        f"{' '.join(found['choices'])}",
                        file=sys.stderr,
                        flush=True,
                    )
    text = json.dumps({"benchmark": "whitening_choice", "rows": rows}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    if options.plot and (png := draw(rows)):
        options.plot.write_bytes(png)


if __name__ == "__main__":
    main()
