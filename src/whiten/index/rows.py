"""What an index knows of its images, how it answers, and what every place for it can do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whiten.index.where import Where
from whiten.media.reading import Skipped, Stamp
from whiten.utils.arrays import Vectors

# The columns that every index has; those of the user's own metadata come after them.
COLUMNS = {
    "id": pa.large_string(),
    "path": pa.large_binary(),  # paths need not be text
    "content_hash": pa.large_string(),
    "stamp": pa.large_string(),  # see `write_stamp`; empty where it is not known
    "group": pa.large_string(),
    "frame_ms": pa.int64(),
}

# Types that a column of metadata may have, by the names that `Facts.columns` uses.
TYPES = {
    "string": pa.large_string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}

# What a filter may name in addition to the metadata.
FILTERABLE = {"id": "string", "group": "string", "frame_ms": "int"}


@dataclass(frozen=True)
class Match:
    """One answer of a search.

    Attributes:
        id: of the image in its collection.
        path: of its file.
        score: cosine similarity to the query, -1 to 1.
        group: what it shows; None where unknown.
        frame_ms: of a video's frame, milliseconds since the first one.
        metadata: the user's own columns.
    """

    id: str
    path: str
    score: float
    group: str | None = None
    frame_ms: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`: what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}


@dataclass(frozen=True)
class Facts:
    """What an index was made with.

    Attributes:
        model: fingerprint of the encoder; queries of another one are refused.
        uri: opens the encoder again; "" where a single URI cannot.
        name: of the encoder, for people.
        dim: of the embeddings.
        sources: the collections that were indexed, as absolute paths.
        columns: the user's metadata, name -> string, int, float or bool.
        skipped: images that could not be read, with the stamp of their file at that time.
    """

    model: str
    uri: str
    name: str
    dim: int
    sources: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def skips(self) -> list[Skipped]:
        return [Skipped(name, reason) for name, reason, _ in self.skipped]

    def schema(self) -> pa.Schema:
        """Of the rows: `COLUMNS`, then the metadata."""
        return pa.schema([*COLUMNS.items(), *((n, TYPES[t]) for n, t in self.columns.items())])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Facts:
        """Raises KeyError, TypeError or ValueError for what `to_json` does not make."""
        skipped = [(str(a), str(b), str(c)) for a, b, c in facts["skipped"]]
        columns = {str(name): str(kind) for name, kind in facts["columns"].items()}
        if unknown := set(columns.values()) - set(TYPES):
            raise ValueError(f"columns of type {', '.join(sorted(unknown))}")
        return cls(
            model=str(facts["model"]),
            uri=str(facts["uri"]),
            name=str(facts["name"]),
            dim=int(facts["dim"]),
            sources=[str(source) for source in facts["sources"]],
            columns=columns,
            skipped=skipped,
        )


@dataclass(frozen=True)
class Block:
    """Some rows and their vectors.

    Attributes:
        rows: (n,) with the columns of `Facts.schema`; ids are unique over all blocks of a change.
        vectors: (n, dim) float32, L2-normalised.
    """

    rows: pa.Table
    vectors: Vectors


class Backend(Protocol):
    """A place that an index can lie in: a folder, or a collection of a vector database.

    Attributes:
        place: what opens it again; for people, so that a password in it is masked.
        facts: None while nothing is there.
    """

    place: str
    facts: Facts | None

    def __len__(self) -> int: ...

    def writing(self) -> AbstractContextManager[None]:
        """Keeps other writers out, and reads what they wrote before.

        Raises:
            StoreError: another process is writing.
        """

    def refresh(self) -> None:
        """See what other processes have written since this was opened."""

    def known(self) -> pa.Table:
        """All rows, without vectors: at least `id`, `path`, `content_hash`, `stamp`, `group`,
        `frame_ms` and the metadata."""

    def staged(self, facts: Facts) -> Sequence[Block]:
        """Rows of the same model that a change which was killed has left; none where each batch of
        a change counts at once."""

    def write(self, facts: Facts, gone: Sequence[str], new: Iterable[Block]) -> None:
        """Remove rows by id and add others, which replace those of the same id.

        In a folder all of it is done or nothing; a database takes it batch by batch, and what a
        killed change has written is known to the next one. The facts are to be written last: they
        note what was skipped while the blocks were made.
        """

    def fetch(self, ids: Sequence[str]) -> Block:
        """Rows and vectors in the order of the ids.

        Raises:
            StoreError: an id is not there.
        """

    def search(self, queries: Vectors, k: int, where: Where | None = None) -> list[list[Match]]:
        """The k nearest of each (dim,) query, best first, of rows that the filter lets through."""

    def pages(self, size: int) -> Iterator[pa.Table]:
        """All rows in order, some at a time."""


def write_stamp(stamp: Stamp | None) -> str:
    """A file's stamp as text: equal while the file is the same."""
    return "" if stamp is None else ":".join(map(str, stamp))


def matches(
    rows: pa.Table, scores: npt.NDArray[np.floating[Any]], columns: Iterable[str]
) -> list[Match]:
    """Rows with their scores as answers."""
    return [
        Match(
            row["id"],
            os.fsdecode(row["path"]),
            float(score),
            row["group"],
            row["frame_ms"],
            {name: row[name] for name in columns if row[name] is not None},
        )
        for row, score in zip(rows.to_pylist(), scores.tolist(), strict=True)
    ]


def as_of(table: pa.Table, facts: Facts) -> pa.Table:
    """With today's columns: the metadata may have changed since."""
    schema = facts.schema()
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.schema.names and table.schema.field(field.name).type == field.type
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
