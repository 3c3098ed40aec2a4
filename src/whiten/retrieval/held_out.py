"""Measure embeddings of held-out images by a search among them, with groups or without.

Without groups the fused teachers stand in for them: an image should find its nearest neighbours in
their space. Small crops, which should find the image that they were cut from, count as much: the
teachers alone favour students that follow them into their mistakes, crops alone those that whiten
every difference away. studies/starts.py compares this with the true mAP.

With groups small crops should find the others of their group, and count as much as whole images,
of which there are so few that a start may find all (studies/held_out.py).
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

BY_GROUPS = "mAP of held-out groups"
BY_GROUPS_AND_CROPS = "mAP of held-out groups by whole images and small crops"
BY_NEIGHBOURS = "agreement with the fused teachers' neighbours on held-out images"
BY_CROPS = "the fused teachers' neighbours and small crops on held-out images"

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """The correct answers of a search among held-out images, and the score of a search.

    Attributes:
        relevant: (h, h) matrices; row i marks the correct answers to image i. Scores are averaged.
        criterion: the criterion in words.
        has_crops: whether crops count as much as whole images.
    """

    relevant: list[Flags]
    criterion: str
    has_crops: bool

    @classmethod
    def of(cls, teachers: Vectors, groups: Names | None, *, has_crops: bool = False) -> HeldOut:
        """Choose the criterion.

        Args:
            teachers: (h, d) fused teacher embeddings of the images, L2-normalised.
            groups: group of each image, or None to measure without them.
            has_crops: whether crops count as much as whole images.
        """
        if groups is not None and are_enough(groups):
            codes = name_codes(groups)
            same = (codes[:, None] == codes) & (codes >= 0)
            np.fill_diagonal(same, False)
            return cls([same], BY_GROUPS_AND_CROPS if has_crops else BY_GROUPS, has_crops)
        order = _ranking(teachers, teachers)
        relevant = [np.zeros((len(order), len(order)), bool) for _ in NEIGHBOURS]
        for flags, count in zip(relevant, NEIGHBOURS, strict=True):
            np.put_along_axis(flags, order[:, :count], values=True, axis=1)
        return cls(relevant, BY_CROPS if has_crops else BY_NEIGHBOURS, has_crops)

    @property
    def is_by_groups(self) -> bool:
        """Whether groups are the correct answers, not the teachers' neighbours."""
        return len(self.relevant) == 1

    def precisions(
        self, embeddings: npt.NDArray[Any], crops: npt.NDArray[Any] | None = None
    ) -> Floats:
        """Average precision for each image that has something to find.

        Args:
            embeddings: (h, dim), of the whole images.
            crops: (h, c, dim), of their crops, if crops count.
        """
        found = normalize_rows(embeddings)
        by_wholes = self._average_precisions(found, found)
        if not self.has_crops or crops is None:
            return by_wholes
        judge = self._average_precisions if self.is_by_groups else _reciprocal_ranks
        each = [judge(normalize_rows(one), found) for one in crops.swapaxes(0, 1)]
        by_crops: Floats = np.mean(each, axis=0)
        return 0.5 * (by_wholes + by_crops)

    def score(self, embeddings: npt.NDArray[Any], crops: npt.NDArray[Any] | None = None) -> float:
        """The mean of `precisions`."""
        return float(self.precisions(embeddings, crops).mean())

    def _average_precisions(self, queries: npt.NDArray[Any], wholes: npt.NDArray[Any]) -> Floats:
        """For each image that has something to find, what its query finds among all others."""
        order = _ranking(queries, wholes)
        each = []
        for relevant in self.relevant:
            hits = np.take_along_axis(relevant, order, axis=1)[relevant.any(axis=1)]
            precisions = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
            each.append((precisions * hits).sum(axis=1) / hits.sum(axis=1))
        mean: Floats = np.mean(each, axis=0)
        return mean


def are_enough(groups: Names) -> bool:
    """Return whether the groups of held-out images are enough to measure by."""
    codes = name_codes(groups)
    _, sizes = np.unique(codes[codes >= 0], return_counts=True)
    return int((sizes > 1).sum()) >= FEWEST_GROUPS


def _reciprocal_ranks(crops: npt.NDArray[Any], wholes: npt.NDArray[Any]) -> Floats:
    """For each of n crops, (n, dim), the reciprocal rank of its own image."""
    similarity = crops @ wholes.T
    ranks = (similarity >= np.diag(similarity)[:, None]).sum(axis=1)
    reciprocal: Floats = 1 / np.maximum(ranks, 1)
    return reciprocal


def _ranking(queries: npt.NDArray[Any], wholes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For the query of each image all images by falling similarity, its own last."""
    similarity = queries @ wholes.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")
