"""timm teachers: they embed, pool and preprocess as timm does."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from teacher_helpers import (
    check_same,
    check_same_view,
    make_image,
    make_pixels,
    random_state,
    save_model,
    to_input,
)
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_teacher
from whiten.models.sources import timm_models
from whiten.models.teacher import Teacher
from whiten.models.uri import parse_uri
from whiten.views.rendering import Preprocess


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_timm_embeds_as_timm_does(name: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    full = save_model(timm.create_model(name), file)
    teacher = open_teacher(f"timm:{name}?weights={file}")
    assert (teacher.preprocess.size, teacher.preprocess.crop_fraction) == ((160, 160), 0.95)
    pixels = make_pixels(160)
    with torch.no_grad():
        features = full.forward_features(to_input(pixels, teacher.preprocess))
        expected = full.forward_head(features, pre_logits=True)
    check_same(teacher.embed(pixels), expected)
    assert teacher.dim == expected.shape[1] != full.num_classes == 1000
    assert teacher.module is not None and not teacher.module.training
    assert teacher.count_macs()


def test_timm_vit_takes_another_size(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    name = "vit_tiny_patch16_224"  # unlike test_vit, it is built for one size
    save_model(timm.create_model(name), file)
    small = open_teacher(f"timm:{name}?weights={file}&size=96")
    native = open_teacher(f"timm:{name}?weights={file}")
    own = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "custom_load": False},
        num_classes=0,
        img_size=96,
    ).eval()
    pixels = make_pixels(96)
    with torch.no_grad():
        check_same(small.embed(pixels), own(to_input(pixels, small.preprocess)))
    # The other size goes on working beside it.
    assert native.embed(make_pixels(224)).shape == (2, native.dim)
    assert small.fingerprint() != native.fingerprint()
    with pytest.raises(TeacherError, match=r"cannot embed a 90x90 image .*another \?size="):
        open_teacher("timm:test_vit?pretrained=0&size=90")


def test_timm_pooling(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    full = save_model(timm.create_model("test_convnext"), file)
    base = f"timm:test_convnext?weights={file}&size=64"
    teachers = {pool: open_teacher(f"{base}&pool={pool}") for pool in ("model", "avg", "gem")}
    pixels = make_pixels(64)
    with torch.no_grad():
        maps = full.forward_features(to_input(pixels, teachers["gem"].preprocess))
    check_same(teachers["avg"].embed(pixels), maps.mean((2, 3)))
    gem = (maps.clamp(min=1e-6) ** 3).mean((2, 3)) ** (1 / 3)
    check_same(teachers["gem"].embed(pixels), gem)
    assert (maps < 0).any()  # GeM must cut these off
    # Equal weights, but other embeddings: a store of one must not take the other.
    assert len({teacher.weights_hash for teacher in teachers.values()}) == 1
    assert len({teacher.fingerprint() for teacher in teachers.values()}) == 3


def test_timm_pools_patches_without_the_class_token(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    full = save_model(timm.create_model("test_vit"), file)
    teacher = open_teacher(f"timm:test_vit?weights={file}&pool=avg")
    pixels = make_pixels(160)
    with torch.no_grad():
        tokens = full.forward_features(to_input(pixels, teacher.preprocess))
    check_same(teacher.embed(pixels), tokens[:, 1:].mean(1))
    with pytest.raises(ConfigError, match=r"pool=gem needs feature maps.*pool=avg"):
        open_teacher(f"timm:test_vit?weights={file}&pool=gem")


def test_timm_identity_is_weights_and_preprocessing(tmp_path: Path) -> None:
    state = random_state(timm.create_model("test_resnet", num_classes=7), 0)
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "same.safetensors")
    torch.save(state | {"fc.weight": state["fc.weight"] + 1}, tmp_path / "other_classifier.pth")
    torch.save(state | {"conv1.0.weight": state["conv1.0.weight"] + 1}, tmp_path / "other.pth")

    def open_file(name: str, size: int = 64) -> Teacher:
        return open_teacher(f"timm:test_resnet?size={size}&weights={tmp_path / name}")

    first = open_file("a.pth")
    for name in ("a.pth", "same.safetensors", "other_classifier.pth"):
        same = open_file(name)
        assert same.weights_hash == first.weights_hash
        assert same.fingerprint() == first.fingerprint()
    other = open_file("other.pth")
    assert other.weights_hash != first.weights_hash
    assert other.fingerprint() != first.fingerprint()
    larger = open_file("a.pth", size=96)
    assert larger.weights_hash == first.weights_hash
    assert larger.fingerprint() != first.fingerprint()


def test_timm_random_weights_are_always_the_same() -> None:
    before = torch.random.get_rng_state()
    first = open_teacher("timm:test_resnet?pretrained=0&size=64")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(1)
    second = open_teacher("timm:test_resnet?pretrained=0&size=64")
    assert first.weights_hash == second.weights_hash


def test_timm_takes_another_fit() -> None:
    uri = "timm:test_resnet?pretrained=0&fit="
    assert open_teacher(uri + "squash").preprocess.fit == "squash"
    assert open_teacher(uri + "crop").preprocess.fit == "crop"
    with pytest.raises(ConfigError, match="fit=both must be crop or squash"):
        open_teacher(uri + "both")


def test_timm_reads_its_preprocessing() -> None:
    model = timm_models.create_backbone(parse_uri("timm:test_resnet"), pretrained=False)
    model.pretrained_cfg |= {
        "input_size": (3, 96, 128),
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.9,
    }
    assert timm_models.read_preprocess(model, None) == Preprocess(
        size=(96, 128),
        fit="squash",
        crop_fraction=0.9,
        interpolation="bilinear",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    assert timm_models.read_preprocess(model, 64).size == (64, 64)
    model.pretrained_cfg |= {"interpolation": "random", "crop_mode": "center"}
    cropped = timm_models.read_preprocess(model, None)
    assert (cropped.interpolation, cropped.fit) == ("bicubic", "crop")


def test_timm_sees_what_timm_shows() -> None:
    model = timm_models.create_backbone(parse_uri("timm:test_resnet"), pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    check_same_view(timm_models.read_preprocess(model, None), transform(make_image()))


def test_timm_licence_belongs_to_the_published_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    save_model(timm.create_model("test_vit"), file)
    assert open_teacher(f"timm:test_vit.r160_in1k?weights={file}").licence == "apache-2.0"
    assert open_teacher(f"timm:test_vit?weights={file}").licence == "unknown"
    assert open_teacher("timm:test_vit.r160_in1k?pretrained=0").licence == "unknown"
