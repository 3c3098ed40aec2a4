"""The plan of docs/scale.md is calculated right."""

from __future__ import annotations

import pytest

import plan_scale

CONSTANTS = {
    "decode": plan_scale.Fact(0.004, "", ""),
    "build": plan_scale.Fact(1e-5, "", ""),
    "row": plan_scale.Fact(1000.0, "", ""),
    "exact": plan_scale.Fact(0.05, "", ""),
}


def test_a_gpu_does_two_operations_per_multiply_accumulate() -> None:
    # 40 % of 312 TFLOPS over 35.2 GFLOP.
    assert plan_scale.gpu_rate(17.6, 312) == pytest.approx(3545, abs=1)


def test_the_slower_of_cores_and_gpus_decides() -> None:
    stages = {stage.name: stage for stage in plan_scale.plan(10_000_000, CONSTANTS)}
    teachers, index, serve = (stages[name] for name in ("embed teachers", "index", "serve"))
    # 96 cores decode 24,000 images a second, 8 GPUs compute 28,364.
    assert teachers.bottleneck == "decoding (cores)"
    assert teachers.hours == pytest.approx(2e7 / 24_000 / 3600)
    assert teachers.bytes == 2e7 * 2 * 768
    assert index.bytes == 1e10 and index.nodes == 1
    assert index.hours == pytest.approx(100 / 3600)
    assert "500 ms" in serve.bottleneck


def test_stages_get_nodes_until_they_end_within_a_day() -> None:
    for images in (1_000_000, 1_000_000_000, 10_000_000_000):
        for stage in plan_scale.plan(images, CONSTANTS):
            if stage.name.startswith("embed"):
                assert stage.hours <= plan_scale.DAY
    many = next(plan_scale.plan(10_000_000_000, CONSTANTS))
    assert many.nodes > 1 and many.engine == "--cluster ray"


def test_the_model_agrees_with_a_published_run() -> None:
    ours, published = plan_scale.check()
    assert 0.5 < ours / published < 2
