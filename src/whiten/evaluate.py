"""Encoder × Task -> figures, with intervals. Never a queries × gallery matrix beyond a block."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whiten import metrics
from whiten.encoder import Encoder, load
from whiten.errors import ConfigError
from whiten.media import Skipped, find_items
from whiten.protocols.folder import folder_task
from whiten.protocols.task import Task
from whiten.store import Vectors
from whiten.teachers import Teacher

BLOCK_BYTES = 64 << 20  # of similarities that exist at once
LATENCY_BATCH = 16

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


def evaluate(
    encoder: Encoder | str | os.PathLike[str],
    gallery: str | os.PathLike[str],
    *,
    queries: str | os.PathLike[str] | None = None,
    cache: Path | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Evaluate retrieval on groups: images of a group should find each other.

    Args:
        encoder: an `Encoder`, or what `whiten.load` takes.
        gallery: a folder with a subfolder a group, or a table with columns `path,group`.
        queries: likewise; by default each gallery image searches all the others.
        cache: where embeddings are kept between calls; by default nowhere.

    Raises:
        ConfigError: fewer than two groups, or nothing to find.
    """
    items = find_items(gallery)
    asked = None if queries is None else find_items(queries)
    folder_task(items, asked)  # refuses what has nothing to find before anything is embedded
    model = encoder if isinstance(encoder, Encoder) else load(encoder)
    kept, vectors, skipped = model.embed_items(items, cache=cache, show_progress=show_progress)
    if asked is None:
        task = folder_task(kept)
        place = {item.id: i for i, item in enumerate(kept)}
        searching = vectors[[place[item.id] for item in task.queries]]
    else:
        asking, query_vectors, more = model.embed_items(
            asked,
            # Ids are unique within a folder only, so that each collection has stores of its own.
            cache=cache / "queries" if cache else None,
            show_progress=show_progress,
        )
        task = folder_task(kept, asking)
        place = {item.id: i for i, item in enumerate(asking)}
        searching = query_vectors[[place[item.id] for item in task.queries]]
        skipped = [*skipped, *more]
    return evaluate_task(task, searching, vectors, name=model.name, skipped=skipped)


def evaluate_task(
    task: Task,
    queries: Vectors,
    gallery: Vectors,
    *,
    name: str = "",
    skipped: list[Skipped] | None = None,
) -> Evaluation:
    """Score embeddings that exist already.

    Args:
        queries: (len(task.queries), d) float32.
        gallery: (len(task.gallery), d) float32; may be a memory map.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ConfigError(
            f"queries have {queries.shape[1]} dimensions and the gallery {gallery.shape[1]}: "
            "embed both with the same model"
        )
    scores = {figure: np.empty(len(queries)) for figure in PER_QUERY}
    for row, ranks in enumerate(_ranks(task, queries, gallery)):
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


def _ranks(task: Task, queries: Vectors, gallery: Vectors) -> Iterator[metrics.Ranks]:
    for start, similarity in similarity_blocks(queries, gallery):
        for column in range(similarity.shape[1]):
            query = start + column
            yield metrics.positive_ranks(
                similarity[:, column], task.positives[query], task.junk[query]
            )


def similarity_blocks(queries: Vectors, gallery: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Yield (first query, (gallery, some queries) similarities), BLOCK_BYTES at a time."""
    width = max(1, BLOCK_BYTES // (4 * len(gallery)))
    for start in range(0, len(queries), width):
        # Column-major: each query's similarities are contiguous for what follows.
        block = np.asfortranarray(gallery @ queries[start : start + width].T)
        yield start, block


def top_k(queries: Vectors, gallery: Vectors, k: int) -> Iterator[tuple[Any, Any]]:
    """For each query the indices and similarities of its k nearest, best first; ties by index."""
    k = min(k, len(gallery))
    for _, block in similarity_blocks(queries, gallery):
        for similarity in block.T:
            if k < len(similarity):
                # Everything that ties with the k-th is kept, so that the index decides.
                threshold = np.partition(similarity, len(similarity) - k)[len(similarity) - k]
                candidates = np.flatnonzero(similarity >= threshold)
            else:
                candidates = np.arange(len(similarity))
            best = candidates[np.argsort(-similarity[candidates], kind="stable")[:k]]
            yield best, similarity[best]


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
