"""Teachers from local weights: timm, torchvision, ONNX files, Python factories."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from whiten.errors import ConfigError, TeacherError
from whiten.spec import parse_uri
from whiten.teachers import (
    Teacher,
    onnx_file,
    open_teacher,
    python_factory,
    timm_models,
    torchvision_models,
)
from whiten.teachers.base import load_into
from whiten.views import IMAGENET_MEAN, IMAGENET_STD, Preprocess, View, render


def make_pixels(side: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def to_input(pixels: np.ndarray, preprocess: Preprocess) -> Tensor:
    """The textbook normalisation, apart from the library's own."""
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return (images - mean[:, None, None]) / std[:, None, None]


def check_same(actual: Tensor, expected: Tensor) -> None:
    """`actual` is `expected`, L2-normalised."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, F.normalize(expected, dim=1), atol=1e-4, rtol=0)


def make_image() -> Image.Image:
    """A wide, smooth photograph, so that two resamplings differ little."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((420, 300), Image.Resampling.BICUBIC)


def check_same_view(preprocess: Preprocess, expected: Tensor) -> None:
    """Ours of `make_image` shows what a library's transform makes of it."""
    ours = to_input(render(make_image(), View(), preprocess)[None], preprocess)[0]
    assert ours.shape == expected.shape
    assert (ours - expected).abs().mean() < 0.02  # of values with a deviation of about 1


def random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights that are unlike any initialisation, and keep activations in range."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "running_var" not in name
        else value
        for name, value in module.state_dict().items()
    }


def save_model(module: nn.Module, path: Path, seed: int = 0) -> nn.Module:
    state = random_state(module, seed)
    module.load_state_dict(state)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return module.eval()


class Explosive:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


# --- timm -------------------------------------------------------------------------------


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
        pretrained_cfg_overlay={"file": str(file)},
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


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("timm:resnet17", "did you mean 'resnet18'"),
        ("timm:resnet18.a1_in2k", r"did you mean 'resnet18\.a1_in1k'"),
        ("timm:zzzzzzzzzzzz", r"list_models\(\)"),
        ("timm:resnet18?sizes=64", "did you mean 'size'"),
        ("timm:resnet18?size=0", "size='0'"),
        ("timm:resnet18?pool=max", "must be one of model, avg, gem"),
        ("torchvision:resnet19", "did you mean 'resnet18'"),
        ("torchvision:zzzzzzzzzzzz", r"list_models\(\)"),
        ("torchvision:resnet18?pool=avg", "has no option 'pool'"),
        ("torchvision:resnet18?pretrained=IMAGENET1K_V3", "did you mean 'IMAGENET1K_V1'"),
        ("torchvision:resnet18?pretrained=zzz", "it has IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_wrong_name_or_option(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_teacher(uri)


def test_listed_names_can_be_asked_for() -> None:
    assert onnx_file.list_names() == python_factory.list_names() == []
    assert "vit_small_patch14_dinov2.lvd142m" in timm_models.list_names()
    names = torchvision_models.list_names()
    assert "resnet50" in names
    assert not any("fasterrcnn" in name or "fcn" in name or "r3d" in name for name in names)


# --- weight files -----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["timm:test_resnet", "torchvision:resnet18"])
def test_weights_that_run_code_are_refused(scheme: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, save in (("w.pth", torch.save), ("w.pt", pickle_plainly)):
        save({"weight": Explosive(mark)}, tmp_path / name)
        with pytest.raises(TeacherError, match="holds tensors only") as caught:
            open_teacher(f"{scheme}?weights={tmp_path / name}")
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def pickle_plainly(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("scheme", ["timm:test_resnet", "timm:test_vit", "torchvision:resnet18"])
def test_weights_of_another_model_are_refused(scheme: str, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match="another architecture"):
        open_teacher(f"{scheme}?weights={tmp_path / 'w.pth'}")
    with pytest.raises(TeacherError, match=r"missing\.pth does not exist"):
        open_teacher(f"{scheme}?weights={tmp_path / 'missing.pth'}")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(TeacherError, match="cannot read weights"):
        open_teacher(f"{scheme}?weights={tmp_path / 'empty.pth'}")


def test_load_into_wants_all_but_step_counters() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    state = {name: torch.full_like(value, 2) for name, value in module.state_dict().items()}
    del state["1.num_batches_tracked"]  # as in files from before PyTorch 0.4.1
    load_into(module, state | {"fc.weight": torch.zeros(1)}, "file", ignore=("fc.",))
    assert module[0].bias.tolist() == [2, 2]
    with pytest.raises(TeacherError, match=r"has unknown fc_norm\.weight"):
        load_into(module, state | {"fc_norm.weight": torch.zeros(1)}, "file", ignore=("fc.",))
    with pytest.raises(TeacherError, match=r"has unknown fc\.weight"):
        load_into(module, state | {"fc.weight": torch.zeros(1)}, "file")
    del state["1.running_mean"]
    with pytest.raises(TeacherError, match=r"lacks 1\.running_mean"):
        load_into(module, state, "file")


# --- torchvision ------------------------------------------------------------------------


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


# --- ONNX -------------------------------------------------------------------------------

PROJECTION = np.random.default_rng(3).standard_normal((3, 5)).astype(np.float32)


def make_graph(path: Path, *, nhwc: bool = False, scores: bool = False, side: int = 32) -> Path:
    """Mean colour, projected: `pooled` (n, 3) -> `embedding` (n, 5) -> perhaps `scores`."""
    helper = onnx.helper
    shape = ["n", side, side, 3] if nhwc else ["n", 3, side, side]
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["planes" if nhwc else "image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["pooled"]),
        helper.make_node("MatMul", ["pooled", "projection"], ["embedding"]),
        helper.make_node("Softmax", ["embedding"], ["probabilities"]),
        helper.make_node("Identity", ["probabilities"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes[0 if nhwc else 1 : 6 if scores else 4],
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(
                "scores" if scores else "embedding", onnx.TensorProto.FLOAT, ["n", 5]
            )
        ],
        [onnx.numpy_helper.from_array(PROJECTION, "projection")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def mean_colours(pixels: np.ndarray) -> Tensor:
    """(n, 3): the mean of ImageNet-normalised RGB."""
    colours = pixels.reshape(len(pixels), -1, 3).mean(1) / 255
    return torch.from_numpy((colours - IMAGENET_MEAN) / IMAGENET_STD).float()


def test_onnx_embeds(tmp_path: Path) -> None:
    teacher = open_teacher(f"onnx:{make_graph(tmp_path / 'mean.onnx')}")
    pixels = make_pixels(32, n=3)
    check_same(teacher.embed(pixels), mean_colours(pixels) @ torch.from_numpy(PROJECTION))
    assert (teacher.name, teacher.dim, teacher.preprocess.size) == ("mean", 5, (32, 32))
    assert teacher.params == PROJECTION.size
    assert teacher.count_macs() == PROJECTION.size
    same = open_teacher(f"onnx:{make_graph(tmp_path / 'again.onnx')}")
    changed = make_graph(tmp_path / "other.onnx", scores=True)
    other = open_teacher(f"onnx:{changed}?output=embedding")
    assert same.fingerprint() == teacher.fingerprint()
    assert other.weights_hash != teacher.weights_hash


def test_onnx_output_names_an_inner_tensor(tmp_path: Path) -> None:
    path = make_graph(tmp_path / "g.onnx", scores=True)
    pixels = make_pixels(32)
    teacher = open_teacher(f"onnx:{path}?output=pooled")
    check_same(teacher.embed(pixels), mean_colours(pixels))
    with pytest.raises(TeacherError, match=r"class probabilities \(Softmax\).*\?output=TENSOR"):
        open_teacher(f"onnx:{path}")
    with pytest.raises(TeacherError, match="no tensor 'pool'"):
        open_teacher(f"onnx:{path}?output=pool")


def test_onnx_layout_and_channels(tmp_path: Path) -> None:
    pixels = make_pixels(32)
    expected = mean_colours(pixels) @ torch.from_numpy(PROJECTION)
    nhwc = open_teacher(f"onnx:{make_graph(tmp_path / 'nhwc.onnx', nhwc=True)}")
    assert nhwc.preprocess.layout == "nhwc"
    check_same(nhwc.embed(pixels), expected)
    plain = make_graph(tmp_path / "g.onnx")
    statistics = "mean=123.675,116.28,103.53&std=58.395,57.12,57.375&white=255"
    check_same(open_teacher(f"onnx:{plain}?{statistics}").embed(pixels), expected)
    bgr = open_teacher(f"onnx:{plain}?channels=bgr&mean=0,0,0&std=1,1,1")
    reversed_means = torch.from_numpy(pixels[..., ::-1].reshape(2, -1, 3).mean(1) / 255).float()
    check_same(bgr.embed(pixels), reversed_means @ torch.from_numpy(PROJECTION))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("size=64", "32x32 px only"),
        ("channels=gbr", "must be one of rgb, bgr"),
        ("mean=1,2", "mean='1,2'"),
        ("outputs=x", "did you mean 'output'"),
    ],
)
def test_onnx_refuses_options(query: str, message: str, tmp_path: Path) -> None:
    path = make_graph(tmp_path / "g.onnx")
    with pytest.raises(ConfigError, match=message):
        open_teacher(f"onnx:{path}?{query}")


def test_onnx_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(TeacherError, match="not an ONNX model"):
        open_teacher(f"onnx:{tmp_path / 'text.onnx'}")
    with pytest.raises(TeacherError, match="does not exist"):
        open_teacher(f"onnx:{tmp_path / 'missing.onnx'}")


# --- Python -----------------------------------------------------------------------------

FACTORIES = '''
import torch
from torch import nn
from whiten.teachers.base import Teacher
from whiten.views import Preprocess

class Mean(nn.Module):
    """Mean colours, `repeat` times; has no weights."""
    def __init__(self, repeat):
        super().__init__()
        self.repeat = repeat
    def forward(self, images):
        assert not self.training
        return images.mean((2, 3)).repeat(1, self.repeat)

def module(repeat="1"): return Mean(int(repeat))
def dropped(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
def pair(): return Mean(1), Preprocess(size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
def teacher(): return Teacher("x", "mine", 3, Preprocess(), "0" * 32, Mean(1))
def maps(): return nn.Identity()
def number(): return 3
def swapped(): return Preprocess(), Mean(1)
def broken(): raise ValueError("no luck\\nat all")
constant = 1
'''


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI's beginning of a module in the current folder, which is not on the path."""
    (tmp_path / "my_teachers.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", ".")])
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    return "python:my_teachers:"


def test_python_module(factories: str) -> None:
    pixels = make_pixels(224)
    teacher = open_teacher(f"{factories}module?repeat=2")
    check_same(teacher.embed(pixels), mean_colours(pixels).repeat(1, 2))
    assert teacher.uri == f"{factories}module?repeat=2"
    assert teacher.fingerprint() == open_teacher(teacher.uri).fingerprint()
    # Weightless modules are told apart by what made them.
    assert teacher.weights_hash != open_teacher(f"{factories}module?repeat=1").weights_hash
    assert teacher.weights_hash != open_teacher(f"{factories}pair").weights_hash


def test_python_tuple_and_teacher(factories: str) -> None:
    pixels = make_pixels(16)
    pair = open_teacher(f"{factories}pair")
    assert pair.preprocess.size == (16, 16)
    raw = torch.from_numpy(pixels.reshape(2, -1, 3).mean(1) / 255).float()
    check_same(pair.embed(pixels), raw)
    own = open_teacher(f"{factories}teacher")
    assert (own.name, own.weights_hash, own.uri) == ("mine", "0" * 32, f"{factories}teacher")


def test_python_weights_make_the_identity(factories: str) -> None:
    torch.manual_seed(0)
    first = open_teacher(f"{factories}dropped")
    second = open_teacher(f"{factories}dropped")  # the factory draws new weights
    assert first.weights_hash != second.weights_hash
    torch.manual_seed(0)
    assert first.weights_hash == open_teacher(f"{factories}dropped").weights_hash


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("my_teachers:modul", TeacherError, "did you mean 'module'"),
        ("my_teachers:constant", TeacherError, "no function 'constant'"),
        ("my_teachers:broken", TeacherError, r"ValueError: no luck\)"),
        ("my_teachers:module?size=3", TeacherError, "unexpected keyword argument 'size'"),
        ("my_teachers:number", TeacherError, "returned int"),
        ("my_teachers:swapped", TeacherError, r"returned \(Preprocess, Mean\)"),
        ("my_teachers:maps", TeacherError, r"returned \(1, 3, 224, 224\)"),
        ("my_broken:make", TeacherError, "No module named 'nothing_of_this_name'"),
        ("my_absent:make", TeacherError, "cannot import my_absent"),
        ("my_teachers", ConfigError, "python:pkg.module:factory"),
    ],
)
def test_python_mistakes(factories: str, target: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_teacher(f"python:{target}")
    assert "\n" not in str(caught.value)
