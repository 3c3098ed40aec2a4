"""Weigh the teachers before a training, and say in a few lines what they are worth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from whiten.datasets.collection import Items
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.store.store import Store
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.files import write_atomically
from whiten.utils.progress import announce
from whiten.whitening.choosing import Choice, sample_rows
from whiten.whitening.profile import CHOICE, agreement, effective_rank, spectrum
from whiten.whitening.weighting import Judge, choose_weights, judge_of
from whiten.whitening.whitener import Whitener

SAMPLE = 2048


def weigh_teachers(
    run: RunFolder,
    spec: DistillSpec,
    names: Sequence[str],
    stores: Sequence[Store],
    items: Items,
    whiteners: Sequence[Whitener | None],
    *,
    by_groups: bool,
    has_views: bool,
    show_progress: bool,
) -> DistillSpec:
    """Choose the weights of the teachers, if left to `auto`, write them, and tell the gist.

    Args:
        by_groups: whether groups say what images should find.
        has_views: whether the stores hold view 1.

    Returns:
        The options with weights in numbers, or `equal`.
    """
    is_open = spec.teacher_weights == "auto" and len(stores) > 1
    if is_open or show_progress:
        groups = items.groups if by_groups else None
        sampled = items.take(sample_rows(len(items), groups, spec.seed, SAMPLE))
        ids = sampled.ids.to_pylist()
        whole = [normalize_rows(store.gather(ids)) for store in stores]
        if show_progress:
            _tell_spectra(names, whole, whiteners)
    if is_open:
        judge = judge_of(
            whole,
            [_as_choice(whitener) for whitener in whiteners],
            groups=sampled.groups.to_pylist() if by_groups else None,
            second_views=(
                [normalize_rows(store.gather(ids, view=1)) for store in stores]
                if has_views
                else None
            ),
            seed=spec.seed,
        )
        chosen = [1.0] * len(stores) if judge is None else choose_weights(judge, len(stores))
        if show_progress and judge is not None:
            _tell_weights(names, judge, chosen)
        is_equal = len(set(chosen)) == 1
        text = "equal" if is_equal else ",".join(f"{weight:g}" for weight in chosen)
        spec = dataclasses.replace(spec, teacher_weights=text)
    if len(set(spec.weights)) > 1:
        write_atomically(run.weights, json.dumps(spec.weights).encode())
    return spec


def _as_choice(whitener: Whitener | None) -> Choice | None:
    if whitener is None:
        return None
    return Choice(whitener.shrinkage, len(whitener.projection_), "")


def _tell_spectra(
    names: Sequence[str], whole: Sequence[Vectors], whiteners: Sequence[Whitener | None]
) -> None:
    if len(whole[0]) < 2:
        return
    ranks = [
        f"{effective_rank(spectrum(own)):.0f} ({name})"
        for name, own in zip(names, whole, strict=True)
    ]
    line = f"effective rank {', '.join(ranks)}"
    if len(names) > 1 and len(whole[0]) > CHOICE:
        shared = agreement(
            [
                own if whitener is None else normalize_rows(whitener.transform(own))
                for whitener, own in zip(whiteners, whole, strict=True)
            ]
        )
        low, high = (100 * f(shared[~np.eye(len(names), dtype=bool)]) for f in (np.min, np.max))
        both = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
        line += f"; two teachers have {both} % of nearest neighbours in common"
    announce(line)


def _tell_weights(names: Sequence[str], judge: Judge, chosen: Sequence[float]) -> None:
    equal, taken = (judge.scores(weights) for weights in ([1.0] * len(names), chosen))
    if len(set(chosen)) == 1:
        announce(f"teachers have equal weights: mAP {equal.mean():.3f}, {judge.criterion}")
        return
    weights = ", ".join(f"{weight:g} ({name})" for name, weight in zip(names, chosen, strict=True))
    announce(
        f"teachers are weighted {weights}: mAP {taken.mean():.3f}, with equal weights "
        f"{equal.mean():.3f}, {judge.criterion}"
    )
    weakest = min(range(len(names)), key=lambda k: chosen[k])
    without = judge.scores([float(k != weakest) for k in range(len(names))])
    gain = without - equal
    if gain.mean() > 2 * gain.std() / len(gain) ** 0.5:
        announce(
            f"warning: {names[weakest]} harms the fusion of equal weights, by "
            f"{100 * gain.mean():.1f} points: leave it out of --teachers"
        )
