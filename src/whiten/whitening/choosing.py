"""Choose a whitening's shrinkage of the spectrum and number of axes by retrieval.

Shrinkage runs from whitening (0) to centring (inf). Teachers that never saw the domain want little,
teachers fine-tuned on it much, and few images want more than many. So the choice is made by
retrieval on held-out images:

- with groups: the positives of an image are the others of its group;
- with other teachers: its positive is its mutual nearest neighbour according to *them*, so that a
  teacher is not judged by itself, nor by groups that it was trained on;
- with two views: its positive is its other view, which is easy but reliable.

The mean over the available criteria counts.

Few images cannot separate similar candidates. Among all within one standard error of the best
(Breiman et al. 1984), the one closest to shrinkage 1 is taken: each axis then has at most the
average variance, which is close to the best if there is much evidence.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whiten.errors import WhiteningError
from whiten.utils.arrays import as_numpy, normalize_rows
from whiten.utils.names import Names, group_codes, label_codes, name_codes
from whiten.whitening.whitener import Whitener

Vectors = npt.NDArray[Any]

SHRINKAGES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf)
DIMS = (64, 128, 256, 512)
PRIOR = 1.0  # shrinkage without evidence
SAMPLE = 4096  # images that the choice uses
_HELD_OUT = 1024  # maximum per fold
_FOLDS = 4
_MANY = 16  # positives per image
_SMALL = 2000  # with fewer images all folds are used, drawn three times: a quarter says little


@dataclass(frozen=True)
class Choice:
    """The choice for one teacher, and the curve behind it.

    Attributes:
        shrinkage, dim: the choice.
        criterion: description of the scores.
        shrinkages, dims: labels of the columns and rows of `scores`.
        scores: mean average precision on held-out images, by dim and shrinkage; empty if there was
            no evidence.
        evidence: score of the choice on each criterion alone.
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
    embeddings: Any,
    *,
    groups: Any = None,
    others: Sequence[Any] = (),
    second_views: Any = None,
    dims: Sequence[int] = DIMS,
    shrinkages: Sequence[float] = SHRINKAGES,
    seed: int = 0,
) -> tuple[Whitener, Choice]:
    """Fit a whitening whose shrinkage and dimension retrieve best on held-out images.

    Args:
        embeddings: (n, D) embeddings of one teacher, L2-normalised: an array, a tensor, a data
            frame or a list of rows, here and below.
        groups: (n,) group of each image: text, numbers, or a NumPy, Arrow or pandas column; None,
            NaN and NA for images of no group. Used if four groups have two images or more.
        others: the other teachers' embeddings of the same images, each (n, D_k).
        second_views: (n, D) embeddings of another view of each image.
        dims, shrinkages: the candidates; dims above n - 1 or D are lowered to that.
        seed: seed of the sample and the folds.

    Returns:
        A whitener fitted on all n rows, and the choice.

    Raises:
        WhiteningError: there is one row, or an argument describes another number of rows.
    """
    embeddings, others = as_numpy(embeddings), [as_numpy(other) for other in others]
    second_views = None if second_views is None else as_numpy(second_views)
    n = len(embeddings)
    names = None
    if groups is not None:
        codes = label_codes(groups)
        _require_rows("groups", len(codes), n)
        names = pa.array(codes, mask=codes < 0).cast(pa.large_string())
    for other in others:
        _require_rows("others", len(other), n)
    if second_views is not None:
        _require_rows("second_views", len(second_views), n)
    rows = sample_rows(n, names, seed)
    choice = choose(
        embeddings[rows],
        groups=None if names is None else names.take(pa.array(rows)),
        others=[other[rows] for other in others],
        second_views=None if second_views is None else second_views[rows],
        dims=dims,
        shrinkages=shrinkages,
        seed=seed,
    )
    return fit_chosen(choice, embeddings), choice


def _require_rows(name: str, count: int, n: int) -> None:
    """Refuse an argument for other rows: the sample would be cut to those, without a word."""
    if count != n:
        raise WhiteningError(f"{name} has {count} rows for {n} embeddings: give one per embedding")


def fit_chosen(choice: Choice, embeddings: Vectors | Iterable[Vectors]) -> Whitener:
    """Fit the choice on (n, D) embeddings, or a stream of them."""
    with warnings.catch_warnings():
        # Many axes for few images need no warning: held-out images preferred them.
        warnings.filterwarnings("ignore", "whitening .* dimensions on", UserWarning)
        return Whitener(choice.dim, shrinkage=choice.shrinkage).fit(embeddings)


def sample_rows(
    n: int, groups: Names | None, seed: int, most: int = SAMPLE
) -> npt.NDArray[np.int64]:
    """Return at most `most` rows out of n, ascending; groups are kept whole."""
    order = np.random.default_rng(seed).permutation(n)
    if groups is not None:
        codes = name_codes(groups)
        alone = codes.max(initial=-1) + np.cumsum(codes < 0)
        order = np.argsort(order[np.where(codes < 0, alone, codes)], kind="stable")
    return np.sort(order[:most])


def choose(
    embeddings: Vectors,
    *,
    groups: Names | None = None,
    others: Sequence[Vectors] = (),
    second_views: Vectors | None = None,
    dims: Sequence[int] = DIMS,
    shrinkages: Sequence[float] = SHRINKAGES,
    seed: int = 0,
) -> Choice:
    """Choose as `choose_whitening`, on a sample whose rows all arguments hold."""
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
            asking = with_positive(inside, kind.views is None)
            rows = np.flatnonzero(held)[asking]
            times[rows] += 1
            queries = None if kind.views is None else axes.transform(kind.views[held])
            for column, shrinkage in enumerate(shrinkages):
                gain = _gain(axes.eigenvalues_, axes.spectrum_mean_, shrinkage)
                for row, dim in enumerate(candidates):
                    scaled = _scaled(gallery, gain, dim)
                    seen = scaled if queries is None else _scaled(queries, gain, dim)
                    precisions[row, column, rows] += average_precisions(
                        seen, scaled, inside, asking, queries is None
                    )
    told = {
        kind.name: precisions[:, :, times > 0] / times[times > 0]
        for kind, precisions, times in zip(evidence, found, asked, strict=True)
        if times.any()
    }
    scores, row, column = _within_one_error(list(told.values()), shrinkages)
    alone = {name: float(kind[row, column].mean()) for name, kind in told.items()}
    if candidates[row] == largest:  # limited by the folds; the sample has more
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


# Names of the criteria, as in "mean average precision of …".
GROUPS = "held-out groups"
NEIGHBOURS = "other teachers' mutual neighbours"
VIEWS = "two views of held-out images"


class _Evidence(NamedTuple):
    """The classes that images should retrieve; -1 is only a distractor.

    With `views`, other views of the images are the queries.
    """

    name: str
    classes: npt.NDArray[np.int64]
    views: Vectors | None = None


def _evidence(
    n: int,
    groups: Names | None,
    others: Sequence[Vectors],
    second_views: Vectors | None,
) -> list[_Evidence]:
    evidence = []
    if groups is not None:
        classes = group_codes(groups)
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
    """Return classes of two images that are mutual nearest neighbours in the fused teachers.

    Unwhitened, teachers agree on their common directions, which say little; whitened by the prior,
    they also agree on the domain.
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
    """Return the scores, and the row and column of the choice.

    Args:
        precisions: per criterion, (dims, shrinkages, images).
    """
    scores: Vectors = np.mean([kind.mean(axis=2) for kind in precisions], axis=0)
    best = np.unravel_index(np.argmax(scores), scores.shape)
    variance = np.zeros_like(scores)
    for kind in precisions:  # of the per-image difference from the best
        count = kind.shape[2]
        variance += (kind - kind[best]).var(axis=2) / count / len(precisions) ** 2
    rows, columns = np.nonzero(scores[best] - scores <= np.sqrt(variance))
    # Distance in decades of shrinkage from the prior; 0 and inf are at the ends.
    decades = np.abs(np.log10(np.clip(np.array(shrinkages)[columns], 0.01, 300.0) / PRIOR))
    row, column = min(zip(decades, -rows, columns, strict=True))[1:]
    return scores, -int(row), int(column)


def _folds(classes: npt.NDArray[np.int64], rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Return held-out rows in whole classes: all folds for few images, else one."""
    numbers = rng.permutation(int(classes.max()) + 1) % _FOLDS
    alone = rng.integers(0, _FOLDS, len(classes))
    fold_of = np.where(classes >= 0, numbers[np.maximum(classes, 0)], alone)
    folds = [np.flatnonzero(fold_of == f)[:_HELD_OUT] for f in range(_FOLDS)]
    usable = [fold for fold in folds if (classes[fold] >= 0).any() and len(fold) > 1]
    return usable if len(classes) < _SMALL else usable[:1]


def _gain(spectrum: Vectors, mean: float, shrinkage: float) -> Vectors:
    """Return the scale of each axis relative to plain centring."""
    if math.isinf(shrinkage):
        return np.ones_like(spectrum)
    floor = spectrum[0] * 1e-12  # axes without variance hold only rounding errors
    gain: Vectors = 1 / np.sqrt(np.maximum(spectrum + shrinkage * mean, floor))
    return gain


def _scaled(points: Vectors, gain: Vectors, dim: int) -> Vectors:
    return normalize_rows((points[:, :dim] * gain[:dim]).astype(np.float32))


def with_positive(classes: npt.NDArray[np.int64], is_same: bool) -> npt.NDArray[np.int64]:
    """Return the rows that have a positive; if queries are the gallery, besides themselves."""
    sizes = np.bincount(classes[classes >= 0], minlength=int(classes.max(initial=0)) + 1)
    return np.flatnonzero((classes >= 0) & (sizes[classes] > (1 if is_same else 0)))


def average_precisions(
    queries: Vectors,
    gallery: Vectors,
    classes: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    is_same: bool,
) -> Vectors:
    """Return the AP of each query in `asked`; with `is_same` it is left out of its gallery."""
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
    # The rank of a positive is one more than the number of items above it; counted among the
    # positives of its query, it tells how many of those come first.
    ranks = 1 + (similarity[row] > scores[:, None]).sum(axis=1)
    first = np.searchsorted(row, row, side="left")
    order = np.lexsort((-scores, row))
    place = np.empty(len(row), np.int64)
    place[order] = np.arange(len(row)) - first + 1
    total: Vectors = np.bincount(row, place / np.maximum(ranks, place), minlength=len(asked))
    mean: Vectors = total / counts
    return mean


def _by_sorting(similarity: Vectors, positive: npt.NDArray[np.bool_]) -> Vectors:
    """Return the same by sorting, which is faster for large groups than counting per positive."""
    scores = []
    for row, truth in zip(similarity, positive, strict=True):
        found = np.flatnonzero(truth[np.argsort(-row, kind="stable")]) + 1
        scores.append((np.arange(1, len(found) + 1) / found).mean())
    return np.array(scores)
