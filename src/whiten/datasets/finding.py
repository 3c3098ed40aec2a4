"""Find the images or videos of a collection: a folder, or a table of paths."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc

from whiten.datasets.collection import Item, Items
from whiten.datasets.gldv2 import (
    describe_landmarks,
    landmark_images,
    landmark_list,
    read_landmarks,
)
from whiten.datasets.patterns import Choice, Patterns
from whiten.datasets.rows import in_parts, table_items
from whiten.datasets.shards import find_shards, shard_items
from whiten.datasets.spellings import merge_spellings
from whiten.datasets.svd import FRAMES_TABLE, describe_training, is_svd, training_frames
from whiten.datasets.tables import is_table, near_name, read_table
from whiten.datasets.walking import Walk, as_id
from whiten.errors import ConfigError, NoImagesError, counted
from whiten.media.formats import SUFFIXES
from whiten.media.reading import stamp_of
from whiten.media.video import VIDEO_SUFFIXES
from whiten.storage.places import is_member
from whiten.utils.names import as_utf8
from whiten.utils.urls import as_path, as_url, named_place

# What was left out is no error, and whoever calls wants to know.
_log = logging.getLogger(__name__)

# What programs write for a missing value, and people for a name: so it stays the text that it is.
_NO_NAMES = frozenset(["", "nan", "none", "null", "na", "n/a", "<na>", "#n/a"])

_TABLE_COLUMNS = ("id", "path", "group", "frame_ms")


def find_items(
    source: str | os.PathLike[str],
    tell: Callable[[str], None] | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
) -> Items:
    """Find the images of a folder, or of a CSV or Parquet table with columns `path` and `group`.

    A column `id` names the images of a table; without one their paths do.

    If all images of a folder are at least one folder deep, the folder that holds an image is its
    group; images directly in the root have none. Hidden files and folders, known rubbish, such as
    the thumbnails of a NAS, and the plots of a run's report are left out; links to folders are
    followed, see `whiten.datasets.walking`. Images of kinds that are not read are counted and
    logged. A folder that cannot be listed becomes an item `NAME/`: reading it gives the reason, so
    that its images do not go missing silently. In a table, relative paths start at the table's
    folder, and a file that is listed under several paths is one item. Items are sorted by id,
    identically on every machine. A folder of frames with a `frames.parquet` is read by that table;
    for SVD, the frames of its training videos are used, see `whiten.datasets.svd`.

    A folder with the list of GLDv2-clean is read by that list, see `whiten.datasets.gldv2`.

    Args:
        source: the folder or table.
        tell: called with one line if a published data set was recognised, of a column of a
            table that is not read and may be meant to be, and of groups that may be meant to be
            none.
        exclude, include: patterns of paths, see `whiten.datasets.patterns`; one that matches
            nothing is logged.

    Raises:
        NoImagesError: the source is missing, cannot be listed, or names no image.
        ConfigError: the source is no name; a table cannot be read, has no `path` column, or has a
            missing path, a missing or repeated id, or several paths of one file whose rows differ.
    """
    choice = Choice(exclude, include)
    root = as_path(named_images(source))
    return _chosen(_find(root, tell, choice), root, choice)


def require_items(
    source: str | os.PathLike[str],
    exclude: Patterns = (),
    include: Patterns = (),
    suffixes: frozenset[str] = SUFFIXES,
) -> None:
    """Refuse a source that is missing or holds no image, before a model is opened.

    A folder is walked only to its first file. A storage service is not listed: that takes as long
    as to find all.

    Args:
        exclude, include: see `find_items`.
        suffixes: of the wanted files, in lower case.

    Raises:
        NoImagesError, ConfigError: see `find_items`.
    """
    root = as_path(source)
    if as_url(root) is not None:
        return
    if is_table(root):
        _read_table(root, None, Choice())
    elif not root.is_dir() or not holds(root, suffixes, exclude, include):
        find_items(root, None, exclude, include)


def named_images(source: str | os.PathLike[str]) -> str:
    """Return a collection of images as the user named it.

    Raises:
        ConfigError: it is no name, such as a data frame or a list, or an empty one, which would
            stand for the current folder.
    """
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            "images are named by a folder or a table (CSV or Parquet) with columns path,group, not "
            f"given as {type(source).__name__}: write a data frame or a list as such a table"
        )
    if not os.fspath(source):
        raise ConfigError("the name of the images is empty: name a folder or a table")
    return named_place(source)


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
    if is_member(str(root)) and stamp_of(str(root)) is not None:
        return Items.of([Item(as_id(root.name), str(root))])
    if not root.is_dir() and (found := find_shards(root)) is not None:
        return _once(shard_items(found, str(root), choice).sorted(), root)
    if (root / FRAMES_TABLE).is_file():
        root = root / FRAMES_TABLE
    if is_svd(root):
        items = training_frames(root)
        if tell is not None:
            tell(describe_training(items))
        return _below(root, items, choice)
    if root.is_dir() and (table := landmark_list(root)) is not None:
        items = read_landmarks(table, landmark_images(root))
        if tell is not None:
            tell(describe_landmarks(items))
        return _below(root, items, choice)
    if root.is_dir():
        return _in_folder(root, choice)
    if is_table(root):
        items = _once(_read_table(root, tell, choice).sorted(), root)
        return items if root.name == FRAMES_TABLE else merge_spellings(items, root).sorted()
    if root.is_file():
        return Items.of([Item(as_id(root.name), os.fspath(root))])
    raise NoImagesError(f"{root} does not exist: name a folder of images or a table of paths")


def _in_folder(root: Path, choice: Choice) -> Items:
    """Return the image files below a folder, or the images of its shards if there are none.

    Raises:
        NoImagesError: there is none, and no pattern that may have left some out; or all images are
            of kinds that are not read.
    """
    walk = Walk(root, SUFFIXES, choice)
    items = _logged(walk)
    if not items and (found := find_shards(root)) is not None:
        items = _once(shard_items(found, str(root), choice).sorted(), root)
    if items:
        return items.sorted()
    if unread := walk.unread():
        raise NoImagesError(f"{root} holds no image that is read, but {unread}")
    if choice:
        return items
    if holds(root, VIDEO_SUFFIXES):
        raise NoImagesError(
            f"{root} holds videos and no images: take frames of them first with "
            f"`whiten frames {root} --out FRAMES`, and name FRAMES"
        )
    raise NoImagesError(
        f"{root} holds no image file ({' '.join(sorted(SUFFIXES)[:6])} …): "
        "name a folder of images, or a CSV or Parquet with columns path,group"
    )


def _once(items: Items, root: Path) -> Items:
    """Return sorted items if each has an id of its own."""
    if (name := items.first_twice()) is not None:
        raise ConfigError(f"{root} lists {name!r} twice: list every image once")
    return items


def _below(root: Path, items: Items, choice: Choice) -> Items:
    """Return the items that patterns choose by the path below a folder."""
    start = os.fsencode(os.path.join(root, ""))
    return choice.of(
        items, (as_id(os.fsdecode(p.removeprefix(start))) for p in items.paths.to_pylist())
    )


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
    root, choice = as_path(source), Choice(exclude, include)
    if as_url(root) is not None and not is_table(root):
        raise NoImagesError(
            f"{root}: videos are read from a disk: mount the storage, or copy them, and name that "
            "folder"
        )
    if root.is_file() and not is_table(root):
        videos = Items.of([Item(as_id(root.name), os.fspath(root))])
    elif root.is_dir():
        videos = _logged(Walk(root, VIDEO_SUFFIXES, choice))
        if not videos and not choice:
            raise NoImagesError(
                f"{root} holds no video file ({' '.join(sorted(VIDEO_SUFFIXES)[:6])} …): name a "
                "folder of videos, or a CSV or Parquet with columns path,group"
            )
    else:
        videos = _find(root, None, choice)
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


def _empty_by_name(items: Items) -> Iterator[tuple[str, int]]:
    """Yield the groups that are named as missing values are, with their numbers of images."""
    for found in pc.value_counts(items.groups).to_pylist():
        name = found["values"]
        if name is not None and name.strip().casefold() in _NO_NAMES:
            yield name, found["counts"]


def _read_table(table: Path, tell: Callable[[str], None] | None, choice: Choice) -> Items:
    read = read_table(table, ("path",), _TABLE_COLUMNS)
    if "group" not in read.names and (near := near_name("group", read.names)) and tell is not None:
        tell(f"{table} has no column 'group', so that no groups are known; {near!r} is not read")
    if not len(read.columns):
        raise NoImagesError(f"{table} has no rows: list one image path per row")
    items = table_items(read, table, os.fspath(table.parent))
    if tell is not None:
        for name, count in _empty_by_name(items):
            tell(
                f"{table}: {counted(count, 'image')} of group {name!r}, which is a group like any "
                "other: leave the cell empty if it means none"
            )
    return choice.of(items, (path for part in in_parts(read.columns["path"]) for path in part))
