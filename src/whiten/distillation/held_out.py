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
CROPS = ViewPlan(scale=(0.08, 0.3))
CROP_VIEWS = (1, 2)  # numbers of the crops of an image, which should find it


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
    return held if held.sum() >= FEWEST // 2 else np.zeros(n, bool)
