"""Everything that training needs, put on disk once: embeddings, whiteners, targets, a start.

Rank 0 calls `prepare`; every process then opens the result as a `TrainingSet`. Each part is
written atomically and found again by the next call, so a killed preparation loses little.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from whiten.choosing import Choice
from whiten.devices import best_device, resolve_precision
from whiten.embed import embed, store_folder
from whiten.errors import ConfigError, NoImagesError, RunError
from whiten.media import Item, Skipped, find_items, ordered_map, read_bytes
from whiten.pairs import Pair, PairPlan, plan_pairs, resolve_source
from whiten.progress import progress
from whiten.recipes import DECIDED, complete
from whiten.run_folder import RunFolder, write_atomically
from whiten.spec import DistillSpec, ViewPlan, parse_uri
from whiten.store import Store, Vectors
from whiten.student import StudentConfig, backbone_as_teacher, build_student
from whiten.targets import fit_whiteners, open_targets, write_fused_targets, write_targets
from whiten.teachers import Teacher, open_teacher
from whiten.views import render_bytes
from whiten.whitening import Whitener, normalize_rows

INIT_SAMPLE = 2048  # images whose features give the projection its first axes
QUEUE = 4096  # cached teacher embeddings that a batch is compared with

_PAIRS = {
    "groups": "images of a group",
    "views": "two views of an image",
    "mixed": "images of a group, and two views of ungrouped images",
}


def prepare(
    run: RunFolder, images: str, spec: DistillSpec, embeddings: Path, *, show_progress: bool
) -> None:
    """Embed what is missing, fit the whiteners, write targets and the checkpoint of step 0."""
    if _facts_path(run).exists() and run.checkpoint.exists():
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
            paths.append(_target_path(run, number))
            write_targets(store, ids, views, whitener, paths[-1])
    if _needs_fused(spec):
        write_fused_targets(paths, spec.dim, _fused_path(run), run.whiteners / "fused.safetensors")

    features = backbone_as_teacher(net, config)
    if spec.backbone_lr == 0:
        store = cache(features, items, range(views), "student features")
        write_targets(store, ids, views, None, _features_path(run))
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
    pq.write_table(table, run.targets / "items.parquet")
    facts = {
        "views": views,
        "source": source,
        "options": {name: getattr(spec, name) for name in DECIDED},
        "recipe": why,
        "teachers": described,
        "skipped": [[s.id, s.reason] for s in skipped],
    }
    # Written last: its presence says that all the rest is there.
    write_atomically(_facts_path(run), json.dumps(facts).encode())


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
        spec: the run's options with none left open.
        facts: views, source of the pairs, recipe, teachers and skipped images.
    """

    run: RunFolder
    spec: DistillSpec
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
        spec = dataclasses.replace(spec, **facts["options"])
        items = [Item(*row) for row in zip(table["id"], table["path"], table["group"], strict=True)]
        plan = plan_pairs(
            table["group"],
            table["content_hash"],
            source=facts["source"],
            views=facts["views"],
            batch_size=spec.batch_size,
            pairs_per_class=spec.pairs_per_class or 1,
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
            spec=spec,
            items=items,
            plan=plan,
            view_plan=ViewPlan(seed=spec.view_seed),
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

    def queue(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """(q, dim) whole images drawn from all in the fused teacher space."""
        # All teacher embeddings are cached, so the queue need not be filled by passing batches.
        drawn = torch.randint(len(self.items), (QUEUE,), generator=generator).numpy()
        rows = np.unique(drawn)  # in ascending order, as a file likes to be read
        return torch.from_numpy(open_targets(_fused_path(self.run))[rows, 0]).to(device)

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

    def describe(self, config: StudentConfig, steps: int) -> StudentConfig:
        """The student's configuration with its teachers and how it was trained."""
        spec = self.spec
        training = {
            "images": len(self.items),
            "recipe": self.facts["recipe"],
            "pairs": _PAIRS[self.plan.source],
            "classes": len(self.plan.classes),
            "steps": steps,
            "batch_size": self.plan.batch_size,
            "whitened teachers": spec.whiten,
            **{name: _text(getattr(spec, name)) for name in DECIDED},
            "seed": spec.seed,
            "skipped": self.facts["skipped"],
        }
        return dataclasses.replace(config, teachers=self.facts["teachers"], training=training)

    def remove(self) -> None:
        """Delete the targets, which are as large as the embeddings and can be made again."""
        shutil.rmtree(self.run.targets)


def _text(value: float | str | None) -> float | str | None:
    """JSON knows no infinity."""
    return "inf" if value == float("inf") else value


def _rows(source: Vectors, sides: Sequence[tuple[int, int]]) -> Vectors:
    items, views = zip(*sides, strict=True)
    return np.array(source[list(items), list(views)])
