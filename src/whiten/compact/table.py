"""The table of storage kinds: bytes per vector, and the loss of mAP and nearest neighbours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whiten.datasets.collection import Items
from whiten.errors import ConfigError, MissingExtraError, WhitenError, counted
from whiten.index.local.storage.coded import map_codes, sample_rows, write_codes
from whiten.index.local.storage.kinds import BASE, fit, parse_storage
from whiten.index.local.storage.loss import (
    FEWEST,
    NEIGHBOURS,
    Answers,
    Cost,
    Queries,
    answer,
    choose_queries,
    cost,
    interval,
)
from whiten.index.local.storage.product import CENTROIDS
from whiten.utils.arrays import Vectors
from whiten.utils.names import several
from whiten.utils.progress import progress

QUERIES = 2000  # maximum, drawn at random
ADVISED = 39  # vectors per centroid of product quantisation, as FAISS advises


@dataclass(frozen=True)
class Costs:
    """Measurements of all kinds on one collection.

    Attributes:
        name: name of the model.
        dim: embedding dimension.
        images: number of images searched.
        labelled: number of queries with known groups, used for mAP; 0 if there are none.
        queries: number of queries used for `overlap`.
        fitted_on: number of vectors that the codecs were fitted on.
        rows: one per kind.
    """

    name: str
    dim: int
    images: int
    labelled: int
    queries: int
    fitted_on: int
    rows: list[Cost]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "remarks": self.remarks}

    @property
    def remarks(self) -> list[str]:
        """Return notes to show with the table."""
        has_codebooks = any(row.overlap and row.kind.startswith("pq:") for row in self.rows)
        if not has_codebooks or self.fitted_on >= ADVISED * CENTROIDS:
            return []
        return [
            f"pq was fitted on {self.fitted_on / CENTROIDS:.1f} vectors per centroid, and "
            f"{ADVISED} are advised: it knows these images by heart, and will lose more on others"
        ]

    def lines(self) -> Iterator[str]:
        """Yield lines for display."""
        yield (
            f"{self.name}: {self.images:,} vectors of {self.dim} dimensions, fitted on "
            f"{self.fitted_on:,}"
        )
        if self.labelled:
            yield (
                f"  mAP by the groups of {counted(self.labelled, 'query')}, lost compared with "
                f"{BASE} [95 %]"
            )
        else:
            yield "  no groups are known, so that there is no mAP"
        yield (
            f"  same@{NEIGHBOURS}: share of {BASE}'s exact {NEIGHBOURS} nearest that are found, "
            f"{counted(self.queries, 'query')} [95 %]"
        )
        yield f"  {'kind':14} {'bytes':>6}  {'mAP':>6}  {'lost':>26}  same@{NEIGHBOURS}"
        for row in self.rows:
            yield f"  {_line(row)}"


def _line(row: Cost) -> str:
    if row.overlap is None:
        return f"{row.kind:14} {row.unavailable}"
    mean = "–" if row.map is None else f"{row.map:.4f}"
    lost = "" if row.map_loss is None else interval(row.map_loss)
    return f"{row.kind:14} {row.bytes:>6,}  {mean:>6}  {lost:>26}  {interval(row.overlap)}"


def measure_costs(
    vectors: Vectors,
    items: Items,
    kinds: Sequence[str] | str,
    *,
    queries: tuple[Items, Vectors] | None = None,
    name: str = "",
    show_progress: bool = False,
) -> Costs:
    """Fit, encode and search with each kind in turn.

    Codes are in a temporary file during search; memory does not grow with the collection.

    Args:
        vectors: (n, dim) float32, L2-normalised; may be a memory map.
        items: the images of the rows; their groups, if any, define relevance.
        kinds: see `whiten.compact.fit`; with `+float32`, full vectors re-rank the answers.
        queries: other images as queries, and their embeddings; by default each image queries all
            the others.

    Raises:
        ConfigError: a kind is unknown, or there are fewer than 3 vectors.
    """
    kinds = several(kinds)
    for kind in kinds:
        parse_storage(kind)
    if len(vectors) < FEWEST:
        raise ConfigError(f"{len(vectors)} vectors tell nothing about a loss: name more images")
    chosen = choose_queries(vectors, items, QUERIES, queries)
    sample = sample_rows(vectors)
    base = answer(chosen, fit(BASE, sample), vectors, None)
    rows: list[Cost] = []
    with progress("measure kinds", enabled=show_progress, unit="kinds") as update:
        for number, kind in enumerate(dict.fromkeys(kinds), start=1):
            rows.append(_measure(kind, vectors, sample, chosen, base))
            update(number, len(kinds))
    if rows and all(row.unavailable for row in rows):
        reasons = "; ".join(f"{row.kind}: {row.unavailable}" for row in rows)
        raise ConfigError(f"none of the kinds is possible: {reasons}")
    return Costs(
        name=name,
        dim=int(vectors.shape[1]),
        images=len(vectors),
        labelled=0 if chosen.task is None else len(chosen.task.queries),
        queries=len(chosen.vectors),
        fitted_on=len(sample),
        rows=rows,
    )


def _measure(name: str, vectors: Vectors, sample: Vectors, chosen: Queries, base: Answers) -> Cost:
    kind, keeps_vectors = parse_storage(name)
    try:
        codec = fit(kind, sample)
    except (MissingExtraError, WhitenError) as error:
        return Cost(name, unavailable=str(error))
    if kind == BASE:
        return cost(name, codec, base, base)
    with tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        path = Path(folder) / "codes"
        write_codes(path, codec, vectors)
        codes = map_codes(path, codec, len(vectors))
        kept = vectors if keeps_vectors else None
        return cost(name, codec, base, answer(chosen, codec, codes, kept))
