"""The options of runs that take a second, with teachers and a student of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from whiten.distillation import training
from whiten.distillation.distill import DistillResult, distill
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec

TEACHERS = ["timm:test_efficientnet?pretrained=0&size=32", "timm:test_resnet?pretrained=0&size=48"]
# A transformer has no batch statistics, so that processes can be compared exactly.
STUDENT = "timm:test_vit?pretrained=0&size=32"
OPTIONS: dict[str, Any] = {
    "student": STUDENT,
    "dim": 8,
    "whiten_dim": 8,
    "epochs": 3,
    "batch_size": 4,
    "checkpoint_every": 2,
    "precision": "32",
}


def spec(**options: object) -> DistillSpec:
    """The options of a run that is never started."""
    return DistillSpec.from_mapping({"teachers": TEACHERS, **options})


def run(images: Path, out: Path, cache: Path, **options: Any) -> DistillResult:
    """Distil with these options, or others in their place."""
    return distill(
        images, TEACHERS, out=out, cache=cache, show_progress=False, **{**OPTIONS, **options}
    )


def losses(folder: Path) -> list[float]:
    """The loss of each step of a run."""
    return [record["loss"] for record in RunFolder(folder).read_metrics()]


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Interrupt the training in the block at a step, as Ctrl-C does, and see that it ends it."""
    original = training._loss

    def interrupted(*args: Any) -> Any:
        if args[-1] == step:
            raise KeyboardInterrupt
        return original(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_loss", interrupted)
        yield
