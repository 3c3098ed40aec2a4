"""Images that a run keeps out of training, to measure each student that it sees.

With groups a student is measured by the mean average precision of the held-out groups. Without
groups the fused teachers stand in for them: an image should find its nearest neighbours in their
space. studies/starts.py compares this with the true mAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.names import Names, name_codes

MOST, ENOUGH, FEWEST = 512, 64, 24  # held-out images
NEIGHBOURS = (1, 5)  # nearest ones in the fused teachers' space
_GROUPS = 4  # held-out groups that are enough to measure by

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOut:
    """The correct answers of a search among held-out images, and the score of a search.

    Attributes:
        relevant: (h, h) matrices; row i marks the correct answers to image i. Scores are averaged.
        criterion: the criterion in words.
    """

    relevant: list[Flags]
    criterion: str

    @classmethod
    def of(cls, teachers: Vectors, groups: Names | None) -> HeldOut:
        """Choose the criterion.

        Args:
            teachers: (h, d) fused teacher embeddings of the images, L2-normalised.
            groups: group of each image, or None to measure without them.
        """
        if groups is not None:
            codes = name_codes(groups)
            same = (codes[:, None] == codes) & (codes >= 0)
            np.fill_diagonal(same, False)
            if len(np.unique(codes[same.any(axis=1)])) >= _GROUPS:
                return cls([same], "mAP of held-out groups")
        order = _ranking(teachers)
        relevant = [np.zeros((len(order), len(order)), bool) for _ in NEIGHBOURS]
        for flags, count in zip(relevant, NEIGHBOURS, strict=True):
            np.put_along_axis(flags, order[:, :count], values=True, axis=1)
        return cls(relevant, "agreement with the fused teachers' neighbours on held-out images")

    def precisions(self, embeddings: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Average precision of (h, dim) embeddings, for each image that has something to find."""
        order = _ranking(normalize_rows(embeddings))
        each = []
        for relevant in self.relevant:
            hits = np.take_along_axis(relevant, order, axis=1)[relevant.any(axis=1)]
            precisions = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
            each.append((precisions * hits).sum(axis=1) / hits.sum(axis=1))
        mean: npt.NDArray[np.float64] = np.mean(each, axis=0)
        return mean

    def score(self, embeddings: npt.NDArray[Any]) -> float:
        """The mean of `precisions`."""
        return float(self.precisions(embeddings).mean())


def _ranking(vectors: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each row all rows by falling similarity, itself last."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")


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
