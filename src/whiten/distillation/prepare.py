"""Prepare training: write embeddings, whiteners, targets and the first checkpoint to disk.

Rank 0 calls `prepare`; every process then opens the result as a `TrainingSet`. Each part is written
atomically and reused by the next call, so a killed preparation loses little.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.datasets.transfer import is_own, repeats_own
from whiten.distillation.apart import copies_of, describe_split, split_sources
from whiten.distillation.cache import Cache
from whiten.distillation.deadline import Deadline
from whiten.distillation.held_out import CROP_VIEWS, hold_out, without_trained
from whiten.distillation.missing import Evidence, causes
from whiten.distillation.pairs import enough_views, resolve_source
from whiten.distillation.planning import describe
from whiten.distillation.resolution import drawn, native_size, own_side
from whiten.distillation.start import write_start
from whiten.distillation.targets import open_targets, write_targets
from whiten.distillation.timing import plan_run
from whiten.distillation.training_set import (
    crops_path,
    facts_path,
    features_path,
    items_path,
    target_path,
)
from whiten.distillation.weighing import weigh_teachers
from whiten.distillation.worth import why_untrained
from whiten.embedding.cluster import Cluster
from whiten.embedding.fitting import fit_whiteners, fused_fingerprint
from whiten.errors import ConfigError, NoImagesError
from whiten.models.registry import open_network, open_teacher
from whiten.models.stored_model import Model
from whiten.models.student import backbone_as_teacher, build_student
from whiten.models.uri import parse_uri
from whiten.models.weights import hash_state
from whiten.runs.apart import Apart
from whiten.runs.folder import RunFolder
from whiten.runs.recipes import DECIDED, complete
from whiten.runs.spec import DistillSpec
from whiten.store.store import Store, embedded_by_all
from whiten.utils.files import write_atomically
from whiten.utils.names import distinct
from whiten.utils.progress import announce, note
from whiten.whitening.choosing import GROUPS, Choice
from whiten.whitening.whitener import Whitener


def prepare(
    run: RunFolder,
    images: str,
    spec: DistillSpec,
    embeddings: Path,
    deadline: Deadline,
    *,
    show_progress: bool,
    cluster: Cluster | None = None,
) -> DistillSpec:
    """Embed missing images, fit the whiteners, write targets and the checkpoint of step 0.

    Args:
        cluster: embeds; by default this process does.

    Returns:
        The options; with a budget, those that it left open are filled in, here and in the run's
        configuration.
    """
    if facts_path(run).exists() and run.checkpoint.exists():
        return spec
    tell = announce if show_progress else None
    epochs = spec.epochs
    found = find_items(images, tell, spec.exclude, spec.include)
    items, unseen = split_sources(images, found, spec)
    source = resolve_source(items.groups, spec.pairs)
    _refuse_ignored(spec, source)
    if tell is not None and (unused := _unused(spec)):
        tell(f"warning: 0 epochs train nothing, so that {unused} changes nothing: leave it out")
    draft, _ = complete(spec, source)  # refuses bad options early, whatever the teachers
    cache = Cache(embeddings, draft, show_progress=show_progress, cluster=cluster)
    # Open all before the first one embeds for hours.
    opened = open_network if spec.teachers_online else open_teacher
    teachers: list[Model] = [opened(uri) for uri in spec.teachers]
    if spec.budget is not None and None in (spec.views, spec.rounds, spec.epochs):
        spec = plan_run(spec, draft, items, source, teachers, cache, deadline.spent)
        run.write_config(images, spec, embeddings)
        if show_progress:
            announce(describe(spec))
    planned = spec
    views = spec.views or enough_views(len(items), source, published=spec.recipe == "paper")
    torch.manual_seed(spec.seed)
    net, config = build_student(spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size)
    begun_with = hash_state(net.backbone.state_dict())
    if config.dim != spec.dim:
        raise ConfigError(
            f"{spec.student} has {config.dim} dimensions, dim={spec.dim} does not fit: "
            f"use --dim {config.dim}"
        )

    if spec.compatible:
        _require_room(spec, len(items), sum(_axes(spec, teacher.dim) for teacher in teachers))

    # With online teachers, only the whitening is fitted on cached embeddings, of whole images.
    teacher_views = range(1) if spec.teachers_online else range(views)
    stores = [cache.embed(teacher, items, teacher_views, teacher.name) for teacher in teachers]
    described = _describe(spec.teachers, teachers, stores)
    items, skipped = embedded_by_all(items, stores, teacher_views)
    if not items:
        raise NoImagesError("no image could be embedded by all teachers: look at the stores' lists")
    contents = stores[0].content_hashes(items.by_id)
    is_copy = copies_of(unseen, contents)
    copies = items.take(is_copy)
    # A held-out image would train as its copy in the transfer set.
    items = items.take(~is_copy & ~repeats_own(items, contents))
    if source == "mixed":  # perhaps no ungrouped images are left
        source = resolve_source(items.groups, spec.pairs)
    _make_anew(run)
    whiteners: list[Whitener | None] = [None] * len(stores)
    choices: list[Choice | None] = []
    if spec.whiten:
        assert draft.shrinkage is not None
        whiteners[:], choices = fit_whiteners(
            stores,
            _drawn(items, draft.whiten_images or len(items), spec.seed),
            dim=spec.whiten_dim,
            shrinkage=draft.shrinkage,
            by_groups=source != "views",
            second_view=views > 1 and not spec.teachers_online,
            seed=spec.seed,
        )
        _keep_whitenings(run, described, whiteners, choices, show_progress)
    spec, why = complete(spec, source, _map_on_groups(choices))
    spec = weigh_teachers(
        run,
        spec,
        [teacher["name"] for teacher in described],
        stores,
        items,
        whiteners,
        by_groups=source in ("groups", "mixed"),
        has_views=views > 1 and not spec.teachers_online,
        show_progress=show_progress,
    )

    items, apart = _held_out(items, spec, source, stores[0].content_hashes(items.by_id))
    trained = len(items) - len(apart)
    untrained = why_untrained(spec, source, int(is_own(items[:trained]).sum()), len(apart))
    if epochs is None and untrained:
        spec = dataclasses.replace(spec, epochs=0)
        why = f"{_STARTS[spec.start]}: {untrained}"
    elif spec.epochs == 0:
        why = f"{_STARTS[spec.start]}: 0 epochs train nothing"
    (announce if show_progress else note)(why)
    if spec.start != "random" or spec.compatible or spec.backbone_lr == 0 or apart:
        backbone = backbone_as_teacher(net, config)
        store = cache.embed(backbone, items, teacher_views, "student features")
        write_targets(store, items.by_id, teacher_views, None, features_path(run))
        if apart:
            crops = cache.crops(backbone, apart)
            write_targets(crops, apart.by_id, CROP_VIEWS, None, crops_path(run))
    if not spec.teachers_online:
        _write_targets(run, spec, stores, items, views, whiteners)
    rotation, measured = write_start(run, spec, net, items, len(apart), source)
    evidence = Evidence(
        images=trained,
        is_whole=spec.backbone_lr > 0 and spec.epochs != 0,
        is_untrained=parse_uri(spec.student).is_untrained,
        size=config.preprocess.size[0],
        native=native_size(spec, config),
        own_side=own_side(drawn(items, spec.seed)),
        **measured.pop("evidence", {}),
    )
    if show_progress and spec.recipe != "paper" and (found_missing := causes(evidence)):
        announce(f"warning: {'; '.join(found_missing)}")
    gallery = None
    if spec.compatible and rotation is not None:
        rotation.save(run.rotation)
        gallery = fused_fingerprint(
            [teacher["fingerprint"] for teacher in described],
            whiteners,
            rotation,
            run.read_weights(),
        )
    if not parse_uri(spec.student).is_untrained:  # another one is drawn whenever it is built
        measured["backbone"] = begun_with
    table = items.table().append_column("content_hash", stores[0].content_hashes(items.by_id))
    pq.write_table(table, items_path(run))
    if spec.holdout_source:
        Apart(unseen, copies, apart).write(run)
    facts = {
        "views": views,
        "source": source,
        "options": {name: getattr(spec, name) for name in DECIDED},
        "recipe": why,
        "held_out": len(apart),
        "unseen": describe_split(spec, len(unseen), len(copies)) if spec.holdout_source else "",
        "measured": measured,
        "evidence": dataclasses.asdict(evidence),
        "teachers": described,
        "skipped": [[s.id, s.reason] for s in skipped],
        "compatible_with": gallery,
    }
    # Written last: its presence means that all parts are complete.
    write_atomically(facts_path(run), json.dumps(facts).encode())
    return planned


def _held_out(
    items: Items, spec: DistillSpec, source: str, contents: pa.Array
) -> tuple[Items, Items]:
    """Draw the held-out ones of the user's own images; drop those that train as their copies.

    Returns:
        The images left, in their order but with the held-out ones last; and the held-out ones.
    """
    assert spec.held_out is not None
    own = is_own(items)
    groups = (items.videos if source == "frames" else items.groups).filter(pa.array(own))
    held = np.zeros(len(items), bool)
    held[own] = hold_out(groups, contents.filter(pa.array(own)), spec.held_out, spec.seed)
    kept, held = without_trained(held, contents)
    left = items.take(kept).take(np.argsort(held, kind="stable"))
    return left, left[len(left) - int(held.sum()) :]


def _describe(
    uris: Sequence[str], teachers: Sequence[Model], stores: Sequence[Store]
) -> list[dict[str, str]]:
    names = distinct([teacher.name for teacher in teachers])
    return [
        {
            "name": name,
            "uri": uri,
            "licence": teacher.licence,
            # That of the store, as in the whiteners: an earlier version may have begun it.
            "fingerprint": store.origin.fingerprint,
        }
        for name, uri, teacher, store in zip(names, uris, teachers, stores, strict=True)
    ]


def _map_on_groups(choices: Sequence[Choice | None]) -> float | None:
    """Return the whitened teachers' mean mAP on held-out groups; None if not measured."""
    found = [choice.evidence[GROUPS] for choice in choices if choice and GROUPS in choice.evidence]
    return statistics.mean(found) if found else None


def _drawn(items: Items, count: int, seed: int) -> Items:
    """Return at most `count` random items, in their order."""
    if count >= len(items):
        return items
    return items.take(np.sort(np.random.default_rng(seed).permutation(len(items))[:count]))


def _keep_whitenings(
    run: RunFolder,
    teachers: Sequence[dict[str, str]],
    whiteners: Sequence[Whitener | None],
    choices: Sequence[Choice | None],
    show_progress: bool,
) -> None:
    """Write the whiteners, and the curves that they were chosen by."""
    kept = {}
    for number, whitener in enumerate(whiteners):
        assert whitener is not None
        whitener.save(run.whitener(number))
    for teacher, choice in zip(teachers, choices, strict=True):
        if choice is not None:
            kept[teacher["name"]] = {**dataclasses.asdict(choice), "summary": str(choice)}
            if show_progress:
                announce(f"{teacher['name']}: {choice}")
    write_atomically(run.choices, json.dumps(kept).encode())


def _write_targets(
    run: RunFolder,
    spec: DistillSpec,
    stores: Sequence[Store],
    items: Items,
    views: int,
    whiteners: Sequence[Whitener | None],
) -> None:
    """Write each teacher's targets in the order of the items."""
    paths = [target_path(run, number) for number in range(len(stores))]
    for store, whitener, path, weight in zip(stores, whiteners, paths, spec.weights, strict=True):
        write_targets(store, items.by_id, range(views), whitener, path, weight)
    if spec.compatible:
        _require_room(spec, len(items), sum(open_targets(path).shape[2] for path in paths))


def _axes(spec: DistillSpec, dim: int) -> int:
    """Return the maximum number of axes that a teacher of this dimension can be whitened to."""
    return min(dim, spec.whiten_dim) if spec.whiten and isinstance(spec.whiten_dim, int) else dim


def _require_room(spec: DistillSpec, images: int, width: int) -> None:
    """Refuse a student with more dimensions than its gallery can have."""
    most = min(width, images - 1)
    if spec.dim > most:
        raise ConfigError(
            f"--compatible: {images} images and teachers that are fused in {width} dimensions give "
            f"a gallery of at most {most}, dim={spec.dim} does not fit: use --dim {most} or fewer"
        )


def _refuse_ignored(spec: DistillSpec, source: str) -> None:
    """Refuse options that these pairs do not use, or no pairs at all."""
    limits = (("pairs_per_class", 1), ("pairs_per_epoch", 0))
    for name, unset in (*limits, ("rounds", 1)) if spec.epochs == 0 else ():
        if (value := getattr(spec, name)) not in (None, unset):
            raise ConfigError(
                f"{name} {value} says which pairs are trained on, and 0 epochs train on none: "
                f"leave out --{name.replace('_', '-')}, or --epochs 0"
            )
    if source in ("groups", "mixed"):
        if (spec.rounds or 1) > 1:
            raise ConfigError(
                f"rounds {spec.rounds} are pairs of views of each image, and these pairs come from "
                "groups: leave out --rounds, or add --pairs views"
            )
        return
    for name, unset in limits:
        value = getattr(spec, name)
        if value not in (None, unset):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{name} {value} limits the pairs of a group, and these pairs are views of one "
                f"image: leave out {option}, or give images with groups (a folder each)"
            )


# Students that are not trained, by their start.
_STARTS: dict[str | None, str] = {
    "ridge": "closed form",
    "principal": "principal axes of its features",
    "random": "random projection",
}

# Options of the steps alone; no recipe decides them, so that others than the defaults were given.
_OF_STEPS = (
    "batch_size", "optimizer", "lr", "min_lr", "backbone_lr", "layer_decay", "weight_decay",
    "schedule", "warmup", "clip", "ema", "checkpoint_every", "micro_batch",
)  # fmt: skip


def _unused(spec: DistillSpec) -> str:
    """Return the options of a training that were given to a run without one.

    A file of options is often run once without training, so that this is no error.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(spec)}
    given = [name for name in _OF_STEPS if getattr(spec, name) != defaults[name]]
    return ", ".join(f"--{n.replace('_', '-')}" for n in given) if spec.epochs == 0 else ""


def _make_anew(run: RunFolder) -> None:
    """Make the folders of the preparation, without what a killed one, perhaps with other options,
    has left: some files are read wherever they are present."""
    for path in (run.start, run.apart):
        path.unlink(missing_ok=True)
    for folder in (run.whiteners, run.targets):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
