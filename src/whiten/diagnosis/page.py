"""Write the page of a diagnosis: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whiten.diagnosis.result import Diagnosis, per_dim
from whiten.errors import counted
from whiten.report import page as html
from whiten.report.page import embedded, section
from whiten.report.plots import spectra, teacher_colours
from whiten.report.table import printable
from whiten.report.teachers import agreement, contributions

_HEADINGS = (
    "teacher", "alone", "adds", "dim", "effective rank", "images per dim", "params", "ms/image",
    "whitening",
)  # fmt: skip


# The last column has words, which may take two lines.
_STYLE = html.STYLE + "td:last-child { overflow-wrap: normal; white-space: normal; }\n"


def write_page(found: Diagnosis, path: Path) -> Path:
    """Write the page, making its folder."""
    return html.write_page(path, page(found))


def page(found: Diagnosis) -> str:
    """Return the page's HTML."""
    parts = [html.notes_list(found.verdict)] if found.verdict else []
    parts.append(html.facts_list(_facts(found)))
    parts.append(section("Teachers", _help(found), _table(found)))
    for heading, help_, png in _plots(found):
        if png is not None:
            parts.append(section(heading, help_, embedded(heading, png)))
    return html.page(
        f"{counted(len(found.teachers), 'teacher')} on {counted(found.images, 'image')}",
        parts,
        _STYLE,
    )


def _facts(found: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "images", f"{found.images:,}, {found.sampled:,} of them embedded"
    yield "exact copies", f"{found.exact_copies:,}"
    yield "near-duplicates among the embedded", f"{found.near_copies:,}"
    if found.skipped:
        yield "could not be used", f"{len(found.skipped):,}"
    if found.raw is not None and found.whitened is not None:
        yield (
            "fused, as they come → whitened",
            f"{100 * found.raw:.1f} → {100 * found.whitened:.1f} ({found.whitening_adds})",
        )
    if (s := found.student) is not None:
        yield (
            f"{s.uri}: its features → whitened → in closed form",
            f"{100 * s.start:.1f} → {100 * s.whitened:.1f} → {100 * s.closed:.1f} ({s.criterion})",
        )


def _help(found: Diagnosis) -> str:
    if found.criterion is None:
        return f"Scores: {found.scores}."
    return (
        f"Scores: {found.scores}. A teacher adds what the fusion of all loses "
        "without it, ± the standard error."
    )


def _table(found: Diagnosis) -> str:
    rows = []
    for teacher in found.teachers:
        texts = (
            "–" if teacher.score is None else f"{100 * teacher.score:.1f}",
            "–" if teacher.adds is None else str(teacher.adds),
            f"{teacher.dim:,}",
            f"{teacher.effective_rank:.0f}",
            per_dim(teacher),
            "–" if teacher.params is None else f"{teacher.params / 1e6:.1f}M",
            "–" if teacher.ms_per_image is None else f"{teacher.ms_per_image:#.3g}",
            teacher.whitening,
        )
        rows.append((printable(teacher.name), html.cells(texts)))
    return html.table(_HEADINGS, rows)


def _plots(found: Diagnosis) -> Iterator[tuple[str, str, bytes | None]]:
    teachers = found.teachers
    names = [teacher.name for teacher in teachers]
    adds = {t.name: (t.adds.value, t.adds.error) for t in teachers if t.adds is not None}
    yield (
        "What each teacher adds",
        "The fusion of all, less the fusion without this teacher. Grey is within two standard "
        "errors of nothing, orange is a teacher that harms.",
        contributions(adds),
    )
    shares = np.array([[t.agreement.get(name, 1.0) for name in names] for t in teachers])
    yield (
        "How far they agree",
        "The share of the 10 nearest neighbours of an image that two whitened teachers have in "
        "common. Teachers that agree on everything are one teacher.",
        agreement(names, shares) if teachers[0].agreement else None,
    )
    yield (
        "Spectra",
        "The steeper a line, the fewer axes decide a teacher's similarities as they come.",
        spectra({t.name: np.array(t.spectrum) for t in teachers}, teacher_colours(names)),
    )
