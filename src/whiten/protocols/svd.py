"""SVD, the short-video dataset of near-duplicates (Jiang et al., ICCV 2019), in its own layout.

`metadata-release/` holds `query-id`, `labeled-data-id` and `unlabeled-data-id` with a video a line,
and `train_groundtruth` and `test_groundtruth` with lines `QUERY CANDIDATE 0|1`; names end in
`.mp4`. Frames lie in `frames/VIDEO/0000.jpg`, their numbers in `num_frames`, lines `VIDEO N`.
Without frames, the videos are looked for below the root (`videos/`, or `query/`, `labeled-0/`, …).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whiten.errors import ConfigError, NoImagesError
from whiten.media import MAX_FRAMES, Item, Items, Skipped, extract_frames, find_videos
from whiten.media.finding import FRAMES_TABLE, find_items
from whiten.media.frames import Progress
from whiten.protocols.video_task import VideoTask, count_frames, indices

Truth = dict[str, dict[str, bool]]
"""By query, whether each of its labelled candidates is a near-duplicate."""

_SUFFIX = ".mp4"


@dataclass(frozen=True)
class Svd:
    """What the release says; names of videos are without suffix.

    Attributes:
        root: the folder of the dataset.
        query, labeled, unlabeled: the three sets.
        train, test: the ground truth; empty where there is no such file.
        num_frames: by video, empty where there is no such file.
    """

    root: Path
    query: list[str]
    labeled: list[str]
    unlabeled: list[str]
    train: Truth
    test: Truth
    num_frames: dict[str, int]


def read_svd(root: str | os.PathLike[str]) -> Svd:
    """Read the release's metadata.

    Raises:
        ConfigError: a file is missing or damaged, or a query or candidate of the ground truth is in
            none of the sets.
    """
    folder = Path(root)
    metadata = next(
        (f for f in (folder / "metadata-release", folder) if (f / "query-id").is_file()), None
    )
    if metadata is None:
        raise ConfigError(
            f"{folder} is not SVD: it has no metadata-release/query-id; name the folder that holds "
            "metadata-release and frames or videos"
        )
    query, labeled, unlabeled = (
        _read_ids(metadata / f"{name}-id") for name in ("query", "labeled-data", "unlabeled-data")
    )
    train, test = (_read_truth(metadata / f"{part}_groundtruth") for part in ("train", "test"))
    known = {*query, *labeled, *unlabeled}
    for part, truth in (("train", train), ("test", test)):
        for asked, candidates in truth.items():
            if unknown := next((name for name in (asked, *candidates) if name not in known), None):
                raise ConfigError(
                    f"{metadata / f'{part}_groundtruth'} names {unknown!r}, which is in none of "
                    "query-id, labeled-data-id and unlabeled-data-id: download the metadata again"
                )
    places = [place / "num_frames" for place in (folder, metadata)]
    counts = next((_read_counts(place) for place in places if place.is_file()), {})
    return Svd(folder, query, labeled, unlabeled, train, test, counts)


def svd_task(
    svd: Svd,
    frames: Path,
    *,
    max_frames: int = MAX_FRAMES,
    stride: int = 1,
    progress: Progress | None = None,
) -> VideoTask:
    """Each test query ranks its own labelled candidates and all unlabelled videos.

    A query without a near-duplicate in the ground truth counts with an AP of 0, as published; one
    whose near-duplicates have no frames is left out.

    Args:
        svd: the metadata.
        frames: where frames are written if the dataset has videos and no `frames/`.
        max_frames: of a video, from its beginning.
        stride: every how many of these is taken.

    Raises:
        ConfigError: there is no test ground truth, or no query of it has frames.
    """
    if not svd.test:
        raise ConfigError(
            f"{svd.root} has no test_groundtruth: download the whole metadata-release"
        )
    labeled = list(dict.fromkeys(name for own in svd.test.values() for name in own))
    first = list(dict.fromkeys([*svd.test, *labeled]))
    known = set(first)
    # All unlabelled videos together at the end; what is labelled too is not searched twice.
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


# --- frames -----------------------------------------------------------------------------


def _frames_of(
    svd: Svd,
    names: Sequence[str],
    frames: Path,
    max_frames: int,
    stride: int,
    progress: Progress | None,
) -> tuple[Items, list[Skipped]]:
    """Frames of the named videos, in that order, and the videos that have none."""
    folder = svd.root / "frames"
    skipped: list[Skipped] = []
    if not folder.is_dir():
        skipped = _extract(svd, names, frames, max_frames, progress)
        folder = frames
    reasons = {skip.id: skip for skip in skipped}
    times = _times(folder)
    without: list[Skipped] = []

    def listed() -> Iterator[Item]:
        for name in names:
            files = _list_frames(folder / name, svd.num_frames.get(name))
            if not files:
                without.append(reasons.get(name, Skipped(name, f"no frames in {folder / name}")))
            for file in files[:max_frames:stride]:
                id_ = f"{name}/{file}"
                yield Item(id_, os.path.join(folder, name, file), None, times.get(id_))

    return Items.of(listed()), without


def _list_frames(folder: Path, count: int | None) -> list[str]:
    """File names of a video's frames; not looked for where the release says how many there are."""
    if count is not None:
        return [f"{number:04d}.jpg" for number in range(count)]
    try:
        return sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".jpg")
    except OSError:
        return []


def _times(folder: Path) -> dict[str, int]:
    """Milliseconds of each frame, where `whiten frames` wrote them."""
    if not (folder / FRAMES_TABLE).is_file():
        return {}
    return {item.id: item.frame_ms for item in find_items(folder) if item.frame_ms is not None}


def _extract(
    svd: Svd, names: Iterable[str], frames: Path, max_frames: int, progress: Progress | None
) -> list[Skipped]:
    wanted = set(names)
    try:
        found = {os.path.basename(video.id): video.path for video in find_videos(svd.root)}
    except NoImagesError as error:
        raise ConfigError(
            f"{svd.root} has neither frames nor videos: put frames into frames/VIDEO/0000.jpg, or "
            "the videos anywhere below it"
        ) from error
    videos = [Item(name, path) for name, path in sorted(found.items()) if name in wanted]
    return extract_frames(videos, frames, max_frames=max_frames, progress=progress).skipped


# --- metadata ---------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, words) of the lines that are not empty."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if words := line.split():
                    yield number, words
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"cannot read {path} ({reason.lower()}): download SVD's metadata-release again"
        ) from error


def _malformed(path: Path, number: int, expected: str) -> ConfigError:
    return ConfigError(f"{path} is damaged: line {number} must be {expected}; download it again")


def _read_ids(path: Path) -> list[str]:
    ids = []
    for number, words in _lines(path):
        if len(words) != 1:
            raise _malformed(path, number, "one video")
        ids.append(words[0].removesuffix(_SUFFIX))
    return ids


def _read_truth(path: Path) -> Truth:
    truth: Truth = {}
    if not path.exists():
        return truth
    for number, words in _lines(path):
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise _malformed(path, number, "QUERY CANDIDATE 0|1")
        query, candidate = (word.removesuffix(_SUFFIX) for word in words[:2])
        truth.setdefault(query, {})[candidate] = words[2] == "1"
    return truth


def _read_counts(path: Path) -> dict[str, int]:
    counts = {}
    for number, words in _lines(path):
        if len(words) != 2 or not words[1].isdecimal():
            raise _malformed(path, number, "VIDEO NUMBER")
        counts[words[0].removesuffix(_SUFFIX)] = int(words[1])
    return counts
