"""Read SVD, the dataset of near-duplicate videos (Jiang et al., ICCV 2019), in its own layout.

`metadata-release/` holds `query-id`, `labeled-data-id` and `unlabeled-data-id`, one video per line,
and `train_groundtruth` and `test_groundtruth` with lines `QUERY CANDIDATE 0|1`; names end in
`.mp4`. Frames are stored in `frames/VIDEO/0000.jpg`, their counts in `num_frames`, lines `VIDEO N`.
Without frames, the videos are searched below the root (`videos/`, or `query/`, `labeled-0/`, …).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from whiten.datasets.collection import Item, Items
from whiten.errors import ConfigError, NoImagesError

Truth = dict[str, dict[str, bool]]
"""Per query, for each labelled candidate whether it is a near-duplicate."""

METADATA = "metadata-release"
FRAMES_TABLE = "frames.parquet"  # written by `whiten.datasets.frames` next to the frames
_SUFFIX = ".mp4"


@dataclass(frozen=True)
class Svd:
    """Metadata of the release; names of videos have no suffix.

    Attributes:
        root: folder of the dataset.
        query, labeled, unlabeled: the three sets.
        train, test: the ground truth; empty if there is no such file.
        num_frames: number of frames by video; empty if there is no such file.
    """

    root: Path
    query: list[str]
    labeled: list[str]
    unlabeled: list[str]
    train: Truth
    test: Truth
    num_frames: dict[str, int]

    @property
    def frames(self) -> Path:
        """Folder of frames, which may be missing."""
        return self.root / "frames"


def read_svd(root: str | os.PathLike[str]) -> Svd:
    """Read the release's metadata.

    Raises:
        ConfigError: a file is missing or damaged, or a query or candidate of the ground truth is in
            none of the sets.
    """
    folder = Path(root)
    metadata = metadata_folder(folder)
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


# --- frames -----------------------------------------------------------------------------


def is_svd(root: Path) -> bool:
    """Return whether a folder is the root of the dataset."""
    return metadata_folder(root) is not None


def metadata_folder(root: Path) -> Path | None:
    """Find the folder of the lists, as released or moved; None if it is missing."""
    places = (root / METADATA, root / "metadata", root)
    return next((place for place in places if (place / "query-id").is_file()), None)


def training_frames(root: Path) -> Items:
    """Find the frames of the videos in the training ground truth, sorted by id.

    They have no group: as in the paper, two views of a frame form a pair.

    Raises:
        ConfigError: the metadata are damaged, or there is no training ground truth.
        NoImagesError: there are no frames.
    """
    svd = read_svd(root)
    if not svd.train:
        raise ConfigError(f"{root} has no train_groundtruth: download the whole {METADATA}")
    if not svd.frames.is_dir():
        raise NoImagesError(
            f"{root} has no folder of frames: take them with "
            f"`whiten frames {root} --out {svd.frames}`"
        )
    names = {name for query, own in svd.train.items() for name in (query, *own)}
    # Frames extracted by whiten are complete; SVD's counts refer to other frames.
    counts = {} if (svd.frames / FRAMES_TABLE).is_file() else svd.num_frames
    items = Items.of(list_frames(svd.frames, sorted(names), counts)).sorted()
    if not items:
        raise NoImagesError(f"{svd.frames} has no frames of the training videos, VIDEO/0000.jpg")
    return items


def describe_training(frames: Items) -> str:
    """Describe the recognised data set in one line."""
    return f"SVD: {len(frames):,} frames of {len(frames.videos.unique()):,} training videos"


def list_frames(folder: Path, names: Iterable[str], counts: dict[str, int]) -> Iterator[Item]:
    """List the frames of the named videos, ids `VIDEO/0000.jpg`.

    Args:
        folder: folder with one subfolder per video.
        counts: frames per video; where unknown, the subfolder is listed.
    """
    for name in names:
        for file in _files(folder / name, counts.get(name)):
            yield Item(f"{name}/{file}", os.path.join(folder, name, file))


def _files(folder: Path, count: int | None) -> list[str]:
    if count is not None:
        return [f"{number:04d}.jpg" for number in range(count)]
    try:
        return sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".jpg")
    except OSError:
        return []


# --- metadata ---------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, words) of the lines that are not empty."""
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
