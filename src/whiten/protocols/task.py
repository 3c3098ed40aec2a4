"""What every benchmark comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whiten.media import Item

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Queries, a gallery, and the truth.

    Attributes:
        queries: the images that search.
        gallery: the images that are searched.
        positives: per query the gallery indices that are right.
        junk: per query the gallery indices that count as absent: the query itself, and images that
            are neither right nor wrong.
        without_positives: queries that were left out, for nothing in the gallery is right.
    """

    queries: list[Item]
    gallery: Sequence[Item]
    positives: list[Indices]
    junk: list[Indices]
    without_positives: int = 0
