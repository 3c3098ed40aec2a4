"""Measure the loss of a storage kind on the user's images: mAP by groups, and neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from whiten import metrics
from whiten.datasets.collection import Items
from whiten.datasets.task import Task, folder_task, own_rows
from whiten.errors import ConfigError
from whiten.index.local.storage.codec import Codec, bytes_per_vector
from whiten.index.local.storage.coded import searchable
from whiten.index.local.storage.kinds import BASE, fit
from whiten.index.local.storage.reranked import Reranked
from whiten.metrics import Figure
from whiten.retrieval.exact import exact_search
from whiten.retrieval.ranks import count_ranks
from whiten.utils.arrays import Array, Indices, Vectors, indices
from whiten.utils.memory import gather_rows, take_rows

NEIGHBOURS = 10
FEWEST = 3  # vectors below which nothing can be measured
_MEASURED_BY = 500  # queries, when an index is built
_QUERIES = 256  # per pass that ranks everything

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """Size and loss of one storage kind.

    Attributes:
        kind: name of the kind.
        bytes: bytes per vector.
        map: mean average precision, 0 to 1; None without groups, and with re-ranking by full
            vectors.
        map_loss: mAP of float32 minus that of this kind, mean over queries, with the paired
            confidence interval; None in the same cases.
        overlap: fraction of float32's exact 10 nearest that are among this kind's 10 nearest.
        unavailable: why the kind cannot be used; all other fields are then None.
    """

    kind: str
    bytes: int | None = None
    map: float | None = None
    map_loss: Figure | None = None
    overlap: Figure | None = None
    unavailable: str = ""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Cost:
        """Build from the fields as in JSON; raises KeyError, TypeError or ValueError otherwise."""

        def figure(name: str) -> Figure | None:
            own = facts[name]
            return (
                None if own is None else Figure(*(float(own[k]) for k in ("value", "low", "high")))
            )

        mean = facts["map"]
        return cls(
            str(facts["kind"]),
            int(facts["bytes"]),
            None if mean is None else float(mean),
            figure("map_loss"),
            figure("overlap"),
        )

    def line(self) -> str:
        """Return a line for display."""
        parts = [f"storage: {self.kind}, {self.bytes:,} bytes per vector"]
        if self.overlap is not None:
            parts.append(f"same@{NEIGHBOURS} {interval(self.overlap)}")
        if self.map_loss is not None:
            parts.append(f"mAP lost {interval(self.map_loss)}")
        return ", ".join(parts)


def interval(figure: Figure) -> str:
    """Format a metric with its interval, `0.9960 [0.9941, 0.9978]`."""
    value, low, high = (f"{round(x, 4) + 0.0:.4f}" for x in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Queries:
    """The queries that every kind is measured with.

    Attributes:
        vectors: (q, dim) float32.
        own: per query, rows of the gallery that are the query itself.
        task: relevant rows per query, in the order of the queries; None without groups.
    """

    vectors: Vectors
    own: list[Indices]
    task: Task | None


def choose_queries(
    vectors: Vectors, items: Items, most: int, queries: tuple[Items, Vectors] | None = None
) -> Queries:
    """Choose at most `most` random queries, from images with groups if there are any.

    Args:
        vectors: (n, dim) float32 of the gallery.
        items: the images of the gallery's rows.
        queries: other images and their embeddings; by default images of the gallery.
    """
    who, searching = (items, vectors) if queries is None else queries
    grouped = np.flatnonzero(pc.is_valid(who.table()["group"]).to_numpy())
    try:
        task = folder_task(items, who.take(_some(grouped, most)))
        rows = who.by_id.rows([item.id for item in task.queries])
    except ConfigError:
        task, rows = None, _some(np.arange(len(who)), most)
    if queries is None:
        own = [indices([row]) for row in rows.tolist()]
    else:
        own = [indices(found) for found in own_rows(items, who.take(rows))]
    return Queries(take_rows(searching, rows), own, task)


def _some(rows: Indices, most: int) -> Indices:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


@dataclass(frozen=True)
class Answers:
    """Results of one kind.

    Attributes:
        found: per query, rows of the nearest neighbours, without the query itself.
        aps: (q,) average precision per query; None without groups.
    """

    found: list[Indices]
    aps: Scores | None


def answer(chosen: Queries, codec: Codec, codes: Array, vectors: Vectors | None) -> Answers:
    """Search with one kind.

    Args:
        codes: (n, width), may be a memory map.
        vectors: (n, dim) float32 that re-rank the answers; None if none are kept.
    """
    most = max(map(len, chosen.own))
    queries, gallery = codec.queries(chosen.vectors), searchable(codec, codes)
    if vectors is None:
        best = exact_search(queries, gallery, NEIGHBOURS + most)
    else:
        gather = partial(gather_rows, vectors)
        best = Reranked(codec, codes).search(chosen.vectors, NEIGHBOURS + most, gather, None)
    found = [
        rows[~np.isin(rows, own)][:NEIGHBOURS]
        for (rows, _), own in zip(best, chosen.own, strict=True)
    ]
    if chosen.task is None or vectors is not None:
        return Answers(found, None)
    return Answers(found, _average_precisions(chosen.task, queries, gallery))


def _average_precisions(task: Task, queries: Vectors, gallery: Vectors) -> Scores:
    found = []
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        positives, junk = task.positives[part], task.junk[part]
        labelled = [np.union1d(*pair) for pair in zip(positives, junk, strict=True)]
        counter = count_ranks(queries[part], gallery, labelled, positives)
        for number, (right, absent) in enumerate(zip(positives, junk, strict=True)):
            found.append(metrics.ap_from_ranks(counter.ranks(number, right, absent)))
    return np.array(found)


def cost(kind: str, codec: Codec, base: Answers, answers: Answers) -> Cost:
    """Compare the results of a kind with those of float32."""
    pairs = zip(base.found, answers.found, strict=True)
    shared = np.array([len(np.intersect1d(*pair)) / len(pair[0]) for pair in pairs])
    mean = loss = None
    if answers.aps is not None and base.aps is not None:
        mean, loss = float(answers.aps.mean()), Figure.of(base.aps - answers.aps)
    return Cost(kind, bytes_per_vector(codec), mean, loss, Figure.of(shared))


def measure(
    name: str, codec: Codec, codes: Array, vectors: Vectors, items: Items, kept: Vectors | None
) -> Cost | None:
    """Measure what an index loses by its storage kind.

    Args:
        name: the storage kind.
        codes: (n, width).
        vectors: (n, dim) float32.
        items: the images of the rows; their groups, if any, define relevance.
        kept: vectors that re-rank the answers; None if none are kept.

    Returns:
        The cost; None for fewer than 3 vectors, with which nothing can be measured.
    """
    if len(vectors) < FEWEST:
        return None
    chosen = choose_queries(vectors, items, _MEASURED_BY)
    base = answer(chosen, fit(BASE, vectors[:1]), vectors, None)
    return cost(name, codec, base, answer(chosen, codec, codes, kept))
