"""Where a student starts: the fused space that it learns in, its projection, and what to beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from whiten.datasets.collection import Items
from whiten.datasets.transfer import is_own
from whiten.distillation.best import Best
from whiten.distillation.discriminants import Discriminants, choose_discriminants
from whiten.distillation.held_out import HeldOut
from whiten.distillation.mix import SAMPLE, SHRINKAGES, Mix, choose_mix
from whiten.distillation.ridge import Head, whitenings
from whiten.distillation.targets import Own, open_targets, write_fused_targets
from whiten.distillation.training_set import (
    crops_path,
    features_path,
    fused_path,
    open_held_out,
    target_path,
)
from whiten.models.student import StudentNet
from whiten.models.uri import parse_uri
from whiten.runs.folder import RunFolder
from whiten.runs.measured import AS_IT_IS, WHITENED
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.files import write_atomically
from whiten.whitening.whitener import Whitener

TARGET_SHARE = 0.3  # of the student's own features in the targets


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
    features = open_targets(features_path(run)) if features_path(run).exists() else None
    crops = open_targets(crops_path(run)) if crops_path(run).exists() else None
    space = _Space()
    if not spec.teachers_online:
        space = _write_space(run, spec, features, items[:trained], source)
    name = _start(run, spec, net, None if features is None else features[:trained], space)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    measured: dict[str, Any] = {"start": name, "scores": {}, "tried": space.tried}
    best = None
    if held and features is not None:
        held_out = open_held_out(run, spec, items, trained, source)
        found = _project(net, features[trained:, 0])
        cut = None if crops is None else _project(net, crops)
        precisions = held_out.precisions(found, cut)
        own = precisions.tolist()
        best = Best(state, step=0, precisions=own, start=own)
        measured["criterion"] = held_out.criterion
        rivals = _to_beat(held_out, features, trained, crops, spec.dim)
        measured["scores"] = {**rivals, name: best.score}
        measured["evidence"] = _evidence(held_out, run, spec, features, trained, found)
    # Where only the targets were lost, training goes on from its own checkpoint.
    if not run.checkpoint.exists() or run.load_checkpoint()["step"] == 0:
        run.save_checkpoint(
            {
                "step": 0,
                "model": state,
                "optimizer": {},
                "ema": state if spec.ema > 0 else {},
                "first": state if spec.keep_start else {},
                "best": None if best is None else vars(best),
            }
        )
    return space.rotation, measured


@dataclass(frozen=True)
class _Space:
    """The fused space: the mix that it is rotated from, and the scores of all that were tried.

    Attributes:
        discriminants: a better closed form than the mix, where nothing is trained.
    """

    mix: Mix | None = None
    rotation: Whitener | None = None
    tried: dict[str, float] = field(default_factory=dict)
    discriminants: Discriminants | None = None


def _write_space(
    run: RunFolder,
    spec: DistillSpec,
    features: Vectors | None,
    items: Items,
    source: str,
) -> _Space:
    trained = len(items)
    teachers = [target_path(run, number) for number in range(len(spec.teachers))]
    tried: dict[str, float] = {}
    mix, own, better = None, None, None
    if spec.start == "ridge" and not is_trained(spec) and features is not None:
        targets = [open_targets(path)[:trained] for path in teachers]
        names = items.groups.to_pylist() if source in ("groups", "mixed") else None
        mix, tried = choose_mix(features[:trained], targets, names, spec, mine=is_own(items))
        if not spec.epochs:
            better = choose_discriminants(features[:trained], names, spec, tried)
        if mix.share:
            share = TARGET_SHARE if spec.start_weight is None else spec.start_weight
            own = Own(features, mix.own, share, mix.head())
    if not (mix or spec.align or spec.queue):
        return _Space()
    rotation = write_fused_targets(teachers, spec.dim, fused_path(run), own)
    return _Space(mix, rotation, tried, better)


def _start(
    run: RunFolder, spec: DistillSpec, net: StudentNet, features: Vectors | None, space: _Space
) -> str:
    """Give the student its projection, and say in words which."""
    is_turned = spec.compatible
    if is_trained(spec):  # it has one already
        name = "as trained before"
    elif features is None or spec.start == "random":
        name = "random"
    elif space.discriminants is not None:
        name, is_turned = space.discriminants.name, True
        write_head(net, space.discriminants.head)
    elif space.mix is not None and space.rotation is not None:
        name, is_turned = space.mix.name, False
        write_head(net, space.mix.head().then(space.rotation))
    else:
        name, is_turned = "principal axes", True
        fit, centring = features[:: _step(len(features)), 0], float("inf")
        write_head(net, whitenings(fit, spec.dim, [centring])[centring])
    if is_turned and features is not None and space.rotation is not None:
        rows = slice(None, len(features), _step(len(features)))
        targets = open_targets(fused_path(run))[rows, 0]
        net.turn_projection(np.array(features[rows, 0]), np.array(targets))
    if space.mix is not None:
        write_atomically(run.start, save(net.projection.state_dict()))
    return name


def is_trained(spec: DistillSpec) -> bool:
    """Whether the run trains a finished student further."""
    return parse_uri(spec.student).scheme == "whiten"


@torch.no_grad()
def write_head(net: StudentNet, head: Head) -> None:
    """Make a map the projection of a student; axes that it lacks keep a small random start."""
    rank = min(len(head.weight), net.projection.out_features)
    net.projection.weight.mul_(0.01)
    net.projection.bias.zero_()
    net.projection.weight[:rank] = torch.from_numpy(head.weight[:rank]).float()
    net.projection.bias[:rank] = torch.from_numpy(head.bias[:rank]).float()


def _to_beat(
    held_out: HeldOut, features: Vectors, trained: int, crops: Vectors | None, dim: int
) -> dict[str, float]:
    """Scores of the features as they come, and whitened."""
    fit, held = features[: trained : _step(trained), 0], features[trained:, 0]
    scores = {AS_IT_IS: held_out.score(held, crops)}
    for shrinkage, head in whitenings(fit, dim, [c for c in SHRINKAGES if c is not None]).items():
        cut = None if crops is None else head(crops)
        scores[f"{WHITENED} ({shrinkage:g})"] = held_out.score(head(held), cut)
    return scores


def _evidence(
    held_out: HeldOut,
    run: RunFolder,
    spec: DistillSpec,
    features: Vectors,
    trained: int,
    found: Vectors,
) -> dict[str, float]:
    """Scores of `missing.Evidence`, of whole images: teachers embed no crops.

    Without groups the teachers are the measure.
    """
    if held_out.is_by_groups:
        paths = [target_path(run, number) for number in range(len(spec.teachers))]
        fused = np.concatenate([open_targets(path)[trained:, 0] for path in paths], axis=1)
        closed, fusion = held_out.score(found), held_out.score(normalize_rows(fused))
        rivals = _to_beat(held_out, features, trained, None, spec.dim)
        return {"start": max(rivals.values()), "closed": closed, "fusion": fusion}
    return {
        "start": held_out.score(np.array(features[trained:, 0])),
        "closed": held_out.score(found),
    }


def _step(count: int) -> int:
    """Return the distance of rows that gives at most a sample."""
    return -(-count // SAMPLE)


@torch.no_grad()
def _project(net: StudentNet, features: Vectors) -> Vectors:
    """The student's embeddings, (…, dim), of its backbone's (…, f) features."""
    embeddings: Vectors = net.projection(torch.from_numpy(np.array(features))).numpy()
    return embeddings
