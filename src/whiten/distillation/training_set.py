"""Open the files of `prepare` for the training loop."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from whiten.datasets.collection import Items
from whiten.distillation.best import Best
from whiten.distillation.held_out import CROPS, HeldOut
from whiten.distillation.missing import Evidence, causes
from whiten.distillation.pairs import Pair, PairPlan, plan_pairs
from whiten.distillation.targets import open_targets
from whiten.errors import RunError, one_line
from whiten.media.reading import naming, read_bytes
from whiten.models.choice import chosen_device
from whiten.models.registry import open_network
from whiten.models.student_folder import StudentConfig
from whiten.models.teacher import Teacher
from whiten.runs.folder import RunFolder
from whiten.runs.measured import best_starts
from whiten.runs.recipes import DECIDED
from whiten.runs.spec import DistillSpec
from whiten.utils.arrays import Vectors, normalize_rows
from whiten.utils.devices import resolve_precision
from whiten.utils.hashing import content_hash
from whiten.utils.memory import forget
from whiten.utils.threads import ordered_map
from whiten.utils.urls import named_place
from whiten.views.on_device import recolour
from whiten.views.plan import ViewPlan
from whiten.views.rendering import Preprocess, plan_view, render_bytes
from whiten.whitening.whitener import Whitener

Side = tuple[int, int]  # an item and a view number
QUEUE = 4096  # cached teacher embeddings per batch

_PAIRS = {
    "groups": "images of a group",
    "views": "two views of an image",
    "frames": "two views of a frame of each video",
    "mixed": "images of a group, and two views of ungrouped images",
}


def facts_path(run: RunFolder) -> Path:
    return run.targets / "ready.json"


def items_path(run: RunFolder) -> Path:
    return run.targets / "items.parquet"


def target_path(run: RunFolder, number: int) -> Path:
    return run.targets / f"teacher-{number}.npy"


def fused_path(run: RunFolder) -> Path:
    return run.targets / "fused.npy"


def features_path(run: RunFolder) -> Path:
    return run.targets / "student-features.npy"


def crops_path(run: RunFolder) -> Path:
    """Path of the student's features of crops of the held-out images."""
    return run.targets / "student-crops.npy"


def open_held_out(
    run: RunFolder, spec: DistillSpec, items: Items, trained: int, source: str
) -> HeldOut:
    """Return the measure on the held-out images, the items after the first `trained` ones."""
    paths = [target_path(run, number) for number in range(len(spec.teachers))]
    teachers = np.concatenate([open_targets(path)[trained:, 0] for path in paths], axis=1)
    groups = items.groups[trained:] if source in ("groups", "mixed") else None
    has_crops = crops_path(run).exists()  # not if an earlier version has begun the run by groups
    return HeldOut.of(normalize_rows(teachers), groups, has_crops=has_crops)


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher that runs in every step, and its whitening."""

    teacher: Teacher
    whitener: Whitener | None


@dataclass(frozen=True)
class TrainingSet:
    """The files of `prepare`, opened for reading.

    Attributes:
        items: usable images; pairs index into them.
        contents: hash of each image's content, as the teachers have embedded it.
        plan: plan of the pairs.
        view_plan: plan of the views.
        spec: the run's options, all resolved.
        facts: views, source of the pairs, recipe, teachers and skipped images.
    """

    run: RunFolder
    spec: DistillSpec
    items: Items
    contents: pa.Array
    plan: PairPlan
    view_plan: ViewPlan
    facts: dict[str, Any]
    targets: list[Vectors]
    online: list[OnlineTeacher]
    workers: int | None
    bf16: bool

    @classmethod
    def open(cls, run: RunFolder, spec: DistillSpec) -> TrainingSet:
        """Open the files that `prepare` wrote for this run.

        Raises:
            RunError: they are missing; they are removed when a run has finished.
            ConfigError: there is nothing to pair.
        """
        online, targets = [], []
        try:
            facts = json.loads(facts_path(run).read_text())
            table = pq.read_table(items_path(run))
            items = run.located(Items.from_table(table))
            contents = table["content_hash"].combine_chunks()
            pa.default_memory_pool().release_unused()  # memory of the preparation
            if not spec.teachers_online:
                targets = [open_targets(target_path(run, k)) for k in range(len(facts["teachers"]))]
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise RunError(
                f"{run.targets} is incomplete or damaged ({one_line(error)}): delete it and run "
                "again with --resume"
            ) from error
        spec = dataclasses.replace(spec, **facts["options"])
        trained = slice(len(items) - facts.get("held_out", 0))
        groups = items.videos if facts["source"] == "frames" else items.groups
        shown = max(1, facts["views"] // 2) if spec.views is None else 1
        plan = plan_pairs(
            groups[trained],
            contents[trained],
            source=facts["source"],
            # The start in closed form pairs nothing.
            views=facts["views"] if spec.epochs else max(2, facts["views"] // 2 * 2),
            batch_size=spec.batch_size,
            pairs_per_class=spec.pairs_per_class or 1,
            pairs_per_epoch=spec.pairs_per_epoch or 0,
            opposite_views=spec.view_plan.is_asymmetric,
            # Few images are shown in more views: an epoch then takes all of them.
            rounds=spec.rounds or shown,
            processes=spec.devices * spec.nodes,
            seed=spec.seed,
        )
        for number, teacher in enumerate(facts["teachers"] if spec.teachers_online else []):
            whitener = Whitener.load(run.whitener(number)) if spec.whiten else None
            network = open_network(teacher["uri"])
            if not network.made(network.uri, teacher["fingerprint"]):
                raise RunError(
                    f"{teacher['uri']} has changed since the run was begun: restore it, or start "
                    "again with --overwrite"
                )
            online.append(OnlineTeacher(network, whitener))
        bf16 = resolve_precision(spec.precision, chosen_device().type) == "bf16"
        return cls(
            run=run,
            spec=spec,
            items=items,
            contents=contents,
            plan=plan,
            view_plan=spec.view_plan,
            facts=facts,
            targets=targets,
            online=online,
            workers=spec.workers,
            bf16=bf16,
        )

    @property
    def trained(self) -> int:
        """Number of images to train on; the items after these are held out."""
        return len(self.items) - int(self.facts.get("held_out", 0))

    @cached_property
    def held_out(self) -> HeldOut | None:
        """Measures students on the held-out images; None if none are held out."""
        if self.trained == len(self.items):
            return None
        return open_held_out(self.run, self.spec, self.items, self.trained, self.facts["source"])

    def held_features(self) -> tuple[Vectors, Vectors | None]:
        """(h, f) cached features of the held-out images, and (h, c, f) of their crops, if any."""
        whole, path = np.array(self._features[self.trained :, 0]), crops_path(self.run)
        if not path.exists():
            return whole, None
        return whole, np.array(open_targets(path))

    @property
    def teacher_names(self) -> list[str]:
        return [teacher["name"] for teacher in self.facts["teachers"]]

    @staticmethod
    def sides(batch: Sequence[Pair]) -> list[Side]:
        """Return (item, view) of the x sides, then of the y sides."""
        return [(p.x, p.x_view) for p in batch] + [(p.y, p.y_view) for p in batch]

    def teacher_targets(
        self, batch: Sequence[Pair], device: torch.device
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the (b, d_k) targets per teacher, of the x sides and of the y sides."""
        sides = self.sides(batch)
        both = [_rows(source, sides) for source in self.targets]
        both += [self._embed_online(source, sides, device) for source in self.online]
        halves = [torch.from_numpy(rows).to(device).chunk(2) for rows in both]
        return [half[0] for half in halves], [half[1] for half in halves]

    @cached_property
    def _fused(self) -> Vectors:
        return open_targets(fused_path(self.run))

    @cached_property
    def _features(self) -> Vectors:
        return open_targets(features_path(self.run))

    def fused_targets(self, batch: Sequence[Pair], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (b, dim) targets in the fused teacher space."""
        rows = _rows(self._fused, self.sides(batch))
        x, y = torch.from_numpy(rows).to(device).chunk(2)
        return x, y

    def queue(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """Draw (q, dim) whole images at random from all, in the fused teacher space."""
        # All teacher embeddings are cached, so the queue need not be filled from past batches.
        drawn = torch.randint(self.trained, (QUEUE,), generator=generator).numpy()
        rows = np.unique(drawn)  # ascending, for sequential reads
        queue = torch.from_numpy(self._fused[rows, 0])
        forget(self._fused)
        return queue.to(device)

    def features(self, batch: Sequence[Pair], device: torch.device) -> Tensor:
        """Return (2b, f) cached features of the student's frozen backbone."""
        rows = _rows(self._features, self.sides(batch))
        return torch.from_numpy(rows).to(device)

    def render_crop(self, side: Side, preprocess: Preprocess) -> np.ndarray:
        """Render a crop that measures students, (h, w, 3) uint8; number 0 is the whole image."""
        item, number = self.items[side[0]], side[1]
        return render_bytes(self._read(side[0]), CROPS, item.id, number, preprocess)

    def render(self, side: Side, preprocess: Preprocess, device: torch.device) -> np.ndarray:
        """Render a view, (h, w, 3) uint8, without its colours if the device applies them."""
        item, number = self.items[side[0]], side[1]
        is_coloured = not self._colours_on(device)
        return render_bytes(
            self._read(side[0]),
            self.view_plan,
            item.id,
            number,
            preprocess,
            is_coloured=is_coloured,
        )

    def _read(self, row: int) -> bytes:
        """Read an image, which must still be the one that the targets are of.

        Raises:
            ImageError: it cannot be read.
            RunError: its content has changed.
        """
        path = self.items[row].path
        with naming(path):
            data = read_bytes(path)
        if content_hash(data) != self.contents[row].as_py():
            raise RunError(
                f"{named_place(path)} has changed since the run was begun: restore it and go on "
                "with --resume, or start again with --overwrite"
            )
        return data

    def coloured(
        self, pixels: np.ndarray, sides: Sequence[Side], device: torch.device
    ) -> np.ndarray | Tensor:
        """Apply the views' colours to the output of `render`: (n, h, w, 3) uint8.

        A tensor on the device, if it colours them.
        """
        if not self._colours_on(device):
            return pixels
        whole = (1, 1)  # colours do not depend on the image's shape
        views = [plan_view(self.view_plan, self.items[i].id, n, whole) for i, n in sides]
        return recolour(pixels, views, device)

    def _colours_on(self, device: torch.device) -> bool:
        # On a CPU the decoding threads are as fast. The light plan's colours are cheap.
        return device.type != "cpu" and self.view_plan.colours is not None

    def _embed_online(
        self, source: OnlineTeacher, sides: Sequence[Side], device: torch.device
    ) -> Vectors:
        teacher = source.teacher.to(device)
        rendered = ordered_map(
            lambda side: self.render(side, teacher.preprocess, device),
            sides,
            workers=self.workers,
            ahead=len(sides),
        )
        pixels = self.coloured(np.stack(list(rendered)), sides, device)
        vectors: Vectors = teacher.embed(pixels, bf16=self.bf16)
        if source.whitener is not None:
            vectors = normalize_rows(source.whitener.transform(vectors))
        return vectors

    def gain(self, best: Best | None) -> str:
        """One line on what the student gained over its starts, as held-out images tell it."""
        if best is None:
            what = "training" if self.spec.epochs else "the start"
            return f"nothing was held out, so that what {what} gained is not known"
        measured = self.facts["measured"]
        told = [f"{name} {score:.3f}" for name, score in best_starts(measured).items()]
        line = f"{measured['criterion']}: {', '.join(told)}"
        if best.step:
            epoch = best.step // self.plan.batches_per_epoch
            return f"{line}, student {best.score:.3f} after epoch {epoch}"
        if not self.spec.epochs:
            return line
        missing = self.missing(best) or ["give more images, another --student or other teachers"]
        return f"{line}; training gained nothing over that: {'; '.join(missing)}"

    def missing(self, best: Best | None) -> list[str]:
        """Return the likely causes why training gained nothing; empty if it gained."""
        evidence = self.facts.get("evidence")  # missing in runs that an earlier version began
        if best is None or best.step or not self.spec.epochs or evidence is None:
            return []
        return causes(Evidence(**evidence), gained_nothing=True)

    def describe(self, config: StudentConfig, steps: int, best: Best | None) -> StudentConfig:
        """Return the student's configuration with its teachers and a summary of the training.

        Args:
            steps: training steps taken.
            best: the student that is kept, if held-out images chose it.
        """
        spec = self.spec
        training = {
            "images": self.trained,
            "recipe": self.facts["recipe"],
            "pairs": _PAIRS[self.facts["source"]],
            "classes": self.plan.classes,
            "steps": steps,
            "batch_size": self.plan.batch_size,
            "whitened teachers": spec.whiten,
            **{name: _text(getattr(spec, name)) for name in DECIDED},
            "seed": spec.seed,
            "gain": self.gain(best),
            "measured": {k: v for k, v in self.facts.get("measured", {}).items() if k != "tried"},
            "skipped": self.facts["skipped"],
        }
        if self.facts.get("unseen"):
            training["unseen sources"] = self.facts["unseen"]
        return dataclasses.replace(
            config,
            teachers=self.facts["teachers"],
            training=training,
            # A student that is trained further without --compatible leaves its gallery.
            compatible_with=self.facts.get("compatible_with"),
        )

    def remove(self) -> None:
        """Delete the targets, which are as large as the embeddings and can be recomputed."""
        shutil.rmtree(self.run.targets)


def _text(value: float | str | None) -> float | str | None:
    """Return infinity as text, as JSON lacks it."""
    return "inf" if value == float("inf") else value


def _rows(source: Vectors, sides: Sequence[Side]) -> Vectors:
    items, views = zip(*sides, strict=True)
    rows = np.array(source[list(items), list(views)])
    forget(source)
    return rows
