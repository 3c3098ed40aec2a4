"""Everything that training needs, put on disk once: embeddings, whiteners, targets, a start.

Rank 0 calls `prepare`; every process then opens the result as a `TrainingSet`. Each part is
written atomically and found again by the next call, so a killed preparation loses little.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from whiten.devices import best_device, resolve_precision
from whiten.embed import embed, store_folder
from whiten.errors import ConfigError, NoImagesError, RunError
from whiten.media import Item, Skipped, find_items, ordered_map, read_bytes
from whiten.pairs import Pair, PairPlan, plan_pairs, resolve_source
from whiten.progress import progress
from whiten.run_folder import RunFolder, write_atomically
from whiten.spec import DistillSpec, ViewPlan, parse_uri
from whiten.store import Store, Vectors
from whiten.student import StudentConfig, backbone_as_teacher, build_student
from whiten.targets import fit_whitener, open_targets, write_fused_targets, write_targets
from whiten.teachers import Teacher, open_teacher
from whiten.views import render_bytes
from whiten.whitening import Whitener, normalize_rows

INIT_SAMPLE = 2048  # images whose features give the projection its first axes


def prepare(
    run: RunFolder, images: str, spec: DistillSpec, embeddings: Path, *, show_progress: bool
) -> None:
    """Embed what is missing, fit the whiteners, write targets and the checkpoint of step 0."""
    if _facts_path(run).exists() and run.checkpoint.exists():
        return
    if spec.align > 0 and spec.teachers_online:
        raise ConfigError("--align needs cached teachers: leave out --teachers-online")
    items = find_items(images)
    source = resolve_source([item.group for item in items], spec.pairs)
    views = spec.views or (2 if source == "views" else 1)
    view_plan = ViewPlan(seed=spec.seed)
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

    def cache(teacher: Teacher, wanted: Sequence[Item], numbers: range, label: str) -> Store:
        with progress(f"embed {label}", enabled=show_progress) as update:
            return embed(
                wanted,
                teacher.to(device),
                store_folder(embeddings, teacher, precision=precision, seed=spec.seed),
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
    paths = []
    for number, store in enumerate(stores):
        whitener = None
        if spec.whiten:
            whitener = fit_whitener(store, ids, dim=spec.whiten_dim, shrinkage=spec.shrinkage)
            whitener.save(run.whitener(number))
        if not spec.teachers_online:
            paths.append(_target_path(run, number))
            write_targets(store, ids, views, whitener, paths[-1])
    if spec.align > 0:
        write_fused_targets(paths, spec.dim, _fused_path(run), run.whiteners / "fused.safetensors")

    features = backbone_as_teacher(net, config)
    if spec.backbone_lr == 0:
        store = cache(features, items, range(views), "student features")
        write_targets(store, ids, views, None, _features_path(run))
        sample = items[:: -(-len(items) // INIT_SAMPLE)]
    else:
        sample = items[:: -(-len(items) // INIT_SAMPLE)]
        store = cache(features, sample, range(1), "a sample of student features")
    if parse_uri(spec.student).scheme != "whiten":  # that one has learnt its projection
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
    pq.write_table(table, run.targets / "items.parquet")
    facts = {
        "views": views,
        "source": source,
        "teachers": described,
        "skipped": [[s.id, s.reason] for s in skipped],
    }
    # Written last: its presence says that all the rest is there.
    write_atomically(_facts_path(run), json.dumps(facts).encode())


def _usable(
    items: Sequence[Item], stores: Sequence[Store], views: range
) -> tuple[list[Item], list[Skipped]]:
    """The items that every teacher embedded in every view, and why the others are out."""
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
    skipped = {skip.id: skip for store in stores for skip in store.skipped}
    return list(items), list(skipped.values())


def _unique(name: str, taken: Sequence[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} ({number})", number + 1
    return candidate


def _make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def _facts_path(run: RunFolder) -> Path:
    return run.targets / "ready.json"


def _target_path(run: RunFolder, number: int) -> Path:
    return run.targets / f"teacher-{number}.npy"


def _fused_path(run: RunFolder) -> Path:
    return run.targets / "fused.npy"


def _features_path(run: RunFolder) -> Path:
    return run.targets / "student-features.npy"


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher that runs in every step, with its whitening."""

    teacher: Teacher
    whitener: Whitener | None


@dataclass(frozen=True)
class TrainingSet:
    """What `prepare` left, opened for reading.

    Attributes:
        items: usable images; pairs index into them.
        plan: of the pairs.
        view_plan: of the views.
        facts: views, source of the pairs, teachers and skipped images.
    """

    run: RunFolder
    items: list[Item]
    plan: PairPlan
    view_plan: ViewPlan
    facts: dict[str, Any]
    targets: list[Vectors]
    online: list[OnlineTeacher]
    workers: int
    bf16: bool

    @classmethod
    def open(cls, run: RunFolder, spec: DistillSpec) -> TrainingSet:
        """Read what `prepare` wrote for this run.

        Raises:
            RunError: it is not there; it is removed when a run has finished.
            ConfigError: nothing to pair.
        """
        try:
            facts = json.loads(_facts_path(run).read_text())
            table = pq.read_table(run.targets / "items.parquet").to_pydict()
        except (OSError, ValueError) as error:
            raise RunError(f"{run.targets} is incomplete: run again with --resume") from error
        items = [Item(*row) for row in zip(table["id"], table["path"], table["group"], strict=True)]
        plan = plan_pairs(
            table["group"],
            table["content_hash"],
            source=facts["source"],
            views=facts["views"],
            batch_size=spec.batch_size,
            processes=spec.devices * spec.nodes,
            seed=spec.seed,
        )
        online, targets = [], []
        for number, teacher in enumerate(facts["teachers"]):
            if spec.teachers_online:
                whitener = Whitener.load(run.whitener(number)) if spec.whiten else None
                online.append(OnlineTeacher(open_teacher(teacher["uri"]), whitener))
            else:
                targets.append(open_targets(_target_path(run, number)))
        bf16 = resolve_precision(spec.precision, best_device().type) == "bf16"
        return cls(
            run=run,
            items=items,
            plan=plan,
            view_plan=ViewPlan(seed=spec.seed),
            facts=facts,
            targets=targets,
            online=online,
            workers=spec.workers,
            bf16=bf16,
        )

    @property
    def teacher_names(self) -> list[str]:
        return [teacher["name"] for teacher in self.facts["teachers"]]

    @staticmethod
    def sides(batch: Sequence[Pair]) -> list[tuple[int, int]]:
        """(item, view) of the x sides, then of the y sides."""
        return [(p.x, p.x_view) for p in batch] + [(p.y, p.y_view) for p in batch]

    def teacher_targets(
        self, batch: Sequence[Pair], device: torch.device
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each teacher the (b, d_k) targets of the x sides, and of the y sides."""
        sides = self.sides(batch)
        both = [_rows(source, sides) for source in self.targets]
        both += [self._embed_online(source, sides, device) for source in self.online]
        halves = [torch.from_numpy(rows).to(device).chunk(2) for rows in both]
        return [half[0] for half in halves], [half[1] for half in halves]

    def fused_targets(self, batch: Sequence[Pair], device: torch.device) -> tuple[Tensor, Tensor]:
        """(b, dim) targets in the fused teacher space."""
        rows = _rows(open_targets(_fused_path(self.run)), self.sides(batch))
        x, y = torch.from_numpy(rows).to(device).chunk(2)
        return x, y

    def features(self, batch: Sequence[Pair], device: torch.device) -> Tensor:
        """(2b, f) cached features of the student's frozen backbone."""
        rows = _rows(open_targets(_features_path(self.run)), self.sides(batch))
        return torch.from_numpy(rows).to(device)

    def _embed_online(
        self, source: OnlineTeacher, sides: Sequence[tuple[int, int]], device: torch.device
    ) -> Vectors:
        teacher = source.teacher.to(device)

        def render(side: tuple[int, int]) -> np.ndarray:
            item = self.items[side[0]]
            data = read_bytes(item.path)
            return render_bytes(data, self.view_plan, item.id, side[1], teacher.preprocess)

        pixels = np.stack(list(ordered_map(render, sides, workers=self.workers, ahead=len(sides))))
        vectors: Vectors = teacher.embed(pixels, bf16=self.bf16).numpy()
        if source.whitener is not None:
            vectors = normalize_rows(source.whitener.transform(vectors))
        return vectors

    def describe(self, config: StudentConfig, spec: DistillSpec, steps: int) -> StudentConfig:
        """The student's configuration with its teachers and how it was trained."""
        training = {
            "images": len(self.items),
            "pairs": "two views of an image" if self.plan.from_views else "groups",
            "classes": len(self.plan.classes),
            "steps": steps,
            "batch_size": self.plan.batch_size,
            "fusion": spec.fusion,
            "temperature": spec.temperature,
            "align": spec.align,
            "whitened teachers": spec.whiten,
            "shrinkage": spec.shrinkage,
            "seed": spec.seed,
            "skipped": self.facts["skipped"],
        }
        return dataclasses.replace(config, teachers=self.facts["teachers"], training=training)

    def remove(self) -> None:
        """Delete the targets, which are as large as the embeddings and can be made again."""
        shutil.rmtree(self.run.targets)


def _rows(source: Vectors, sides: Sequence[tuple[int, int]]) -> Vectors:
    items, views = zip(*sides, strict=True)
    return np.array(source[list(items), list(views)])
