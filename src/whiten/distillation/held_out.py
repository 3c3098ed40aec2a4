"""Images that a run keeps out of training, to measure each student that it sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.retrieval.held_out import Flags
from whiten.retrieval.held_out import HeldOut as HeldOut
from whiten.utils.names import Names, name_codes
from whiten.views.plan import ViewPlan

MOST, ENOUGH, FEWEST = 512, 64, 24  # held-out images
_FEWEST_LEFT = FEWEST // 2  # as whole groups, and without copies of images that train
CROPS = ViewPlan(scale=(0.08, 0.3))
CROP_VIEWS = (1, 2)  # numbers of the crops of an image, which search in its place


def hold_out(groups: Names, contents: Names, share: float, seed: int) -> Flags:
    """Draw the images to hold out: (n,) flags; none where the images are too few.

    Args:
        groups: group of each image; a group is held out whole.
        contents: content hash of each image; copies are held out together.
        share: share of the images, in [0, 0.5].
    """
    group, content = name_codes(groups), name_codes(contents)
    units: npt.NDArray[Any] = np.where(group >= 0, group, group.max(initial=-1) + 1 + content)
    n = len(units)
    wanted = min(MOST, max(round(share * n), min(ENOUGH, n // 5))) if share else 0
    if wanted < FEWEST:
        return np.zeros(n, bool)
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # A unit that is larger than what is still wanted stays in training.
    is_held, left = np.zeros(len(sizes), bool), wanted
    for number in order:
        if sizes[number] <= left:
            is_held[number] = True
            left -= sizes[number]
    held: Flags = is_held[unit]
    return _enough(held)


def without_trained(held: Flags, contents: Names) -> tuple[Flags, Flags]:
    """Leave out held-out images that train as their copies in other groups.

    Args:
        held: (n,) flags from `hold_out`.
        contents: content hash of each image.

    Returns:
        (n,) which images to keep, and (k,) which of these are held out; none if too few are left.
    """
    content = name_codes(contents)
    kept: Flags = ~(held & (content >= 0) & np.isin(content, content[~held]))
    left = _enough(held & kept)
    return (kept, left[kept]) if left.any() else (np.ones(len(held), bool), left)


def _enough(held: Flags) -> Flags:
    return held if held.sum() >= _FEWEST_LEFT else np.zeros(len(held), bool)
