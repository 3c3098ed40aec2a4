"""Encoder × Task -> figures, with intervals.

Embeddings of the gallery lie in a file and pass by once for many queries, a block at a time:
neither they nor their similarities are ever in memory as a whole.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from whiten import metrics
from whiten.encoder import Encoder
from whiten.errors import ConfigError
from whiten.mapped import forget
from whiten.media import Item, Items, Skipped, find_items
from whiten.opening import load
from whiten.progress import announce
from whiten.protocols.folder import folder_task
from whiten.protocols.gallery import similarity_blocks, write_embeddings
from whiten.protocols.task import Indices, Task
from whiten.store import Vectors
from whiten.teachers import Teacher

QUERIES = 1024  # that a pass over the gallery serves
LATENCY_BATCH = 16
_GATHERED = 256  # labelled items whose embeddings are read at once, from wherever they lie

Number = TypeVar("Number", int, float)

PER_QUERY: dict[str, Callable[[metrics.Ranks], float]] = {
    "map": metrics.ap_from_ranks,
    "map@1": lambda ranks: metrics.average_precision_at(ranks, 1),
    "map@5": lambda ranks: metrics.average_precision_at(ranks, 5),
    "map@10": lambda ranks: metrics.average_precision_at(ranks, 10),
    "recall@1": lambda ranks: metrics.recall_at(ranks, 1),
    "recall@5": lambda ranks: metrics.recall_at(ranks, 5),
    "recall@10": lambda ranks: metrics.recall_at(ranks, 10),
    "mp@1": lambda ranks: metrics.precision_at(ranks, 1),
    "mp@5": lambda ranks: metrics.precision_at(ranks, 5),
    "mp@10": lambda ranks: metrics.precision_at(ranks, 10),
}


@dataclass(frozen=True)
class Figure:
    """A mean over queries and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """How well an encoder retrieves.

    Attributes:
        name: of the encoder.
        dim: of its embedding.
        figures: `map`, `map@k`, `recall@k` and `mp@k` for k = 1, 5, 10, see `whiten.metrics`.
        aps: (queries,) average precision of each.
        query_ids: in the same order.
        gallery_size: images searched.
        without_positives: queries left out, for nothing in the gallery was right.
        skipped: images that could not be read, and why.
    """

    name: str
    dim: int
    figures: dict[str, Figure]
    aps: npt.NDArray[np.float64]
    query_ids: list[str]
    gallery_size: int
    without_positives: int
    skipped: list[Skipped]
    searched: ClassVar[str] = "images"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the per-query lists."""
        return {
            "name": self.name,
            "dim": self.dim,
            "queries": len(self.query_ids),
            "gallery": self.gallery_size,
            "queries_without_positives": self.without_positives,
            **{name: dataclasses.asdict(figure) for name, figure in self.figures.items()},
            "skipped": [dataclasses.asdict(skip) for skip in self.skipped],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.name}: {len(self.query_ids):,} queries, {self.gallery_size:,} {self.searched}"
        width = max(10, *map(len, self.figures))
        for name, figure in self.figures.items():
            yield f"  {name:{width}} {figure.value:.4f}  [{figure.low:.4f}, {figure.high:.4f}]"

    @property
    def remarks(self) -> list[str]:
        """What to say beside the figures."""
        if not self.without_positives:
            return []
        return [f"{self.without_positives} queries left out: nothing that is right is there"]


def evaluate(
    encoder: Encoder | str | os.PathLike[str],
    gallery: str | os.PathLike[str],
    *,
    queries: str | os.PathLike[str] | None = None,
    gallery_encoder: Encoder | str | os.PathLike[str] | None = None,
    cache: Path | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Evaluate retrieval on groups: images of a group should find each other.

    Args:
        encoder: an `Encoder`, or what `whiten.load` takes.
        gallery: a folder with a subfolder a group, or a table with columns `path,group`.
        queries: likewise; by default each gallery image searches all the others.
        gallery_encoder: embeds the gallery, where it is not the queries' encoder (asymmetric
            search): `fuse:compatible:RUN` for a student that was made compatible with it.
        cache: where embeddings are kept between calls; by default nowhere.

    Raises:
        ConfigError: fewer than two groups, nothing to find, or encoders that do not go together.
    """
    items = find_items(gallery, announce if show_progress else None)
    asked = None if queries is None else find_items(queries)
    folder_task(items, asked)  # refuses what has nothing to find before anything is embedded
    model = encoder if isinstance(encoder, Encoder) else load(encoder)
    host = model
    if gallery_encoder is not None:
        host = gallery_encoder if isinstance(gallery_encoder, Encoder) else load(gallery_encoder)
        _require_compatible(model, host)
    kept, vectors, skipped = _embed_to_disk(host, items, cache, show_progress)
    if asked is None:
        who, searching = kept, vectors
        if host is not model:
            who, searching, more = _embed_to_disk(model, kept, cache, show_progress)
            if more:  # what both could read searches, and is searched
                rows = kept.by_id.rows(who.ids.to_pylist())
                kept, vectors, skipped = who, vectors[rows], [*skipped, *more]
        task = folder_task(kept)
    else:
        who, searching, more = model.embed_items(
            asked,
            # Ids are unique within a folder only, so that each collection has stores of its own.
            cache=cache / "queries" if cache else None,
            show_progress=show_progress,
        )
        task = folder_task(kept, who)
        skipped = [*skipped, *more]
    rows = who.by_id.rows([item.id for item in task.queries])
    name = model.name if host is model else f"{model.name} against {host.name}"
    return evaluate_task(task, searching, vectors, rows=rows, name=name, skipped=skipped)


def _embed_to_disk(
    encoder: Encoder, items: Sequence[Item], cache: Path | None, show_progress: bool
) -> tuple[Items, Vectors, list[Skipped]]:
    """The items that could be embedded, their (n, dim) embeddings, mapped, and the others."""
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    # The file has no name, so that a kill leaves nothing behind.
    with tempfile.TemporaryFile(dir=cache) as file:
        kept, skipped = write_embeddings(
            encoder, items, file, cache=cache, show_progress=show_progress
        )
        vectors: Vectors = np.memmap(file, np.float32, "r", shape=(len(kept), encoder.dim))
    return kept, vectors, skipped


def _require_compatible(encoder: Encoder, gallery: Encoder) -> None:
    if not encoder.can_ask(gallery.fingerprint()):
        raise ConfigError(
            f"{encoder.name} cannot search what {gallery.name} embeds, their spaces are not the "
            "same: distil it with --compatible, and name fuse:compatible:RUN of that run"
        )


def evaluate_task(
    task: Task,
    queries: Vectors,
    gallery: Vectors,
    *,
    rows: Indices | None = None,
    name: str = "",
    skipped: list[Skipped] | None = None,
) -> Evaluation:
    """Score embeddings that exist already.

    Args:
        queries: (len(task.queries), d) float32.
        gallery: (len(task.gallery), d) float32; may be a memory map, which is read a block at a
            time.
        rows: (len(task.queries),) where the queries are in `queries`, if they are but some of it.
    """
    rows = np.arange(len(queries)) if rows is None else rows
    if queries.shape[1] != gallery.shape[1]:
        raise ConfigError(
            f"queries have {queries.shape[1]} dimensions and the gallery {gallery.shape[1]}: "
            "embed both with the same model"
        )
    scores = {figure: np.empty(len(rows)) for figure in PER_QUERY}
    for row, ranks in enumerate(_ranks(task, queries, rows, gallery)):
        for figure, function in PER_QUERY.items():
            scores[figure][row] = function(ranks)
    figures = {
        figure: Figure(float(values.mean()), *metrics.bootstrap_interval(values))
        for figure, values in scores.items()
    }
    return Evaluation(
        name=name,
        dim=int(gallery.shape[1]),
        figures=figures,
        aps=scores["map"],
        query_ids=[item.id for item in task.queries],
        gallery_size=len(gallery),
        without_positives=task.without_positives,
        skipped=skipped or [],
    )


def _ranks(
    task: Task, queries: Vectors, rows: Indices, gallery: Vectors
) -> Iterator[metrics.Ranks]:
    for first in range(0, len(rows), QUERIES):
        part = slice(first, first + QUERIES)
        positives, junk = task.positives[part], task.junk[part]
        labelled = [np.union1d(*pair) for pair in zip(positives, junk, strict=True)]
        counter = _count_ranks(queries[rows[part]], gallery, labelled, positives)
        for row, (right, absent) in enumerate(zip(positives, junk, strict=True)):
            yield counter.ranks(row, right, absent)


def score_revisited(
    queries: Vectors, gallery: Vectors, ground_truth: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, Any]]:
    """`whiten.metrics.revisited` from embeddings, in one pass and without the matrix.

    Args:
        queries: (q, d) float32.
        gallery: (n, d) float32; may be a memory map.
        ground_truth: per query the gallery indices that are `easy`, `hard` and `junk`.
    """
    if len(queries) != len(ground_truth):
        raise ConfigError(
            f"{len(queries)} queries have {len(ground_truth)} ground truths: pass one for each"
        )

    def counters() -> Iterator[metrics.RankCounter]:
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            labels = metrics.revisited_labels(ground_truth[part])
            yield _count_ranks(queries[part], gallery, *labels)

    return metrics.revisited_scores(counters(), ground_truth)


def _count_ranks(
    queries: Vectors,
    gallery: Vectors,
    labelled: Sequence[Indices],
    positives: Sequence[Indices],
) -> metrics.RankCounter:
    scores = _labelled_scores(queries, gallery, labelled)
    counter = metrics.RankCounter(labelled, scores, positives)
    for start, block in similarity_blocks(queries, gallery):
        counter.pin(start, block)
        counter.add(start, block)
    return counter


def _labelled_scores(
    queries: Vectors, gallery: Vectors, labelled: Sequence[Indices]
) -> list[Vectors]:
    """Similarities of each query to its labelled items, by matrix products as for all others.

    They must be known before the pass that counts what is above them.
    """
    items = np.concatenate(labelled)
    wanted, which = np.unique(items, return_inverse=True)
    query = np.repeat(np.arange(len(labelled)), [len(own) for own in labelled])
    order = np.argsort(which, kind="stable")
    scores = np.empty(len(items), np.float32)
    for start in range(0, len(wanted), _GATHERED):
        product = queries @ gallery[wanted[start : start + _GATHERED]].T
        forget(gallery)
        first, last = np.searchsorted(which, (start, start + _GATHERED), sorter=order)
        mine = order[first:last]
        scores[mine] = product[query[mine], which[mine] - start]
    return np.split(scores, np.cumsum([len(own) for own in labelled])[:-1])


def top_k(queries: Vectors, gallery: Vectors, k: int) -> Iterator[tuple[Any, Any]]:
    """For each query the indices and similarities of its k nearest, best first; ties by index."""
    k = min(k, len(gallery))
    for first in range(0, len(queries), QUERIES):
        some = queries[first : first + QUERIES]
        best = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(some)
        for start, block in similarity_blocks(some, gallery):
            best = [_merge(*kept, start, row, k) for kept, row in zip(best, block, strict=True)]
        yield from best


def _merge(
    indices: Indices, scores: Vectors, start: int, row: Vectors, k: int
) -> tuple[Indices, Vectors]:
    """The k best of those so far, best first, and of a further row of similarities."""
    found = np.arange(len(row))
    if len(scores) == k:
        found = np.flatnonzero(row > scores[-1])  # what only equals comes later, and loses
    if len(found) > k:
        # Everything that ties with the k-th is kept, so that the index decides.
        others = row[found]
        found = found[others >= np.partition(others, len(found) - k)[len(found) - k]]
    if len(found) == 0:
        return indices, scores
    indices = np.concatenate([indices, found + start])
    scores = np.concatenate([scores, row[found]])
    order = np.argsort(-scores, kind="stable")[:k]
    return indices[order], scores[order]


# --- cost -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What embedding one image costs.

    Attributes:
        params: parameters, None where unknown.
        macs: multiply-accumulates.
        ms_per_image: median forward time in float32 in batches of 16, without decoding.
    """

    params: int | None
    macs: int | None
    ms_per_image: float | None


def measure_cost(encoder: Encoder, *, repeats: int = 3) -> Cost:
    """Measure on this machine; the parts of a fused encoder run one after the other."""
    costs = [_measure_teacher(part.teacher, repeats) for part in encoder.parts]
    return Cost(
        params=_sum([cost.params for cost in costs]),
        macs=_sum([cost.macs for cost in costs]),
        ms_per_image=_sum([cost.ms_per_image for cost in costs]),
    )


def _measure_teacher(teacher: Teacher, repeats: int) -> Cost:
    if teacher.lookup is not None:
        return Cost(None, None, None)
    pixels = np.zeros((LATENCY_BATCH, *teacher.preprocess.size, 3), np.uint8)
    teacher.embed(pixels)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        teacher.embed(pixels)
        times.append(time.perf_counter() - began)
    milliseconds = round(1000 * float(np.median(times)) / LATENCY_BATCH, 3)
    return Cost(teacher.params, teacher.count_macs(), milliseconds)


def _sum(numbers: Sequence[Number | None]) -> Number | None:
    """The sum, or None where a part is unknown."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
