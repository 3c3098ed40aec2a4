"""Read revisited Oxford and Paris, and their million distractors, in the published layout.

    ROOT/roxford5k/gnd_roxford5k.pkl     ROOT/roxford5k/jpg/NAME.jpg
    ROOT/rparis6k/gnd_rparis6k.pkl       ROOT/rparis6k/jpg/NAME.jpg
    ROOT/revisitop1m/revisitop1m.txt     ROOT/revisitop1m/jpg/LINE OF THE LIST

(Radenović et al., Revisiting Oxford and Paris, CVPR 2018.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from whiten.datasets.collection import Item, Items
from whiten.datasets.ground_truth import GroundTruth, read_truth, truth_file
from whiten.errors import ConfigError, NoImagesError, one_line

NAMES = ("roxford5k", "rparis6k")
DISTRACTORS = "revisitop1m"

# Test landmarks that also occur in GLDv2-clean, on which landmark models are trained (Song et al.,
# On Train-Test Class Overlap and Detection for Image Retrieval, CVPR 2024).
OVERLAP = {"roxford5k": 36, "rparis6k": 38}
LANDMARKS = 70


@dataclass(frozen=True)
class RevisitedSet:
    """One of the two sets, with the paths of its files.

    Attributes:
        name: roxford5k or rparis6k.
        truth: relevant images, and the queries' boxes.
        gallery, queries: images in the order of `truth`, with its names as ids.
    """

    name: str
    truth: GroundTruth
    gallery: Items
    queries: Items


def set_folder(root: Path, name: str) -> Path | None:
    """Find the folder of a set, below a root or the root itself; None if it is missing."""
    places = (root / name, root)
    return next((place for place in places if truth_file(place, name) is not None), None)


def read_set(root: Path, name: str) -> RevisitedSet:
    """Read a set's ground truth; does not check that its images exist.

    Raises:
        ConfigError: the ground truth is missing, damaged, or refused.
    """
    folder = set_folder(root, name)
    if folder is None:
        raise ConfigError(
            f"{root} holds neither {name}/gnd_{name}.pkl nor gnd_{name}.pkl: name the folder that "
            f"holds {name}, `whiten datasets` says where it is published"
        )
    file = truth_file(folder, name)
    assert file is not None
    truth = read_truth(file)

    def images(names: list[str]) -> Items:
        return Items.of(Item(one, os.path.join(folder, "jpg", f"{one}.jpg")) for one in names)

    return RevisitedSet(name, truth, images(truth.images), images(truth.queries))


def distractor_list(root: Path) -> Path | None:
    """Find the distractors' list, in a root or below it; None if it is missing."""
    places = (root / DISTRACTORS, root)
    files = [place / f"{DISTRACTORS}.txt" for place in places]
    return next((file for file in files if file.is_file()), None)


def read_distractors(file: Path) -> Items:
    """Read the images of `revisitop1m.txt`, stored in `jpg/` next to it; ids are its lines.

    Raises:
        ConfigError: the list is damaged, names an image twice, or one outside `jpg/`.
        NoImagesError: the list is empty.
    """
    try:
        items = Items.of(_listed(file)).sorted()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read {file} ({one_line(error)}): download it again") from error
    if not items:
        raise NoImagesError(f"{file} lists no image: download it again")
    if (name := items.first_twice()) is not None:
        raise ConfigError(f"{file} lists {name!r} twice: download it again")
    return items


def _listed(file: Path) -> Iterator[Item]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            name = line.strip()
            if not name:
                continue
            if "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise ConfigError(
                    f"{file} names {name!r}, outside of its folder: download it again"
                )
            yield Item(name, os.path.join(file.parent, "jpg", name))
