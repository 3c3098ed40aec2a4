"""What memory cannot hold at once is computed in parts, or told with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_runs import OPTIONS, TEACHERS
from whiten.distillation import training
from whiten.distillation.distill import distill
from whiten.errors import RunError, TeacherError
from whiten.models.teacher import ArrayTeacher, Teacher
from whiten.views.rendering import Preprocess

SIDE, DIM = 8, 3
ON_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
IN_ONNX = RuntimeError("Failed to allocate memory for requested buffer of size 2147483648")


def limited(kind: type[Teacher], most: int, error: Exception) -> tuple[Teacher, list[int]]:
    """A model that has memory for so many images, and the batches that it was given."""
    seen: list[int] = []

    def forward(inputs: Any) -> Any:
        seen.append(len(inputs))
        if len(inputs) > most:
            raise error
        means = inputs.mean((2, 3))
        return means + 1 if kind is Teacher else np.asarray(means + 1)

    model = kind(
        "python:limited:build", "limited", DIM, Preprocess(size=(SIDE, SIDE)), "00", forward
    )
    return model, seen


@pytest.mark.parametrize(("kind", "error"), [(Teacher, ON_CUDA), (ArrayTeacher, IN_ONNX)])
def test_a_batch_is_embedded_in_parts(kind: type[Teacher], error: Exception) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIDE, SIDE, 3), np.uint8)
    expected = limited(kind, 10, error)[0].embed(pixels)
    model, seen = limited(kind, 3, error)
    np.testing.assert_allclose(model.embed(pixels), expected, atol=1e-6)
    assert seen == [10, 5, *[2] * 5]
    seen.clear()
    found, unusable = model.embed_usable(pixels[:5])
    np.testing.assert_allclose(found, expected[:5], atol=1e-6)
    assert seen == [2, 2, 1] and not unusable


@pytest.mark.parametrize(("kind", "error"), [(Teacher, ON_CUDA), (ArrayTeacher, IN_ONNX)])
def test_one_image_that_does_not_fit_is_told(kind: type[Teacher], error: Exception) -> None:
    model, seen = limited(kind, 0, error)
    with pytest.raises(TeacherError, match=r"single image .*allocate.*\?size="):
        model.embed(np.zeros((4, SIDE, SIDE, 3), np.uint8))
    assert seen == [4, 2, 1]


def test_training_goes_on_with_fewer_images_at_once(
    shared_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "epochs": 3, "batch_size": 8, "backbone_lr": 1.0}
    run, cache = tmp_path / "run", tmp_path / "cache"

    def lacking(*_: Any) -> Any:
        raise ON_CUDA

    with monkeypatch.context() as limit, pytest.raises(RunError, match=r"GiB.*--micro-batch"):
        limit.setattr(training, "_loss", lacking)
        distill(shared_images, TEACHERS, run, cache=cache, show_progress=False, **options)
    options["micro_batch"] = 3
    found = distill(
        shared_images, TEACHERS, run, cache=cache, resume=True, show_progress=False, **options
    )
    assert found.steps > 0
