"""Linear discriminants of groups: a start in closed form where groups say what is the same.

They whiten the student's features by what differs *within* groups, where the whitening of a teacher
looks at all differences alike. Groups thus teach a projection without any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whiten.distillation.held_out import HeldOut
from whiten.distillation.mix import SAMPLE, Rows, folds, sample
from whiten.distillation.ridge import Head
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import Vectors
from whiten.utils.names import name_codes
from whiten.whitening.whitener import Whitener

SHRINKAGES = (0.03, 0.1, 0.3, 1.0)
_MOST_AXES = 1024  # principal axes that discriminants are looked for in
_MOST_VIEWS = 8 * SAMPLE  # views of images that they are fitted on
_ROUNDING = 1e-12  # share of the variance that is none within groups
_AT_ONCE = 8  # images of a group that are drawn before those of other groups


@dataclass(frozen=True)
class Discriminants:
    """The discriminants that retrieve best on groups that they were not fitted on.

    Attributes:
        name: of the choice, in words.
        score: mAP of held-out groups.
        head: map of the features.
    """

    name: str
    score: float
    head: Head


def choose_discriminants(
    features: Vectors,
    groups: Sequence[str | None] | None,
    spec: DistillSpec,
    scores: Mapping[str, float],
) -> Discriminants | None:
    """Choose the shrinkage by the folds that `choose_mix` uses; None if no choice beats its scores.

    A student that must stand in its teachers' gallery, or is told its share of their space, has no
    room for discriminants. Groups that are too few to measure each fold by choose none.

    Args:
        features: (n, views, f) to fit on.
        groups: group of each image, if groups say what images should find.
        scores: those of the mixes; without any there are too few images to choose on.
    """
    if groups is None or not scores or spec.compatible or spec.start_weight is not None:
        return None
    codes = name_codes(groups)
    found: dict[float, list[npt.NDArray[np.float64]]] = {}
    for fit, held in folds(sample(len(features), spec.seed), groups):
        whole = features[held, 0]
        judge = HeldOut.of(whole, [groups[row] for row in held])
        if not judge.is_by_groups:  # it would judge by the neighbours of the features themselves
            return None
        for shrinkage, head in discriminants(features[fit], codes[fit], spec.dim).items():
            found.setdefault(shrinkage, []).append(judge.precisions(head(whole)))
    own = {float(np.concatenate(each).mean()): shrinkage for shrinkage, each in found.items()}
    score = max(own, default=0.0)
    if score <= max(scores.values()):
        return None
    best = own[score]
    rows = draw_groups(codes, _MOST_VIEWS // features.shape[1], spec.seed)
    head = discriminants(features[rows], codes[rows], spec.dim, [best])[best]
    return Discriminants(f"discriminants of groups ({best:g})", score, head)


def draw_groups(codes: Rows, most: int, seed: int) -> Rows:
    """Draw at most `most` images, in whole groups but for large ones: ascending rows.

    Args:
        codes: (n,) group of each image; a negative one is none.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(codes))
    alone = codes.max(initial=-1) + 1 + np.arange(len(codes))
    _, group, size = np.unique(
        np.where(codes >= 0, codes, alone)[order], return_inverse=True, return_counts=True
    )
    place = np.empty(len(codes), np.int64)  # of each image in its group
    first = np.repeat(size.cumsum() - size, size)
    place[np.argsort(group, kind="stable")] = np.arange(len(codes)) - first
    order = order[np.lexsort((rng.permutation(len(size))[group], place // _AT_ONCE))]
    return np.sort(order[:most])


def discriminants(
    features: Vectors, codes: Rows, dim: int, shrinkages: Sequence[float] = SHRINKAGES
) -> dict[float, Head]:
    """Return the axes along which the means of groups differ most, compared with those within them.

    The features are whitened by their covariance within groups, each eigenvalue raised by c times
    the mean one, and rotated to the principal axes that they then have (Fukunaga 1990, chapter 10).
    The output has length 1 in the root mean square.

    Args:
        features: (n, views, f); the first view is the whole image. What differs within a group is
            measured on whole images, all else on all views.
        codes: (n,) group of each image; a negative one is none.
        shrinkages: values of c.

    Returns:
        A map for each shrinkage; none if no group has two images, or all are copies in theirs.
    """
    _, inside, size = np.unique(codes, return_inverse=True, return_counts=True)
    is_paired = (codes >= 0) & (size[inside] > 1)
    if not is_paired.any():
        return {}
    seen = features.reshape(-1, features.shape[2])
    rank = min(_MOST_AXES, seen.shape[1], len(seen) - 1)
    principal = Whitener(rank, shrinkage=float("inf")).fit(seen)
    axes = principal.projection_
    total = np.cov(principal.transform(seen).T.astype(np.float64), ddof=0)
    whole = principal.transform(features[:, 0]).astype(np.float64)
    means = np.zeros((len(size), whole.shape[1]))
    np.add.at(means, inside, whole)
    apart = (whole - (means / size[:, None])[inside])[is_paired]
    values, rows = np.linalg.eigh(apart.T @ apart / len(apart))
    if values.sum() <= _ROUNDING * np.trace(total):
        return {}
    heads = {}
    for shrinkage in shrinkages:
        whitening = rows / np.sqrt(np.maximum(values, 0) + shrinkage * values.mean())
        spectrum, rotation = np.linalg.eigh(whitening.T @ total @ whitening)
        best = np.argsort(-spectrum)[:dim]
        weight = (whitening @ rotation[:, best]).T @ axes / np.sqrt(spectrum[best].sum())
        heads[shrinkage] = Head(weight, -weight @ principal.mean_)
    return heads
