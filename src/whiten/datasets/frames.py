"""Frames of videos as JPEG files, in the layout of the SVD benchmark: `FRAMES/VIDEO/0000.jpg`.

A video's folder is written under a hidden name and renamed, so a kill loses at most the videos in
progress; a hidden file in it records the video's state and the sampling. At the end
`frames.parquet` lists the frames of all videos: path, group, frame_ms, video, source; `find_items`
reads it. Videos without frames are listed with the reason in `skipped.csv`.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import find_items, find_videos, holds
from whiten.datasets.patterns import Patterns
from whiten.datasets.svd import FRAMES_TABLE
from whiten.datasets.tables import is_table
from whiten.errors import ConfigError, ImageError, NoImagesError
from whiten.media.formats import SUFFIXES
from whiten.media.reading import Skipped, Unread, skipped_for, stamp_of
from whiten.media.video import MAX_FRAMES, VIDEO_SUFFIXES, check_sampling, sample_frames
from whiten.utils.files import what_stays
from whiten.utils.names import display_path, real_path
from whiten.utils.threads import ordered_map
from whiten.utils.urls import as_path

SKIPPED_TABLE = "skipped.csv"
_FACTS = ".video.json"
_PARTIAL = ".partial"
_QUALITY = 92  # JPEG quality
_CHUNK = 1024  # videos whose frames are written to the table at once
_COLUMNS = ("path", "group", "frame_ms", "video", "source")

Progress = Callable[[int, int], None]
"""Called with (videos done, videos planned)."""


@dataclass(frozen=True)
class Extraction:
    """The result of extracting frames from a collection of videos.

    Attributes:
        frames: one item per frame, id `VIDEO/0000.jpg`, with `frame_ms` and the video's group.
        videos: number of videos of this call with frames.
        skipped: videos without frames, with the reason.
    """

    frames: Items
    videos: int
    skipped: list[Skipped]


def extract_frames(
    videos: Sequence[Item],
    out: str | os.PathLike[str],
    *,
    fps: float = 1.0,
    max_frames: int = MAX_FRAMES,
    alone: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """Write the frames of videos; existing frames that are up to date are kept.

    May be interrupted at any time and called again. Videos that changed or were sampled differently
    are extracted again, and skipped ones are retried. The table keeps the videos of earlier calls,
    except those of this call's folder whose files are gone.

    Args:
        videos: videos as returned by `find_videos`.
        out: folder of frames, existing or new.
        fps, max_frames: see `sample_frames`.
        alone: the table lists the videos of this call alone.
        workers: number of videos read in parallel, one thread each; by default one per core.
        progress: called after each video.

    Raises:
        ConfigError: a folder of frames that whiten did not write, or of another video of this name,
            is in the way, or the disk is full.
        NoImagesError: no video has frames.
        MissingExtraError: PyAV is not installed.
    """
    check_sampling(fps, max_frames)
    root = Path(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(f".*{_PARTIAL}"):
            shutil.rmtree(stale, ignore_errors=True)
        _refuse_other_videos(root, videos)
        before = None if alone else _read_table(root)
        work = partial(_bring_up_to_date, root=root, fps=fps, max_frames=max_frames)
        done: list[tuple[Item, list[int]]] = []
        skipped: list[Skipped] = []
        results = ordered_map(work, videos, workers=workers)
        for number, (video, result) in enumerate(zip(videos, results, strict=True), start=1):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                done.append((video, result))
            if progress is not None:
                progress(number, len(videos))
        _write_skipped(root, skipped)
        if not done:
            first = f", first {skipped[0].id!r}: {skipped[0].reason}" if skipped else ""
            raise NoImagesError(
                f"none of {len(videos)} videos has a frame that can be read{first}; name a folder "
                "with readable videos"
            )
        _write_table(root, done, None if before is None else _kept(before, videos, root))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot write frames to {root} ({reason}): {what_stays(root / 'frames', 'videos')}"
        ) from error
    return Extraction(find_items(root), len(done), skipped)


def frame_times(folder: Path) -> dict[str, int]:
    """Read the times in ms of the frames in a folder, by `VIDEO/0000.jpg`, where known."""
    if not (folder / FRAMES_TABLE).is_file():
        return {}
    return {frame.id: frame.frame_ms for frame in find_items(folder) if frame.frame_ms is not None}


def find_or_extract(
    source: str | os.PathLike[str],
    frames: Path,
    *,
    exclude: Patterns = (),
    include: Patterns = (),
    workers: int | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[Items, list[Skipped]]:
    """Find the images of a source; if it has videos instead, extract one frame per second.

    Args:
        source: anything that `find_items` or `find_videos` takes.
        frames: folder for the frames, see `extract_frames`.
        exclude, include, tell: see `find_items`.

    Returns:
        The images, and the videos without frames.
    """
    root = as_path(source)
    items = find_items(root, tell, exclude, include) if is_table(root) else None
    if items is not None:  # the first row tells which kind the table lists
        has_videos = Path(items[0].path).suffix.lower() in VIDEO_SUFFIXES
    elif root.is_dir():
        has_videos = not holds(root, SUFFIXES, exclude, include) and holds(
            root, VIDEO_SUFFIXES, exclude, include
        )
    else:
        has_videos = root.suffix.lower() in VIDEO_SUFFIXES
    if not has_videos:
        if items is None:
            items = find_items(root, tell, exclude, include)
        return items, []
    found = extract_frames(
        find_videos(root, exclude, include),
        frames,
        alone=True,
        workers=workers,
        progress=progress,
    )
    return found.frames, found.skipped


def _refuse_other_videos(root: Path, videos: Sequence[Item]) -> None:
    """Refuse videos of another collection with the names of extracted ones; moved ones are known
    by size and time."""
    try:
        table = pq.read_table(root / FRAMES_TABLE, columns=["video", "source"])
    except (OSError, pa.ArrowException):  # there is none, or of another kind
        return
    names, sources = (column.to_pylist() for column in table.columns)
    sources = dict(zip(names, sources, strict=True))
    for video in videos:
        source, place = sources.get(video.id), display_path(video.path)
        known = _read_facts(root / video.id) if source not in (None, place) else None
        if known is None:
            continue
        before, now = known[0].get("stamp"), stamp_of(video.path)
        if isinstance(before, list) and now is not None and before[:2] != list(now[:2]):
            raise ConfigError(
                f"{root / video.id} holds the frames of {source}, not of {place}: name another "
                "folder, or extract from one folder that holds both collections"
            )


# --- one video --------------------------------------------------------------------------


def _bring_up_to_date(
    video: Item, *, root: Path, fps: float, max_frames: int
) -> list[int] | Skipped:
    """Write a video's frames into its folder; return their times in ms, or why there are none."""
    facts = {"stamp": stamp_of(video.path), "fps": fps, "max_frames": max_frames}
    folder = root / video.id
    known = _read_facts(folder)
    if known is not None and known[0] == json.loads(json.dumps(facts)):
        return known[1]
    if known is None and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} holds files that are no frames of an earlier run: delete it, or name "
            "another folder"
        )
    new = Path(tempfile.mkdtemp(prefix=".", suffix=_PARTIAL, dir=root))
    times: list[int] = []
    try:
        for time, image in sample_frames(video.path, fps=fps, max_frames=max_frames):
            image.save(new / f"{len(times):04d}.jpg", quality=_QUALITY)
            times.append(time)
    except (ImageError, MemoryError) as error:
        shutil.rmtree(new)
        skipped = skipped_for(video.id, error)
        if known is not None and not isinstance(skipped, Unread):
            _move_away(folder, root)
        return skipped
    (new / _FACTS).write_text(json.dumps({**facts, "frame_ms": times}))
    new.chmod(0o755)  # temporary folders are private by default
    if known is not None:
        _move_away(folder, root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(new, folder)
    return times


def _read_facts(folder: Path) -> tuple[dict[str, object], list[int]] | None:
    """Read the origin and times of a folder of frames; None if whiten did not write it."""
    try:
        facts = json.loads((folder / _FACTS).read_text())
        times = facts.pop("frame_ms")
        if not all(isinstance(time, int) for time in times):
            return None
        return facts, times
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _move_away(folder: Path, root: Path) -> None:
    """Delete a folder so that it disappears at once, even if killed midway."""
    old = Path(tempfile.mkdtemp(prefix=".", suffix=_PARTIAL, dir=root))
    os.replace(folder, old)
    shutil.rmtree(old)


# --- tables -----------------------------------------------------------------------------


def _read_table(root: Path) -> pa.Table | None:
    """Read the table of an earlier call; None if there is none that can be read."""
    try:
        return pq.read_table(root / FRAMES_TABLE, columns=list(_COLUMNS)).cast(_schema())
    except (OSError, pa.ArrowException, ValueError, LookupError):
        return None


def _kept(before: pa.Table, videos: Sequence[Item], root: Path) -> pa.Table:
    """Return the earlier rows of other videos.

    Without those that are gone from the same folder, and those that have another name by now.
    """
    named = {video.id for video in videos}
    now = {display_path(video.path) for video in videos}
    folder = os.path.commonpath([Path(display_path(video.path)).parent for video in videos])
    names, sources = before["video"].to_pylist(), before["source"].to_pylist()
    there = {name for name in set(names) - named if (root / name).is_dir()}
    is_gone = {
        source: source in now
        or (source.startswith(os.path.join(folder, "")) and not os.path.lexists(real_path(source)))
        for source in set(sources)
    }
    keep = [
        name in there and not is_gone[source] for name, source in zip(names, sources, strict=True)
    ]
    return before.filter(pa.array(keep, pa.bool_()))


def _schema() -> pa.Schema:
    kinds = (pa.string(), pa.string(), pa.int64(), pa.string(), pa.string())
    return pa.schema(list(zip(_COLUMNS, kinds, strict=True)))


def _write_table(
    root: Path, videos: Sequence[tuple[Item, list[int]]], kept: pa.Table | None
) -> None:
    schema = _schema()
    unfinished = root / f".{FRAMES_TABLE}{_PARTIAL}"
    with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        if kept is not None:
            writer.write_table(kept)
        for start in range(0, len(videos), _CHUNK):
            rows = list(_rows(videos[start : start + _CHUNK]))
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    os.replace(unfinished, root / FRAMES_TABLE)


def _rows(videos: Sequence[tuple[Item, list[int]]]) -> Iterator[dict[str, object]]:
    for video, times in videos:
        for number, time in enumerate(times):
            cells = (f"{video.id}/{number:04d}.jpg", video.group, time, video.id)
            yield dict(zip(_COLUMNS, (*cells, display_path(video.path)), strict=True))


def _write_skipped(root: Path, skipped: Sequence[Skipped]) -> None:
    table = root / SKIPPED_TABLE
    if not skipped:
        table.unlink(missing_ok=True)
        return
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "reason"])
        writer.writerows((skip.id, skip.reason) for skip in skipped)
