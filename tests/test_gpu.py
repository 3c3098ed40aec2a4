"""What a GPU computes equals what the CPU computes: embeddings, losses, resumed and split runs.

Skipped without one. Sums are taken in another order there, and convolutions in TF32 if torch is
told to; it is not, so that float32 agrees to a few units in the fourth digit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pictures import picture
from small_runs import OPTIONS, STUDENT, TEACHERS, interrupted_at, losses
from whiten.distillation.distill import distill
from whiten.models.opening import open_model
from whiten.models.teacher import Teacher
from whiten.runs.folder import RunFolder
from whiten.utils.devices import best_device

GPU = best_device().type

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPU == "cpu", reason="torch finds no GPU on this machine"),
]

CONVOLUTIONAL = "timm:test_efficientnet?pretrained=0&size=64"
WAYS: dict[str, dict[str, Any]] = {
    "pairs of groups": {"align": 0.5, "queue": 0.5},
    "frozen backbone": {"backbone_lr": 0.0},
    "colours on the device": {"recipe": "paper", "pairs": "views", "augment": "paper-images"},
    "teachers online": {"recipe": "paper", "teachers_online": True},
}


def run(shared_images: Path, out: Path, device: str = GPU, **options: Any) -> RunFolder:
    options = {**OPTIONS, "epochs": 10, "held_out": 0.0, "device": device, **options}
    distill(shared_images, TEACHERS, out, show_progress=False, **options)
    return RunFolder(out)


def weights(run: RunFolder) -> torch.Tensor:
    state = load_file(run.student / "model.safetensors")
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


@pytest.mark.parametrize("uri", [*TEACHERS, STUDENT, CONVOLUTIONAL])
def test_embeddings(uri: str) -> None:
    pixels = {}
    found = {}
    for device in ("cpu", GPU):
        torch.manual_seed(0)
        model = open_model(uri, runtime="torch", device=device)
        assert isinstance(model, Teacher) and model.device_type == device
        side = model.preprocess.size
        pixels[device] = np.stack([np.asarray(picture(n, *side)) for n in range(8)])
        found[device] = model.embed(pixels[device])
    np.testing.assert_allclose(found[GPU], found["cpu"], atol=1e-3)
    halved = model.embed(pixels[GPU], bf16=True)
    assert (halved * found["cpu"]).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_losses_of_ten_steps(shared_images: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    found = {
        device: losses(run(shared_images, tmp_path / device, device, **options).root)[:10]
        for device in ("cpu", GPU)
    }
    assert len(found["cpu"]) == 10
    # Colours on a device are within a grey level of Pillow's.
    tolerance = 0.05 if "augment" in options else 2e-3
    np.testing.assert_allclose(found[GPU], found["cpu"], rtol=tolerance)


def test_a_run_resumes_as_if_never_interrupted(shared_images: Path, tmp_path: Path) -> None:
    whole = run(shared_images, tmp_path / "whole")
    with interrupted_at(7):
        run(shared_images, tmp_path / "halted")
    again = run(shared_images, tmp_path / "halted", resume=True)
    np.testing.assert_allclose(losses(again.root), losses(whole.root), rtol=1e-4)
    moved = (weights(again) - weights(whole)).norm() / weights(whole).norm()
    assert moved < 1e-3


def test_micro_batches_are_the_whole_batch(shared_images: Path, tmp_path: Path) -> None:
    whole = run(shared_images, tmp_path / "whole")
    split = run(shared_images, tmp_path / "split", micro_batch=3)
    np.testing.assert_allclose(losses(split.root), losses(whole.root), rtol=1e-3)


def test_a_student_of_the_gpu_embeds_alike_on_the_cpu(shared_images: Path, tmp_path: Path) -> None:
    run(shared_images, tmp_path / "run", epochs=1)
    student = tmp_path / "run" / "student"
    shutil.copytree(student, tmp_path / "copy")
    one, other = (open_model(f"whiten:{tmp_path / 'copy'}", device=d) for d in (GPU, "cpu"))
    assert isinstance(one, Teacher) and isinstance(other, Teacher)
    shown = np.stack([np.asarray(picture(n, *one.preprocess.size)) for n in range(4)])
    np.testing.assert_allclose(one.embed(shown), other.embed(shown), atol=1e-3)
    assert one.fingerprint() == other.fingerprint()
