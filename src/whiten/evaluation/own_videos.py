"""Read a user's own videos: the near-duplicates of a group should find each other."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whiten.datasets.collection import Item, Items, video_of
from whiten.datasets.finding import find_items
from whiten.datasets.frames import Progress, find_or_extract
from whiten.datasets.patterns import Patterns
from whiten.datasets.tables import is_table
from whiten.errors import ConfigError
from whiten.evaluation.video_task import VideoTask, count_frames
from whiten.media.reading import Skipped
from whiten.utils.arrays import indices


def read_videos(
    source: str | os.PathLike[str],
    frames: Path,
    *,
    exclude: Patterns = (),
    include: Patterns = (),
    progress: Progress | None = None,
) -> tuple[Items, list[Skipped]]:
    """Return the frames of grouped videos, with ids `VIDEO/0000.jpg` and the group of the video.

    Args:
        source: a folder with a subfolder of videos per group; a table with columns path,group,
            whose paths are videos or folders of frames; the output of `whiten frames` for these; or
            frames in `GROUP/VIDEO/0000.jpg`.
        frames: folder to write frames to, if the source has none.
        exclude, include: patterns that choose among the videos, see `whiten.datasets.patterns`.

    Returns:
        The frames, and the skipped videos without frames.
    """
    root = Path(source)
    if is_table(root):
        rows = find_items(root, None, exclude, include)
        if len(rows) and Path(rows[0].path).is_dir():
            return Items.of(_in_folders(rows)).sorted(), []
    return find_or_extract(root, frames, exclude=exclude, include=include, progress=progress)


def _in_folders(rows: Items) -> Iterator[Item]:
    """Yield the frames in the folders that a table names, with the table's groups."""
    for row in rows:
        for frame in find_items(row.path):
            yield Item(f"{row.id}/{frame.id}", frame.path, row.group, frame.frame_ms)


def videos_task(frames: Items, skipped: list[Skipped]) -> VideoTask:
    """Build the task in which each video of a group queries all the others.

    Args:
        frames: as returned by `read_videos`.
        skipped: videos without frames.

    Raises:
        ConfigError: there are fewer than two videos, or no two in one group.
    """
    frames = frames.sorted()
    counts = count_frames(frames)
    members: dict[str, list[int]] = defaultdict(list)
    names = {name: number for number, name in enumerate(counts)}
    groups: dict[int, str] = {}
    for frame in frames:
        video = video_of(frame.id)
        # Frames found without a table have their video's folder as group.
        if group := video_of(video) if frame.group == video else frame.group:
            groups[names[video]] = group
    for number, group in groups.items():
        members[group].append(number)
    queries = sorted(n for own in members.values() if len(own) > 1 for n in own)
    if not queries:
        raise ConfigError(
            f"no two of the {len(counts)} videos share a group: name a folder with a subfolder of "
            "videos for each group, or a CSV with columns path,group"
        )
    return VideoTask(
        frames=frames,
        videos=list(counts),
        lengths=np.fromiter(counts.values(), np.int64),
        queries=indices(queries),
        shared=slice(0, len(counts)),
        own=[indices([])] * len(queries),
        positives=[indices([n for n in members[groups[q]] if n != q]) for q in queries],
        junk=[indices([query]) for query in queries],
        without_positives=sum(len(own) == 1 for own in members.values()),
        skipped=skipped,
    )
