"""A run says what it lacks, and nothing where it lacks nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import write_groups
from small_runs import OPTIONS, TEACHERS
from whiten.distillation import best
from whiten.distillation.distill import distill
from whiten.distillation.missing import Evidence, causes

HEALTHY = Evidence(
    images=4000,
    is_whole=True,
    is_untrained=False,
    size=160,
    native=224,
    own_side=500,
    start=0.42,
    closed=0.48,
    fusion=0.59,
)
BY_TEACHERS = replace(HEALTHY, start=0.45, closed=0.5, fusion=None)


@pytest.mark.parametrize(
    "evidence",
    [
        HEALTHY,
        BY_TEACHERS,
        replace(HEALTHY, images=632, is_whole=False),
        replace(HEALTHY, size=64, own_side=64),  # larger inputs would only enlarge them
        replace(HEALTHY, size=64, native=64),
        replace(HEALTHY, start=None, closed=None, fusion=None),
        replace(HEALTHY, is_untrained=True, images=50_000, start=0.05, closed=0.05),
    ],
)
def test_a_healthy_run_is_not_warned(evidence: Evidence) -> None:
    assert causes(evidence) == []


@pytest.mark.parametrize(
    ("evidence", "told"),
    [
        (replace(HEALTHY, images=96), "96 images are few to train a whole network on"),
        (replace(BY_TEACHERS, images=96, is_whole=False), "96 images are few to learn from"),
        (
            replace(HEALTHY, size=64),
            "sees 64 px of images of 500 px: use a larger --size, up to 224",
        ),
        (replace(HEALTHY, size=64, own_side=128), "use a larger --size, up to 128"),
        (replace(HEALTHY, is_untrained=True), "random weights: take a pretrained --student"),
        (
            replace(HEALTHY, start=0.1, closed=0.2),
            "the start scores 0.200, the fused teachers 0.590",
        ),
        (replace(HEALTHY, fusion=0.425), "score 0.425, the student's start 0.420: take stronger"),
        (replace(HEALTHY, fusion=0.4), "take stronger --teachers"),
        (replace(BY_TEACHERS, start=0.97), "take other or stronger --teachers"),
    ],
)
def test_each_cause_is_told(evidence: Evidence, told: str) -> None:
    (cause,) = causes(evidence)
    assert told in cause
    assert "\n" not in cause


def test_a_run_that_gained_nothing_is_told_more() -> None:
    assert causes(HEALTHY, gained_nothing=True) == [
        "the student sees 160 px of images of 500 px: use a larger --size, up to 224"
    ]
    few = replace(HEALTHY, images=632, size=224)
    assert causes(few) == []
    assert "632 images" in causes(few, gained_nothing=True)[0]


def run(images: Path, out: Path, **options: Any) -> str:
    return distill(images, TEACHERS, out=out, **{**OPTIONS, **options}).gain


@pytest.mark.slow
def test_it_is_told_before_training_and_where_nothing_was_gained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best, "is_gain", lambda *_: False)
    images = write_groups(tmp_path / "images", {f"g{n:02}": 4 for n in range(32)})
    gain = run(images, tmp_path / "run", batch_size=16, epochs=1)
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 2
    for line in (*warnings, gain):
        assert "images are few" in line
        assert "the student starts from random weights: take a pretrained --student" in line
    assert lines.index(warnings[0]) < next(n for n, s in enumerate(lines) if s.startswith("distil"))
