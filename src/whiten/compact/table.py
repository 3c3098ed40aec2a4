"""What each kind costs: bytes a vector against the loss of mAP, and of the nearest neighbours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten import metrics
from whiten.compact.codec import Codec, bytes_per_vector
from whiten.compact.folder import decoded, encode_into, sample_rows
from whiten.compact.kinds import fit, parse_kind
from whiten.compact.product import CENTROIDS
from whiten.datasets.collection import Items
from whiten.errors import ConfigError, MissingExtraError, WhitenError
from whiten.evaluation.evaluate import evaluate_task
from whiten.evaluation.task import Task, folder_task
from whiten.metrics import Figure
from whiten.retrieval.blocks import top_k
from whiten.utils.arrays import Indices, Vectors
from whiten.utils.progress import progress

QUERIES = 2000  # that search, at most; drawn at random
NEIGHBOURS = 10
ADVISED = 39  # vectors for each centroid of product quantisation, as FAISS asks for
_BASE = "float32"

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """One kind.

    Attributes:
        kind: its name.
        bytes: a vector.
        map: mean average precision, 0 to 1; None where no groups are known.
        map_loss: mAP of float32 less that of this kind, the mean over queries, with the interval
            of the difference of pairs; None likewise.
        overlap: share of float32's exact 10 nearest that are among this kind's 10 nearest.
        unavailable: why it could not be had; the others are then None.
    """

    kind: str
    bytes: int | None = None
    map: float | None = None
    map_loss: Figure | None = None
    overlap: Figure | None = None
    unavailable: str = ""


@dataclass(frozen=True)
class Costs:
    """All kinds on one collection.

    Attributes:
        name: of the model.
        dim: of its embeddings.
        images: searched.
        labelled: queries whose groups are known, which mAP is of; 0 where there are none.
        asked: queries that `overlap` is of.
        fitted_on: vectors that the codecs were fitted on.
        rows: the kinds.
    """

    name: str
    dim: int
    images: int
    labelled: int
    asked: int
    fitted_on: int
    rows: list[Cost]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "remarks": self.remarks}

    @property
    def remarks(self) -> list[str]:
        """What to say beside the table."""
        has_codebooks = any(row.overlap and row.kind.startswith("pq:") for row in self.rows)
        if not has_codebooks or self.fitted_on >= ADVISED * CENTROIDS:
            return []
        return [
            f"pq was fitted on {self.fitted_on / CENTROIDS:.1f} vectors a centroid, and {ADVISED} "
            "are advised: it knows these images by heart, and will lose more on others"
        ]

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"{self.name}: {self.images:,} vectors of {self.dim} dimensions, fitted on "
            f"{self.fitted_on:,}"
        )
        if self.labelled:
            yield f"  mAP by the groups of {self.labelled:,} queries, lost against float32 [95 %]"
        else:
            yield "  no groups are known, so that there is no mAP"
        yield (
            f"  same@{NEIGHBOURS}: share of float32's exact {NEIGHBOURS} nearest that are found, "
            f"{self.asked:,} queries [95 %]"
        )
        yield f"  {'kind':10} {'bytes':>6}  {'mAP':>6}  {'lost':>26}  same@{NEIGHBOURS}"
        for row in self.rows:
            yield f"  {_line(row)}"


def _line(row: Cost) -> str:
    if row.overlap is None:
        return f"{row.kind:10} {row.unavailable}"
    mean = "–" if row.map is None else f"{row.map:.4f}"
    lost = "" if row.map_loss is None else _interval(row.map_loss)
    return f"{row.kind:10} {row.bytes:>6,}  {mean:>6}  {lost:>26}  {_interval(row.overlap)}"


def _interval(figure: Figure) -> str:
    value, low, high = (f"{round(x, 4) + 0.0:.4f}" for x in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Question:
    """What is asked of every kind.

    Attributes:
        vectors: (q, dim) float32 of the queries.
        own: (q,) rows of the gallery that are the queries themselves; -1 where there is none.
        task: who should find whom; None where no groups are known.
        rows: where the task's queries are in `vectors`.
    """

    vectors: Vectors
    own: Indices
    task: Task | None
    rows: Indices


def measure_costs(
    vectors: Vectors,
    items: Items,
    kinds: Sequence[str],
    *,
    queries: tuple[Items, Vectors] | None = None,
    name: str = "",
    show_progress: bool = False,
) -> Costs:
    """Fit, encode and search with each kind, one after the other.

    Codes lie in a temporary file while they are searched; memory does not grow with the collection.

    Args:
        vectors: (n, dim) float32, L2-normalised; may be a memory map.
        items: of the rows; their groups, if there are any, say what is right.
        kinds: see `whiten.compact.fit`; float32 is measured in any case.
        queries: other images that search, and their embeddings; by default each image searches all
            the others.

    Raises:
        ConfigError: an unknown kind, or fewer than 3 vectors.
    """
    for kind in kinds:
        parse_kind(kind)
    if len(vectors) < 3:
        raise ConfigError(f"{len(vectors)} vectors tell nothing about a loss: name more images")
    question = ask(vectors, items, queries)
    sample = sample_rows(vectors)
    wanted = [_BASE, *(kind for kind in dict.fromkeys(kinds) if kind != _BASE)]
    truth, base_aps = np.zeros((0, 0), np.int64), np.zeros(0)
    rows: list[Cost] = []
    with progress("measure kinds", enabled=show_progress) as update:
        for number, kind in enumerate(wanted, start=1):
            try:
                codec = fit(kind, sample)
            except (MissingExtraError, WhitenError) as error:
                rows.append(Cost(kind, unavailable=str(error)))
                continue
            aps, found = answer(codec, vectors, question)
            if kind == _BASE:
                truth, base_aps = found, aps
            row = Cost(kind, bytes_per_vector(codec), overlap=_figure(_overlap(truth, found)))
            if question.task is not None:
                row = replace(row, map=float(aps.mean()), map_loss=_figure(base_aps - aps))
            rows.append(row)
            update(number, len(wanted))
    return Costs(
        name=name,
        dim=int(vectors.shape[1]),
        images=len(vectors),
        labelled=0 if question.task is None else len(question.task.queries),
        asked=len(question.vectors),
        fitted_on=len(sample),
        rows=rows if _BASE in kinds else rows[1:],
    )


def ask(vectors: Vectors, items: Items, queries: tuple[Items, Vectors] | None) -> Question:
    """Choose who searches: those whose groups are known if there are any, and not too many."""
    who, searching = (items, vectors) if queries is None else queries
    try:
        task = folder_task(items, None if queries is None else who)
    except ConfigError:
        task = None
    if task is None:
        rows = _some(len(who))
    else:
        kept = _some(len(task.queries))
        lists = ([every[i] for i in kept] for every in (task.queries, task.positives, task.junk))
        asked, positives, junk = lists
        task = replace(task, queries=asked, positives=positives, junk=junk)
        rows = who.by_id.rows([item.id for item in asked])
    own = rows if queries is None else np.full(len(rows), -1)
    return Question(np.asarray(searching[rows], np.float32), own, task, np.arange(len(rows)))


def answer(codec: Codec, vectors: Vectors, question: Question) -> tuple[Scores, Indices]:
    """Each query's average precision by a kind's codes, and its nearest neighbours."""
    with tempfile.TemporaryFile() as file:
        encode_into(codec, vectors, file)
        start = file.tell() - len(vectors) * bytes_per_vector(codec)
        codes = np.memmap(file, codec.dtype, "r", start, (len(vectors), codec.width))
        gallery, asked = decoded(codec, codes), codec.queries(question.vectors)
        aps = np.zeros(0)
        if question.task is not None:
            aps = evaluate_task(question.task, asked, gallery, rows=question.rows).aps
        k = min(NEIGHBOURS, len(vectors) - 1)
        found = np.empty((len(asked), k), np.int64)
        best = top_k(asked, gallery, k + 1)
        for row, ((rows, _), own) in enumerate(zip(best, question.own, strict=True)):
            found[row] = rows[rows != own][:k]
    return aps, found


def _overlap(truth: Indices, found: Indices) -> Scores:
    pairs = zip(truth, found, strict=True)
    return np.array([len(np.intersect1d(*pair)) / len(pair[0]) for pair in pairs])


def _some(n: int) -> Indices:
    if n <= QUERIES:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).permutation(n)[:QUERIES])


def _figure(values: Scores) -> Figure:
    return Figure(float(values.mean()), *metrics.bootstrap_interval(values))
