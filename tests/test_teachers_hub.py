"""Teachers of open_clip and transformers, and every source without a network."""

from __future__ import annotations

import http.server
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from PIL import Image
from torch import Tensor

from whiten.errors import ConfigError, MissingExtraError, TeacherError
from whiten.spec import parse_uri
from whiten.teachers import hub, huggingface, open_teacher, openclip
from whiten.views import Preprocess, View, render

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model that the machine has at hand, and no look outside."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "answers", refuse_network)


def refuse_network(server: str) -> bool:
    raise AssertionError(f"a local model asked {server}")


def make_pixels(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)


def to_input(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def check_same(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, F.normalize(expected, dim=1), atol=1e-4, rtol=0)


def shake(module: Any, seed: int = 0) -> Any:
    """Weights unlike any initialisation, in which biases and class tokens are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


# --- open_clip --------------------------------------------------------------------------

TOWERS: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
}
COCA: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": TOWERS["vision_cfg"]
    | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": TOWERS["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"width": 16, "context_length": 8, "heads": 2, "layers": 1},
    "custom_text": True,
}
# A text tower from the hub, which an image teacher must not ask for.
HUB_TEXT: dict[str, Any] = TOWERS | {
    "text_cfg": {"hf_model_name": "somebody/language-model", "hf_tokenizer_name": "x"}
}


@pytest.fixture(scope="module", autouse=True)
def tiny_architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, config in (("whiten-tiny", TOWERS), ("whiten-coca", COCA), ("whiten-hub", HUB_TEXT)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def save_openclip(file: Path, name: str = "whiten-tiny", seed: int = 0, **options: Any) -> Any:
    model = shake(open_clip.create_model(name, **options), seed)
    torch.save(model.state_dict(), file)
    return model


def test_openclip_names() -> None:
    assert "ViT-B-16/laion2b_s34b_b88k" in openclip.list_names()
    assert huggingface.list_names() == []


@pytest.mark.parametrize("name", ["whiten-tiny", "whiten-coca"])
def test_openclip_embeds_as_encode_image_does(name: str, tmp_path: Path) -> None:
    model = save_openclip(tmp_path / "w.pt", name)
    teacher = open_teacher(f"openclip:{name}?weights={tmp_path / 'w.pt'}")
    pixels = make_pixels(32)
    with torch.no_grad():
        images = to_input(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        check_same(teacher.embed(pixels), model.encode_image(images))
    assert teacher.dim == 12
    # The text tower is not part of the teacher.
    assert teacher.params == sum(p.numel() for p in model.visual.parameters())


def test_openclip_takes_another_size(tmp_path: Path) -> None:
    save_openclip(tmp_path / "w.pt")
    base_uri = f"openclip:whiten-tiny?weights={tmp_path / 'w.pt'}"
    larger, native = open_teacher(f"{base_uri}&size=48"), open_teacher(base_uri)
    assert (larger.preprocess.size, native.preprocess.size) == ((48, 48), (32, 32))
    own = open_clip.create_model(
        "whiten-tiny", pretrained=str(tmp_path / "w.pt"), force_image_size=48
    )
    pixels = make_pixels(48)
    with torch.no_grad():
        images = to_input(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        check_same(larger.embed(pixels), own.encode_image(images))
    assert native.embed(make_pixels(32)).shape == (2, 12)
    assert native.fingerprint() != larger.fingerprint()


def test_openclip_identity(tmp_path: Path) -> None:
    save_openclip(tmp_path / "a.pt", seed=1)
    save_openclip(tmp_path / "b.pt", seed=2)
    first = open_teacher(f"openclip:whiten-tiny?weights={tmp_path / 'a.pt'}")
    other = open_teacher(f"openclip:whiten-tiny?weights={tmp_path / 'b.pt'}")
    assert first.fingerprint() == open_teacher(first.uri).fingerprint()
    assert first.weights_hash != other.weights_hash
    random = open_teacher("openclip:whiten-tiny?pretrained=0")
    assert random.weights_hash == open_teacher(random.uri).weights_hash


def test_openclip_weights_bring_activation_and_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "quick_gelu": True,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "hf_hub": "somebody/model",
    }
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: ["tag"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: recipe)
    quick = save_openclip(tmp_path / "w.pt", force_quick_gelu=True)
    teacher = open_teacher(f"openclip:whiten-tiny/tag?weights={tmp_path / 'w.pt'}")
    assert teacher.preprocess == Preprocess(
        size=(32, 32), fit="squash", interpolation="bilinear", mean=MEAN, std=STD
    )
    pixels = make_pixels(32)
    with torch.no_grad():
        check_same(teacher.embed(pixels), quick.encode_image(to_input(pixels, MEAN, STD)))


def test_openclip_never_asks_for_a_language_model() -> None:
    assert open_teacher("openclip:whiten-hub?pretrained=0").dim == 12


def test_openclip_reads_its_preprocessing() -> None:
    config = {
        "size": (30, 40),
        "mean": MEAN,
        "std": STD,
        "interpolation": "random",
        "resize_mode": "shortest",
    }
    assert openclip.read_preprocess(config) == Preprocess(size=(30, 40), mean=MEAN, std=STD)


def test_openclip_leaves_logging_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    open_teacher("openclip:whiten-tiny?pretrained=0")
    assert root.handlers == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ViT-B-33/openai", "did you mean 'ViT-B-32'"),
        ("zzzzzzzzzz", r"list_models\(\)"),
        ("ViT-B-32/laion2b_s34b_b79", "did you mean 'laion2b_s34b_b79k'"),
        ("ViT-B-32", r"ViT-B-32/WEIGHTS with one of openai"),
        ("whiten-tiny", r"openclip:whiten-tiny\?weights=FILE"),
        ("ViT-B-32/openai?pool=avg", "has no option 'pool'"),
    ],
)
def test_openclip_wrong_name_or_option(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_teacher(f"openclip:{target}")


def test_openclip_refuses_other_files(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(TeacherError, match="holds no image tower"):
        open_teacher(f"openclip:whiten-tiny?weights={tmp_path / 'other.pt'}")
    torch.save({"visual.conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(TeacherError, match="another architecture"):
        open_teacher(f"openclip:whiten-tiny?weights={tmp_path / 'other.pt'}")
    torch.save({"visual.x": Explosive(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(TeacherError, match="holds tensors only"):
        open_teacher(f"openclip:whiten-tiny?weights={tmp_path / 'evil.pt'}")
    assert not (tmp_path / "ran").exists()


class Explosive:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


# --- transformers -----------------------------------------------------------------------

LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
VISION = LAYERS | {"image_size": 32, "patch_size": 8}
TEXT = LAYERS | {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0}
TEXT |= {"eos_token_id": 1}


def save_hf(model: Any, folder: Path, seed: int = 0) -> Any:
    shake(model, seed).save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return model


def check_hf(teacher_uri: str, function: Any, side: int = 32) -> None:
    """The teacher embeds what `function` makes of the same pixels."""
    pixels = make_pixels(side)
    with torch.no_grad():
        expected = function(to_input(pixels, MEAN, STD))
    check_same(open_teacher(teacher_uri).embed(pixels), expected)


def test_hf_vit_pools_as_trained(tmp_path: Path) -> None:
    model = save_hf(transformers.ViTModel(transformers.ViTConfig(**VISION)), tmp_path)
    check_hf(f"hf:{tmp_path}", lambda x: model(x).pooler_output)
    check_hf(f"hf:{tmp_path}?pool=pooler", lambda x: model(x).pooler_output)
    check_hf(f"hf:{tmp_path}?pool=cls", lambda x: model(x).last_hidden_state[:, 0])
    check_hf(f"hf:{tmp_path}?pool=avg", lambda x: model(x).last_hidden_state[:, 1:].mean(1))
    check_hf(
        f"hf:{tmp_path}?size=48",
        lambda x: model(x, interpolate_pos_encoding=True).pooler_output,
        side=48,
    )
    kinds = [open_teacher(f"hf:{tmp_path}{q}") for q in ("", "?pool=cls", "?pool=avg", "?size=48")]
    assert len({teacher.fingerprint() for teacher in kinds}) == 4
    assert len({teacher.weights_hash for teacher in kinds}) == 1
    assert kinds[0].name == tmp_path.name
    assert kinds[0].licence == "unknown"


def test_hf_classifier_gives_its_base_model(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**VISION, num_labels=1000)
    model = save_hf(transformers.ViTForImageClassification(config), tmp_path)
    # Its pooler was never trained and is not in the file: the class token stands in.
    check_hf(f"hf:{tmp_path}", lambda x: model.vit(x).last_hidden_state[:, 0])
    teacher = open_teacher(f"hf:{tmp_path}")
    assert teacher.dim == 16
    assert teacher.params == sum(p.numel() for p in model.vit.parameters())
    torch.rand(1)
    assert teacher.fingerprint() == open_teacher(f"hf:{tmp_path}").fingerprint()
    with pytest.raises(ConfigError, match=r"no trained pooler: take pool=cls"):
        open_teacher(f"hf:{tmp_path}?pool=pooler")


def test_hf_registers_are_no_patches(tmp_path: Path) -> None:
    config = transformers.Dinov2WithRegistersConfig(**VISION, num_register_tokens=4)
    model = save_hf(transformers.Dinov2WithRegistersModel(config), tmp_path)
    check_hf(f"hf:{tmp_path}", lambda x: model(x).pooler_output)
    check_hf(f"hf:{tmp_path}?pool=avg", lambda x: model(x).last_hidden_state[:, 5:].mean(1))
    check_hf(f"hf:{tmp_path}?size=64", lambda x: model(x).pooler_output, side=64)


def test_hf_feature_maps(tmp_path: Path) -> None:
    config = transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16])
    model = save_hf(transformers.ConvNextForImageClassification(config), tmp_path)
    check_hf(f"hf:{tmp_path}", lambda x: model.convnext(x).pooler_output)
    check_hf(
        f"hf:{tmp_path}?pool=avg&size=64",
        lambda x: model.convnext(x).last_hidden_state.mean((2, 3)),
        side=64,
    )
    with pytest.raises(ConfigError, match=r"no class token: take pool=avg"):
        open_teacher(f"hf:{tmp_path}?pool=cls")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_hf_models_of_image_and_text(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(text_config=TEXT, vision_config=VISION)
    model = save_hf(getattr(transformers, f"{kind}Model")(config), tmp_path)

    def features(images: Tensor) -> Tensor:
        out = model.get_image_features(images, interpolate_pos_encoding=True)
        return out if isinstance(out, Tensor) else out.pooler_output

    check_hf(f"hf:{tmp_path}", features)
    check_hf(f"hf:{tmp_path}?size=48", features, side=48)
    teacher = open_teacher(f"hf:{tmp_path}")
    text = sum(p.numel() for p in model.text_model.parameters())
    assert teacher.params == sum(p.numel() for p in model.parameters()) - text
    with pytest.raises(ConfigError, match=r"leave out \?pool="):
        open_teacher(f"hf:{tmp_path}?pool=avg")


def test_hf_masked_autoencoder_sees_the_whole_image(tmp_path: Path) -> None:
    save_hf(transformers.ViTMAEModel(transformers.ViTMAEConfig(**VISION)), tmp_path)
    teacher = open_teacher(f"hf:{tmp_path}")
    torch.testing.assert_close(teacher.embed(make_pixels(32)), teacher.embed(make_pixels(32)))


def test_hf_identity_and_licence(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("same", 1), ("b", 2)):
        torch.manual_seed(0)
        save_hf(transformers.ViTModel(transformers.ViTConfig(**VISION)), tmp_path / name, seed)
    (tmp_path / "same/README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n")
    (tmp_path / "b/README.md").write_text("---\nlicense: mit\n---\n")
    first, same, other = (open_teacher(f"hf:{tmp_path / name}") for name in ("a", "same", "b"))
    assert first.fingerprint() == same.fingerprint()
    assert first.weights_hash != other.weights_hash
    assert (first.licence, same.licence, other.licence) == ("unknown", "mine", "mit")


def test_hf_half_precision_computes_in_single(tmp_path: Path) -> None:
    save_hf(transformers.ViTModel(transformers.ViTConfig(**VISION)).half(), tmp_path)
    teacher = open_teacher(f"hf:{tmp_path}")
    assert teacher.module is not None
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float32}
    assert teacher.embed(make_pixels(32)).shape == (2, 16)


@pytest.mark.parametrize(
    "processor",
    [
        transformers.ViTImageProcessor(size={"height": 64, "width": 48}, resample=2),
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
        ),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.8),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.8),
        transformers.ViTImageProcessor(size={"height": 64, "width": 64}, do_normalize=False),
        transformers.ViTImageProcessor(
            size={"height": 64, "width": 64}, do_rescale=False, image_mean=[99] * 3
        ),
    ],
    ids=["squash", "crop", "convnext", "convnext-large", "plain", "not-rescaled"],
)
def test_hf_sees_what_the_processor_shows(processor: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((420, 300), Image.Resampling.BICUBIC)
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    preprocess = huggingface.read_preprocess(processor, None, parse_uri("hf:x"))
    ours = preprocess.normalize(render(image, View(), preprocess)[None])[0]
    assert ours.shape == expected.shape
    scale = float(expected.max() - expected.min())
    assert np.abs(ours - expected.numpy()).mean() < 0.008 * scale


def test_hf_reads_its_preprocessing() -> None:
    processor = transformers.MobileViTImageProcessor(
        size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}, resample=0
    )
    uri = parse_uri("hf:x")
    preprocess = huggingface.read_preprocess(processor, None, uri)
    assert (preprocess.channels, preprocess.interpolation) == ("bgr", "nearest")
    assert (preprocess.size, preprocess.crop_fraction) == ((64, 64), 0.8)
    assert huggingface.read_preprocess(processor, 96, uri).size == (96, 96)
    processor.size, processor.crop_size = {"longest_edge": 300}, None
    with pytest.raises(TeacherError, match="no fixed size"):
        huggingface.read_preprocess(processor, None, uri)


def test_hf_refuses_other_folders(tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**VISION))
    model.save_pretrained(tmp_path / "bare")
    (tmp_path / "empty").mkdir()
    for name in ("bare", "empty"):
        with pytest.raises(TeacherError, match=r"must hold .*preprocessor_config\.json") as caught:
            open_teacher(f"hf:{tmp_path / name}")
        assert "\n" not in str(caught.value)
    with pytest.raises(TeacherError, match="does not exist: write hf:FOLDER"):
        open_teacher(f"hf:{tmp_path / 'missing'}")
    with pytest.raises(ConfigError, match="must be one of cls, avg, pooler"):
        open_teacher(f"hf:{tmp_path / 'bare'}?pool=gem")
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        open_teacher(f"hf:{tmp_path / 'bare'}?sizes=32")


def test_hf_refuses_weights_that_lack_layers(tmp_path: Path) -> None:
    save_hf(transformers.ViTModel(transformers.ViTConfig(**VISION)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(TeacherError, match=r"lacks .*layer.*not those of its config\.json"):
        open_teacher(f"hf:{tmp_path}")


def test_hf_never_runs_code(tmp_path: Path) -> None:
    save_hf(transformers.ViTModel(transformers.ViTConfig(**VISION)), tmp_path / "pickle")
    (tmp_path / "pickle/model.safetensors").unlink()
    torch.save({"x": Explosive(tmp_path / "ran")}, tmp_path / "pickle/pytorch_model.bin")
    remote = tmp_path / "remote"
    save_hf(transformers.ViTModel(transformers.ViTConfig(**VISION)), remote)
    (remote / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": dict.fromkeys(AUTO, "code.Mine")})
    )
    (remote / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    for folder in ("pickle", "remote"):
        with pytest.raises(TeacherError, match="cannot load hf:") as caught:
            open_teacher(f"hf:{tmp_path / folder}")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


AUTO = ("AutoConfig", "AutoModel")


# --- no network -------------------------------------------------------------------------

HUB_MODELS = {
    "timm:resnet18.a1_in1k": "?weights=FILE",
    "torchvision:resnet18": "?weights=FILE",
    "openclip:ViT-B-32/laion2b_s34b_b79k": "?weights=FILE",
    "hf:facebook/dinov2-small": "hf:FOLDER",
}


def fail_to_open(uri: str) -> str:
    """The error's line; it must name the way without the hub."""
    start = time.monotonic()
    with pytest.raises(TeacherError) as caught:
        open_teacher(uri)
    assert time.monotonic() - start < 15  # the hub's client alone tries for a minute and more
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(("cannot download", "cannot load"))
    assert uri in message
    assert HUB_MODELS[uri] in message
    return message


@pytest.mark.parametrize("uri", HUB_MODELS)
def test_without_network(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        pytest.fail("tried to download")

    monkeypatch.setattr(hub, "answers", lambda _: False)
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", download)
    assert "(no network)" in fail_to_open(uri)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("uri", HUB_MODELS)
def test_hub_switched_off(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in fail_to_open(uri)  # and `answers` was not called
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True


@pytest.mark.parametrize("uri", HUB_MODELS)
def test_hub_refuses(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("403 Forbidden\nsee the manual")

    monkeypatch.setattr(hub, "answers", lambda _: True)
    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", refuse)
    monkeypatch.setattr(open_clip, "create_model", refuse)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", refuse)
    assert "(403 Forbidden)" in fail_to_open(uri)


def test_cached_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hf/models--somebody--model"
    model = transformers.ViTModel(transformers.ViTConfig(**VISION))
    save_hf(model, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(hub, "answers", lambda _: False)
    check_hf("hf:somebody/model", lambda x: model(x).pooler_output)


def test_cached_torchvision_weights_need_no_network(tmp_path: Path) -> None:
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    torch.save({}, folder / url.rpartition("/")[2])  # found and read, but no model
    with pytest.raises(TeacherError, match=r"IMAGENET1K_V1 lacks conv1\.weight"):
        open_teacher("torchvision:resnet18")


@pytest.mark.parametrize(
    ("module", "uri", "extra"),
    [("open_clip", "openclip:ViT-B-32/openai", "openclip"), ("transformers", "hf:a/b", "hf")],
)
def test_missing_extra(module: str, uri: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{extra}: teachers .*'whiten\[{extra}\]'"):
        open_teacher(uri)


@pytest.fixture
def server() -> Iterator[str]:
    """A web server that knows no page."""
    handler = http.server.BaseHTTPRequestHandler
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}/x"
        made.shutdown()
        thread.join()


def test_any_answer_means_a_network(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    assert hub.answers(server)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        assert not hub.answers(address, seconds=0.2)
        assert time.monotonic() - start < 5
    assert not hub.answers(address)  # nobody listens any more
