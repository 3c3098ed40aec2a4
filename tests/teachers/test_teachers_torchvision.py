"""torchvision teachers: features before the classifier, torchvision's preprocessing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from teacher_helpers import (
    check_same,
    check_same_view,
    make_image,
    make_pixels,
    random_state,
    save_model,
    to_input,
)
from whiten.errors import TeacherError
from whiten.models.registry import open_teacher
from whiten.models.sources import torchvision_models
from whiten.models.uri import parse_uri
from whiten.models.weights import load_into
from whiten.views.rendering import Preprocess


def test_torchvision_resnet_embeds_pooled_features(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    full = save_model(torchvision.models.resnet18(num_classes=9), file)
    teacher = open_teacher(f"torchvision:resnet18?weights={file}&size=64")
    full.fc = nn.Identity()
    pixels = make_pixels(64)
    with torch.no_grad():
        check_same(teacher.embed(pixels), full(to_input(pixels, teacher.preprocess)))
    assert teacher.dim == 512
    assert teacher.licence == "unknown"
    assert teacher.preprocess == Preprocess(
        size=(64, 64), crop_fraction=224 / 256, interpolation="bilinear"
    )


def test_torchvision_keeps_what_precedes_the_last_layer(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    full = save_model(torchvision.models.mobilenet_v3_small(), file)
    teacher = open_teacher(f"torchvision:mobilenet_v3_small?weights={file}&size=64")
    pixels = make_pixels(64)
    with torch.no_grad():
        maps = full.features(to_input(pixels, teacher.preprocess))
        expected = full.classifier[:-1](full.avgpool(maps).flatten(1))
    check_same(teacher.embed(pixels), expected)
    assert teacher.dim == 1024
    native = open_teacher(f"torchvision:mobilenet_v3_small?weights={file}")
    assert native.preprocess.size == (224, 224)
    assert native.weights_hash == teacher.weights_hash
    assert native.fingerprint() != teacher.fingerprint()
    random = open_teacher("torchvision:mobilenet_v3_small?pretrained=0&size=64")
    assert random.weights_hash != teacher.weights_hash
    assert random.fingerprint() == open_teacher(random.uri).fingerprint()


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("vit_b_16", 768),
        ("swin_t", 768),
        ("convnext_tiny", 768),
        ("efficientnet_b0", 1280),
        ("mobilenet_v2", 1280),
        ("densenet121", 1024),
        ("vgg11", 4096),
        ("squeezenet1_1", 512),
        ("inception_v3", 2048),
        ("maxvit_t", 512),
        ("shufflenet_v2_x0_5", 1024),
    ],
)
def test_torchvision_classifier_is_cut_off(name: str, dim: int) -> None:
    uri = parse_uri(f"torchvision:{name}")
    recipe = torchvision.models.get_model_weights(name).DEFAULT
    size = torchvision_models.read_preprocess(recipe, None).size
    with torch.device("meta"):  # shapes only: some of these are large
        module = torchvision_models._build(uri, size[0])
        classifier = torchvision_models._cut_classifier(module, 1000, uri)
        out = module(torch.zeros(1, 3, *size))
    assert isinstance(module.get_submodule(classifier), nn.Identity)
    assert out.shape == (1, dim)


def test_torchvision_cuts_the_last_of_equal_layers() -> None:
    module = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10))
    uri = parse_uri("torchvision:resnet18")
    assert torchvision_models._cut_classifier(module, 10, uri) == "2"
    assert isinstance(module[0], nn.Linear)
    with pytest.raises(TeacherError, match="no classifier"):
        torchvision_models._cut_classifier(module, 1000, uri)


def test_torchvision_reads_old_densenet_files(tmp_path: Path) -> None:
    full = torchvision.models.densenet121()
    state = random_state(full, 0)
    old = {
        name.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2.")
        if "denselayer" in name
        else name: value
        for name, value in state.items()
        if "num_batches_tracked" not in name
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    teacher = open_teacher(f"torchvision:densenet121?size=32&weights={tmp_path / 'old.pth'}")
    assert teacher.module is not None
    own = teacher.module.state_dict()
    assert state.keys() - own.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(value, state[name]) for name, value in own.items())


def test_torchvision_resamples_position_embeddings() -> None:
    def make(side: int) -> nn.Module:
        return torchvision.models.VisionTransformer(side, 8, 1, 2, 16, 32)

    state = random_state(make(32), 0)
    state["encoder.pos_embedding"][:, 1:] = 0.25  # any resampling of a constant is the constant
    larger = make(48)
    load_into(larger, torchvision_models._resample(state, larger), "file")
    embedding = larger.encoder.pos_embedding
    assert embedding.shape == (1, 1 + 36, 16)
    torch.testing.assert_close(embedding[:, 0], state["encoder.pos_embedding"][:, 0])
    torch.testing.assert_close(embedding[:, 1:], torch.full((1, 36, 16), 0.25))


@pytest.mark.parametrize("weights", ["ResNet50_Weights.IMAGENET1K_V2", "ViT_B_16_Weights.DEFAULT"])
def test_torchvision_sees_what_torchvision_shows(weights: str) -> None:
    recipe = torchvision.models.get_weight(weights)
    check_same_view(
        torchvision_models.read_preprocess(recipe, None), recipe.transforms()(make_image())
    )


def test_torchvision_named_weights_choose_preprocessing(tmp_path: Path) -> None:
    first, second = (
        torchvision_models.read_preprocess(torchvision.models.ResNet50_Weights[name], None)
        for name in ("IMAGENET1K_V1", "IMAGENET1K_V2")
    )
    assert (first.crop_fraction, second.crop_fraction) == (224 / 256, 224 / 232)
    file = tmp_path / "w.pth"
    save_model(torchvision.models.mobilenet_v2(), file)
    base = f"torchvision:mobilenet_v2?weights={file}&size=32"
    assert open_teacher(f"{base}&pretrained=IMAGENET1K_V1").preprocess.crop_fraction == 224 / 256
    assert open_teacher(base).preprocess.crop_fraction == 224 / 232
