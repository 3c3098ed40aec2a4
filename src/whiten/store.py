"""Embeddings on disk: a folder of Parquet shards that is appended to, resumed and streamed.

A shard is written under a temporary name and renamed, so that a kill leaves whole shards or none.
Its metadata says which model, weights, preprocessing and view plan made it; anything else
is refused by name. Images that could not be embedded are recorded in the shard of their
neighbours, so that a resumed run continues exactly where an uninterrupted one would be.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from whiten.errors import StoreError
from whiten.media import Skipped

FORMAT = "1"
_KEY = b"whiten"

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Origin:
    """What made the embeddings of a store.

    Attributes:
        uri: the model's URI, for people.
        fingerprint: of its weights, preprocessing and dimension; decides.
        dim: dimension of the embeddings.
        plan: fingerprint of the view plan; empty where there are whole images only, which
            depend on no plan.
        plan_seed: its seed, for people.
        precision: 32 or bf16, in which the model ran.
        dtype: float32 or float16, as stored.
        version: of this library.
    """

    uri: str
    fingerprint: str
    dim: int
    plan: str
    plan_seed: int
    precision: str = "32"
    dtype: str = "float32"
    version: str = ""


@dataclass(frozen=True)
class Row:
    """One embedding to be stored; `embedding` is (dim,), L2-normalised."""

    id: str
    path: str
    group: str | None
    view: int
    content_hash: str
    embedding: Vectors
    frame_ms: int | None = None


@dataclass(frozen=True)
class Shard:
    """A shard's place and what it covers, without its vectors."""

    path: Path
    ids: list[str]
    views: list[int]
    skipped: list[Skipped]


class Store:
    """A folder of shards, open for reading and appending."""

    def __init__(self, folder: Path, origin: Origin, shards: list[Shard]) -> None:
        self.folder = folder
        self.origin = origin
        self.shards = shards

    # --- opening ------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """Open an existing store.

        Raises:
            StoreError: no store there, foreign files, a damaged shard, or shards of different
                models.
        """
        root = Path(folder)
        if not root.is_dir():
            raise StoreError(f"{root} is not a store: make one with `whiten embed … --out {root}`")
        paths = _shard_paths(root)
        if not paths:
            raise StoreError(f"{root} holds no embeddings yet: run `whiten embed … --out {root}`")
        opened = [_read_shard(path) for path in paths]
        origin = next((o for o, _ in opened if o.plan), opened[0][0])
        for other, shard in opened:
            _refuse_other(origin, other, shard.path)
        return cls(root, origin, [shard for _, shard in opened])

    @classmethod
    def create_or_resume(cls, folder: str | os.PathLike[str], origin: Origin) -> Store:
        """Open a store for appending embeddings of `origin`, or begin one.

        Raises:
            StoreError: the folder holds something else, or embeddings of another origin.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(".part-*.partial"):
            stale.unlink()
        if not _shard_paths(root):
            return cls(root, origin, [])
        store = cls.open(root)
        _refuse_other(store.origin, origin, root)
        store.origin = origin
        return store

    # --- writing ------------------------------------------------------------------------

    def append(self, rows: Sequence[Row], skipped: Sequence[Skipped] = ()) -> None:
        """Write one shard; whole or not at all."""
        number = 1 + max((_shard_number(s.path) for s in self.shards), default=-1)
        path = self.folder / f"part-{number:06d}.parquet"
        partial = self.folder / f".{path.name}.partial"
        table = _table(rows, self.origin, skipped)
        # Embeddings hardly compress; ids and paths do.
        text = {"id": "zstd", "path": "zstd", "group": "zstd", "content_hash": "zstd"}
        codecs = {name: text.get(name, "none") for name in _leaf_names(table.schema)}
        try:
            pq.write_table(
                table,
                partial,
                compression=codecs,
                use_dictionary=["group"],
                write_statistics=False,
            )
            os.replace(partial, path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                reason = os.strerror(error.errno) if error.errno else str(error)
                raise StoreError(
                    f"cannot write {path} ({reason.lower()}): the shards before it are kept, make "
                    "room or give access and run again"
                ) from error
            raise
        self.shards.append(Shard(path, [r.id for r in rows], [r.view for r in rows], list(skipped)))

    def drop_shard(self, shard: Shard) -> None:
        """Forget a shard, for its files have changed since."""
        shard.path.unlink()
        self.shards.remove(shard)

    # --- reading ------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(len(shard.ids) for shard in self.shards)

    @property
    def dim(self) -> int:
        return self.origin.dim

    @property
    def skipped(self) -> list[Skipped]:
        return [skip for shard in self.shards for skip in shard.skipped]

    def blocks(self, view: int | None = None) -> Iterator[tuple[list[str], list[int], Vectors]]:
        """Stream `(ids, views, embeddings (n, dim) float32)`, one shard in memory at a time."""
        for shard in self.shards:
            ids, views = shard.ids, shard.views
            if view is not None and view not in views:
                continue
            vectors = self._vectors(shard)
            if view is not None:
                keep = [i for i, v in enumerate(views) if v == view]
                ids, views, vectors = [ids[i] for i in keep], [view] * len(keep), vectors[keep]
            yield ids, views, vectors

    def gather(self, ids: Sequence[str], view: int = 0) -> Vectors:
        """Embeddings of one view in the order of `ids`: (len(ids), dim) float32.

        Raises:
            StoreError: an id is not there.
        """
        place = {name: i for i, name in enumerate(ids)}
        out = np.full((len(ids), self.dim), np.nan, np.float32)
        for names, _, vectors in self.blocks(view):
            pairs = [(place[name], i) for i, name in enumerate(names) if name in place]
            if pairs:
                to, source = map(list, zip(*pairs, strict=True))
                out[to] = vectors[source]
        missing = np.flatnonzero(np.isnan(out[:, 0]))
        if len(missing):
            raise StoreError(
                f"{self.folder} lacks {len(missing)} of {len(ids)} images (view {view}), first "
                f"{ids[missing[0]]!r}: embed them with `whiten embed`"
            )
        return out

    def paths(self, shard: Shard) -> dict[str, str]:
        """Where each image of a shard was, by id."""
        column = pq.read_table(shard.path, columns=["path"])["path"]
        return dict(zip(shard.ids, column.to_pylist(), strict=True))

    def content_hashes(self) -> dict[str, str]:
        """Content hash of every image, by id."""
        found: dict[str, str] = {}
        for shard in self.shards:
            column = pq.read_table(shard.path, columns=["content_hash"])["content_hash"]
            found.update(zip(shard.ids, column.to_pylist(), strict=True))
        return found

    def _vectors(self, shard: Shard) -> Vectors:
        try:
            column = pq.read_table(shard.path, columns=["embedding"])["embedding"]
        except (OSError, pa.ArrowException) as error:
            raise _damaged(shard.path, error) from error
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors: Vectors = flat.reshape(-1, self.dim).astype(np.float32)
        return vectors


def stored_precision(folder: str | os.PathLike[str]) -> str | None:
    """The precision that an existing store was computed in; None where there is no store yet."""
    root = Path(folder)
    paths = _shard_paths(root) if root.is_dir() else []
    return _read_shard(paths[0])[0].precision if paths else None


def _table(rows: Sequence[Row], origin: Origin, skipped: Sequence[Skipped]) -> pa.Table:
    vectors = np.asarray([row.embedding for row in rows], dtype=origin.dtype)
    value = pa.float16() if origin.dtype == "float16" else pa.float32()
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1), type=value), origin.dim
    )
    facts = {"format": FORMAT, **asdict(origin), "skipped": [[s.id, s.reason] for s in skipped]}
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("group", pa.string()),
            pa.field("view", pa.int32(), nullable=False),
            pa.field("frame_ms", pa.int64()),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("embedding", embedding.type),
        ],
        metadata={_KEY: json.dumps(facts, sort_keys=True)},
    )
    columns: list[Any] = [
        [r.id for r in rows],
        [r.path for r in rows],
        [r.group for r in rows],
        [r.view for r in rows],
        [r.frame_ms for r in rows],
        [r.content_hash for r in rows],
    ]
    arrays = [
        pa.array(column, type=field.type)
        for column, field in zip(columns, list(schema)[:-1], strict=True)
    ]
    return pa.Table.from_arrays([*arrays, embedding], schema=schema)


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Parquet's column paths: a list's values lie one level deeper."""
    return [
        f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name
        for field in schema
    ]


def _shard_paths(root: Path) -> list[Path]:
    paths = sorted(root.iterdir())
    for path in paths:
        is_ours = re.fullmatch(r"part-\d{6,}\.parquet", path.name)
        if not is_ours and not path.name.startswith("."):
            raise StoreError(
                f"{root} is not an embedding store, it holds {path.name!r}: "
                "name an empty or new folder"
            )
    return [path for path in paths if not path.name.startswith(".")]


def _shard_number(path: Path) -> int:
    return int(path.stem.removeprefix("part-"))


def _read_shard(path: Path) -> tuple[Origin, Shard]:
    try:
        with pq.ParquetFile(path) as file:
            facts = json.loads((file.schema_arrow.metadata or {})[_KEY])
            table = file.read(columns=["id", "view"])
            columns = set(file.schema_arrow.names)
            width = file.schema_arrow.field("embedding").type.list_size
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    if facts.get("format") != FORMAT or not {"id", "view", "embedding"} <= columns:
        raise StoreError(
            f"{path} has store format {facts.get('format')!r}, this version reads {FORMAT}: "
            "embed again, or use the version that wrote it"
        )
    skipped = [Skipped(*pair) for pair in facts["skipped"]]
    origin = Origin(**{k: facts[k] for k in Origin.__dataclass_fields__})
    if width != origin.dim:
        raise _damaged(path, f"its rows have {width} dimensions, its header says {origin.dim}")
    return origin, Shard(path, table["id"].to_pylist(), table["view"].to_pylist(), skipped)


def _damaged(path: Path, error: object) -> StoreError:
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    return StoreError(
        f"{path} is damaged or not a shard of a store ({reason}): delete that file and embed "
        "again, only its images are computed anew"
    )


def _refuse_other(stored: Origin, asked: Origin, place: Path) -> None:
    differences = {
        "fingerprint": "model",
        "plan": "view plan",
        "dtype": "number type",
        "precision": "precision",
    }
    for name, what in differences.items():
        ours, theirs = getattr(stored, name), getattr(asked, name)
        if ours != theirs and not (name == "plan" and "" in (ours, theirs)):
            detail = {
                "fingerprint": f"{stored.uri} ({stored.fingerprint[:8]}), "
                f"not {asked.uri} ({asked.fingerprint[:8]})",
                "plan": f"plan {stored.plan[:8]} (seed {stored.plan_seed}), "
                f"not {asked.plan[:8]} (seed {asked.plan_seed})",
                "dtype": f"{stored.dtype}, not {asked.dtype}",
                "precision": f"{stored.precision}, not {asked.precision}",
            }[name]
            raise StoreError(
                f"{place} holds embeddings of another {what}, {detail}: "
                "name another folder, or delete this one"
            )
