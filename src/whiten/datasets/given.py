"""Take the images of a collection as Python has them: paths, items, or a data frame."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from whiten.datasets.collection import Item, Items
from whiten.datasets.locating import see_anew
from whiten.datasets.spellings import merge_given
from whiten.errors import ConfigError, NoImagesError
from whiten.utils.names import as_utf8
from whiten.utils.urls import listed, named_place


def is_frame(images: object) -> bool:
    """Return whether it is a data frame of pandas or Polars, or an Arrow table."""
    return hasattr(images, "columns") and hasattr(images, "shape")


def frame_table(frame: Any) -> pa.Table:
    """Return a data frame as an Arrow table, without the index of pandas."""
    if isinstance(frame, pa.Table):
        return frame
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow()
    return pa.Table.from_pandas(frame, preserve_index=False)


def given_items(images: Any) -> Items:
    """Return images that are given as paths, items, or a data frame with a column `path`.

    The id is the path as it is given, or of a data frame the column `id`; `group` and `frame_ms`
    are read as in a table. Relative paths start at the working directory. A file that is given by
    several paths is one image.

    Raises:
        ConfigError: an image is no path, is given twice, or by several paths with other values; or
            a data frame has no column `path`.
        NoImagesError: there are no images.
    """
    if isinstance(images, Items):
        return images
    if not is_frame(images) and not isinstance(images, Iterable):
        raise ConfigError(
            f"images are a folder, a table, paths or a data frame, not {type(images).__name__}"
        )
    table = frame_table(images) if is_frame(images) else None
    found = Items.of(map(_item, images) if table is None else _rows(table))
    if not found:
        raise NoImagesError("no images are given: name at least one")
    see_anew([os.fsdecode(path) for path in found.paths.to_pylist()])
    found = found.sorted()
    if (twice := found.first_twice()) is not None:
        raise ConfigError(f"{twice!r} is given twice: give every image once")
    return merge_given(found, partial(_facts, found) if table is None else table.to_pylist)


def _facts(items: Items) -> list[dict[str, Any]]:
    return [{"path": one.id, "group": one.group, "frame_ms": one.frame_ms} for one in items]


def _item(image: Any) -> Item:
    if isinstance(image, Item):
        return image
    if not isinstance(image, str | os.PathLike):
        raise ConfigError(f"a collection is of image files: give paths, not {type(image).__name__}")
    path = named_place(image)
    return Item(as_utf8(path), path)


def _rows(table: pa.Table) -> Iterator[Item]:
    if "path" not in table.schema.names:
        raise ConfigError("the data frame has no column 'path': it needs path, and group")
    for batch in table.to_batches():
        for number, row in enumerate(batch.to_pylist(), 1):
            if not row["path"]:
                raise ConfigError(f"the data frame has no path in row {number}: give every image")
            name, group = row.get("id"), row.get("group")
            path = str(row["path"])
            yield Item(
                as_utf8(path) if name is None else str(name),
                listed("", path),
                None if _is_missing(group) else str(group),
                row["frame_ms"] if isinstance(row.get("frame_ms"), int) else None,
            )


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN, which alone differs from itself
