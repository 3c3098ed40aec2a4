"""Evaluate by the SVD protocol; for the dataset's layout see `whiten.datasets.svd`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from whiten.datasets.collection import Item, Items
from whiten.datasets.finding import find_videos
from whiten.datasets.frames import Progress, extract_frames, frame_times
from whiten.datasets.svd import Svd, list_frames
from whiten.errors import ConfigError, NoImagesError
from whiten.evaluation.video_task import VideoTask, count_frames
from whiten.media.reading import Skipped
from whiten.media.video import MAX_FRAMES
from whiten.utils.arrays import indices


def svd_task(
    svd: Svd,
    frames: Path,
    *,
    max_frames: int = MAX_FRAMES,
    stride: int = 1,
    progress: Progress | None = None,
) -> VideoTask:
    """Build the task in which each test query ranks its labelled and all unlabelled videos.

    A query without near-duplicates in the ground truth counts with AP 0, as published; one whose
    near-duplicates have no frames is left out.

    Args:
        svd: the metadata.
        frames: folder to write frames to if the dataset has videos but no `frames/`.
        max_frames: maximum frames per video, from its beginning.
        stride: use every stride-th of these.

    Raises:
        ConfigError: there is no test ground truth, or none of its queries has frames.
    """
    if not svd.test:
        raise ConfigError(
            f"{svd.root} has no test_groundtruth: download the whole metadata-release"
        )
    labeled = list(dict.fromkeys(name for own in svd.test.values() for name in own))
    first = list(dict.fromkeys([*svd.test, *labeled]))
    known = set(first)
    # Unlabelled videos come last; those that are also labelled are not searched twice.
    names = [*first, *(name for name in dict.fromkeys(svd.unlabeled) if name not in known)]
    items, skipped = _frames_of(svd, names, frames, max_frames, stride, progress)
    counts = count_frames(items)
    if lost := [name for name in svd.test if name not in counts]:
        skipped = [*skipped, *(Skipped(n, "a query without frames is left out") for n in lost)]
    number = {name: place for place, name in enumerate(counts)}
    own, positives, queries, left_out = [], [], [], 0
    for query, truth in svd.test.items():
        there = {name: right for name, right in truth.items() if name in counts}
        if query not in counts:
            continue
        if any(truth.values()) and not any(there.values()):
            left_out += 1
            continue
        queries.append(number[query])
        own.append(indices([number[name] for name in there]))
        positives.append(indices([number[name] for name, right in there.items() if right]))
    if not queries:
        raise ConfigError(
            f"no query of {svd.root} has frames, and a near-duplicate with frames: put frames into "
            "frames/VIDEO/0000.jpg, or the videos anywhere below it"
        )
    return VideoTask(
        frames=items,
        videos=list(counts),
        lengths=np.fromiter(counts.values(), np.int64),
        queries=indices(queries),
        shared=slice(sum(name in counts for name in first), len(counts)),
        own=own,
        positives=positives,
        junk=[indices([])] * len(queries),
        without_positives=left_out,
        skipped=skipped,
    )


def _frames_of(
    svd: Svd,
    names: Sequence[str],
    frames: Path,
    max_frames: int,
    stride: int,
    progress: Progress | None,
) -> tuple[Items, list[Skipped]]:
    """Return the frames of the named videos, in order, and the videos without frames."""
    folder = svd.frames
    reasons: dict[str, Skipped] = {}
    if not folder.is_dir():
        reasons = _extract(svd, set(names), frames, max_frames, progress)
        folder = frames
    times = frame_times(folder)
    # Frames extracted by whiten are listed in its own table; SVD numbers frames differently.
    counts = {} if times else svd.num_frames
    found: set[str] = set()

    def chosen() -> Iterator[Item]:
        for name in names:
            listed = list(list_frames(folder, [name], counts))
            found.update([name] if listed else [])
            for frame in listed[:max_frames:stride]:
                yield Item(frame.id, frame.path, None, times.get(frame.id))

    items = Items.of(chosen())
    return items, [
        reasons.get(name, Skipped(name, f"it has no frames in {folder}"))
        for name in names
        if name not in found
    ]


def _extract(
    svd: Svd, names: set[str], frames: Path, max_frames: int, progress: Progress | None
) -> dict[str, Skipped]:
    """Extract frames of the named videos; return the videos without frames."""
    try:
        videos = [video for video in find_videos(svd.root) if video.id in names]
    except NoImagesError as error:
        raise ConfigError(
            f"{svd.root} has neither frames nor videos: put frames into frames/VIDEO/0000.jpg, or "
            "the videos anywhere below it"
        ) from error
    done = extract_frames(videos, frames, max_frames=max_frames, progress=progress)
    return {skip.id: skip for skip in done.skipped}
