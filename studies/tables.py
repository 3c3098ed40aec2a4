"""Text of docs/comparison.md and docs/differences.md, made of the results of the studies.

`tools/pages.py` writes it into the pages. The results are those of `quality.py table`,
`quality.py trials`, `target_distributions.py` and `differences.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from trials import DEFAULTS, FUSIONS, TEACHERS

from whiten.report.style import BAD, GOOD, INK, QUIET, styled

RESULTS = Path(__file__).parent / "results"
SETTINGS = {
    "label-free": "label-free",
    "labelled": "labelled",
    "partly": "a tenth labelled",
    "strong": "strong teachers",
}
NAMES = {
    "paper": "the paper's: `kl`, maxmin, PCA-whitening, random projection",
    "paper, lower lr": "the same, a quarter of the learning rate",
    "paper, higher lr": "the same, 2.5 times the learning rate",
    "paper, principal start": "the same, from principal axes",
    "kl maxmin, chosen teachers": "`kl`, whitening chosen",
    **{
        f"kl {fusion}, whitened teachers": f"`kl`, {fusion}, PCA-whitening, from principal axes"
        for fusion in FUSIONS
    },
    "kl maxmin, centred teachers": "`kl`, centred teachers, from principal axes",
    "kl maxmin, raw teachers": "`kl`, raw teachers, from principal axes",
    "kl maxmin, chosen teachers, all positives": "`kl`, whitening chosen, two pairs a group",
    "labels": "`labels` alone, no teacher",
    "regression": "`align`: regression onto the fused teachers",
    "queue, lower lr": "`queue`, a quarter of the learning rate",
    "queue, higher lr": "`queue`, 2.5 times the learning rate",
}


Row = dict[str, Any]


def validation_table(rows: Sequence[Row], start: str) -> Iterator[str]:
    """A recipe a line, mAP in percent and the temperature that it was best at."""
    rows = [row for row in rows if row["start"] == start]
    cells = {(row["recipe"], row["setting"]): row for row in rows}
    best = {s: max((r for r in rows if r["setting"] == s), key=_validation) for s in SETTINGS}
    yield f"| recipe | {' | '.join(SETTINGS.values())} |"
    yield "|---" + "|---:" * len(SETTINGS) + "|"
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        line = [NAMES.get(recipe) or _name(recipe)]
        for setting in SETTINGS:
            row = cells.get((recipe, setting))
            if row is None:
                line.append("")
                continue
            text = f"{100 * row['validation']:.1f}"
            if row["seeds"] > 1:
                text += f" ({row['seeds']} seeds)"
            line.append(f"**{text}**" if row is best[setting] else text)
        yield f"| {' | '.join(line)} |"


def test_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| student | setting | default | mAP | the paper's | default over the paper's | seeds |"
    yield "|---|---|---|---:|---:|---:|---:|"
    found = {(row["start"], row["setting"], row["recipe"]): row for row in rows}
    for start, defaults in DEFAULTS.items():
        for setting, recipe in defaults.items():
            ours, paper = found.get((start, setting, recipe)), found.get((start, setting, "paper"))
            if ours is None or paper is None:
                continue
            cells = [
                start,
                SETTINGS[setting],
                _name(recipe),
                _with_interval(ours, "test"),
                _with_interval(paper, "test"),
                _with_interval(ours, "over_paper"),
                f"{ours['seeds']}, {paper['seeds']}",
            ]
            yield f"| {' | '.join(cells)} |"


def fusion_table(trials: Sequence[Row]) -> Iterator[str]:
    """The paper's loss label-free on a frozen backbone, by fusion and treatment of the teachers."""
    yield f"| fusion | {' | '.join(TEACHERS)} |"
    yield "|---" + "|---:" * len(TEACHERS) + "|"
    for fusion in FUSIONS:
        line = [f"`{fusion}`"]
        for teachers in TEACHERS:
            name = f"kl {fusion}, {teachers} teachers"
            if (fusion, teachers) == ("maxmin", "whitened"):
                name = "paper, principal start"
            found = [
                row["validation"]
                for row in trials
                if (row["start"], row["setting"], row["recipe"]) == ("head", "label-free", name)
            ]
            line.append(f"{100 * max(found):.1f}" if found else "")
        yield f"| {' | '.join(line)} |"


def start_table(starts: Sequence[Row]) -> Iterator[str]:
    yield "| the pretrained student before training | validation | test |"
    yield "|---|---:|---:|"
    for row in starts:
        cells = [_with_interval(row, split) for split in ("validation", "test")]
        yield f"| {row['recipe']} | {' | '.join(cells)} |"


def target_table(rows: Sequence[Row]) -> Iterator[str]:
    lines = {}
    for row in rows:
        lines.setdefault((row["target"], row["teachers"]), {})[row["pairs"]] = row
    heads = ["target", "teachers"]
    for pairs in ("views", "groups"):
        heads += [f"{pairs}: mass on positives", "perplexity"]
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|---:|---:|---:|---:|"
    for (target, teachers), by_pairs in sorted(lines.items()):
        cells = [target, teachers]
        for pairs in ("views", "groups"):
            row = by_pairs[pairs]
            cells += [f"{row['positive_mass']:.2f}", f"{row['perplexity']:.1f}"]
        yield f"| {' | '.join(cells)} |"


def _validation(row: Row) -> float:
    return float(row["validation"])


def _name(recipe: str) -> str:
    """Terms as the options call them."""
    return re.sub(r"\b(kl|labels|relational|queue)\b", r"`\1`", recipe)


def _with_interval(row: Row, key: str) -> str:
    low, high = (100 * value for value in row[f"{key}_interval"])
    return f"{100 * row[key]:.1f} [{low:.1f}, {high:.1f}]"


@styled
def draw_test(rows: Sequence[Row], starts: Sequence[Row]) -> Figure:
    """Draw the default and the paper's recipe on the test split."""
    figure = Figure(figsize=(8.4, 3.4))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (start, defaults) in zip(axes, DEFAULTS.items(), strict=True):
        for offset, colour, label in ((-0.18, QUIET, "the paper's"), (0.18, GOOD, "default")):
            for x, (setting, recipe) in enumerate(defaults.items()):
                wanted = "paper" if offset < 0 else recipe
                row = next(
                    (
                        row
                        for row in rows
                        if (row["start"], row["setting"], row["recipe"]) == (start, setting, wanted)
                    ),
                    None,
                )
                if row is None:
                    continue
                height = 100 * row["test"]
                low, high = (100 * value for value in row["test_interval"])
                axis.bar(x + offset, height, 0.34, color=colour, label=label if x == 0 else None)
                error = [[height - low], [high - height]]
                axis.errorbar(x + offset, height, error, color=INK, linewidth=1, capsize=2)
                axis.text(x + offset, high + 1, f"{height:.1f}", ha="center", fontsize=8)
        if start == "pretrained":
            whitened = 100 * starts[-1]["test"]
            axis.axhline(whitened, color=BAD, linestyle="--", linewidth=1, label="start, whitened")
        names = [name.replace(" labelled", "\nlabelled") for name in SETTINGS.values()]
        names = [name.replace(" teachers", "\nteachers") for name in names]
        axis.set_xticks(range(len(names)), names, fontsize=8)
        axis.set_title(f"student: {start}")
        axis.grid(visible=False, axis="x")
    axes[0].set_ylabel("test mAP, %")
    axes[0].legend(loc="upper left")
    return figure


def recipe_tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Tables by their name on docs/comparison.md."""
    rows = results["quality"]["rows"]
    tables = {
        "pretrained": validation_table(rows, "pretrained"),
        "scratch": validation_table(rows, "scratch"),
        "fusions": fusion_table(results["trials"]["trials"]),
        "start": start_table(results["quality"]["starts"]),
        "test": test_table(rows),
        "targets": target_table(results["targets"]["rows"]),
    }
    return {name: "\n".join(lines) for name, lines in tables.items()}


def effects(found: Mapping[str, Any]) -> dict[str, str]:
    """Effects by their name on docs/differences.md: the published way → the default."""
    students, whitening = found["students"], found["whitening"]
    shown, order, cut_off = found["normalisation"], found["order"], found["cut-off"]

    def trained(published: str, default: str) -> str:
        return f"{_seeds(students[published])} → {_seeds(students[default])}"

    def fused(published: str, default: str = "whole images") -> str:
        return _arrow(whitening[published], whitening[default])

    return {
        "chosen-views": trained("views", "views, whitening chosen"),
        "chosen-groups": trained("groups", "groups, whitening chosen"),
        "start": trained("views, random start", "views"),
        "optimiser": trained("views, published optimiser", "views"),
        "maxrand": trained("views, maxrand drawn twice", "views, maxrand"),
        "one-pair": trained("groups, one pair", "groups"),
        "views-groups": trained("groups, published views", "groups"),
        "all-groups": trained("groups, all published", "groups, whitening chosen"),
        "null": fused("few images, null directions kept", "few images, null directions left out"),
        "few": fused("few images, null directions kept", "few images, chosen"),
        "crops": fused("random crops"),
        "zeros": fused("with 7 rows of zeros"),
        "normalisation": _arrow(shown["not normalised"], shown["normalised"]),
        "order": "; ".join(
            f"{order[f'queries that change, {kind}']:,} of 1,912 {what}"
            for kind, what in (
                ("exact", "as they are"),
                ("one byte", "with similarities of two decimals, which tie"),
            )
        ),
        "cut-off": "mean AP "
        + _arrow(cut_off["by positives retrieved"], cut_off["by positives that exist"])
        + f", of the whole ranking {100 * cut_off['whole ranking']:.1f}",
    }


def _arrow(published: float, default: float) -> str:
    return f"{100 * published:.1f} → {100 * default:.1f}"


def _seeds(student: Mapping[str, Any]) -> str:
    low, high = min(student["seeds"]), max(student["seeds"])
    return f"{100 * student['map']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def read_results() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
