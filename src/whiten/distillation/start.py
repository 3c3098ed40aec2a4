"""Where a student starts: a projection in closed form, and the space of its targets.

A ridge regression takes the backbone's features to the fused teachers, without any training. The
features themselves, as they come or whitened, stand beside the teachers with a share of their own,
so that the student keeps what it knew of images unlike these. Held-out images choose the strength
of the ridge, the share and the whitening. They also measure what a run has to beat: the features,
and the features whitened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from whiten.datasets.collection import Items
from whiten.distillation.held_out import FEWEST, HeldOut
from whiten.distillation.ridge import Floats, Head, Ridge, whitening
from whiten.distillation.targets import Own, open_targets, write_fused_targets
from whiten.distillation.training_set import features_path, fused_path, open_held_out, target_path
from whiten.models.student import StudentNet
from whiten.models.uri import parse_uri
from whiten.runs.folder import RunFolder
from whiten.runs.measured import AS_IT_IS, WHITENED
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.names import name_codes
from whiten.whitening.whitener import Whitener

STRENGTHS = (0.1, 0.3, 1.0)
SHARES = (1.0, 0.7, 0.5, 0.3)  # of the student's own features in its start
SHRINKAGES = (1.0, 10.0, 100.0)  # of their whitening
TARGET_SHARE = 0.3  # of the features in the targets
FEW = 4 * FEWEST  # images that are too few to choose on
STRENGTH, SHARE = 0.3, 0.7  # without a choice, of the features as they come
_FOLDS = 4
_SAMPLE = 2048  # images that a choice looks at
_EQUAL = 0.02  # of the best score: scores this close are taken as equal


@dataclass(frozen=True)
class Mix:
    """A start in closed form: the teachers by ridge regression, beside the student's own features.

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
        """The map of features to the joined space, which the targets are rotated from."""
        if not self.share:
            return self.ridge
        parts = (self.ridge.scaled((1 - self.share) ** 0.5), self.own.scaled(self.share**0.5))
        return Head.beside(parts)


def write_start(
    run: RunFolder, spec: DistillSpec, net: StudentNet, items: Items, held: int, source: str
) -> tuple[Whitener | None, dict[str, Any]]:
    """Write the fused targets, give the student its start, and write the checkpoint of step 0.

    Args:
        items: usable images, of which the last `held` are held out.
        source: source of the pairs.

    Returns:
        The rotation of the fused teachers, if they are cached; and what was measured: the
        criterion, the score of each start, and the name of the one taken.
    """
    trained = len(items) - held
    teachers = [target_path(run, number) for number in range(len(spec.teachers))]
    has_features, has_targets = features_path(run).exists(), not spec.teachers_online
    features = open_targets(features_path(run)) if has_features else None
    held_out = open_held_out(run, spec, items, trained, source) if held else None
    # A student that is trained further already has its projection.
    is_new = parse_uri(spec.student).scheme != "whiten"
    tried: dict[str, float] = {}
    mix, rotation = None, None
    if spec.start == "ridge" and is_new and has_targets and features is not None:
        targets = [open_targets(path)[:trained] for path in teachers]
        groups = items.groups.to_pylist() if source in ("groups", "mixed") else None
        mix, tried = choose_mix(features[:trained], targets, groups, spec)
    if has_targets and (mix or spec.align or spec.queue):
        own = None
        if mix and mix.share and features is not None:
            share = TARGET_SHARE if spec.start_weight is None else spec.start_weight
            own = Own(features, mix.own, share)
        rotation = write_fused_targets(teachers, spec.dim, fused_path(run), own)
    measured = {"start": "random" if is_new else "as trained before"}
    scores: dict[str, float] = {}
    if features is not None and is_new and spec.start != "random":
        head, name = whitening(features[:trained, 0], spec.dim, float("inf")), AS_IT_IS
        if mix and rotation is not None:
            head, name = mix.head().then(rotation), mix.name
        write_head(net, head)
        measured["start"] = name
    is_turned = spec.compatible or (is_new and spec.start == "principal")
    if rotation is not None and features is not None and not mix and is_turned:
        turn_to_targets(net, features[:trained], open_targets(fused_path(run))[:trained])
    state = {name: value.clone() for name, value in net.state_dict().items()}
    best = None
    if held_out is not None and features is not None:
        precisions = held_out.precisions(project(net, features[trained:, 0]))
        score = float(precisions.mean())
        best = {"score": score, "step": 0, "model": state, "start": precisions.tolist()}
        whole, held_features = features[: trained : _step(trained), 0], features[trained:, 0]
        scores[AS_IT_IS] = held_out.score(held_features)
        for shrinkage in SHRINKAGES:
            head = whitening(whole, spec.dim, shrinkage)
            scores[f"{WHITENED} ({shrinkage:g})"] = held_out.score(head(held_features))
        scores[measured["start"]] = score
        measured["criterion"] = held_out.criterion
    run.save_checkpoint(
        {
            "step": 0,
            "model": state,
            "optimizer": {},
            "ema": state if spec.ema > 0 else {},
            "best": best,
        }
    )
    return rotation, {**measured, "scores": scores, "tried": tried}


def choose_mix(
    features: Vectors,
    teachers: list[Vectors],
    groups: Sequence[str | None] | None,
    spec: DistillSpec,
) -> tuple[Mix, dict[str, float]]:
    """Return the mix whose closed form retrieves best on images that it was not fitted on.

    Every image is held out once, by folds. Without groups another view of it should find it, too:
    a third of the score, as each kind of neighbour is. Of the mixes within one standard error of
    the best, or 2 % of it, the one with the largest share of the features is taken: few images
    cannot tell similar mixes apart, and the features hold for images unlike these.

    Args:
        features: (n, views, f) to fit on.
        teachers: for each teacher (n, views, d_k) of the same.
        groups: group of each image, if groups say what images should find.
        spec: says what is given, and whether the student must stand in the teachers' gallery,
            where its own features have no place.

    Returns:
        The mix, and the score of each candidate; empty with too few images to choose on.
    """
    shares: tuple[float, ...] = SHARES
    if spec.compatible or spec.start_weight is not None:
        shares = (spec.start_weight or 0.0,)
    if len(features) < FEW:
        shares = shares if len(shares) == 1 else (SHARE,)
        return next(_candidates(features, teachers, shares, (STRENGTH,), ())), {}
    rows = np.random.default_rng(spec.seed).permutation(len(features))[:_SAMPLE]
    fold_of = np.arange(len(rows)) % _FOLDS
    if groups is not None:
        codes = name_codes(groups)[rows]
        fold_of = np.where(codes >= 0, codes % _FOLDS, fold_of)
    found: dict[str, list[Floats]] = {}
    for fold in range(_FOLDS):
        fit, held = np.sort(rows[fold_of != fold]), np.sort(rows[fold_of == fold])
        fused = normalize_rows(np.concatenate([teacher[held, 0] for teacher in teachers], axis=1))
        judge = HeldOut.of(fused, None if groups is None else [groups[row] for row in held])
        inside = [teacher[fit] for teacher in teachers]
        for mix in _candidates(features[fit], inside, shares, STRENGTHS, SHRINKAGES):
            head = mix.head()
            whole = head(features[held, 0])
            precisions = judge.precisions(whole)
            if groups is None and features.shape[1] > 1:
                precisions = (2 * precisions + finds_itself(whole, head(features[held, 1]))) / 3
            found.setdefault(mix.name, []).append(precisions)
    scores = {name: np.concatenate(own) for name, own in found.items()}
    best = max(scores.values(), key=lambda own: float(own.mean()))
    equal = [
        name
        for name, own in scores.items()
        if (best - own).mean() <= max((best - own).std() / len(own) ** 0.5, _EQUAL * best.mean())
    ]
    fitted = {
        mix.name: mix for mix in _candidates(features, teachers, shares, STRENGTHS, SHRINKAGES)
    }
    name = max(equal, key=lambda name: (fitted[name].share, float(scores[name].mean())))
    return fitted[name], {name: float(own.mean()) for name, own in scores.items()}


def finds_itself(whole: Floats, views: Floats) -> Floats:
    """For each of n images the reciprocal rank of its whole among all, (n, d), for its view."""
    similarity = normalize_rows(views) @ normalize_rows(whole).T
    ranks = (similarity >= np.diag(similarity)[:, None]).sum(axis=1)
    reciprocal: Floats = 1 / np.maximum(ranks, 1)
    return reciprocal


def _candidates(
    features: Vectors,
    teachers: Sequence[Vectors],
    shares: Sequence[float],
    strengths: Sequence[float],
    shrinkages: Sequence[float],
) -> Iterator[Mix]:
    """Yield the mixes, fitted on (n, views, f) features and (n, views, d_k) of each teacher."""
    f = features.shape[2]
    whole = features[:: _step(len(features)), 0]
    owns = {"features": Head(np.eye(f), np.zeros(f))}
    owns |= {f"features whitened ({c:g})": whitening(whole, f, c) for c in shrinkages}
    ridge = Ridge(features, teachers)
    for share in shares:
        for strength in strengths if share < 1 else strengths[:1]:
            regression = ridge.head(strength, to_unit=share > 0)
            for name, own in owns.items() if share else [("", owns["features"])]:
                parts = [f"ridge {strength:g}"] * (share < 1) + [f"{share:g} {name}"] * (share > 0)
                yield Mix(" and ".join(parts), share, own, regression)


@torch.no_grad()
def write_head(net: StudentNet, head: Head) -> None:
    """Make a map the projection of a student; axes that it lacks keep a small random start."""
    rank = min(len(head.weight), net.projection.out_features)
    net.projection.weight.mul_(0.01)
    net.projection.bias.zero_()
    net.projection.weight[:rank] = torch.from_numpy(head.weight[:rank]).float()
    net.projection.bias[:rank] = torch.from_numpy(head.bias[:rank]).float()


def turn_to_targets(net: StudentNet, features: Vectors, targets: Vectors) -> None:
    """Rotate a projection into the space of the targets, which leaves its similarities alone."""
    rows = slice(None, None, _step(len(features)))
    net.turn_projection(np.array(features[rows, 0]), np.array(targets[rows, 0]))


def _step(count: int) -> int:
    return -(-count // _SAMPLE)


@torch.no_grad()
def project(net: StudentNet, features: Vectors) -> Vectors:
    """The student's embeddings, (n, dim), of its backbone's (n, f) features."""
    embeddings: Vectors = net.projection(torch.from_numpy(np.array(features))).numpy()
    return embeddings
