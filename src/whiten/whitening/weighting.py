"""Score a fusion of teachers on images that its whitenings were not fitted on.

The similarity of two images in a fusion is the weighted mean of the teachers' cosines: an embedding
of weight w is multiplied by the square root of w before the embeddings are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from whiten.utils.arrays import Array, normalize_rows
from whiten.utils.names import Names, group_codes
from whiten.whitening.choosing import Choice, average_precisions, fit_chosen, with_positive
from whiten.whitening.whitener import Whitener

VIEWS = "second views find their image"
GROUPS = "held-out groups"
LEVELS = (0.5, 0.25, 0.1)  # below 1; a teacher that is worth nothing is left out by the user
_FOLDS = 4
_GROUPS = 16  # groups of two images that are enough to measure by: four per fold
FEWEST = 96  # images

Vectors = npt.NDArray[Any]


def fused(parts: Sequence[Vectors], weights: Sequence[float]) -> Vectors:
    """Concatenate (n, d_k) L2-normalised embeddings with weights: (n, d), L2-normalised."""
    kept = [(part, w) for part, w in zip(parts, weights, strict=True) if w > 0]
    return normalize_rows(np.concatenate([part * np.sqrt(w) for part, w in kept], axis=1))


@dataclass(frozen=True)
class Fold:
    """Held-out images, embedded by every teacher.

    Attributes:
        raw, whole: per teacher (n, D_k) embeddings as they come, and whitened (n, d_k).
        raw_views, views: the same of another view of each image; empty with groups.
        classes: group number of each image, -1 without.
    """

    raw: list[Vectors]
    whole: list[Vectors]
    raw_views: list[Vectors]
    views: list[Vectors]
    classes: npt.NDArray[np.int64]

    def score(self, weights: Sequence[float], *, is_raw: bool = False) -> Array:
        """Average precision of each image of the fusion, or of its other view, (m,)."""
        whole = fused(self.raw if is_raw else self.whole, weights)
        if not self.views:
            asked = with_positive(self.classes, is_same=True)
            return average_precisions(whole, whole, self.classes, asked, is_same=True)
        rows = np.arange(len(whole))
        queries = fused(self.raw_views if is_raw else self.views, weights)
        return average_precisions(queries, whole, rows, rows, is_same=False)


@dataclass(frozen=True)
class Judge:
    """Scores fusions of teachers on all images, each held out once.

    Attributes:
        criterion: definition of the scores, in words.
    """

    criterion: str
    folds: list[Fold]

    def scores(self, weights: Sequence[float], *, is_raw: bool = False) -> Array:
        """Average precision of each query, from 0 to 1, (m,); the same queries for all weights.

        Args:
            weights: weight of each teacher, at least 0, one of them above.
            is_raw: fuse the embeddings as they come, not whitened.
        """
        return np.concatenate([fold.score(weights, is_raw=is_raw) for fold in self.folds])


def choose_weights(judge: Judge, count: int) -> list[float]:
    """Choose the weights of `count` teachers, from 0.1 to 1, the largest 1.

    Starting from equal weights, the weight that gains most is lowered, again and again. Of all
    weights tried within one standard error of the best, those nearest to equal are taken: equal
    weights are hard to beat unless a teacher is much weaker than the others.
    """
    weights = [1.0] * count
    tried: dict[tuple[float, ...], Array] = {tuple(weights): judge.scores(weights)}
    while True:
        lower: list[tuple[float, ...]] = [
            (*weights[:k], level, *weights[k + 1 :])
            for k in range(count)
            for level in LEVELS
            if level < weights[k] and max(*weights[:k], *weights[k + 1 :], 0.0) == 1.0
        ]
        tried |= {each: judge.scores(each) for each in lower if each not in tried}
        best = max([tuple(weights), *lower], key=lambda each: float(tried[each].mean()))
        if best == tuple(weights):
            break
        weights = list(best)
    top = tried[tuple(weights)]
    near = [
        each
        for each, scores in tried.items()
        if (top - scores).mean() <= (top - scores).std() / len(top) ** 0.5
    ]
    chosen = max(near, key=lambda each: (sum(each), float(tried[each].mean())))
    return list(chosen)


def judge_of(
    teachers: Sequence[Vectors],
    choices: Sequence[Choice | None],
    *,
    groups: Sequence[str | None] | None = None,
    second_views: Sequence[Vectors] | None = None,
    seed: int = 0,
) -> Judge | None:
    """Whiten each fold by the others, to score fusions on it; None without evidence or with fewer
    than 96 images.

    With groups, the images of a group should find each other. Otherwise another view of an image
    should find the image among all others.

    Args:
        teachers: for each teacher (n, D_k) embeddings of the same images, L2-normalised.
        choices: its whitening, or None to leave it unwhitened.
        groups: group of each image; used if 16 of them have two images.
        second_views: for each teacher (n, D_k) embeddings of another view of each image.
        seed: seed of the folds.
    """
    n = len(teachers[0])
    classes = np.full(n, -1) if groups is None else group_codes(groups)
    by_groups = groups is not None and has_groups(groups)
    if n < FEWEST or not (by_groups or second_views is not None):
        return None
    rng = np.random.default_rng(seed)
    fold_of = rng.permutation(n) % _FOLDS
    if by_groups:
        names, number = np.unique(classes, return_inverse=True)
        drawn = rng.permutation(len(names))[number] % _FOLDS
        fold_of = np.where(classes >= 0, drawn, fold_of)
    views = [] if by_groups or second_views is None else list(second_views)
    folds = []
    for held in (fold_of == fold for fold in range(_FOLDS)):
        maps = [
            None if choice is None else fit_within(choice, teacher[~held])
            for choice, teacher in zip(choices, teachers, strict=True)
        ]
        raw, raw_views = ([source[held] for source in sources] for sources in (teachers, views))
        folds.append(
            Fold(
                raw=raw,
                whole=_whitened(maps, raw),
                raw_views=raw_views,
                views=_whitened(maps[: len(views)], raw_views),
                classes=classes[held],
            )
        )
    return Judge(GROUPS if by_groups else VIEWS, folds)


def has_groups(groups: Names) -> bool:
    """Whether groups are enough to measure by: 16 of two images."""
    classes = group_codes(groups)
    return len(np.unique(classes[classes >= 0])) >= _GROUPS


def fit_within(choice: Choice, embeddings: Vectors) -> Whitener:
    """Fit a choice on (n, D) embeddings, with at most the n - 1 axes that these span."""
    most = max(1, len(embeddings) - 1)
    return fit_chosen(replace(choice, dim=min(choice.dim, most)), embeddings)


def _whitened(maps: Sequence[Whitener | None], sources: Sequence[Vectors]) -> list[Vectors]:
    return [
        source if whitener is None else normalize_rows(whitener.transform(source))
        for whitener, source in zip(maps, sources, strict=True)
    ]
