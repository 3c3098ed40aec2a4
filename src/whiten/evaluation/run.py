"""Build the report of a finished run: evaluate encoders, sample similarities, pick queries."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import find_items
from whiten.datasets.patterns import Patterns
from whiten.datasets.sources import without_sources
from whiten.datasets.task import folder_task
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.opening import load_fusions
from whiten.embedding.rows import embed_rows
from whiten.errors import counted
from whiten.evaluation.cost import Cost, measure_cost
from whiten.evaluation.evaluate import Evaluation, evaluate_task
from whiten.evaluation.overlap import describe_overlap, run_overlap
from whiten.evaluation.run_encoders import (
    CLOSED_FORM,
    START,
    START_WHITENED,
    run_encoders,
    training_images,
)
from whiten.evaluation.seen_unseen import Measured, measure_seen_unseen
from whiten.models.student import load_student
from whiten.report.run_page import Hit, ReportData, Retrieval, Similarities
from whiten.report.seen_unseen import SeenUnseen
from whiten.report.table import Kind, Row
from whiten.retrieval.exact import exact_search
from whiten.runs.apart import Apart
from whiten.runs.folder import RunFolder
from whiten.runs.measured import best_starts
from whiten.utils.arrays import Vectors
from whiten.utils.names import distinct

_log = logging.getLogger(__name__)

SAMPLED_POSITIVES = 2000
SAMPLED_NEGATIVES = 20000
HITS_SHOWN = 8

# Rows for asymmetric search: the teachers' gallery, and a student that queries it.
GALLERY = "fused gallery"
IN_GALLERY = ", in fused gallery"


@dataclass(frozen=True)
class Assessed:
    """An encoder's embeddings of a test set, and its metrics."""

    row: Row
    items: Items
    vectors: Vectors
    evaluation: Evaluation


def assess(
    encoder: Encoder, kind: Kind, name: str, items: Sequence[Item], cache: Path, progress: bool
) -> Assessed:
    """Evaluate an encoder on grouped items, each querying all the others, and measure its cost."""
    kept, vectors, skipped = embed_rows(encoder, items, cache=cache, show_progress=progress)
    task = folder_task(kept)
    queries = vectors[kept.by_id.rows([item.id for item in task.queries])]
    evaluation = evaluate_task(task, queries, vectors, name=name, skipped=skipped)
    return Assessed(_row(evaluation, kind, measure_cost(encoder)), kept, vectors, evaluation)


def assess_asymmetric(student: Assessed, gallery: Assessed) -> Assessed:
    """Evaluate the student's queries in a gallery embedded by a compatible encoder.

    Args:
        student, gallery: evaluated on the same items.
    """
    rows = gallery.items.by_id.rows(student.items.ids.to_pylist())
    both = np.flatnonzero(rows >= 0)
    items, queries = student.items.take(both), student.vectors[both]
    task = folder_task(items)
    query_rows = items.by_id.rows([item.id for item in task.queries])
    evaluation = evaluate_task(
        task,
        queries,
        gallery.vectors[rows[both]],
        rows=query_rows,
        name=student.row.name + IN_GALLERY,
    )
    cost = Cost(student.row.params, student.row.macs, student.row.ms_per_image)
    return Assessed(_row(evaluation, "asymmetric", cost), items, queries, evaluation)


def _row(evaluation: Evaluation, kind: Kind, cost: Cost) -> Row:
    figures = evaluation.figures
    return Row(
        name=evaluation.name,
        kind=kind,
        map=figures["map"].value,
        map_ci=(figures["map"].low, figures["map"].high),
        recall_at_1=figures["recall@1"].value,
        params=cost.params,
        macs=cost.macs,
        ms_per_image=cost.ms_per_image,
        dim=evaluation.dim,
    )


def retrieval_grids(assessed: Assessed) -> list[Retrieval]:
    """Return the best, median and worst query with their first hits."""
    order = np.argsort(-assessed.evaluation.aps, kind="stable")
    picks = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    grids = []
    for label, query in picks.items():
        [index] = assessed.items.by_id.rows([assessed.evaluation.query_ids[query]])
        [(nearest, scores)] = exact_search(
            assessed.vectors[[index]], assessed.vectors, HITS_SHOWN + 1
        )
        item = assessed.items[index]
        hits = [
            Hit(assessed.items[i].path, float(score), assessed.items[i].group == item.group)
            for i, score in zip(nearest, scores, strict=True)
            if i != index
        ]
        grids.append(
            Retrieval(label, item.path, float(assessed.evaluation.aps[query]), hits[:HITS_SHOWN])
        )
    return grids


def sample_similarities(
    raw: Vectors, whitened: Vectors, groups: Sequence[str | None]
) -> Similarities:
    """Sample similarities of random pairs within groups and across groups.

    Args:
        raw, whitened: (n, d) embeddings of the same items, rows L2-normalised.
        groups: groups of the items.
    """
    rng = np.random.default_rng(0)
    labels = np.unique([g or f"\0{i}" for i, g in enumerate(groups)], return_inverse=True)[1]
    x, y = rng.integers(0, len(labels), (2, SAMPLED_NEGATIVES))
    apart = labels[x] != labels[y]
    by_group = np.argsort(labels, kind="stable")
    neighbours = labels[by_group[1:]] == labels[by_group[:-1]]
    left, right = by_group[:-1][neighbours], by_group[1:][neighbours]
    chosen = rng.permutation(len(left))[:SAMPLED_POSITIVES]

    def cosine(vectors: Vectors, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        similarities: np.ndarray = np.einsum("ij,ij->i", vectors[a], vectors[b])
        return similarities

    return Similarities(
        raw_positives=cosine(raw, left[chosen], right[chosen]),
        raw_negatives=cosine(raw, x[apart], y[apart]),
        whitened_positives=cosine(whitened, left[chosen], right[chosen]),
        whitened_negatives=cosine(whitened, x[apart], y[apart]),
    )


def teacher_pictures(
    whitened: Encoder, items: Sequence[Item], cache: Path, progress: bool = False
) -> tuple[dict[str, Similarities], dict[str, np.ndarray]]:
    """Return similarities before and after whitening and the spectrum, per teacher."""
    similarities, spectra = {}, {}
    names = distinct([part.teacher.name for part in whitened.parts])
    for name, part in zip(names, whitened.parts, strict=True):
        if part.whitener is None:
            continue
        raw = Encoder(name, [Part(part.teacher)])
        kept, vectors, _ = embed_rows(raw, items, cache=cache, show_progress=progress)
        groups = [item.group for item in kept]
        similarities[raw.name] = sample_similarities(vectors, part.apply(vectors), groups)
        spectra[raw.name] = part.whitener.eigenvalues_
    return similarities, spectra


def measure_run(
    root: Path,
    *,
    test: Path | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    show_progress: bool = False,
) -> ReportData:
    """Measure what a run's report shows.

    Args:
        root: the folder of a finished run.
        test: grouped images that the run has not seen; with them the report compares the teachers,
            their fusions, the initial student and the trained student. A run with held-out sources
            is also measured on these, see `measure_seen_unseen`.
        exclude, include: patterns that choose among the test images, see
            `whiten.datasets.patterns`.
    """
    run = RunFolder(root)
    images, spec = run.read_config()
    # Test images may share ids with training images, so they have their own stores.
    cache = run.embeddings / "test" if test else run.cache
    data = ReportData(title=f"whiten: {run.root.name}", runs={run.root.name: run.read_metrics()})
    training = load_student(run.student)[1].training
    data.starts = best_starts(training.get("measured", {}))
    data.facts = [
        ("images", images),
        ("teachers", ", ".join(spec.teachers)),
        ("student", f"{spec.student}, {spec.dim} dimensions"),
        ("recipe", training.get("recipe", "")),
        ("held-out images", training.get("gain", "")),
    ]
    if spec.holdout_source:
        data.facts.append(("unseen sources", training.get("unseen sources", "")))
    # Without a test set, the plots use the training images.
    items = training_images(run) if test is None else find_items(test, None, exclude, include)
    # Each teacher is opened once for the whole report.
    is_measured = test is not None or bool(spec.holdout_source)
    fusions = load_fusions(run.root) if spec.whiten or is_measured else {}
    if spec.whiten:
        data.similarities, data.spectra = teacher_pictures(
            fusions["whitened"], items, cache, show_progress
        )
        data.whitening_choices = read_choices(run)
    encoders = list(run_encoders(run, fusions)) if is_measured else []
    if test is not None:
        assessed = [
            assess(encoder, kind, name, items, cache, show_progress)
            for encoder, kind, name in encoders
        ]
        student = assessed[-1]
        data.retrievals = {student.row.name: retrieval_grids(student)}
        data.overlap = run_overlap(
            run, encoders[-1][0], student.items, student.vectors, show_progress=show_progress
        )
        if spec.compatible:
            fused = fusions["compatible"]
            gallery = assess(fused, "fusion-whitened", GALLERY, items, cache, show_progress)
            assessed += [gallery, assess_asymmetric(student, gallery)]
        data.rows = [a.row for a in assessed]
        data.facts.append(("test images", f"{len(items):,} in {test}"))
        data.notes = [*verdicts(data.rows), describe_overlap(data.overlap)]
        if data.overlap:
            _log.warning("%s", data.overlap.line())
    else:
        data.notes = ["No test images were named: add --test IMAGES to see what was gained."]
    if spec.holdout_source:
        seen, unseen = _seen_and_unseen(run, None if test is None else items, test)
        fused = fusions["whitened" if spec.whiten else "raw"]
        data.seen_unseen = measure_seen_unseen(
            encoders, fused, seen, unseen, show_progress=show_progress
        )
        data.notes.append(unseen_verdict(data.seen_unseen))
    data.commands = [f"whiten search QUERY.jpg --model {run.student} --in IMAGES"]
    return data


def require_test(test: Path, exclude: Patterns = (), include: Patterns = ()) -> None:
    """Refuse test images that a report could not be measured on, before a run takes hours.

    Raises:
        WhitenError: there are none, or they have no groups.
    """
    folder_task(find_items(test, None, exclude, include))


def _seen_and_unseen(
    run: RunFolder, found: Items | None, test: Path | None
) -> tuple[Measured, Measured]:
    """Return images of seen sources, the test images if any, and those of held-out sources."""
    _, spec = run.read_config()
    apart = Apart.read(run)
    names = ", ".join(spec.holdout_source)
    unseen = Measured(
        apart.unseen, f"{counted(len(apart.unseen), 'image')} of {names}", run.embeddings / "unseen"
    )
    items, name, cache = apart.held_out, "held-out images, which chose the student", run.cache
    if test is not None and found is not None:
        items = without_sources(test, found, spec.source_column, spec.holdout_source)
        name, cache = f"test images in {test}", run.embeddings / "test"
    return Measured(items, f"{len(items):,} {name}", cache), unseen


def read_choices(run: RunFolder) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Return the curves by which the whitenings were chosen, at the chosen number of axes."""
    if not run.choices.exists():
        return {}
    curves = {}
    for name, choice in json.loads(run.choices.read_text()).items():
        if choice["scores"]:
            scores = choice["scores"][choice["dims"].index(choice["dim"])]
            chosen = choice["shrinkages"].index(choice["shrinkage"])
            curves[name] = (np.array(choice["shrinkages"]), np.array(scores), chosen)
    return curves


def unseen_verdict(found: SeenUnseen) -> str:
    """Return the conclusion of seen and unseen sources in a sentence."""
    scores = {row.name: row for row in found.rows}
    told = []
    for which in ("unseen", "seen"):
        pair = [getattr(scores[name], which) for name in ("student", START)]
        if None not in pair:
            student, start = (f"{100 * score.value:.1f}" for score in pair)
            told.append(f"on {which} sources the student has {student}, its start {start}")
    if not told:
        return "Too few images of the held-out sources could be read to measure on them."
    return f"{found.criterion}: {'; '.join(told)}."


def _compute(macs: float, others: float) -> str:
    """Say how much a model computes, compared with others."""
    less = others / macs
    if 0.67 < less < 1.5:
        return "about as much compute"
    return f"{less:.0f} times less compute" if less > 1 else f"{1 / less:,.0f} times more compute"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return the conclusions of the table in sentences, including those that did not help."""
    notes = []
    starts = {row.name: row for row in rows if row.name in (START, START_WHITENED)}
    best: dict[str, Row] = {}
    for row in rows:
        if row.name not in starts and (row.kind not in best or row.map > best[row.kind].map):
            best[row.kind] = row
    if {"teacher", "fusion-whitened", "fusion-raw"} <= best.keys():
        single, raw, white = best["teacher"], best["fusion-raw"], best["fusion-whitened"]
        gain = 100 * (white.map - raw.map)
        change = f"{'adds' if gain > 0 else 'costs'} {abs(gain):.1f} points of mAP to their fusion"
        if abs(gain) < 0.05:  # shown as 0.0
            change = "does not change the mAP of their fusion"
        notes.append(
            f"Whitening the teachers {change} ({100 * raw.map:.1f} to {100 * white.map:.1f}); the "
            f"best single teacher, {single.name}, has {100 * single.map:.1f}."
        )
    if {"student", "fusion-whitened"} <= best.keys():
        student, white = best["student"], best["fusion-whitened"]
        relation = "reaches" if student.map >= white.map else "stays below"
        cost = ""
        if white.macs and student.macs:
            cost = f", with {_compute(student.macs, white.macs)}"
        notes.append(
            f"The best student ({student.name}) {relation} the whitened fusion of all teachers: "
            f"{100 * student.map:.1f} against {100 * white.map:.1f}{cost}."
        )
    named = {row.name: row for row in rows}
    for row in rows:
        if row.kind == "asymmetric":
            student, gallery = named[row.name.removesuffix(IN_GALLERY)], named[GALLERY]
            notes.append(
                f"In the gallery of the teachers ({gallery.dim} dimensions) the queries of "
                f"{student.name} have {100 * row.map:.1f}, those of the teachers "
                f"{100 * gallery.map:.1f}; the student in a gallery of its own "
                f"{100 * student.map:.1f}."
            )
    for row in rows:
        # What training began from says nothing about the run: the student is judged.
        if row.kind == "student" and row.name not in (*starts, CLOSED_FORM):
            behind = [start.name for start in starts.values() if start.map > row.map]
            if behind:
                notes.append(
                    f"{row.name}: {100 * row.map:.1f} is below the {' and the '.join(behind)}, "
                    "which needs no training: this run was not worth its while."
                )
    return notes
