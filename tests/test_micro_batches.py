"""A batch in parts has the loss and the gradient of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_runs import OPTIONS, TEACHERS, interrupted_at, losses
from whiten.distillation import micro_batches, training
from whiten.distillation.distill import DistillResult, distill
from whiten.distillation.losses import distillation_loss
from whiten.distillation.micro_batches import MicroBatches, activation_bytes, fitting_size
from whiten.distillation.training import set_training
from whiten.errors import ConfigError
from whiten.models.student import build_student
from whiten.runs.spec import DistillSpec

RESNET = "timm:test_resnet?pretrained=0&size=32"


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 4)


def run(images: Path, out: Path, cache: Path, **options: Any) -> DistillResult:
    chosen = {**OPTIONS, "epochs": 3, "batch_size": 8, **options}
    return distill(images, TEACHERS, out=out, cache=cache, show_progress=False, **chosen)


def fabric(**options: Any) -> Any:
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1, **options)


class Dropping(nn.Module):
    """A network with a random layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 6)
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.first(inputs).relu(), 0.5)
        self.seen.append(hidden.detach())
        return self.second(hidden)


def loss_of(embeddings: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, y = embeddings.chunk(2)
    teachers = [torch.randn(len(x), 5, generator=generator) for _ in range(2)]
    return distillation_loss(x, y, teachers[:1], teachers[1:])


def gradients(
    net: nn.Module, inputs: Tensor, size: int | None, **options: Any
) -> dict[str, np.ndarray]:
    own = fabric(**options)
    model, _ = own.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    net.zero_grad()
    if size is None:
        own.backward(loss_of(model(inputs).float()))
    else:
        parts = MicroBatches(own, model, inputs, size)
        embeddings = parts.embed()
        parts.backward(loss_of(embeddings), embeddings)
    return {name: p.grad.numpy().copy() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 3, 4, 16])
@pytest.mark.parametrize("student", [RESNET, OPTIONS["student"]], ids=["resnet", "vit"])
def test_gradients_are_those_of_the_whole_batch(student: str, size: int) -> None:
    torch.manual_seed(0)
    net, _ = build_student(student, dim=8)
    set_training(net, is_moving=False)
    inputs = torch.randn(16, 3, 32, 32)
    whole, parts = gradients(net, inputs, None), gradients(net, inputs, size)
    assert whole.keys() == parts.keys()
    largest = max(np.abs(expected).max() for expected in whole.values())
    for name, expected in whole.items():
        # Gradients that are 0 but for rounding, as that of the pooling's power here, follow none.
        tolerance = 1e-4 * np.abs(expected).max() + 1e-6 * largest
        np.testing.assert_allclose(parts[name], expected, atol=tolerance, err_msg=name)


def test_autocast_is_as_in_the_whole_batch() -> None:
    torch.manual_seed(0)
    net, _ = build_student(OPTIONS["student"], dim=8)
    inputs = torch.randn(16, 3, 32, 32)
    whole = gradients(net, inputs, None, precision="bf16-mixed")
    parts = gradients(net, inputs, 4, precision="bf16-mixed")
    for name, expected in whole.items():
        error = np.linalg.norm(parts[name] - expected)
        assert error <= 0.05 * np.linalg.norm(expected) + 1e-6, name


def test_random_layers_draw_the_same_in_both_passes() -> None:
    torch.manual_seed(0)
    net = Dropping()
    gradients(net, torch.randn(16, 12), 4)
    first, second = net.seen[:4], net.seen[4:]
    assert len(second) == 4
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0] == 0, first[1] == 0)  # each part draws its own


def test_moving_statistics_move_once_per_part() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6))
    expected = nn.BatchNorm1d(6)
    inputs = torch.randn(16, 12)
    for part in inputs.split(4):
        expected(net[0](part))
    gradients(net, inputs, 4)
    torch.testing.assert_close(net[1].running_mean, expected.running_mean)
    torch.testing.assert_close(net[1].running_var, expected.running_var)
    assert net[1].momentum == 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"student": RESNET, "batch_statistics": "frozen"}], ids=["vit", "frozen"]
)
def test_losses_of_a_run_are_those_of_the_whole_batch(
    shared_images: Path, cache: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    more = {**options, "epochs": 5, "lr": 1e-4}
    run(shared_images, tmp_path / "whole", cache, **more)
    run(shared_images, tmp_path / "parts", cache, **more, micro_batch=3)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len(whole) >= 10
    np.testing.assert_allclose(parts, whole, rtol=1e-3)
    np.testing.assert_allclose(parts[:1], whole[:1], rtol=1e-6)


@pytest.mark.slow
def test_a_run_in_parts_resumes_on_the_same_trajectory(
    shared_images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "fitting_size", lambda *_: 4)
    options = {"micro_batch": "auto"}
    run(shared_images, tmp_path / "whole", cache, **options)
    with interrupted_at(3):
        run(shared_images, tmp_path / "parts", cache, **options)
    monkeypatch.setattr(training, "fitting_size", lambda *_: 2)  # the memory is another by now
    distill("", out=tmp_path / "parts", cache=cache, resume=True, show_progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_size_follows_the_memory() -> None:
    net, _ = build_student(RESNET, dim=8)
    each = activation_bytes(net, 32)
    larger = activation_bytes(net, 64)
    assert 3.5 * each < larger < 4.5 * each  # activations are as many as pixels
    assert fitting_size(net, 32, 128, free=1000 * each) is None
    assert fitting_size(net, 32, 128, free=100 * each) == 32  # half of it for 50
    assert fitting_size(net, 32, 128, free=each) == 4
    assert micro_batches.free_memory(torch.device("cpu")) > 1 << 20


@pytest.mark.parametrize("value", [0, -1, "half", 2.5])
def test_a_wrong_size_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="micro_batch must be"):
        DistillSpec(teachers=TEACHERS, micro_batch=value)
