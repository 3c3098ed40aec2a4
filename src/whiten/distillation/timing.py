"""Measure what a run has to do, and how fast this machine does it, on a few batches of it."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from whiten.datasets.collection import Items
from whiten.datasets.transfer import is_own
from whiten.distillation import deadline
from whiten.distillation.cache import Cache
from whiten.distillation.folding import folded_norms
from whiten.distillation.held_out import CROP_VIEWS, hold_out
from whiten.distillation.micro_batches import fitting_size, free_memory
from whiten.distillation.pairs import MOST_PAIRS, enough_views, plan_pairs
from whiten.distillation.planning import Speeds, Work, plan
from whiten.distillation.resolution import candidate_sizes, drawn, own_side
from whiten.distillation.training import set_training
from whiten.distillation.worth import why_untrained
from whiten.errors import ConfigError, NoImagesError
from whiten.models.choice import chosen_device
from whiten.models.stored_model import Model, StoredModel
from whiten.models.student import StudentNet, backbone_as_teacher, build_student
from whiten.models.student_folder import StudentConfig
from whiten.runs.spec import DistillSpec

_WARM, _TIMED = 16, 32  # images
_TRAINED = 16  # views per measured step
_REPEATS = 3
# Closed form, in multiples of one product of n x n matrices, measured on one core and half as much
# again: ridge and whitening of the student's features, in folds where groups choose the mix; the
# whitening of a teacher; and sums over views.
_MIX, _MIX_BY_GROUPS, _WHITENING, _SUMS = 25.0, 90.0, 30.0, 5.0


def plan_run(
    spec: DistillSpec,
    draft: DistillSpec,
    items: Items,
    source: str,
    models: Sequence[Model],
    cache: Cache,
    spent: float,
) -> DistillSpec:
    """Return the options with all that a budget chooses.

    Args:
        draft: the options, all resolved but those of the plan.
        source: source of the pairs.
        models: the teachers.
        spent: seconds that the run has taken before.

    Raises:
        ConfigError: the budget is too short.
    """
    began = deadline.clock()
    work = work_of(draft, items, source, models, cache)
    speeds = speeds_of(draft, items, models, cache, work)
    planned = plan(spec, spent + deadline.clock() - began, work, speeds)
    if planned.micro_batch is None and planned.epochs and planned.backbone_lr > 0:
        # What was timed includes a second forward pass.
        planned = dataclasses.replace(planned, micro_batch=_micro_batch(planned))
    return planned


def _micro_batch(spec: DistillSpec) -> int | None:
    """Return the images per forward pass that fit into memory; None if the batch does."""
    net, config = build_student(spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size)
    views = 2 * (spec.batch_size or MOST_PAIRS) // (spec.devices * spec.nodes)
    device = chosen_device()
    free = free_memory(device)
    return fitting_size(net, config.preprocess.size[0], views, free)


def work_of(
    spec: DistillSpec, items: Items, source: str, models: Sequence[Model], cache: Cache
) -> Work:
    """Count what a run has to do.

    Args:
        spec: the options, all resolved but those of the plan.
        source: source of the pairs.
    """
    own = is_own(items)
    groups = items.videos if source == "frames" else items.groups
    held = np.zeros(len(items), bool)
    numbers = np.arange(len(items))
    of_own = groups.take(np.flatnonzero(own))
    ids = items.ids.take(np.flatnonzero(own))
    held[own] = hold_out(of_own, ids, spec.held_out or 0.0, spec.seed)
    trained = numbers[~held]
    try:
        pairs = plan_pairs(
            groups.take(trained),
            items.ids.take(trained),
            source=source,
            views=2,
            batch_size=spec.batch_size,
            pairs_per_class=spec.pairs_per_class or 1,
            pairs_per_epoch=spec.pairs_per_epoch or 0,
            processes=spec.devices * spec.nodes,
            seed=spec.seed,
        )
        sides = 2 * pairs.batches_per_epoch * pairs.batch_size
    except ConfigError:  # too few images for pairs, of which the run tells
        sides = 0
    checked = 0 if spec.backbone_lr == 0 else int(held.sum()) * (1 + len(CROP_VIEWS))
    return Work(
        images=len(items),
        sides=sides,
        checked=checked,
        crops=len(CROP_VIEWS) * int(held.sum()),
        missing={
            count: [cache.missing(model, items, range(count)) for model in models]
            for count in _view_counts(spec, len(items), source)
        },
        pair_views=1 if source == "groups" else 2,
        shows_rounds=source in ("views", "frames"),
        is_untrained=bool(why_untrained(spec, source, int((own & ~held).sum()), int(held.sum()))),
    )


def _view_counts(spec: DistillSpec, images: int, source: str) -> list[int]:
    """Return candidate numbers of views."""
    if spec.views is not None:
        return [spec.views]
    most = enough_views(images, source, published=spec.recipe == "paper")
    return [1, *range(2, most + 1, 2)]


def speeds_of(
    spec: DistillSpec, items: Items, models: Sequence[Model], cache: Cache, work: Work
) -> Speeds:
    """Measure the models on a few images, and the student at its smallest and largest size."""
    few = drawn(items, spec.seed)
    needed = [max(counts) for counts in zip(*work.missing.values(), strict=True)]
    teachers = [
        _seconds_per_view(model, few, cache) if count else 0.0
        for model, count in zip(models, needed, strict=True)
    ]
    net, config = build_student(spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size)
    sizes = candidate_sizes(spec, net, config, own_side(few))
    measured: dict[int, tuple[float, float]] = {}
    for size in {sizes[0], sizes[-1]}:
        if size != config.preprocess.size[0]:
            net, config = build_student(spec.student, dim=spec.dim, pool=spec.pooling, size=size)
        features = _seconds_per_view(backbone_as_teacher(net, config), few, cache)
        step = _seconds_per_step(net, config, spec)
        measured[size] = features, step if spec.backbone_lr == 0 else features + step
    once, per_view = _closed_form(
        net.projection.in_features,
        [model.dim for model in models],
        by_groups=not work.shows_rounds,
    )
    return Speeds(
        teachers,
        features={size: _between(size, {s: m[0] for s, m in measured.items()}) for size in sizes},
        step={size: _between(size, {s: m[1] for s, m in measured.items()}) for size in sizes},
        start=per_view,
        start_once=once,
    )


def _seconds_per_view(model: Model, items: Items, cache: Cache) -> float:
    """Embed a few images for nothing, in their first random view; 0 for stored embeddings."""
    if isinstance(model, StoredModel):
        return 0.0
    warm, timed = items[:_WARM], items[_WARM : _WARM + _TIMED] or items
    with tempfile.TemporaryDirectory(prefix="whiten-") as folder:
        try:
            cache.try_out(model, warm, Path(folder) / "warm")
            began = deadline.clock()
            cache.try_out(model, timed, Path(folder) / "timed")
        except NoImagesError:
            return 0.0  # the run itself tells which images cannot be read
        return (deadline.clock() - began) / len(timed)


def _seconds_per_step(net: StudentNet, config: StudentConfig, spec: DistillSpec) -> float:
    """Train on noise: seconds per view, without decoding it."""
    device = chosen_device()
    net = net.to(device)
    is_frozen = spec.backbone_lr == 0
    trained = net.projection if is_frozen else net
    trained.requires_grad_(True)
    shape = (net.projection.in_features,) if is_frozen else (3, *config.preprocess.size)
    count = _TRAINED * (8 if is_frozen else 1)
    inputs = torch.rand(count, *shape, device=device)
    others = torch.rand(4096, spec.dim, device=device)  # as in the queue
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6)
    seconds = []
    set_training(net, spec.batch_statistics != "frozen")
    with nullcontext() if is_frozen or spec.compile else folded_norms(net, config.preprocess.size):
        for _ in range(_REPEATS):
            began = deadline.clock()
            loss = (F.normalize(trained(inputs), dim=1) @ others.T).log_softmax(dim=1)[:, 0].mean()
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
            seconds.append((deadline.clock() - began) / count)
    return statistics.median(seconds)


def _closed_form(features: int, dims: Sequence[int], *, by_groups: bool) -> tuple[float, float]:
    """Return seconds of the start in closed form: once, and per view of each image."""
    n = 512
    matrix = np.random.default_rng(0).random((n, n))
    seconds = []
    for _ in range(_REPEATS):
        began = deadline.clock()
        matrix @ matrix
        seconds.append(deadline.clock() - began)
    per_product = min(seconds) / n**3  # the first one warms up, others may be disturbed
    mix = _MIX_BY_GROUPS if by_groups else _MIX
    products = mix * features**3 + _WHITENING * sum(dim**3 for dim in dims)
    return per_product * products, _SUMS * per_product * (features + sum(dims)) ** 2


def _between(size: int, measured: dict[int, float]) -> float:
    """Interpolate seconds per view in the number of pixels."""
    sides = sorted(measured)
    return float(np.interp(size**2, [side**2 for side in sides], [measured[s] for s in sides]))
