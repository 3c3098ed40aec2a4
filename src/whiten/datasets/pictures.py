"""Parquet tables that hold the images themselves, as Hugging Face's data sets do.

The id of an image is its row as if the table were a folder, `train-0.parquet/000000012`, or its
`id` in the table in place of the row.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from whiten.datasets.collection import Item
from whiten.datasets.rows import texts_of
from whiten.datasets.tables import near_name
from whiten.errors import ConfigError, ImageError, UnreadableError, one_line
from whiten.media.decoding import stored_size
from whiten.storage.parquet import ParquetImages, is_bytes, is_encoded
from whiten.storage.places import open_images

_log = logging.getLogger(__name__)

_USUAL = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes")
_CHUNK = 8192  # rows named at once


def image_column(place: str) -> str | None:
    """Return the column that holds encoded images; None if the table has none.

    A column of `{bytes, path}` goes before one of plain bytes; among several, one with a usual
    name, such as `image`.

    Raises:
        ConfigError: the file is no Parquet, or several columns may be meant.
        StorageError: a service refuses or does not answer.
    """
    try:
        images: ParquetImages = open_images(place)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"cannot read {place} ({one_line(error)}): it must be Parquet") from error
    schema = images.schema
    found = [field.name for field in schema if is_encoded(field.type)]
    if not found and "path" not in schema.names:
        found = [f.name for f in schema if is_bytes(f.type) and _holds_images(images, f.name)]
    usual = [name for name in _USUAL if name in [column.lower() for column in found]]
    if len(found) > 1 and not usual:
        raise ConfigError(
            f"{place} has several columns of images, {', '.join(map(repr, found))}: rename the one "
            "that is meant to 'image'"
        )
    if len(found) > 1:
        found = [name for name in found if name.lower() == usual[0]]
    return found[0] if found else None


def is_damaged(place: str) -> bool:
    """Return whether a file is no Parquet that can be read.

    Raises:
        StorageError: a service refuses or does not answer.
    """
    try:
        open_images(place)
    except (OSError, pa.ArrowException):
        return True
    return False


def _holds_images(images: ParquetImages, column: str) -> bool:
    """Return whether one of the first contents of a column is an image; some may be damaged."""
    for row in range(min(len(images), 100)):
        try:
            stored_size(images.content(column, row))
        except UnreadableError:  # it is one, of a kind that needs an extra
            return True
        except ImageError:
            continue
        return True
    return False


def picture_items(place: str, name: str, column: str) -> Iterator[Item]:
    """Yield the images of a table.

    Args:
        place: path or URL of the table.
        name: its name below the root of the collection.
        column: the column that holds the images.

    Raises:
        ConfigError: two rows have one id, or a row has none.
    """
    images: ParquetImages = open_images(place)
    groups = _texts(place, images, "group")
    if groups is None and (near := near_name("group", images.schema.names)) is not None:
        _log.warning(
            "there is no column 'group', so that no groups are known; %r is not taken for it", near
        )
    keys = row_keys(place, images)
    for row, key in enumerate(keys):
        path = f"{place}/{column}/{row:09d}"
        yield Item(f"{name}/{key}", path, groups[row] if groups else None)


def row_keys(place: str, images: ParquetImages) -> list[str]:
    """Return the name of each row: its `id`, or its number."""
    ids = _texts(place, images, "id")
    if ids is None:
        return [f"{row:09d}" for row in range(len(images))]
    if None in ids:
        raise ConfigError(f"{place} has no id in row {ids.index(None) + 1}: give every row one")
    twice = next((key for key, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{place} lists {twice!r} twice: list every image once")
    return [str(key) for key in ids]


def picture_columns(place: str, name: str, column: str) -> pa.Table:
    """Return the other columns of a table, with the images' `id` and `path`.

    Columns of lists, structs and bytes are left out: no filter can compare them.
    """
    images: ParquetImages = open_images(place)
    names = [
        f.name for f in images.schema if f.name not in (column, "id", "path") and _flat(f.type)
    ]
    table = images.columns(names) if names else None
    keys = row_keys(place, images)
    own: dict[str, Any] = {
        "id": [f"{name}/{key}" for key in keys],
        "path": [f"{place}/{column}/{row:09d}" for row in range(len(images))],
    }
    columns = {key: pa.array(values, pa.large_string()) for key, values in own.items()}
    for key in names:
        assert table is not None
        columns[key] = table.column(key)
    return pa.table(columns)


def left_out(place: str, column: str) -> list[str]:
    """Return the columns that `picture_columns` leaves out."""
    schema = open_images(place).schema
    return [f.name for f in schema if f.name != column and not _flat(f.type)]


def _flat(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or is_bytes(kind) or pa.types.is_null(kind))


def _texts(place: str, images: ParquetImages, name: str) -> Sequence[str | None] | None:
    """Return a column as text; None if the table has none of this name."""
    if name not in images.schema.names:
        return None
    texts = texts_of(place, images.columns([name]).column(0))
    found: list[str | None] = pc.if_else(pc.equal(texts, ""), None, texts).to_pylist()
    return found
