"""Measure embeddings of held-out images by a search among them, with groups or without.

Without groups the fused teachers stand in for them: an image should find its nearest neighbours in
their space. studies/starts.py compares this with the true mAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.names import Names, name_codes

NEIGHBOURS = (1, 5)  # nearest ones in the fused teachers' space
FEWEST_GROUPS = 4  # held-out groups of at least two images that are enough to measure by
FEWEST_IMAGES = NEIGHBOURS[-1] + 2  # fewest to measure by neighbours: one is not to be found

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
            if len(np.unique(codes[same.any(axis=1)])) >= FEWEST_GROUPS:
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
