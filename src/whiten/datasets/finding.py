"""Find the images or videos of a collection: a folder, or a table of paths."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from whiten.datasets.collection import Item, Items
from whiten.datasets.gldv2 import (
    describe_landmarks,
    landmark_images,
    landmark_list,
    read_landmarks,
)
from whiten.datasets.patterns import Choice, Patterns
from whiten.datasets.spellings import merge_spellings
from whiten.datasets.svd import FRAMES_TABLE, describe_training, is_svd, training_frames
from whiten.datasets.walking import Walk, as_id
from whiten.errors import ConfigError, NoImagesError
from whiten.media.formats import SUFFIXES
from whiten.media.video import VIDEO_SUFFIXES
from whiten.utils.names import as_utf8

# What was left out is no error, and whoever calls wants to know.
_log = logging.getLogger(__name__)

_Row = tuple[str | None, str | None, int | None]


def find_items(
    source: str | os.PathLike[str],
    tell: Callable[[str], None] | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
) -> Items:
    """Find the images of a folder, or of a CSV or Parquet table with columns `path` and `group`.

    If all images of a folder are at least one folder deep, the folder that holds an image is its
    group; images directly in the root have none. Hidden files and folders and known rubbish, such
    as the thumbnails of a NAS, are left out; links to folders are followed, see
    `whiten.datasets.walking`. Images of kinds that are not read are counted and logged. A folder
    that cannot be listed becomes an item `NAME/`: reading it gives the reason, so that its images
    do not go missing silently. In a table, relative paths start at the table's folder, and a file
    that is listed under several paths is one item. Items are sorted by id, identically on every
    machine. A folder of frames with a `frames.parquet` is read by that table; for SVD, the frames
    of its training videos are used, see `whiten.datasets.svd`.

    A folder with the list of GLDv2-clean is read by that list, see `whiten.datasets.gldv2`.

    Args:
        source: the folder or table.
        tell: called with one line if a published data set was recognised.
        exclude, include: patterns of paths, see `whiten.datasets.patterns`; one that matches
            nothing is logged.

    Raises:
        NoImagesError: the source is missing, cannot be listed, or names no image.
        ConfigError: a table cannot be read, has no `path` column, or has a missing or repeated
            path, or several paths of one file whose rows differ.
    """
    choice = Choice(exclude, include)
    items = choice.of(_find(Path(source), tell, choice))
    return _chosen(items, source, choice)


def _chosen(items: Items, source: str | os.PathLike[str], choice: Choice) -> Items:
    """Return what patterns left of a collection, if it is anything."""
    for pattern in choice.unmatched():
        _log.warning("%s matches nothing in %s", pattern, as_utf8(os.fspath(source)))
    if not len(items):
        raise NoImagesError(
            f"--exclude and --include leave nothing of {source}: patterns are compared with paths "
            "below it"
        )
    return items


def _find(root: Path, tell: Callable[[str], None] | None, choice: Choice) -> Items:
    if (root / FRAMES_TABLE).is_file():
        root = root / FRAMES_TABLE
    if is_svd(root):
        items = training_frames(root)
        if tell is not None:
            tell(describe_training(items))
        return items
    if root.is_dir() and (table := landmark_list(root)) is not None:
        items = read_landmarks(table, landmark_images(root))
        if tell is not None:
            tell(describe_landmarks(items))
        return items
    if root.is_dir():
        walk = Walk(root, SUFFIXES, choice)
        items = _logged(walk)
        if not items:
            if choice:
                return items
            if unread := walk.unread():
                raise NoImagesError(f"{root} holds no image that is read, but {unread}")
            if holds(root, VIDEO_SUFFIXES):
                raise NoImagesError(
                    f"{root} holds videos and no images: take frames of them first with "
                    f"`whiten frames {root} --out FRAMES`, and name FRAMES"
                )
            raise NoImagesError(
                f"{root} holds no image file ({' '.join(sorted(SUFFIXES)[:6])} …): "
                "name a folder of images, or a CSV or Parquet with columns path,group"
            )
    elif root.suffix.lower() in (".csv", ".parquet") and root.is_file():
        items = Items.of(_read_table(root))
        if not items:
            raise NoImagesError(f"{root} has no rows: list one image path per row")
        items = items.sorted()
        if (path := items.first_twice()) is not None:
            raise ConfigError(f"{root} lists {path!r} twice: list every image once")
        if root.name != FRAMES_TABLE:
            items = merge_spellings(items, root)
    elif root.is_file():
        return Items.of([Item(as_id(root.name), os.fspath(root))])
    else:
        raise NoImagesError(f"{root} does not exist: name a folder of images or a table of paths")
    return items.sorted()


def _logged(walk: Walk) -> Items:
    items = Items.of(walk)
    for note in walk.notes() if items else ():
        _log.warning("%s", note)
    return items


def find_videos(
    source: str | os.PathLike[str], exclude: Patterns = (), include: Patterns = ()
) -> Items:
    """Find the videos of a folder, or of a table with columns `path` and `group`; see `find_items`.

    The id is the path below the root without suffix, if that is unique: `trip/1.mp4` is `trip/1`.
    In SVD it is the name alone, and there are no groups.

    Raises:
        NoImagesError: the source is missing, cannot be listed, or names no video.
        ConfigError: a table cannot be read, has no `path` column, or has a missing or repeated
            path.
    """
    root, choice = Path(source), Choice(exclude, include)
    if root.is_file() and root.suffix.lower() not in (".csv", ".parquet"):
        videos = Items.of([Item(as_id(root.name), os.fspath(root))])
    elif root.is_dir():
        videos = _logged(Walk(root, VIDEO_SUFFIXES, choice))
        if not videos and not choice:
            raise NoImagesError(
                f"{root} holds no video file ({' '.join(sorted(VIDEO_SUFFIXES)[:6])} …): name a "
                "folder of videos, or a CSV or Parquet with columns path,group"
            )
    else:
        videos = choice.of(find_items(root))
    videos = _chosen(videos, source, choice)
    if is_svd(root):  # names are unique across its folders
        videos = Items.of(Item(os.path.basename(v.id), v.path) for v in videos)
    stems = [_stem(video.id) for video in videos]
    count = Counter(stems)
    # A name becomes a folder of frames, which must not contain another one.
    inner = {name[:i] for name in count for i, c in enumerate(name) if c == "/"}
    named = (
        replace(video, id=stem if count[stem] == 1 and stem not in inner else video.id)
        for video, stem in zip(videos, stems, strict=True)
    )
    return Items.of(named).sorted()


def holds(
    folder: Path, suffixes: frozenset[str], exclude: Patterns = (), include: Patterns = ()
) -> bool:
    """Return whether a folder holds a file with one of the suffixes, at any depth."""
    walk = Walk(folder, suffixes, Choice(exclude, include))
    return any(not item.id.endswith("/") for item in walk)


def _stem(name: str) -> str:
    """Cut the suffix from a video's id; a folder that cannot be listed keeps its slash."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES and not stem.endswith("/") else name


def _read_table(table: Path) -> Iterator[Item]:
    for number, (path, group, frame_ms) in enumerate(_rows_or_refuse(table), start=1):
        if not path:
            raise ConfigError(f"{table} has no path in row {number}: give every row its image")
        yield Item(path, os.path.join(table.parent, path), group or None, frame_ms)


def _rows_or_refuse(table: Path) -> Iterator[_Row]:
    from pyarrow import ArrowException

    try:
        yield from _table_rows(table)
    except (OSError, UnicodeError, csv.Error, ArrowException) as error:
        raise ConfigError(
            f"cannot read {table} ({str(error).splitlines()[0]}): "
            "it must be CSV in UTF-8, or Parquet"
        ) from error


def _table_rows(table: Path) -> Iterator[_Row]:
    if table.suffix.lower() == ".csv":
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _require_path_column(table, reader.fieldnames or [])
            for row in reader:
                yield row["path"], row.get("group"), None
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as parquet:
        names = parquet.schema_arrow.names
        _require_path_column(table, names)
        wanted = [name for name in ("path", "group", "frame_ms") if name in names]
        for batch in parquet.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                path, group = row["path"], row.get("group")
                yield (
                    None if path is None else str(path),
                    None if group is None else str(group),
                    _whole(row.get("frame_ms")),
                )


def _require_path_column(table: Path, names: Iterable[str]) -> None:
    if "path" not in names:
        raise ConfigError(f"{table} has no column 'path': it needs path, and group for positives")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
