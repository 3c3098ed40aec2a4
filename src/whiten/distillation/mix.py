"""Start a student in closed form: a ridge regression onto the teachers, and its own features.

A ridge regression takes the backbone's features to the fused teachers, without any training. The
features themselves, as they come or whitened, are concatenated with its output at a given share, so
that the student keeps what it knew of images unlike these. With groups, folds choose the strength
of the ridge, the share and the whitening. Without them nothing that can be measured orders these as
true mAP does (docs/recipes.md), so they are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from whiten.distillation.held_out import FEWEST, HeldOut
from whiten.distillation.ridge import Head, Ridge, whitenings
from whiten.retrieval.held_out import BY_CROPS, BY_GROUPS, BY_NEIGHBOURS, are_enough
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.names import name_codes

STRENGTHS = (0.03, 0.1, 0.3)
SHARES = (1.0, 0.7, 0.3)  # of the student's own features
SHRINKAGES = (None, 0.1, 0.3, 1.0, 10.0)  # of their whitening; None leaves them as they come
STRENGTH, SHARE, SHRINKAGE = 0.1, 0.7, 0.3  # without groups
FEW = 4 * FEWEST  # images that are too few to choose on, or to whiten by
SAMPLE = 2048  # images that a choice looks at
_FOLDS = 4

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mix:
    """A start in closed form: a ridge regression onto the teachers, and the student's own features.

    Attributes:
        name: the mix in words.
        share: share of the features; 0 is the ridge alone.
        own: map of the features to a length of about 1.
        ridge: map of the features to the teachers.
    """

    name: str
    share: float
    own: Head
    ridge: Head

    def head(self) -> Head:
        """Return the map of features to the joined space, which the targets are rotated from."""
        if not self.share:
            return self.ridge
        parts = (self.ridge.scaled((1 - self.share) ** 0.5), self.own.scaled(self.share**0.5))
        return Head.concatenated(parts)

    def joined(self, outputs: Callable[[Head], Vectors]) -> Vectors:
        """Join the (…, d) outputs of the two parts as `head` does, up to a common scale."""
        if self.share in (0, 1):
            return outputs(self.own if self.share else self.ridge)
        ridge = (1 / self.share - 1) ** 0.5 * outputs(self.ridge)
        return np.concatenate([ridge, outputs(self.own)], axis=-1)


def choose_mix(
    features: Vectors,
    teachers: list[Vectors],
    groups: Sequence[str | None] | None,
    spec: DistillSpec,
    crops: Vectors | None = None,
    mine: npt.NDArray[np.bool_] | None = None,
) -> tuple[Mix, dict[str, float]]:
    """Return the mix whose closed form retrieves best on images that it was not fitted on.

    Every image of a sample is held out once, by folds, and judged as `HeldOut` does. Without groups
    the mix is fixed, and folds only compare it with the features alone.

    Args:
        features: (n, views, f) to fit on.
        teachers: for each teacher (n, views, d_k) of the same.
        groups: group of each image, if groups say what images should find.
        spec: says what is given, and whether the student must stand in the teachers' gallery,
            where its own features have no place.
        crops: (s, c, f) features of the crops of the `sample` of the images; without groups they
            are measured, too, and without either nothing is.
        mine: (n,) the user's own images, not those of a transfer set; all by default.

    Returns:
        The mix, and the score of each candidate; empty if nothing is measured.
    """
    shares: tuple[float, ...] = SHARES if groups is not None else (SHARE,)
    if spec.compatible or spec.start_weight is not None:
        shares = (spec.start_weight or 0.0,)
    mine = np.ones(len(features), bool) if mine is None else mine
    is_few = len(features) < FEW
    if groups is None or is_few:
        share = (SHARE,) if len(shares) > 1 else shares
        shrinkage = None if is_few else SHRINKAGE
        fixed = (share, (STRENGTH,), (shrinkage,))
        usual = next(candidates(features, teachers, mine, *fixed, spec.dim))
        if is_few or crops is None:
            return usual, {}
    strengths: tuple[float, ...] = STRENGTHS
    if groups is None:
        shares, strengths = tuple(dict.fromkeys((1.0, *shares))), (STRENGTH,)
    tried = (shares, strengths, SHRINKAGES)
    rows = sample(len(features), spec.seed)
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    for fit, held in folds(rows, groups):
        fused = normalize_rows(np.concatenate([teacher[held, 0] for teacher in teachers], axis=1))
        names = None if groups is None else [groups[row] for row in held]
        judge = HeldOut.of(fused, names, has_crops=crops is not None)
        inside = [teacher[fit] for teacher in teachers]
        # Candidates share a few maps, each of which is applied once.
        whole = _applied(features[held, 0])
        cut = None if crops is None else _applied(crops[np.searchsorted(rows, held)])
        for mix in candidates(features[fit], inside, mine[fit], *tried, spec.dim):
            precisions = judge.precisions(mix.joined(whole), cut and mix.joined(cut))
            found.setdefault(mix.name, []).append(precisions)
    scores = {name: float(np.concatenate(each).mean()) for name, each in found.items()}
    if groups is None:
        return usual, scores
    fitted = {mix.name: mix for mix in candidates(features, teachers, mine, *tried, spec.dim)}
    return fitted[max(scores, key=lambda name: scores[name])], scores


def _applied(features: Vectors) -> Callable[[Head], Vectors]:
    """Return a map of heads to their (…, d) outputs of these (…, f) features, kept."""
    flat = np.ascontiguousarray(features.reshape(-1, features.shape[-1]), np.float32)

    @cache
    def outputs(head: Head) -> Vectors:
        found = flat @ head.weight.T.astype(np.float32) + head.bias.astype(np.float32)
        return found.reshape(*features.shape[:-1], -1)

    return outputs


def sample(count: int, seed: int) -> Rows:
    """Draw the images, at most `SAMPLE` of `count`, that a mix is chosen on: ascending rows."""
    rows: Rows = np.sort(np.random.default_rng(seed).permutation(count)[:SAMPLE])
    return rows


def folds(rows: Rows, groups: Sequence[str | None] | None) -> Iterator[tuple[Rows, Rows]]:
    """Yield the rows to fit on and those to measure on; a group is never in both."""
    fold_of = np.arange(len(rows)) % _FOLDS
    if groups is not None:
        codes = name_codes(groups)[rows]
        fold_of = np.where(codes >= 0, codes % _FOLDS, fold_of)
    for fold in range(_FOLDS):
        yield rows[fold_of != fold], rows[fold_of == fold]


def criterion_of(count: int, groups: Sequence[str | None] | None, seed: int) -> str:
    """Return what the scores of `choose_mix` mean, of all folds, in words."""
    if groups is None:
        return BY_CROPS
    parts = [held for _, held in folds(sample(count, seed), groups)]
    by_groups = sum(are_enough([groups[row] for row in held]) for held in parts)
    if by_groups in (0, len(parts)):
        return BY_GROUPS if by_groups else BY_NEIGHBOURS
    return f"{BY_GROUPS} in {by_groups} of {len(parts)} folds, {BY_NEIGHBOURS} in the others"


def candidates(
    features: Vectors,
    teachers: Sequence[Vectors],
    mine: npt.NDArray[np.bool_],
    shares: Sequence[float],
    strengths: Sequence[float],
    shrinkages: Sequence[float | None],
    dim: int,
) -> Iterator[Mix]:
    """Yield the mixes, fitted on (n, views, f) features and (n, views, d_k) of each teacher.

    Args:
        mine: (n,) the user's own images, not those of a transfer set.
        dim: axes that a whitening keeps; more would be noise.
    """
    f = features.shape[2]
    # All views: few images alone span few axes.
    seen = features[_to_whiten_by(mine)].reshape(-1, f)
    owns = {"features": Head(np.eye(f), np.zeros(f))} if None in shrinkages else {}
    heads = whitenings(seen, dim, [c for c in shrinkages if c is not None])
    owns |= {f"features whitened ({c:g})": head for c, head in heads.items()}
    ridge = Ridge(features, teachers)
    # Alone it keeps the teachers' own lengths, which the gallery of a compatible student has.
    ridges = {strength: ridge.head(strength, to_unit=max(shares) > 0) for strength in strengths}
    for share in shares:
        for strength in strengths if share < 1 else strengths[:1]:
            for name, own in owns.items() if share else [("", next(iter(owns.values())))]:
                parts = [f"ridge {strength:g}"] * (share < 1) + [f"{share:g} {name}"] * (share > 0)
                yield Mix(" and ".join(parts), share, own, ridges[strength])


def _to_whiten_by(mine: npt.NDArray[np.bool_]) -> Rows:
    """Return the rows that the features are whitened by: the user's own are at least half of them.

    What tells the many images of a transfer set apart may hardly tell the user's apart; without
    those, the student would lose on images like them (docs/recipes.md).
    """
    own, others = np.flatnonzero(mine), np.flatnonzero(~mine)
    others = _thinned(others, SAMPLE // 2)
    own = _thinned(own, SAMPLE - len(others))
    if 0 < len(own) < len(others):
        own = np.resize(own, len(others))
    return np.concatenate([own, others])


def _thinned(rows: Rows, most: int) -> Rows:
    return rows[:: max(1, -(-len(rows) // most))]
