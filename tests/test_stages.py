"""Pooling of every stage: what is pooled, where there are none, and how a student keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from small_runs import TEACHERS
from whiten.errors import ConfigError
from whiten.models.card import model_card
from whiten.models.student import build_student, load_student, save_student
from whiten.models.uri import Pool
from whiten.runs.spec import DistillSpec

RESNET = "timm:test_resnet?pretrained=0"  # its last stage is its last map
EFFICIENTNET = "timm:test_efficientnet?pretrained=0"  # a layer follows its last stage
TRANSFORMER = "timm:test_vit?pretrained=0"


@pytest.mark.parametrize(("uri", "stages"), [(RESNET, [1, 2, 3]), (EFFICIENTNET, [1, 2, 3, 4])])
def test_features_are_statistics_of_the_stages_beside_the_average(
    uri: str, stages: list[int]
) -> None:
    torch.manual_seed(0)
    net, _ = build_student(uri, dim=4, size=64, pool="stages")
    images = torch.randn(3, 3, 64, 64)
    net.eval()
    with torch.no_grad():
        last, maps = net.backbone.forward_intermediates(images, indices=stages)
        found = net.features(images)
    parts = []
    for stage in maps:
        flat = stage.flatten(2).double()
        parts += [flat.mean(dim=2), flat.std(dim=2, correction=0)]
    parts.append(last.double().mean(dim=(2, 3)))
    expected = torch.cat([F.normalize(part, dim=1) for part in parts], dim=1) / len(parts) ** 0.5
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert net.projection.in_features == expected.shape[1]


def test_a_transformer_has_no_stages() -> None:
    nets = []
    for pool in ("stages", "avg"):
        torch.manual_seed(0)
        nets.append(build_student(TRANSFORMER, dim=4, size=32, pool=pool)[0].eval())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(*(net.features(images) for net in nets))


@pytest.mark.parametrize("pool", ["auto", "avg", "stages"])
def test_a_network_with_several_last_maps_is_refused(pool: Pool) -> None:
    with pytest.raises(ConfigError, match=r"CoaT has several last maps.*another backbone"):
        build_student("timm:coat_tiny?pretrained=0", dim=4, pool=pool)


def test_a_constant_image_has_a_gradient() -> None:
    """A deviation of 0 has no derivative; the images of a white page would make the loss NaN."""
    net, _ = build_student(RESNET, dim=4, size=32, pool="stages")
    net(torch.zeros(2, 3, 32, 32)).sum().backward()
    for parameter in net.parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all()


def test_a_saved_student_pools_as_before(tmp_path: Path) -> None:
    net, config = build_student(EFFICIENTNET, dim=4, size=32, pool="stages")
    save_student(net.eval(), config, tmp_path / "student", model_card(config))
    loaded, again = load_student(tmp_path / "student")
    assert again.pool == "stages"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        np.testing.assert_allclose(loaded.eval()(images), net(images), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "pool"),
    [
        ({"student": "timm:test_resnet"}, "stages"),
        ({"student": "timm:test_resnet", "pool": "avg"}, "avg"),
        ({"student": RESNET}, "auto"),
        ({"student": RESNET, "pool": "stages"}, "stages"),
        ({"student": "timm:test_resnet", "recipe": "paper"}, "auto"),
        ({"student": "whiten:runs/a/student"}, "auto"),
    ],
)
def test_pretrained_students_pool_their_stages(options: dict[str, str], pool: str) -> None:
    spec = DistillSpec.from_mapping({"teachers": TEACHERS, **options})
    assert spec.pooling == pool
