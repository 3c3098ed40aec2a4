"""One shard of an embedding store: a Parquet file, written atomically.

Columns are `id`, `path`, `group`, `view`, `frame_ms`, `content_hash` and `embedding`, with
checksums. The schema's metadata record under `whiten` the origin of the embeddings and the skipped
images, under `whiten.seen` the state of the files, and under `whiten.check` a checksum of both.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whiten.errors import StoreError, refuse_later
from whiten.media import colour
from whiten.media.reading import Skipped
from whiten.storage.blobs import BlobFile, Stamp, open_blob
from whiten.storage.objects import write_object
from whiten.utils.arrays import Vectors
from whiten.utils.files import renaming, what_stays
from whiten.utils.hashing import content_hash
from whiten.utils.urls import as_url

FORMAT = "1"
_KEY = b"whiten"
_SEEN_KEY = b"whiten.seen"
_CHECK_KEY = b"whiten.check"

_TYPES = {
    "id": pa.string(),
    "path": pa.string(),
    "group": pa.string(),
    "view": pa.int32(),
    "frame_ms": pa.int64(),
    "content_hash": pa.string(),
}


@dataclass(frozen=True)
class Origin:
    """The model and the views that made the embeddings of a store.

    Attributes:
        uri: URI of the model, for display.
        fingerprint: covers weights, preprocessing and dimension; decides what may be mixed.
        dim: embedding dimension.
        plan: fingerprint of the view plan; empty if there are only whole images, which depend on no
            plan.
        plan_seed: seed of the view plan, for display.
        precision: 32 or bf16, the precision of the forward pass.
        dtype: float32 or float16, as stored.
        version: version of this library.
        colours: version of the conversion to sRGB, see `whiten.media.colour`.
    """

    uri: str
    fingerprint: str
    dim: int
    plan: str
    plan_seed: int
    precision: str = "32"
    dtype: str = "float32"
    version: str = ""
    colours: int = colour.VERSION


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


class Seen(NamedTuple):
    """The state of an image's file, to tell later whether it has changed.

    Attributes:
        path: path of the file; "" if unknown.
        stamp: stamp of the file; None if missing or unknown.
        content_hash: hash of the content; "" if the file could not be read.
    """

    path: str = ""
    stamp: Stamp | None = None
    content_hash: str = ""


@dataclass(frozen=True)
class Shard:
    """The path of a shard and the images that it covers, without its vectors."""

    path: Path
    names: pa.Array
    numbers: pa.Array
    skipped: list[Skipped]
    colours: int = colour.VERSION

    @classmethod
    def of(cls, path: Path, table: pa.Table, skipped: Sequence[Skipped], colours: int) -> Shard:
        """Build from a table with the columns `id` and `view`, which is compact for many names."""
        names, numbers = (table[name].combine_chunks() for name in ("id", "view"))
        return cls(path, names, numbers, list(skipped), colours)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ids(self) -> list[str]:
        """Ids of the rows; built at each call."""
        found: list[str] = self.names.to_pylist()
        return found

    @property
    def views(self) -> list[int]:
        """View numbers of the rows; built at each call."""
        found: list[int] = self.numbers.to_pylist()
        return found


def write_shard(
    path: Path,
    origin: Origin,
    rows: Sequence[Row],
    skipped: Sequence[Skipped],
    seen: Mapping[str, Seen],
) -> Shard:
    """Write a new shard; `seen` is by id, and only its stamp is used for images with rows."""
    table = _table(rows, origin)
    facts = asdict(origin) | {"rows": len(rows), "crc": _crc(table["embedding"])}
    ids = [row.id for row in rows]
    _write(table.replace_schema_metadata(_metadata(facts, ids, skipped, seen)), path, is_new=True)
    return Shard.of(path, table, skipped, origin.colours)


def rewrite_shard(
    shard: Shard,
    *,
    drop: Collection[str],
    forget: Collection[str],
    found: Mapping[str, Seen],
    colours: int,
) -> Shard:
    """Rewrite a shard without the rows of `drop` and the skipped ones of `forget`.

    The other vectors keep their bytes; the images in `found`, by id, get its paths and stamps.

    Args:
        colours: the version of colours of all rows that are left.
    """
    table = read_columns(shard.path)
    facts = json.loads(table.schema.metadata[_KEY])
    seen = read_seen(shard) | dict(found)
    keep = [i for i, name in enumerate(shard.ids) if name not in drop]
    ids = shard.names.take(pa.array(keep, pa.int64())).to_pylist()
    skipped = [skip for skip in shard.skipped if skip.id not in forget]
    paths = pa.array([seen[name].path for name in ids], pa.string())
    column = table.schema.get_field_index("path")
    kept = table.take(pa.array(keep, pa.int64()))
    kept = kept.set_column(column, table.schema.field(column), paths)
    facts |= {"rows": len(ids), "crc": _crc(kept["embedding"]), "colours": colours}
    _write(kept.replace_schema_metadata(_metadata(facts, ids, skipped, seen)), shard.path)
    return Shard.of(shard.path, kept, skipped, colours)


def read_shard(path: Path) -> tuple[Origin, Shard]:
    try:
        with _opened(path) as file:
            metadata = file.schema_arrow.metadata
            facts = json.loads(metadata[_KEY])
            refuse_later(path, "store", facts["format"], int(FORMAT))
            if facts["format"] != FORMAT:
                raise StoreError(
                    f"{path} has store format {facts['format']!r}, this version reads {FORMAT}: "
                    "embed again, or use the version that wrote it"
                )
            _check_metadata(metadata)
            table = file.read(columns=["id", "view"])
            _check_rows(table)
            width = file.schema_arrow.field("embedding").type.list_size
        skipped = [Skipped(*pair) for pair in facts["skipped"]]
        facts.setdefault("colours", 0)  # of an earlier version
        origin = Origin(**{k: facts[k] for k in Origin.__dataclass_fields__})
        shard = Shard.of(path, table, skipped, origin.colours)
    except (
        OSError,
        pa.ArrowException,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise _damaged(path, error) from error
    if width != origin.dim:
        raise _damaged(path, f"its rows have {width} dimensions, its header says {origin.dim}")
    return origin, shard


def _opened(path: Path) -> pq.ParquetFile:
    url = as_url(path)
    if url is None:
        source = pa.OSFile(os.fsencode(path))  # names need not be text
    else:
        source = pa.PythonFile(BlobFile(open_blob(url)), "r")
    return pq.ParquetFile(source, page_checksum_verification=True)


def read_columns(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read columns of a shard, by default all.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        with _opened(path) as file:
            table = file.read(columns=columns)
        if columns is not None and table.schema.names != columns:
            raise ValueError("columns are missing")
        table.validate(full=True)
        _check_rows(table)
        return table
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _check_metadata(metadata: Mapping[bytes, bytes]) -> None:
    check = content_hash(metadata[_KEY] + metadata.get(_SEEN_KEY, b"")).encode()
    if metadata.get(_CHECK_KEY, check) != check:
        raise ValueError("its metadata do not match their checksum")


def _check_rows(table: pa.Table) -> None:
    """Find what Parquet's checksums miss, which cover pages but not their headers."""
    metadata = table.schema.metadata
    facts = json.loads(metadata[_KEY])
    if "rows" not in facts:  # written by an earlier version
        return
    _check_metadata(metadata)  # Parquet stores it twice
    if table.num_rows != facts["rows"]:
        raise ValueError(f"it has {table.num_rows} rows, its header says {facts['rows']}")
    for field in table.schema:
        if field.name == "embedding":
            if _crc(table["embedding"]) != facts["crc"]:
                raise ValueError("its embeddings do not match their checksum")
        elif field.type != _TYPES[field.name]:
            raise ValueError(f"{field.name} is {field.type}")


def _crc(embeddings: pa.ChunkedArray) -> int:
    total = 0
    for chunk in embeddings.chunks:
        total = zlib.crc32(chunk.flatten().to_numpy(zero_copy_only=False), total)
    return total


def read_seen(shard: Shard) -> dict[str, Seen]:
    """Read the state of each image's file, by id; skipped images have no path.

    Shards of an earlier version do not record it.
    """
    table = read_columns(shard.path, ["path", "content_hash"])
    columns = (shard.ids, table["path"].to_pylist(), table["content_hash"].to_pylist())
    known = {name: (path, digest) for name, path, digest in zip(*columns, strict=True)}
    noted = json.loads(table.schema.metadata.get(_SEEN_KEY, "{}"))
    stamps = noted.get("images", [None] * len(known))
    found = {
        name: Seen(path, stamp and Stamp(*stamp), digest)
        for (name, (path, digest)), stamp in zip(known.items(), stamps, strict=True)
    }
    for skip, stamp in zip(shard.skipped, noted.get("skipped", []), strict=False):
        if stamp is not None and skip.id not in found:
            found[skip.id] = Seen("", Stamp(*stamp[:3]), stamp[3])
    return found


def _damaged(path: Path, error: object) -> StoreError:
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    return StoreError(
        f"{path} is damaged or not a shard of a store ({reason}): delete that file and embed "
        "again, only its images are embedded again"
    )


def _metadata(
    facts: Mapping[str, Any],
    ids: Sequence[str],
    skipped: Sequence[Skipped],
    seen: Mapping[str, Seen],
) -> dict[bytes, str]:
    """Build a shard's schema metadata: its origin, skipped images, and the state of the files."""
    facts = {**facts, "format": FORMAT, "skipped": [[s.id, s.reason] for s in skipped]}
    stamps = [seen.get(name, Seen()).stamp for name in dict.fromkeys(ids)]
    unused = [seen.get(skip.id, Seen()) for skip in skipped]
    noted = {
        "images": stamps,
        "skipped": [s.stamp and [*s.stamp, s.content_hash] for s in unused],
    }
    packed = json.dumps(noted, sort_keys=True, separators=(",", ":"))
    metadata = {_KEY: json.dumps(facts, sort_keys=True), _SEEN_KEY: packed}
    return metadata | {_CHECK_KEY: content_hash("".join(metadata.values()).encode())}


def _table(rows: Sequence[Row], origin: Origin) -> pa.Table:
    vectors = np.asarray([row.embedding for row in rows], dtype=origin.dtype)
    value = pa.float16() if origin.dtype == "float16" else pa.float32()
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1), type=value), origin.dim
    )
    schema = pa.schema(
        [
            *(
                pa.field(name, kind, nullable=name in ("group", "frame_ms"))
                for name, kind in _TYPES.items()
            ),
            pa.field("embedding", embedding.type),
        ]
    )
    arrays = [pa.array([getattr(r, name) for r in rows], kind) for name, kind in _TYPES.items()]
    return pa.Table.from_arrays([*arrays, embedding], schema=schema)


def _write(table: pa.Table, path: Path, *, is_new: bool = False) -> None:
    # Embeddings hardly compress; ids and paths do.
    text = {"id": "zstd", "path": "zstd", "group": "zstd", "content_hash": "zstd"}
    codecs = {name: text.get(name, "none") for name in _leaf_names(table.schema)}
    options: dict[str, Any] = {
        "compression": codecs,
        "use_dictionary": ["group"],
        "write_statistics": False,
        "write_page_checksum": True,
    }
    if (url := as_url(path)) is not None:
        content = io.BytesIO()
        pq.write_table(table, content, **options)
        write_object(url, content.getvalue(), is_new=is_new)
        return
    try:
        with renaming(path) as partial, pa.OSFile(os.fsencode(partial), "wb") as file:
            pq.write_table(table, file, **options)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(
            f"cannot write {path} ({reason.lower()}): {what_stays(path, 'shards')}"
        ) from error


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Return Parquet's column paths: values of a list are one level deeper."""
    return [
        f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name
        for field in schema
    ]
