"""The demo's photographs: a product on a shelf finds itself.

Nobody tells the student which photographs show the same product. It learns from half of the
packages; the other half measures it, and so do fruit and vegetables, which the run never sees.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whiten.demo.images import extract_photos
from whiten.distillation.distill import distill
from whiten.evaluation.run import measure_run
from whiten.report.run_page import ReportData, write_report
from whiten.utils.files import write_atomically


@dataclass(frozen=True)
class PhotoPlan:
    """Sizes of this part; `QUICK` is for tests."""

    teachers: list[str]
    student: str
    groups: int | None
    options: dict[str, Any] = field(default_factory=dict)


FULL = PhotoPlan(
    teachers=["demo:efficientnet-lite2", "demo:mobilenetv2", "demo:open-nsfw"],
    student="demo:efficientnet-lite0?size=160",
    groups=None,
    options={"views": 4, "rounds": 2, "epochs": 1},
)

QUICK = PhotoPlan(
    teachers=["demo:mobilenetv2?size=64", "demo:efficientnet-lite2?size=64"],
    student="demo:efficientnet-lite0?size=32",
    groups=5,
    options={"views": 2, "epochs": 1, "batch_size": 16, "dim": 32, "whiten_dim": 16},
)


def demonstrate_photos(
    out: Path, plan: PhotoPlan, *, show_progress: bool = True
) -> tuple[ReportData, Path]:
    """Run this part, or continue it.

    Returns:
        What the report shows, its tables also in `results.json`, and the path of the report.
    """
    images = out / "images"
    extract_photos(images, plan.groups)
    distill(
        images / "train.csv",
        plan.teachers,
        out / "run",
        student=plan.student,
        pairs="views",
        holdout_source=["produce"],
        resume=True,
        show_progress=show_progress,
        **plan.options,
    )
    data = measure_run(out / "run", test=images / "test.csv", show_progress=show_progress)
    data.title = "whiten demo: photographs of groceries, without labels"
    compared = data.seen_unseen
    results = {
        "rows": [asdict(row) for row in data.rows],
        "seen_unseen": compared and compared.to_json(),
    }
    write_atomically(out / "results.json", json.dumps(results, indent=2).encode())
    return data, write_report(data, out)
