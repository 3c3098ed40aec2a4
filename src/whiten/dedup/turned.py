"""Similarity that sees mirrored and rotated copies, by embedding each image in these ways too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from whiten.datasets.collection import Items
from whiten.dedup.pair_similarity import Doubles, Rows, VectorSimilarity
from whiten.embedding.encoder import Encoder, embed_views
from whiten.errors import ConfigError
from whiten.models.teacher import Teacher
from whiten.utils.arrays import Vectors
from whiten.views.plan import TURNS

Also = Literal["mirrored", "rotated"]

# Numbers of the plan's views: quarter turns are 1 to 3, and 4 more of the mirror image. Upside down
# is the mirror image of a half turn. Each set holds the inverses of its members.
_VIEWS: dict[frozenset[str], tuple[int, ...]] = {
    frozenset(["mirrored"]): (4, 6),
    frozenset(["rotated"]): (1, 2, 3),
    frozenset(["mirrored", "rotated"]): (1, 2, 3, 4, 5, 6, 7),
}


class TurnedSimilarity(VectorSimilarity):
    """The largest cosine of one whole image with the other, or with one of the other's turns.

    Args:
        vectors: (n, d) embeddings of the whole images.
        turns: embeddings of the same images, turned, (n, d) for each way.
    """

    def __init__(self, vectors: npt.NDArray[Any], turns: Sequence[npt.NDArray[Any]]) -> None:
        super().__init__(vectors)
        self.turns = [VectorSimilarity(turn) for turn in turns]
        self._room_of_turns = VectorSimilarity(vectors[:0])

    def part(self, count: int) -> TurnedSimilarity:
        return TurnedSimilarity(self.vectors[:count], [t.vectors[:count] for t in self.turns])

    def load(self, rows: slice | Rows) -> Any:
        return [super().load(rows), *(turn.load(rows) for turn in self.turns)]

    def product(self, one: Any, other: Any) -> Vectors:
        best = super().product(one[0], other[0])
        for mine, theirs in zip(one[1:], other[1:], strict=True):
            np.maximum(best, self._room_of_turns.product(mine, other[0]), out=best)
            np.maximum(best, self._room_of_turns.product(one[0], theirs), out=best)
        return best

    def exact(self, one: Rows, other: Rows) -> Doubles:
        best = super().exact(one, other)
        for turn in self.turns:
            for a, b in ((one, other), (other, one)):
                both = np.concatenate([turn.vectors[a], self.vectors[b]])
                pair = np.arange(len(a))
                best = np.maximum(best, VectorSimilarity(both).exact(pair, pair + len(a)))
        return best

    def with_views(self, rows: Rows, views: Sequence[Vectors]) -> TurnedSimilarity:
        """Return some items, and further embeddings that were not turned."""
        turns = [np.concatenate([turn.vectors[rows], *views]) for turn in self.turns]
        return TurnedSimilarity(np.concatenate([self.vectors[rows], *views]), turns)


def embed_turned(
    encoder: Encoder, items: Items, also: Sequence[Also], cache: Path, show_progress: bool
) -> list[Vectors]:
    """Embed images mirrored or rotated by quarter turns: (n, dim) for each way.

    Raises:
        ConfigError: a model is a store, which cannot embed anything else.
    """
    for part in encoder.parts:
        if not isinstance(part.teacher, Teacher):
            raise ConfigError(
                f"{part.teacher.uri} holds embeddings only, and not those of mirrored or rotated "
                "images: leave --also out, or name the model that made it"
            )
    views = _VIEWS[frozenset(also)]
    folder = cache / "turned"
    return embed_views(encoder, items, TURNS, views, folder, show_progress=show_progress)
