"""The report of a run: a self-contained HTML page, and its plots as files."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from whiten.report import page
from whiten.report.overlap import Overlap
from whiten.report.page import embedded, section
from whiten.report.seen_unseen import SeenUnseen
from whiten.report.table import HEADINGS, Row, cells_of, printable
from whiten.report.texts import RETRIEVALS_HELP, SECTIONS, TABLE_HELP
from whiten.utils.arrays import Array
from whiten.utils.files import write_atomically


@dataclass
class Similarities:
    """Sampled similarities of one teacher, each (n,): of positive and of negative pairs."""

    raw_positives: Array
    raw_negatives: Array
    whitened_positives: Array
    whitened_negatives: Array


@dataclass
class Hit:
    """An image that was found; `correct` is None if unknown."""

    path: str
    score: float
    correct: bool | None


@dataclass
class Retrieval:
    """A query ("best", "median" or "worst" by its average precision) and its hits, best first."""

    label: str
    query: str
    ap: float
    hits: list[Hit]


@dataclass
class ReportData:
    """All data of a report; parts without data are left out.

    Attributes:
        facts: facts by name: ("images", "4,712 train, 1,912 test").
        similarities, spectra: per teacher; eigenvalues in descending order.
        whitening_choices: per teacher, the shrinkages, their scores, and the chosen index.
        runs: by name, the records of `metrics.jsonl`: step, epoch, loss, lr, images_per_s, after an
            epoch held_out and, if teachers compete, wins (teacher -> its share of the positives).
        starts: by name, the score of a start on the held-out images.
        retrievals: per encoder.
        overlap: test images that are known from training; None if that is not known.
        seen_unseen: scores on seen and on held-out sources, if any are held out.
        notes: important sentences, shown near the top.
        commands: shell commands to continue with.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    similarities: dict[str, Similarities] = field(default_factory=dict)
    spectra: dict[str, Array] = field(default_factory=dict)
    whitening_choices: dict[str, tuple[Array, Array, int]] = field(default_factory=dict)
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    starts: dict[str, float] = field(default_factory=dict)
    retrievals: dict[str, list[Retrieval]] = field(default_factory=dict)
    overlap: Overlap | None = None
    seen_unseen: SeenUnseen | None = None
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def write_report(data: ReportData, folder: Path) -> Path:
    """Write `report.html` and `figures/*.png`, each atomically.

    Returns:
        Path of the page, which contains its plots and can be sent on its own.
    """
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawn = _draw(data)
    for name, png in drawn.items():
        write_atomically(figures / f"{name}.png", png)
    return page.write_page(folder / "report.html", _page(data, drawn))


def _draw(data: ReportData) -> dict[str, bytes]:
    """Draw the PNGs that have data, by file name."""
    from whiten.report import (  # matplotlib is slow to import, and tables do not need it
        grids,
        plots,
    )

    pairs = {
        name: (s.raw_positives, s.raw_negatives, s.whitened_positives, s.whitened_negatives)
        for name, s in data.similarities.items()
    }
    shares = {run: _shares(records) for run, records in data.runs.items()}
    shares = {run: curves for run, curves in shares.items() if curves}
    losses, held_out = (_curves(data.runs, name) for name in ("loss", "held_out"))
    competing = [teacher for curves in shares.values() for teacher in curves]
    colours = plots.teacher_colours([*pairs, *data.spectra, *data.whitening_choices, *competing])
    drawn = {
        "results": plots.results(data.rows),
        "accuracy_latency": plots.accuracy_latency(data.rows),
        "similarities": plots.similarities(pairs, colours),
        "spectra": plots.spectra(data.spectra, colours),
        "whitening_choices": plots.whitening_choices(data.whitening_choices, colours),
        "wins": plots.wins(shares, colours),
        "held_out": plots.held_out(held_out, data.starts),
        "loss": plots.loss(losses),
    }
    for queries, slug in zip(data.retrievals.values(), _slugs(data.retrievals), strict=True):
        rows = [(grid.label, grid.query, grid.ap, grid.hits) for grid in queries]
        drawn[slug] = grids.retrievals(rows)
    return {name: png for name, png in drawn.items() if png is not None}


def _slugs(encoders: Iterable[str]) -> list[str]:
    """Make file names for the grids: plain, short, and distinct even if case is ignored."""
    slugs: list[str] = []
    for encoder in encoders:
        plain = unicodedata.normalize("NFKD", encoder.lower()).encode("ascii", "ignore").decode()
        slug = "retrievals_" + (re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48] or "encoder")
        n = 2
        unique = slug
        while unique in slugs:
            unique, n = f"{slug}-{n}", n + 1
        slugs.append(unique)
    return slugs


def _shares(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Array, Array]]:
    """Compute each teacher's share of the positives by step."""
    won = [(record.get("step"), record.get("wins") or {}) for record in records]
    won = [(step, {t: n / (sum(w.values()) or 1) for t, n in w.items()}) for step, w in won]
    teachers = dict.fromkeys(teacher for _, shares in won for teacher in shares)
    curves = {t: _curve((step, shares.get(t)) for step, shares in won) for t in teachers}
    return {teacher: curve for teacher, curve in curves.items() if len(curve[0])}


def _curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], name: str
) -> dict[str, tuple[Array, Array]]:
    """Return one value of the records by step, for the runs that have it."""
    curves = {
        run: _curve((record.get("step"), record.get(name)) for record in records)
        for run, records in runs.items()
    }
    return {run: curve for run, curve in curves.items() if len(curve[0])}


def _curve(points: Iterable[tuple[Any, Any]]) -> tuple[Array, Array]:
    """Sort steps and values; a resumed run repeats steps, and the loss can be NaN."""
    numbers = {x: y for x, y in points if isinstance(x, int | float) and isinstance(y, int | float)}
    kept = sorted((x, y) for x, y in numbers.items() if math.isfinite(x) and math.isfinite(y))
    table = np.array(kept, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _page(data: ReportData, drawn: Mapping[str, bytes]) -> str:
    parts = []
    if data.notes:
        parts.append(page.notes_list(data.notes))
    if data.facts:
        parts.append(page.facts_list(data.facts))
    if data.rows:
        parts.append(section("Results", TABLE_HELP, _table(data.rows)))
    if (compared := data.seen_unseen) is not None:
        parts.append(section("Seen and unseen sources", compared.measured, compared.html()))
    for name, (heading, help_) in SECTIONS.items():
        if name in drawn:
            parts.append(section(heading, help_, embedded(heading, drawn[name])))
    grids = ""
    for encoder, slug in zip(data.retrievals, _slugs(data.retrievals), strict=True):
        if slug in drawn:
            heading = escape(printable(encoder))
            grids += f"<h3>{heading}</h3>" + embedded(f"Retrievals of {encoder}", drawn[slug])
    if grids:
        parts.append(section("What is found", RETRIEVALS_HELP, grids))
    if data.commands:
        lines = "\n".join(map(escape, data.commands))
        parts.append(section("Continue", "Copy a line into a shell.", f"<pre>{lines}</pre>"))
    return page.page(printable(data.title), parts)


def _table(rows: Sequence[Row]) -> str:
    best = max((row.map for row in rows if math.isfinite(row.map)), default=None)
    shown = []
    for row in rows:
        name, kind, mean, *others = cells_of(row)
        if row.map == best:
            number, _, interval = mean.partition(" ")
            mean = f"<b>{number}</b> {interval}".rstrip()
        kind_cell = f'<td class="{kind}">{kind}</td>'
        shown.append((name, f"{kind_cell}<td>{mean}</td>{page.cells(others)}"))
    return page.table(HEADINGS, shown)
