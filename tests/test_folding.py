"""Frozen batch normalisation is folded into convolutions: equal gradients, and no trace is left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from whiten.distillation.folding import folded_norms
from whiten.distillation.training import set_training
from whiten.models.student import StudentNet, build_student

SIZE = (64, 64)


def student(name: str) -> StudentNet:
    """Build a student whose batch statistics and affine maps are those of no identity."""
    net, _ = build_student(f"timm:{name}?pretrained=0&size=64", dim=8, pool="avg")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 1.5, generator=generator)
                for values in (module.bias, module.running_mean):
                    values.normal_(0, 0.2, generator=generator)
    set_training(net, is_moving=False)
    return net


def gradients(net: nn.Module) -> dict[str, Tensor]:
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    net.zero_grad()
    net(images).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("resnet18", 20),
        ("tf_efficientnet_lite0", 49),  # pads as TensorFlow does
        ("mobilenetv3_small_050", 34),
        ("test_vit", 0),
    ],
)
def test_gradients_are_the_same(name: str, folded: int) -> None:
    net = student(name)
    expected = gradients(net)
    with folded_norms(net, SIZE) as count:
        assert count == folded
        found = gradients(net)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).abs().max() <= 2e-3 * gradient.abs().max().clamp(min=1e-3)
    assert not any("forward" in vars(module) for module in net.modules())
    again = gradients(net)
    assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_moving_statistics_are_not_folded() -> None:
    net = student("resnet18")
    set_training(net, is_moving=True)
    with folded_norms(net, SIZE) as count:
        assert count == 0


class Skipping(nn.Module):
    """A convolution that feeds a normalisation and a sum, or runs twice."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.conv, self.norm, self.times = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), times
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, images: Tensor) -> Tensor:
        if self.times == 1:
            out = self.conv(images)
            return (out + self.norm(out)).mean((2, 3))
        return self.norm(self.conv(self.norm(self.conv(images)))).mean((2, 3))


@pytest.mark.parametrize("times", [1, 2])
def test_what_only_looks_alike_is_left_alone(times: int) -> None:
    net = Skipping(times).eval()
    expected = gradients(net)
    with folded_norms(net, SIZE) as count:
        assert count == 0
        assert all(torch.equal(v, expected[k]) for k, v in gradients(net).items())
