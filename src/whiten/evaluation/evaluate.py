"""Evaluate an encoder on a task: metrics with confidence intervals.

Embeddings of the gallery are stored in a file and pass once, block by block, for many queries:
neither they nor their similarities are ever fully in memory.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from whiten import metrics
from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.datasets.patterns import Patterns
from whiten.datasets.sources import Sources, read_sources
from whiten.datasets.task import Task, folder_task
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError, counted
from whiten.evaluation.by_source import BySource, split_scores
from whiten.evaluation.overlap import run_of, run_overlap
from whiten.media.reading import Skipped
from whiten.metrics import Figure
from whiten.report.overlap import Overlap
from whiten.retrieval.blocks import QUERIES
from whiten.retrieval.ranks import count_ranks
from whiten.utils.arrays import Indices, Vectors
from whiten.utils.progress import announce

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
class Evaluation:
    """Retrieval metrics of an encoder.

    Attributes:
        name: name of the encoder.
        dim: embedding dimension.
        figures: `map`, `map@k`, `recall@k` and `mp@k` for k = 1, 5, 10, see `whiten.metrics`.
        aps: (queries,) average precision per query.
        query_ids: ids of the queries, in the same order.
        gallery_size: number of images searched.
        without_positives: queries left out because the gallery has no positive for them.
        skipped: images that could not be read, with the reason.
        by_source: the metrics of the queries of each source, if they were asked for.
        overlap: queries that the student of a run knows from training; None if that is not known.
    """

    name: str
    dim: int
    figures: dict[str, Figure]
    aps: npt.NDArray[np.float64] = dataclasses.field(compare=False)  # arrays are no truth value
    query_ids: list[str]
    gallery_size: int
    without_positives: int
    skipped: list[Skipped]
    by_source: BySource | None = None
    overlap: Overlap | None = None
    searched: ClassVar[str] = "image"

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, without the per-query lists."""
        split = {} if self.by_source is None else {"by_source": self.by_source.to_json()}
        return {
            "name": self.name,
            "dim": self.dim,
            "queries": len(self.query_ids),
            "gallery": self.gallery_size,
            "queries_without_positives": self.without_positives,
            **{name: dataclasses.asdict(figure) for name, figure in self.figures.items()},
            **split,
            **({} if self.overlap is None else {"overlap": dataclasses.asdict(self.overlap)}),
            "skipped": [dataclasses.asdict(skip) for skip in self.skipped],
        }

    def lines(self) -> Iterator[str]:
        """Yield lines for display."""
        gallery = counted(self.gallery_size, self.searched)
        yield f"{self.name}: {counted(len(self.query_ids), 'query')}, {gallery}"
        width = max(10, *map(len, self.figures))
        for name, figure in self.figures.items():
            yield f"  {name:{width}} {figure.value:.4f}  [{figure.low:.4f}, {figure.high:.4f}]"
        if self.by_source is not None:
            yield from self.by_source.lines(len(self.query_ids), self.figures)

    @property
    def remarks(self) -> list[str]:
        """Return notes to show with the metrics."""
        remarks = []
        if self.without_positives:
            left_out = counted(self.without_positives, "query")
            remarks.append(f"{left_out} left out: nothing that is right is there")
        if self.overlap:
            remarks.append(self.overlap.line())
        return remarks


def evaluate(
    encoder: Encoder | str | os.PathLike[str],
    gallery: str | os.PathLike[str],
    *,
    queries: str | os.PathLike[str] | None = None,
    gallery_encoder: Encoder | str | os.PathLike[str] | None = None,
    source_column: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    show_progress: bool = False,
) -> Evaluation:
    """Evaluate retrieval on groups: the images of a group should find each other.

    Args:
        encoder: an `Encoder`, or anything that `whiten.load` takes, which is opened once the images
            are found to be a task.
        gallery: a folder with a subfolder per group, or a table with columns `path,group`.
        queries: likewise; by default each gallery image queries all the others.
        gallery_encoder: embeds the gallery if it differs from the queries' encoder (asymmetric
            search): `fuse:compatible:RUN` for a student that was made compatible with it.
        source_column: column of the table of the queries that names where each comes from (shop,
            camera, year): the metrics are also computed per source, see `Evaluation.by_source`. A
            folder has such a table directly in it.
        cache: folder that keeps embeddings between calls; none by default.
        exclude, include: patterns that choose among the images of gallery and queries, see
            `whiten.datasets.patterns`.

    Raises:
        ConfigError: there are fewer than two groups, no positives, incompatible encoders, or no
            such column of sources.
        NoImagesError: the folder or table is missing or names no image, or none can be embedded.
    """
    labelled = find_labelled(
        gallery, queries, source_column, exclude, include, show_progress=show_progress
    )
    model = encoder if isinstance(encoder, Encoder) else load(encoder)
    return evaluate_labelled(
        model, labelled, gallery_encoder=gallery_encoder, cache=cache, show_progress=show_progress
    )


@dataclass(frozen=True)
class Labelled:
    """Images that are a task, before any is embedded.

    Attributes:
        gallery: the images to search.
        queries: None if each image of the gallery queries all the others.
        sources: where the queries come from, if that was asked for.
    """

    gallery: Items
    queries: Items | None
    sources: Sources | None


def find_labelled(
    gallery: str | os.PathLike[str],
    queries: str | os.PathLike[str] | None = None,
    source_column: str | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    *,
    show_progress: bool = False,
) -> Labelled:
    """Find the images of a task, and refuse what is none; see `evaluate`."""
    tell = announce if show_progress else None
    items = find_items(gallery, tell, exclude, include)
    query_items = None if queries is None else find_items(queries, tell, exclude, include)
    folder_task(items, query_items)
    sources = None
    if source_column is not None:
        asked = gallery if queries is None else queries
        sources = read_sources(asked, query_items or items, source_column)
    return Labelled(items, query_items, sources)


def evaluate_labelled(
    model: Encoder,
    labelled: Labelled,
    *,
    gallery_encoder: Encoder | str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Embed the images of a task, and evaluate retrieval; see `evaluate`."""
    host = model
    if gallery_encoder is not None:
        host = gallery_encoder if isinstance(gallery_encoder, Encoder) else load(gallery_encoder)
        _require_compatible(model, host)
    kept, vectors, skipped = embed_rows(
        host, labelled.gallery, cache=cache, show_progress=show_progress
    )
    if labelled.queries is None:
        who, searching = kept, vectors
        if host is not model:
            who, searching, more = embed_rows(model, kept, cache=cache, show_progress=show_progress)
            if more:  # images that both could read are queries and gallery
                rows = kept.by_id.rows(who.ids.to_pylist())
                kept, vectors, skipped = who, vectors[rows], [*skipped, *more]
        task = folder_task(kept)
    else:
        who, searching, more = embed_rows(
            model,
            labelled.queries,
            # Ids are unique only within a folder, so each collection has its own stores.
            cache=Path(cache) / "queries" if cache else None,
            show_progress=show_progress,
        )
        task = folder_task(kept, who)
        skipped = [*skipped, *more]
    rows = who.by_id.rows([item.id for item in task.queries])
    name = model.name if host is model else f"{model.name} against {host.name}"
    found = evaluate_task(
        task,
        searching,
        vectors,
        rows=rows,
        name=name,
        skipped=skipped,
        sources=labelled.sources,
    )
    run = run_of(model.uri)
    if run is None:
        return found
    overlap = run_overlap(run, model, who, searching, show_progress=show_progress)
    return dataclasses.replace(found, overlap=overlap)


def _require_compatible(encoder: Encoder, gallery: Encoder) -> None:
    if not encoder.can_query(gallery.fingerprint()):
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
    sources: Sources | None = None,
) -> Evaluation:
    """Compute the metrics of existing embeddings.

    Args:
        queries: (len(task.queries), d) float32.
        gallery: (len(task.gallery), d) float32; may be a memory map, which is read block by block.
        rows: (len(task.queries),) rows of the queries in `queries`, if these are a subset.
        sources: the queries' sources, to compute the metrics of each as well.
    """
    rows = np.arange(len(queries)) if rows is None else rows
    if queries.shape[1] != gallery.shape[1]:
        raise ConfigError(
            f"queries have {queries.shape[1]} dimensions and the gallery {gallery.shape[1]}: "
            "embed both with the same model"
        )
    scores = {metric: np.empty(len(rows)) for metric in PER_QUERY}
    for row, ranks in enumerate(_ranks(task, queries, rows, gallery)):
        for metric, function in PER_QUERY.items():
            scores[metric][row] = function(ranks)
    return Evaluation(
        name=name,
        dim=int(gallery.shape[1]),
        figures=metrics.figures(scores),
        aps=scores["map"],
        query_ids=[item.id for item in task.queries],
        gallery_size=len(gallery),
        without_positives=task.without_positives,
        skipped=skipped or [],
        by_source=None if sources is None else split_scores(sources, task.queries, scores),
    )


def _ranks(
    task: Task, queries: Vectors, rows: Indices, gallery: Vectors
) -> Iterator[metrics.Ranks]:
    for first in range(0, len(rows), QUERIES):
        part = slice(first, first + QUERIES)
        positives, junk = task.positives[part], task.junk[part]
        labelled = [np.union1d(*pair) for pair in zip(positives, junk, strict=True)]
        counter = count_ranks(queries[rows[part]], gallery, labelled, positives)
        for row, (right, absent) in enumerate(zip(positives, junk, strict=True)):
            yield counter.ranks(row, right, absent)


def score_revisited(
    queries: Vectors, gallery: Vectors, ground_truth: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, Any]]:
    """Compute `whiten.metrics.revisited` from embeddings, in one pass and without the full matrix.

    Args:
        queries: (q, d) float32.
        gallery: (n, d) float32; may be a memory map.
        ground_truth: per query, gallery indices that are `easy`, `hard` and `junk`.
    """
    if len(queries) != len(ground_truth):
        raise ConfigError(
            f"{len(queries)} queries have {len(ground_truth)} ground truths: pass one for each"
        )

    def counters() -> Iterator[metrics.RankCounter]:
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            labels = metrics.revisited_labels(ground_truth[part], len(gallery))
            yield count_ranks(queries[part], gallery, *labels)

    return metrics.revisited_scores(counters(), ground_truth)
