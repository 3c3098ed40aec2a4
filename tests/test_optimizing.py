"""Each layer trains at its own rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from small_runs import TEACHERS, run
from whiten.distillation.optimizing import make_optimizer
from whiten.errors import ConfigError
from whiten.models.student import StudentNet, build_student
from whiten.runs.spec import DistillSpec

RESNET = "timm:test_resnet?pretrained=0&size=32"
VIT = "timm:test_vit?pretrained=0&size=32"


def scales(net: StudentNet, **options: float) -> dict[str, float]:
    """The learning rate of each parameter, relative to that of the projection."""
    made = make_optimizer(net, DistillSpec(teachers=TEACHERS, **options))  # type: ignore[arg-type]
    by_id = {id(p): group["lr_scale"] for group in made.param_groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in net.named_parameters() if id(p) in by_id}


def test_stages_train_more_slowly_the_earlier_they_are() -> None:
    net, _ = build_student(RESNET, dim=8, size=32, pool="gem")
    found = scales(net, layer_decay=0.5, backbone_lr=0.8)
    assert found["projection.weight"] == 1
    for below, stage in enumerate(("layer4", "layer3", "layer2", "layer1", "conv1"), 1):
        own = {scale for name, scale in found.items() if name.startswith(f"backbone.{stage}.")}
        assert own == {0.8 * 0.5**below}, stage
    assert found["power"] == 0.4  # of the pooling
    assert set(found) == {name for name, _ in net.named_parameters()}


def test_blocks_of_a_transformer_are_its_layers() -> None:
    net, _ = build_student(VIT, dim=8, size=32)
    found = scales(net, layer_decay=0.5)
    blocks = len(net.backbone.blocks)  # type: ignore[arg-type]
    assert found[f"backbone.blocks.{blocks - 1}.attn.qkv.weight"] == 0.5
    assert found["backbone.blocks.0.attn.qkv.weight"] == 0.5**blocks
    assert found["backbone.patch_embed.proj.weight"] == 0.5 ** (blocks + 1)


def test_without_decay_the_groups_are_those_of_earlier_checkpoints() -> None:
    net, _ = build_student(RESNET, dim=8, size=32)
    made = make_optimizer(net, DistillSpec(teachers=TEACHERS, backbone_lr=0.1))
    head = [net.projection.weight, net.projection.bias]
    found = [group["params"] for group in made.param_groups]
    backbone = [p for p in net.parameters() if all(p is not own for own in head)]
    matrices, vectors = ([p for p in backbone if (p.ndim > 1) == is_matrix] for is_matrix in (1, 0))
    expected = [matrices, vectors, [head[0]], [head[1]]]
    assert [list(map(id, group)) for group in found] == [list(map(id, g)) for g in expected]
    assert [group["lr_scale"] for group in made.param_groups] == [0.1, 0.1, 1, 1]


def test_early_layers_move_less(shared_images: Path, tmp_path: Path) -> None:
    options = {"student": RESNET, "recipe": "labels", "held_out": 0.0}
    students = {}
    for name, more in (
        ("start", {"epochs": 0}),
        ("all", {"epochs": 2}),
        ("late", {"epochs": 2, "layer_decay": 0.1}),
    ):
        found = run(shared_images, tmp_path / name, tmp_path / "cache", **options, **more)
        students[name] = load_file(found.student / "model.safetensors")

    def moved(name: str, layer: str) -> float:
        return float((students[name][layer] - students["start"][layer]).norm())

    early, late = "backbone.conv1.0.weight", "backbone.layer4.0.conv2.weight"
    assert 0 < moved("late", early) < 1e-2 * moved("late", late)
    assert moved("all", early) > 1e-1 * moved("all", late)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5])
def test_a_decay_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"layer_decay must be above 0, at most 1, not"):
        DistillSpec(teachers=TEACHERS, layer_decay=value)


def test_a_frozen_backbone_has_no_decay() -> None:
    with pytest.raises(ConfigError, match="leave out layer_decay"):
        DistillSpec(teachers=TEACHERS, layer_decay=0.7, backbone_lr=0.0)
