"""A whitening that chooses itself: how much to shrink the spectrum, and how many axes to keep.

Shrinkage is one knob from whitening (0) to centring (inf). Teachers that never saw the domain want
the one end, teachers fine-tuned on it the other, and few images want more of it than many. So the
choice is made on held-out images, by retrieval:

- with groups: an image's positives are the others of its group;
- with other teachers: its positive is its mutual nearest neighbour as *they* see it, which keeps a
  teacher from judging itself, and from groups that it was trained on;
- with two views: its positive is the other view of it, which is easy but sure.

The mean over these counts, over those that there are.

Few images cannot tell similar candidates apart. Of all that the evidence leaves within one standard
error of the best (Breiman et al. 1984), the one nearest to shrinkage 1 is taken: each axis then has
at most the average variance, which is close to the best wherever there is much evidence.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from whiten.errors import WhiteningError
from whiten.utils.arrays import normalize_rows
from whiten.utils.names import Names, name_codes
from whiten.whitening.whitener import Whitener

Vectors = npt.NDArray[Any]

SHRINKAGES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf)
DIMS = (64, 128, 256, 512)
PRIOR = 1.0  # shrinkage without evidence
SAMPLE = 4096  # images that the choice looks at
_HELD_OUT = 1024  # at most, of a fold
_FOLDS = 4
_MANY = 16  # positives of an image
_SMALL = 2000  # below as many images every fold is used, and drawn thrice: a quarter says little


@dataclass(frozen=True)
class Choice:
    """What was chosen for one teacher, and the curve that it was chosen from.

    Attributes:
        shrinkage, dim: the choice.
        criterion: what the scores are, in words.
        shrinkages, dims: of the columns and the rows of `scores`.
        scores: mean average precision on held-out images, by dim and shrinkage; empty where
            there was nothing to choose on.
        evidence: what the choice scores on each kind of evidence alone.
    """

    shrinkage: float
    dim: int
    criterion: str
    shrinkages: list[float] = field(default_factory=list)
    dims: list[int] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.scores:
            return f"shrinkage {self.shrinkage:g}, {self.dim} axes: {self.criterion}"
        best = self.scores[self.dims.index(self.dim)]
        score = best[self.shrinkages.index(self.shrinkage)]
        ends = f"{best[0]:.3f} at {self.shrinkages[0]:g}, {best[-1]:.3f} at {self.shrinkages[-1]:g}"
        return (
            f"shrinkage {self.shrinkage:g}, {self.dim} axes: {self.criterion} {score:.3f} ({ends})"
        )


def choose_whitening(
    embeddings: Vectors,
    *,
    groups: Sequence[str | None] | None = None,
    others: Sequence[Vectors] = (),
    second_views: Vectors | None = None,
    dims: Sequence[int] = DIMS,
    shrinkages: Sequence[float] = SHRINKAGES,
    seed: int = 0,
) -> tuple[Whitener, Choice]:
    """Fit a whitening whose shrinkage and dimension retrieve best on held-out images.

    Args:
        embeddings: (n, D) of one teacher, L2-normalised.
        groups: per image its group or None; used where two groups of two images exist.
        others: the other teachers' embeddings of the same images, each (n, D_k).
        second_views: (n, D) of another view of each image.
        dims, shrinkages: the candidates; dims above n - 1 or D are lowered to that.
        seed: of the sample and the folds.

    Returns:
        A whitener fitted on all n rows, and how it was chosen.
    """
    rows = sample_rows(len(embeddings), groups, seed)
    choice = choose(
        embeddings[rows],
        groups=None if groups is None else [groups[i] for i in rows],
        others=[other[rows] for other in others],
        second_views=None if second_views is None else second_views[rows],
        dims=dims,
        shrinkages=shrinkages,
        seed=seed,
    )
    return fit_chosen(choice, embeddings), choice


def fit_chosen(choice: Choice, embeddings: Vectors | Iterable[Vectors]) -> Whitener:
    """Fit what was chosen on (n, D) embeddings, or a stream of them."""
    with warnings.catch_warnings():
        # Many axes for few images are no surprise: held-out images wanted them.
        warnings.filterwarnings("ignore", "whitening .* dimensions on", UserWarning)
        return Whitener(choice.dim, shrinkage=choice.shrinkage).fit(embeddings)


def sample_rows(n: int, groups: Names | None, seed: int) -> npt.NDArray[np.int64]:
    """Rows of at most SAMPLE of n images, ascending; groups enter whole."""
    order = np.random.default_rng(seed).permutation(n)
    if groups is not None:
        codes = name_codes(groups)
        alone = codes.max(initial=-1) + np.cumsum(codes < 0)
        order = np.argsort(order[np.where(codes < 0, alone, codes)], kind="stable")
    return np.sort(order[:SAMPLE])


def choose(
    embeddings: Vectors,
    *,
    groups: Sequence[str | None] | None = None,
    others: Sequence[Vectors] = (),
    second_views: Vectors | None = None,
    dims: Sequence[int] = DIMS,
    shrinkages: Sequence[float] = SHRINKAGES,
    seed: int = 0,
) -> Choice:
    """The choice of `choose_whitening` on a sample, which all arguments hold the rows of."""
    n, source_dim = embeddings.shape
    if n < 2:
        raise WhiteningError("one image is nothing to whiten on: give more images")
    rng = np.random.default_rng(seed)
    evidence = _evidence(n, groups, others, second_views)
    if not evidence:
        dim = max(1, min(max(dims), source_dim, n - 1))
        return Choice(PRIOR, dim, "too few images to choose on, so this is the default")
    classes = evidence[0].classes
    repeats = 1 if n >= _SMALL else 3
    folds = [fold for _ in range(repeats) for fold in _folds(classes, rng)]
    largest = min(max(dims), source_dim, min(n - len(fold) for fold in folds) - 1)
    candidates = sorted({min(dim, largest) for dim in dims if dim > 0} - {0})
    found = [np.zeros((len(candidates), len(shrinkages), n)) for _ in evidence]
    asked = [np.zeros(n, np.int64) for _ in evidence]
    for fold in folds:
        held = np.zeros(n, bool)
        held[fold] = True
        axes = Whitener(largest, shrinkage=math.inf).fit(embeddings[~held])
        gallery = axes.transform(embeddings[held])
        for kind, precisions, times in zip(evidence, found, asked, strict=True):
            inside = kind.classes[held]
            asking = _with_positive(inside, kind.views is None)
            rows = np.flatnonzero(held)[asking]
            times[rows] += 1
            queries = None if kind.views is None else axes.transform(kind.views[held])
            for column, shrinkage in enumerate(shrinkages):
                gain = _gain(axes.eigenvalues_, axes.spectrum_mean_, shrinkage)
                for row, dim in enumerate(candidates):
                    scaled = _scaled(gallery, gain, dim)
                    seen = scaled if queries is None else _scaled(queries, gain, dim)
                    precisions[row, column, rows] += _average_precisions(
                        seen, scaled, inside, asking, queries is None
                    )
    told = {
        kind.name: precisions[:, :, times > 0] / times[times > 0]
        for kind, precisions, times in zip(evidence, found, asked, strict=True)
        if times.any()
    }
    scores, row, column = _within_one_error(list(told.values()), shrinkages)
    alone = {name: float(kind[row, column].mean()) for name, kind in told.items()}
    if candidates[row] == largest:  # all that the folds had; the whole sample has more
        candidates[row] = min(max(dims), source_dim, n - 1)
    return Choice(
        shrinkage=float(shrinkages[column]),
        dim=candidates[row],
        criterion="mAP on " + " and ".join(told),
        shrinkages=list(map(float, shrinkages)),
        dims=candidates,
        scores=scores.round(5).tolist(),
        evidence=alone,
    )


# What the scores are the mean average precision of.
GROUPS = "held-out groups"
NEIGHBOURS = "other teachers' mutual neighbours"
VIEWS = "two views of held-out images"


class _Evidence(NamedTuple):
    """What images should find: those of the same class, -1 is only a distractor.

    With `views` they ask as another view of themselves.
    """

    name: str
    classes: npt.NDArray[np.int64]
    views: Vectors | None = None


def _evidence(
    n: int,
    groups: Sequence[str | None] | None,
    others: Sequence[Vectors],
    second_views: Vectors | None,
) -> list[_Evidence]:
    evidence = []
    if groups is not None:
        codes = name_codes(groups)
        classes = np.where(np.bincount(codes + 1)[codes + 1] < 2, -1, codes)
        if len(np.unique(classes[classes >= 0])) >= _FOLDS:
            evidence.append(_Evidence(GROUPS, classes))
    if others and n >= 2 * _FOLDS:
        classes = _mutual_neighbours(others)
        if (classes >= 0).sum() >= 2 * _FOLDS:
            evidence.append(_Evidence(NEIGHBOURS, classes))
    if second_views is not None and n >= 2 * _FOLDS:
        evidence.append(_Evidence(VIEWS, np.arange(n), second_views))
    return evidence


def _mutual_neighbours(teachers: Sequence[Vectors]) -> npt.NDArray[np.int64]:
    """Classes of two, of images that are each other's nearest in the fused teachers.

    As they come, teachers agree on what their common directions say, which is little; whitened by
    the prior, they also agree where they know the domain.
    """
    n = len(teachers[0])
    parts = []
    for teacher in teachers:
        choice = Choice(PRIOR, min(max(DIMS), teacher.shape[1], n - 1), "for neighbours")
        parts.append(normalize_rows(fit_chosen(choice, teacher).transform(teacher)))
    joined = np.concatenate(parts, axis=1).astype(np.float32)
    similarity = joined @ joined.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.argmax(axis=1)
    mutual = np.flatnonzero(nearest[nearest] == np.arange(n))
    classes = np.full(n, -1, np.int64)
    classes[mutual] = np.minimum(mutual, nearest[mutual])
    return classes


def _within_one_error(
    precisions: Sequence[Vectors], shrinkages: Sequence[float]
) -> tuple[Vectors, int, int]:
    """The scores, and row and column of the choice.

    Args:
        precisions: of each kind of evidence (dims, shrinkages, images).
    """
    scores: Vectors = np.mean([kind.mean(axis=2) for kind in precisions], axis=0)
    best = np.unravel_index(np.argmax(scores), scores.shape)
    variance = np.zeros_like(scores)
    for kind in precisions:  # of the difference from the best, image by image
        count = kind.shape[2]
        variance += (kind - kind[best]).var(axis=2) / count / len(precisions) ** 2
    rows, columns = np.nonzero(scores[best] - scores <= np.sqrt(variance))
    # Shrinkage in decades from the prior, 0 and inf at the ends of what is sensible.
    decades = np.abs(np.log10(np.clip(np.array(shrinkages)[columns], 0.01, 300.0) / PRIOR))
    row, column = min(zip(decades, -rows, columns, strict=True))[1:]
    return scores, -int(row), int(column)


def _folds(classes: npt.NDArray[np.int64], rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Held-out rows, whole classes together; every fold where images are few, else one."""
    numbers = rng.permutation(int(classes.max()) + 1) % _FOLDS
    alone = rng.integers(0, _FOLDS, len(classes))
    fold_of = np.where(classes >= 0, numbers[np.maximum(classes, 0)], alone)
    folds = [np.flatnonzero(fold_of == f)[:_HELD_OUT] for f in range(_FOLDS)]
    usable = [fold for fold in folds if (classes[fold] >= 0).any() and len(fold) > 1]
    return usable if len(classes) < _SMALL else usable[:1]


def _gain(spectrum: Vectors, mean: float, shrinkage: float) -> Vectors:
    """Scale of each axis relative to plain centring."""
    if math.isinf(shrinkage):
        return np.ones_like(spectrum)
    floor = spectrum[0] * 1e-12  # axes of no variance carry rounding alone
    gain: Vectors = 1 / np.sqrt(np.maximum(spectrum + shrinkage * mean, floor))
    return gain


def _scaled(points: Vectors, gain: Vectors, dim: int) -> Vectors:
    return normalize_rows((points[:, :dim] * gain[:dim]).astype(np.float32))


def _with_positive(classes: npt.NDArray[np.int64], is_same: bool) -> npt.NDArray[np.int64]:
    """Rows that have something to find; where queries are the gallery, beside themselves."""
    sizes = np.bincount(classes[classes >= 0], minlength=int(classes.max(initial=0)) + 1)
    return np.flatnonzero((classes >= 0) & (sizes[classes] > (1 if is_same else 0)))


def _average_precisions(
    queries: Vectors,
    gallery: Vectors,
    classes: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    is_same: bool,
) -> Vectors:
    """Of each row that is `asked`; `is_same` leaves it out of its own gallery."""
    similarity = queries[asked] @ gallery.T
    positive = classes[asked, None] == classes[None]
    if is_same:
        rows = np.arange(len(asked))
        similarity[rows, asked] = -np.inf
        positive[rows, asked] = False
    counts = positive.sum(axis=1)
    if counts.max(initial=0) > _MANY:
        return _by_sorting(similarity, positive)
    row, column = np.nonzero(positive)
    scores = similarity[row, column]
    # The rank of a positive is one more than the number of items above it; among the positives
    # of its query alone, the same count says how many of those come first.
    ranks = 1 + (similarity[row] > scores[:, None]).sum(axis=1)
    first = np.searchsorted(row, row, side="left")
    order = np.lexsort((-scores, row))
    place = np.empty(len(row), np.int64)
    place[order] = np.arange(len(row)) - first + 1
    total: Vectors = np.bincount(row, place / np.maximum(ranks, place), minlength=len(asked))
    mean: Vectors = total / counts
    return mean


def _by_sorting(similarity: Vectors, positive: npt.NDArray[np.bool_]) -> Vectors:
    """The same for large groups, where a sort is cheaper than a count for each positive."""
    scores = []
    for row, truth in zip(similarity, positive, strict=True):
        found = np.flatnonzero(truth[np.argsort(-row, kind="stable")]) + 1
        scores.append((np.arange(1, len(found) + 1) / found).mean())
    return np.array(scores)
