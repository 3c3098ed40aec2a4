"""Find published data sets below a folder, what is missing of them, and where to get it.

Nothing is downloaded. Lists are read, and files are checked: all of a small set, an even sample of
a large one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from whiten.datasets.collection import Items
from whiten.datasets.finding import holds
from whiten.datasets.gldv2 import (
    LANDMARKS,
    describe_landmarks,
    landmark_images,
    landmark_list,
    read_landmarks,
)
from whiten.datasets.ground_truth import truth_file
from whiten.datasets.revisited import (
    DISTRACTORS,
    distractor_list,
    read_distractors,
    read_set,
    set_folder,
)
from whiten.datasets.svd import METADATA, is_svd, read_svd
from whiten.errors import ConfigError, WhitenError
from whiten.media.video import VIDEO_SUFFIXES

SAMPLE = 10_000  # maximum number of images to check, evenly spaced
UNSTATED = "unstated"


@dataclass
class DataSet:
    """A published data set and the parts of it that were found.

    Attributes:
        name: name in publications.
        use: command that uses it.
        published: page that offers it.
        contents: contents of the complete set.
        size: published size on disk.
        root: folder where it was found; None if missing.
        there: description of the parts found.
        missing: description of the parts missing.
    """

    name: str
    use: str
    published: str
    contents: str
    size: str
    root: str | None = None
    there: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield lines for display."""
        state = "not found" if self.root is None else self.root
        yield f"{self.name}: {state}"
        for line in self.there:
            yield f"  there      {line}"
        for line in self.missing:
            yield f"  missing    {line}"
        yield f"  use        {self.use}"
        yield f"  contents   {self.contents}"
        yield f"  published  {self.published}"
        yield f"  size       {self.size}"


_Look: TypeAlias = Callable[[DataSet, Path], None]


def find_datasets(root: Path) -> list[DataSet]:
    """Look for every data set that has a reader, in a folder or just below it.

    Raises:
        ConfigError: the folder does not exist.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} is no folder: name the one that holds the data sets")
    sets = _published()
    for found, look in sets:
        try:
            look(found, root)
        except WhitenError as error:  # report damaged lists
            found.missing.append(f"a readable list: {error}")
    return [found for found, _ in sets]


def _published() -> list[tuple[DataSet, _Look]]:
    """Return the data sets, and what looks for each."""
    gldv2 = DataSet(
        "GLDv2-clean",
        "whiten distill ROOT: images of a landmark are a group",
        "https://github.com/cvdfoundation/google-landmark",
        "1,580,470 images of 81,313 landmarks, chosen from the 4,132,914 of GLDv2's train set",
        "train set: 500 archives of about 1 GB; with index and test set about 595 GB",
    )
    r1m = DataSet(
        "R1M",
        "whiten evaluate … --distractors ROOT",
        "http://cmp.felk.cvut.cz/revisitop",
        "1,001,001 images in 100 archives",
        UNSTATED,
    )
    svd = DataSet(
        "SVD",
        "whiten distill ROOT, whiten evaluate ROOT --model MODEL --protocol svd",
        "https://svdbase.github.io",
        "over 500,000 short videos, over 30,000 of them labelled",
        UNSTATED,
    )
    return [
        (gldv2, _look_for_landmarks),
        _revisited("ROxford5k", "oxbuildings", 4993),
        _revisited("RParis6k", "parisbuildings", 6322),
        (r1m, _look_for_distractors),
        (svd, _look_for_videos),
    ]


def _revisited(title: str, images: str, count: int) -> tuple[DataSet, _Look]:
    name = title.lower()
    found = DataSet(
        title,
        f"whiten evaluate ROOT --model MODEL --protocol {name}",
        "http://cmp.felk.cvut.cz/revisitop (ground truth), "
        f"https://www.robots.ox.ac.uk/~vgg/data/{images} (images)",
        f"70 queries, {count:,} images",
        UNSTATED,
    )
    return found, partial(_look_for_set, name=name)


def _look_for_landmarks(found: DataSet, root: Path) -> None:
    places = [root, *(root / name for name in ("gldv2", "GLDv2", "google-landmark"))]
    place = next((place for place in places if landmark_list(place) is not None), None)
    if place is None:
        found.missing += [LANDMARKS, "train/a/b/c/abc….jpg"]
        return
    table = landmark_list(place)
    assert table is not None
    found.root = str(place)
    items = read_landmarks(table, landmark_images(place))
    found.there.append(f"{os.path.relpath(table, place)}: {describe_landmarks(items)}")
    _look_for_images(found, items)


def _look_for_set(found: DataSet, root: Path, name: str) -> None:
    folder = set_folder(root, name)
    if folder is None:
        found.missing += [f"{name}/gnd_{name}.pkl", f"{name}/jpg/NAME.jpg"]
        return
    file = truth_file(folder, name)
    assert file is not None
    found.root = str(folder)
    data = read_set(folder, name)
    found.there.append(f"{file.name}: {len(data.queries):,} queries, {len(data.gallery):,} images")
    _look_for_images(found, data.gallery)
    _look_for_images(found, data.queries, "queries")


def _look_for_distractors(found: DataSet, root: Path) -> None:
    file = distractor_list(root)
    if file is None:
        found.missing += [f"{DISTRACTORS}/{DISTRACTORS}.txt", f"{DISTRACTORS}/jpg/"]
        return
    found.root = str(file.parent)
    items = read_distractors(file)
    found.there.append(f"{file.name}: {len(items):,} images")
    _look_for_images(found, items)


def _look_for_videos(found: DataSet, root: Path) -> None:
    base = next((place for place in (root, root / "svd", root / "SVD") if is_svd(place)), None)
    if base is None:
        found.missing += [f"{METADATA}/query-id and its other lists", "frames/VIDEO/0000.jpg"]
        return
    found.root = str(base)
    svd = read_svd(base)
    names = [*svd.query, *svd.labeled, *svd.unlabeled]
    found.there.append(
        f"lists: {len(svd.query):,} queries, {len(svd.labeled):,} labelled and "
        f"{len(svd.unlabeled):,} unlabelled videos"
    )
    for part, truth in (("train", svd.train), ("test", svd.test)):
        (found.there if truth else found.missing).append(f"{part}_groundtruth")
    if svd.frames.is_dir():
        folders = pa.array([os.fspath(svd.frames / name) for name in names], pa.large_string())
        _look_for(found, folders, "folders of frames")
    elif holds(base, VIDEO_SUFFIXES):
        found.there.append("videos")
        found.missing.append(f"frames: whiten frames {base} --out {svd.frames}")
    else:
        found.missing.append("frames/VIDEO/0000.jpg, or videos anywhere below")


def _look_for_images(found: DataSet, items: Items, what: str = "images") -> None:
    _look_for(found, items.paths, what)


def _look_for(found: DataSet, paths: pa.Array, what: str) -> None:
    count = min(len(paths), SAMPLE)
    sample = paths.take(pa.array(np.linspace(0, len(paths) - 1, count).astype(np.int64)))
    absent = [path for path in map(os.fsdecode, sample.to_pylist()) if not Path(path).exists()]
    looked = "" if count == len(paths) else f" looked for, of {len(paths):,}"
    found.there.append(f"{count - len(absent):,} of {count:,} {what}{looked}")
    if absent:
        found.missing.append(f"{len(absent):,} of these {what}, first {absent[0]}")
