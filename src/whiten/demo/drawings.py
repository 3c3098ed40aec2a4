"""The demo's drawings: one emoji, drawn by four design teams, finds itself.

Three networks of different families, tasks and input conventions teach one EfficientNet-Lite0 at
96 px. First without labels, on the backbone's frozen features, from raw and from whitened teachers
with equal budget; then with groups as positive pairs, training the whole network, which can also
query a gallery of its teachers. Train and test groups are disjoint, and the settings below were
chosen on the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whiten.datasets.finding import find_items
from whiten.demo.images import extract_drawings
from whiten.distillation.distill import distill
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.opening import load, load_fusions
from whiten.evaluation.run import (
    GALLERY,
    Assessed,
    assess,
    assess_asymmetric,
    read_choices,
    retrieval_grids,
    teacher_pictures,
    verdicts,
)
from whiten.evaluation.run_encoders import START, START_WHITENED
from whiten.report.run_page import ReportData, write_report
from whiten.report.table import Kind, Row
from whiten.runs.folder import RunFolder
from whiten.utils.files import write_atomically

LABEL_FREE_RAW = "student, label-free, raw teachers"
LABEL_FREE = "student, label-free"
GROUPS = "student, groups"


@dataclass(frozen=True)
class DrawingPlan:
    """Sizes of this part; `QUICK` is for tests."""

    teachers: list[str]
    student: str
    groups: int | None
    label_free: dict[str, Any]
    grouped: dict[str, Any]


FULL = DrawingPlan(
    teachers=[
        "demo:efficientnet-lite2?size=128&fit=squash",
        "demo:mobilenetv2?size=128&fit=squash",
        "demo:open-nsfw?fit=squash",
    ],
    student="demo:efficientnet-lite0?size=96&fit=squash",
    groups=None,
    label_free={"dim": 256, "backbone_lr": 0.0, "epochs": 20, "batch_size": 256},
    grouped={"dim": 256, "compatible": True, "lr": 2e-3, "epochs": 2, "batch_size": 128},
)

QUICK = DrawingPlan(
    teachers=["demo:mobilenetv2?size=64&fit=squash", "demo:efficientnet-lite2?size=64&fit=squash"],
    student="demo:efficientnet-lite0?size=32&fit=squash",
    groups=24,
    label_free={"dim": 256, "backbone_lr": 0.0, "epochs": 2, "batch_size": 32, "whiten_dim": 16},
    grouped={
        "compatible": True,
        "dim": 32,
        "backbone_lr": 0.1,
        "epochs": 1,
        "batch_size": 16,
        "whiten_dim": 16,
    },
)


def demonstrate_drawings(
    out: Path, plan: DrawingPlan, *, show_progress: bool = True
) -> tuple[list[Row], Path]:
    """Run this part, or continue it.

    Returns:
        The rows of the table, also in `results.json`, and the path of the report.
    """
    extract_drawings(out / "images", plan.groups)
    train, test = out / "images" / "train", find_items(out / "images" / "test")
    cache = out / "embeddings"

    def run(name: str, **options: Any) -> RunFolder:
        folder = RunFolder(out / name)
        distill(
            train,
            plan.teachers,
            student=plan.student,
            out=folder.root,
            cache=cache,
            resume=True,
            show_progress=show_progress,
            **options,
        )
        return folder

    label_free_raw = run("label-free-raw", pairs="views", whiten=False, **plan.label_free)
    label_free = run("label-free", pairs="views", **plan.label_free)
    grouped = run("groups", pairs="groups", **plan.grouped)

    fusions = load_fusions(label_free.root)
    raw, whitened = fusions["raw"], fusions["whitened"]
    assessed = [
        assess(encoder, kind, name, test, cache, show_progress)
        for encoder, kind, name in _encoders(plan, train, cache, raw, whitened)
    ]
    for folder, name in (
        (label_free_raw, LABEL_FREE_RAW),
        (label_free, LABEL_FREE),
        (grouped, GROUPS),
    ):
        student = load(folder.student)
        assessed.append(assess(student, "student", name, test, cache, show_progress))
    teachers = [part.teacher for part in raw.parts]
    fused = load_fusions(grouped.root, teachers)["compatible"]
    gallery = assess(fused, "fusion-whitened", GALLERY, test, cache, show_progress)
    assessed += [gallery, assess_asymmetric(assessed[-1], gallery)]
    rows = [one.row for one in assessed]
    write_atomically(
        out / "results.json", json.dumps([asdict(row) for row in rows], indent=2).encode()
    )
    data = _report(rows, assessed, whitened, out, plan)
    data.similarities, data.spectra = teacher_pictures(whitened, test, cache)
    data.whitening_choices = read_choices(grouped)
    data.runs = {
        "label-free, raw teachers": label_free_raw.read_metrics(),
        "label-free": label_free.read_metrics(),
        "groups": grouped.read_metrics(),
    }
    return rows, write_report(data, out)


def _encoders(
    plan: DrawingPlan, train: Path, cache: Path, raw: Encoder, whitened: Encoder
) -> Iterator[tuple[Encoder, Kind, str]]:
    for part in raw.parts:
        yield Encoder(part.teacher.name, [Part(part.teacher)]), "teacher", part.teacher.name
    yield raw, "fusion-raw", "raw fusion"
    yield whitened, "fusion-whitened", "whitened fusion"
    yield load(plan.student), "student", START
    # No training: the initial features, whitened on the training images.
    start = load(
        f"fuse:whitened:{plan.student}",
        whiten_on=train,
        whiten_dim=plan.label_free.get("whiten_dim", 256),
        cache=cache,
    )
    yield start, "student", START_WHITENED


def _report(
    rows: list[Row], assessed: list[Assessed], whitened: Encoder, out: Path, plan: DrawingPlan
) -> ReportData:
    train = find_items(out / "images" / "train")
    test = find_items(out / "images" / "test")
    return ReportData(
        title="whiten demo: drawings of four design teams",
        facts=[
            ("training images", f"{len(train):,}, {len({i.group for i in train}):,} emoji"),
            ("test images", f"{len(test):,}, {len({i.group for i in test}):,} other emoji"),
            (
                "protocol",
                "each test image queries all others; the same emoji in other styles is right",
            ),
            ("teachers", ", ".join(plan.teachers)),
            ("student", f"{plan.student}, 256 dimensions"),
        ],
        rows=rows,
        retrievals={
            one.row.name: retrieval_grids(one)
            for one in assessed
            if one.row.name in ("whitened fusion", LABEL_FREE, GROUPS)
        },
        notes=conclusions(rows),
    )


def conclusions(rows: list[Row]) -> list[str]:
    """Summarise the demo in sentences."""
    score = {row.name: f"{100 * row.map:.1f}" for row in rows}
    label_free = (
        f"Without labels the student learns {score[LABEL_FREE]} from whitened teachers and "
        f"{score[LABEL_FREE_RAW]} from raw ones; its start has {score[START]}, and "
        f"{score[START_WHITENED]} when its features are whitened."
    )
    return [*verdicts(rows), label_free]
