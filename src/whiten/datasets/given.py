"""Take the images of a collection as Python has them: paths, items, or a data frame."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from whiten.datasets.collection import Item, Items
from whiten.datasets.locating import see_anew
from whiten.datasets.rows import table_items
from whiten.datasets.spellings import merge_given
from whiten.datasets.tables import Table, arrow_table
from whiten.errors import ConfigError, NoImagesError, one_line
from whiten.utils.names import as_utf8
from whiten.utils.urls import named_place

FRAME = Path("the data frame")  # what errors call it; its relative paths start here


def is_frame(images: object) -> bool:
    """Return whether it is a data frame of pandas or Polars, or an Arrow table."""
    return hasattr(images, "columns") and hasattr(images, "shape")


def frame_table(frame: Any, keys: Sequence[str] = ("path",)) -> Table:
    """Return a data frame as a table, as it would be read from Parquet, without pandas' index.

    Args:
        keys: columns of which it must have one.

    Raises:
        ConfigError: it has none of them, or a column is of no single type.
    """
    return arrow_table(_as_arrow(frame), FRAME, keys)


def _as_arrow(frame: Any) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow()
    if list(frame.columns).count("path") == 1:  # of `Path` objects, perhaps
        paths = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in frame["path"]]
        frame = frame.assign(path=paths)
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error.args[-1]) if error.args else one_line(error)
        raise ConfigError(
            f"cannot read {FRAME} ({reason}): give each column a name, and values of one kind"
        ) from error


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
    if table is None:
        found = Items.of(map(_item, images))
        see_anew([os.fsdecode(path) for path in found.paths.to_pylist()])
    elif len(table.columns):
        found = table_items(table, FRAME, "", ids_may_lack=True)
    else:
        found = Items.of([])
    if not found:
        raise NoImagesError("no images are given: name at least one")
    found = found.sorted()
    if (twice := found.first_twice()) is not None:
        raise ConfigError(f"{twice!r} is given twice: give every image once")
    return merge_given(found, partial(_facts, found) if table is None else table.columns.to_pylist)


def _facts(items: Items) -> list[dict[str, Any]]:
    return [{"path": one.id, "group": one.group, "frame_ms": one.frame_ms} for one in items]


def _item(image: Any) -> Item:
    if isinstance(image, Item):
        return image
    if not isinstance(image, str | os.PathLike):
        raise ConfigError(f"a collection is of image files: give paths, not {type(image).__name__}")
    path = named_place(image)
    if not path:
        raise ConfigError("an image has an empty path: name its file")
    return Item(as_utf8(path), path)
