"""Rows, facts and answers of an index, and the interface of its backends."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whiten.errors import UPGRADE, ConfigError, StoreError
from whiten.index.columns import (
    COLLECTION,
    COLUMNS,
    GROUP,
    KINDS,
    convert,
    kind_of_fields,
    stored_fields,
    stored_kinds,
    stored_name,
)
from whiten.index.conditions import Where
from whiten.media.reading import Skipped
from whiten.storage.blobs import Stamp
from whiten.utils.arrays import Vectors, as_numpy, has_direction, normalize_rows, require_finite

_ROUNDING = 1e-3  # of the length of embeddings that were stored in half precision


@dataclass(frozen=True)
class Match:
    """One hit of a search.

    Attributes:
        id: image id in its collection.
        path: image file.
        score: cosine similarity to the query, -1 to 1.
        group: label of the image; None if unknown.
        frame_ms: time of a video frame, milliseconds since the first frame.
        metadata: values of the user's columns.
    """

    id: str
    path: str
    score: float
    group: str | None = None
    frame_ms: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields for `--json`, leaving out unknown ones."""
        fields = asdict(self) | {"metadata": json_values(self.metadata)}
        return {name: value for name, value in fields.items() if value not in (None, {})}


def json_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON has it: infinite numbers are the texts `inf` and `-inf`."""
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value
        for name, value in metadata.items()
    }


@dataclass(frozen=True)
class Facts:
    """Properties that an index was made with.

    Attributes:
        model: fingerprint of the encoder; queries of another model are refused.
        uri: URI that opens the encoder again; "" if no single URI does.
        name: display name of the encoder.
        dim: embedding dimension.
        sources: indexed collections, as absolute paths.
        columns: the user's columns, name -> kind, see `whiten.index.columns`.
        skipped: images that could not be read, with the stamp of their file at that time.
        prefixes: name of a collection, which its ids begin with, by source; see `--collection`.
        divided: 0 while rows do not record their collection, else the number of sources that there
            were before they did.
        converted: the sources whose images were embedded in sRGB, whatever their colour profile;
            earlier versions ignored profiles.
        complete: False while the first run is writing, or after it was killed.
    """

    model: str
    uri: str
    name: str
    dim: int
    sources: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    prefixes: dict[str, str] = field(default_factory=dict)
    divided: int = 0
    complete: bool = True
    converted: list[str] = field(default_factory=list)

    @property
    def skips(self) -> list[Skipped]:
        return [Skipped(name, reason) for name, reason, _ in self.skipped]

    def schema(self) -> pa.Schema:
        """Return the schema: `COLUMNS`, `COLLECTION` if any, and what is stored of metadata."""
        divided = {COLLECTION: pa.int64()} if self.divided else {}
        return pa.schema([*(COLUMNS | divided | stored_fields(self.columns)).items()])

    def added(self) -> dict[str, str]:
        """Return the columns after `COLUMNS`, name -> string, int, float or bool."""
        return ({COLLECTION: "int"} if self.divided else {}) | stored_kinds(self.columns)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Facts:
        """Read the output of `to_json`; raises KeyError, TypeError or ValueError otherwise."""
        skipped = [(str(a), str(b), str(c)) for a, b, c in facts["skipped"]]
        columns = {str(name): str(kind) for name, kind in facts["columns"].items()}
        if unknown := sorted(set(columns.values()) - set(KINDS)):
            raise StoreError(
                f"the index has columns of type {', '.join(unknown)}, so it is of {UPGRADE}"
            )
        return cls(
            model=str(facts["model"]),
            uri=str(facts["uri"]),
            name=str(facts["name"]),
            dim=int(facts["dim"]),
            sources=[str(source) for source in facts["sources"]],
            columns=columns,
            skipped=skipped,
            prefixes={str(k): str(v) for k, v in facts.get("prefixes", {}).items()},
            divided=int(facts.get("divided", 0)),
            complete=bool(facts.get("complete", True)),
            converted=[str(source) for source in facts.get("converted", [])],
        )


@dataclass(frozen=True)
class Block:
    """Rows and their vectors.

    Attributes:
        rows: (n,) with the columns of `Facts.schema`; ids are unique across the blocks of a change.
        vectors: (n, dim) float32, L2-normalised.
    """

    rows: pa.Table
    vectors: Vectors


class Backend(Protocol):
    """Interface of an index's storage: a folder, or a collection of a vector database.

    Methods with a body are right for storage of full vectors in one index.

    Attributes:
        place: opens the index again; for display, so passwords are masked.
        facts: None if there is no index yet.
    """

    place: str
    facts: Facts | None

    def __len__(self) -> int: ...

    def writing(self) -> AbstractContextManager[None]:
        """Lock out other writers, and load what they wrote before.

        Raises:
            StoreError: another process is writing.
        """

    def refresh(self) -> None:
        """Load what other processes have written since this was opened."""

    def known(self) -> pa.Table:
        """Return all rows without vectors: at least `id`, `path`, `content_hash`, `stamp`, `group`,
        `frame_ms` and the metadata."""

    def staged(self, facts: Facts) -> Sequence[Block]:
        """Return rows of the same model left by a killed change; empty where each batch is
        committed
        at once."""

    def write(self, facts: Facts, gone: Sequence[str], new: Iterable[Block]) -> None:
        """Remove rows by id, and add rows that replace those of the same id.

        A folder applies the change atomically; a database batch by batch, so that the next change
        finds what a killed one has written. Write the facts last: skipped images are added to them
        while the blocks are made.
        """

    def fetch(self, ids: Sequence[str]) -> Block:
        """Return rows and vectors in the order of the ids.

        Raises:
            StoreError: an id is not in the index.
        """

    def items(self, ids: Sequence[str]) -> list[Match]:
        """Return rows as matches of score 1, in the order of the ids.

        Raises:
            StoreError: an id is not in the index.
        """
        rows = self.fetch(ids).rows
        return matches(rows, np.ones(len(rows)), facts_of(self).columns)

    def as_stored(self, vector: Vectors, ids: Sequence[str]) -> Vectors:
        """Return (n, dim): a (1, dim) embedding as it would be stored next to each of the ids."""
        return np.repeat(vector, len(ids), axis=0)

    def state(self) -> object:
        """Return what differs once the index has changed; a database shows only size and facts."""
        return self.facts, len(self)

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        """Return the k nearest rows that pass the filter for each (dim,) query, best first."""

    def pages(self, size: int) -> Iterator[pa.Table]:
        """Yield all rows in order, `size` at a time."""

    def tell_lost(self) -> None:
        """Log which values `pages` leaves out."""
        return

    def discard(self) -> None:
        """Remove what a first run left, and leave no index; only while writing, and never a
        complete index. A folder keeps rows that the next run can use."""


def facts_of(part: Backend) -> Facts:
    """Return the facts of an index; raises StoreError if it was deleted since it was opened."""
    if part.facts is None:
        raise StoreError(f"{part.place} is no longer an index: it was deleted or moved away")
    return part.facts


def write_stamp(stamp: Stamp | None) -> str:
    """Return a file's stamp as text; equal while the file is unchanged."""
    return "" if stamp is None else ":".join(map(str, stamp))


def read_size(stamp: str) -> int | None:
    """Return the bytes of the file from its stamp as text; None if they are unknown."""
    size, _, rest = stamp.partition(":")
    return int(size) if rest and size.isdecimal() else None


def as_queries(queries: Any, dim: int) -> Vectors:
    """Return (n, dim) queries of length 1, so that scores are cosines; lengths differ elsewhere.

    Raises:
        ConfigError: they have another shape, are no numbers, hold NaN or infinity, or are zero.
    """
    rows = as_numpy(queries)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ConfigError(f"queries must be (n, {dim}), as the index is, not {rows.shape}")
    require_finite(rows, 0)
    if not (there := has_direction(rows)).all():
        raise ConfigError(
            f"query {int(there.argmin())} is all zeros, which is similar to nothing: embed that "
            "image again or leave it out"
        )
    exact = rows.astype(np.float64)  # squares of float32 overflow, or vanish, in float32
    is_unit = np.abs(np.linalg.norm(exact, axis=1) - 1) < _ROUNDING
    return (rows if is_unit.all() else normalize_rows(exact)).astype(np.float32, copy=False)


def match_columns(columns: Iterable[str]) -> list[str]:
    """Return the stored columns that a match is made of.

    Args:
        columns: the user's columns, as in `Facts.columns`.
    """
    return ["id", "path", "group", "frame_ms", *map(stored_name, _metadata(columns))]


def matches(
    rows: pa.Table, scores: npt.NDArray[np.floating[Any]], columns: Iterable[str]
) -> list[Match]:
    """Return rows and their scores as matches.

    Args:
        columns: the user's columns, as in `Facts.columns`.
    """
    values = [rows[name].to_pylist() for name in match_columns(columns)]
    return matches_of(zip(*values, strict=True), scores.tolist(), columns)


def matches_of(
    rows: Iterable[Sequence[Any]], scores: Iterable[float], columns: Iterable[str]
) -> list[Match]:
    """Return rows, given as the values of `match_columns`, and their scores as matches."""
    names = _metadata(columns)
    return [
        Match(
            name,
            os.fsdecode(path),
            score,
            group,
            frame_ms,
            {key: value for key, value in zip(names, values, strict=True) if value is not None},
        )
        for (name, path, group, frame_ms, *values), score in zip(rows, scores, strict=True)
    ]


def _metadata(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if name != GROUP]


def as_of(table: pa.Table, facts: Facts) -> pa.Table:
    """Return the rows with the current columns: the metadata may have changed since.

    Values are converted to the current kind, see `convert`.
    """
    there = dict(zip(table.schema.names, table.schema.types, strict=True))
    columns = {
        name: table[name] if there.get(name) == of else pa.nulls(len(table), of)
        for name, of in (COLUMNS | ({COLLECTION: pa.int64()} if facts.divided else {})).items()
    }
    for name, kind in facts.columns.items():
        if name == GROUP:
            continue
        stored = stored_name(name)
        before = kind_of_fields(there, stored)
        if before == kind:
            values = {suffix: table[stored + suffix] for suffix in KINDS[kind]}
        else:
            no_values = {suffix: pa.nulls(len(table), of) for suffix, of in KINDS[kind].items()}
            values = no_values if before is None else convert(table[stored], before, kind)
        columns |= {stored + suffix: column for suffix, column in values.items()}
    schema = facts.schema()
    return pa.table([columns[name] for name in schema.names], schema=schema)


def lose_values(before: pa.Table, now: pa.Table, facts: Facts) -> npt.NDArray[np.bool_]:
    """Return which rows, (n,), had a value that their column's current kind cannot hold.

    Args:
        before: the rows as they are stored.
        now: `as_of` of them.
    """
    lost = np.zeros(len(now), bool)
    for name in map(stored_name, facts.columns):
        if name in before.schema.names and name in now.schema.names:
            is_lost = pc.and_(before[name].is_valid(), now[name].is_null())
            lost |= is_lost.to_numpy(zero_copy_only=False)
    return lost


def in_pages(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the rows of all tables in tables of `size` rows, the last one perhaps of fewer."""
    waiting: list[pa.Table] = []
    for found in tables:
        waiting.append(found)
        while sum(map(len, waiting)) >= size:
            table = pa.concat_tables(waiting)
            yield table.slice(0, size)
            waiting = [table.slice(size)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)
