"""Everything that training needs, put on disk once: embeddings, whiteners, targets, a start.

Rank 0 calls `prepare`; every process then opens the result as a `TrainingSet`. Each part is
written atomically and found again by the next call, so a killed preparation loses little.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from whiten.choosing import Choice
from whiten.devices import best_device, resolve_precision
from whiten.embed import embed, store_folder
from whiten.errors import ConfigError, NoImagesError
from whiten.media import Item, Skipped, find_items
from whiten.pairs import resolve_source
from whiten.progress import progress
from whiten.recipes import DECIDED, complete
from whiten.run_folder import RunFolder, write_atomically
from whiten.spec import DistillSpec, ViewPlan, parse_uri
from whiten.store import Store
from whiten.student import backbone_as_teacher, build_student
from whiten.targets import fit_whiteners, write_fused_targets, write_targets
from whiten.teachers import Teacher, open_teacher
from whiten.training_set import (
    facts_path,
    features_path,
    fused_path,
    items_path,
    target_path,
)
from whiten.whitening import Whitener

INIT_SAMPLE = 2048  # images whose features give the projection its first axes


def prepare(
    run: RunFolder, images: str, spec: DistillSpec, embeddings: Path, *, show_progress: bool
) -> None:
    """Embed what is missing, fit the whiteners, write targets and the checkpoint of step 0."""
    if facts_path(run).exists() and run.checkpoint.exists():
        return
    items = find_items(images)
    source = resolve_source([item.group for item in items], spec.pairs)
    spec, why = complete(spec, source)
    views = spec.views or (1 if source == "groups" else 2)
    view_plan = ViewPlan(seed=spec.view_seed)
    device = best_device()
    precision = resolve_precision("32" if spec.precision == "16" else spec.precision, device.type)
    teachers = [
        open_teacher(uri) for uri in spec.teachers
    ]  # all, before the first embeds for hours
    torch.manual_seed(spec.seed)
    net, config = build_student(spec.student, dim=spec.dim, pool=spec.pool, size=spec.size)
    if config.dim != spec.dim:
        raise ConfigError(
            f"{spec.student} has {config.dim} dimensions, dim={spec.dim} does not fit: "
            f"use --dim {config.dim}"
        )
    if show_progress:
        print(why, file=sys.stderr)

    def cache(teacher: Teacher, wanted: Sequence[Item], numbers: range, label: str) -> Store:
        with progress(f"embed {label}", enabled=show_progress) as update:
            return embed(
                wanted,
                teacher.to(device),
                store_folder(embeddings, teacher, precision=precision, seed=spec.view_seed),
                views=numbers,
                plan=view_plan,
                precision=precision,
                workers=spec.workers,
                progress=update,
            )

    # With teachers online only the whitening is fitted on cached embeddings, of whole images.
    teacher_views = range(1) if spec.teachers_online else range(views)
    stores: list[Store] = []
    described: list[dict[str, str]] = []
    for uri, teacher in zip(spec.teachers, teachers, strict=True):
        stores.append(cache(teacher, items, teacher_views, teacher.name))
        teacher.to("cpu")  # the device's memory is needed for the next one
        described.append(
            {
                "name": _unique(teacher.name, [d["name"] for d in described]),
                "uri": uri,
                "licence": teacher.licence,
                "fingerprint": teacher.fingerprint(),
            }
        )
    items, skipped = _usable(items, stores, teacher_views)
    ids = [item.id for item in items]

    _make(run.whiteners, run.targets)
    whiteners: list[Whitener | None] = [None] * len(stores)
    if spec.whiten:
        assert spec.shrinkage is not None
        fitted, choices = fit_whiteners(
            stores,
            ids,
            [None if source == "views" else item.group for item in items],
            dim=spec.whiten_dim,
            shrinkage=spec.shrinkage,
            second_view=views > 1 and not spec.teachers_online,
            seed=spec.seed,
        )
        whiteners = list(fitted)
        for number, one in enumerate(fitted):
            one.save(run.whitener(number))
        _keep_choices(run, described, choices, show_progress)
    paths = []
    if not spec.teachers_online:
        for number, (store, whitener) in enumerate(zip(stores, whiteners, strict=True)):
            paths.append(target_path(run, number))
            write_targets(store, ids, views, whitener, paths[-1])
    if _needs_fused(spec):
        write_fused_targets(paths, spec.dim, fused_path(run), run.whiteners / "fused.safetensors")

    features = backbone_as_teacher(net, config)
    if spec.backbone_lr == 0:
        store = cache(features, items, range(views), "student features")
        write_targets(store, ids, views, None, features_path(run))
        sample = items[:: -(-len(items) // INIT_SAMPLE)]
    else:
        sample = items[:: -(-len(items) // INIT_SAMPLE)]
        store = cache(features, sample, range(1), "a sample of student features")
    # A student that goes on learning has its projection already.
    if spec.start == "principal" and parse_uri(spec.student).scheme != "whiten":
        net.init_projection(store.gather([item.id for item in sample]))

    state = {name: value.clone() for name, value in net.state_dict().items()}
    run.save_checkpoint(
        {"step": 0, "model": state, "optimizer": {}, "ema": state if spec.ema > 0 else {}}
    )
    hashes = stores[0].content_hashes()
    table = pa.table(
        {
            "id": ids,
            "path": [item.path for item in items],
            "group": pa.array([item.group for item in items], pa.string()),
            "content_hash": [hashes[name] for name in ids],
        }
    )
    pq.write_table(table, items_path(run))
    facts = {
        "views": views,
        "source": source,
        "options": {name: getattr(spec, name) for name in DECIDED},
        "recipe": why,
        "teachers": described,
        "skipped": [[s.id, s.reason] for s in skipped],
    }
    # Written last: its presence says that all the rest is there.
    write_atomically(facts_path(run), json.dumps(facts).encode())


def _keep_choices(
    run: RunFolder,
    teachers: Sequence[dict[str, str]],
    choices: Sequence[Choice | None],
    show_progress: bool,
) -> None:
    """Write the chosen whitenings and their curves beside the whiteners, for the report."""
    kept = {}
    for teacher, choice in zip(teachers, choices, strict=True):
        if choice is not None:
            kept[teacher["name"]] = {**dataclasses.asdict(choice), "summary": str(choice)}
            if show_progress:
                print(f"{teacher['name']}: {choice}", file=sys.stderr)
    write_atomically(run.choices, json.dumps(kept).encode())


def _needs_fused(spec: DistillSpec) -> bool:
    return bool(spec.align or spec.queue)


def _usable(
    items: Sequence[Item], stores: Sequence[Store], views: range
) -> tuple[list[Item], list[Skipped]]:
    """The items that every teacher embedded in every view, and why the others are out."""
    asked = {item.id for item in items}
    for view in views:
        for store in stores:
            have = {
                name
                for shard in store.shards
                for name, number in zip(shard.ids, shard.views, strict=True)
                if number == view
            }
            items = [item for item in items if item.id in have]
    if not items:
        raise NoImagesError("no image could be embedded by all teachers: look at the stores' lists")
    skipped = {skip.id: skip for store in stores for skip in store.skipped if skip.id in asked}
    return list(items), list(skipped.values())


def _unique(name: str, taken: Sequence[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} ({number})", number + 1
    return candidate


def _make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
