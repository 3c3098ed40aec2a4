"""transformers models as teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from hf_models import TEXT, VISION, check_hf, save_hf
from teacher_helpers import Explosive, make_image, make_pixels
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_teacher
from whiten.models.sources import huggingface
from whiten.models.uri import parse_uri
from whiten.views.rendering import View, render

pytestmark = pytest.mark.usefixtures("empty_caches")


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
    image = make_image()
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


def test_the_first_patch_is_no_class_token(tmp_path: Path) -> None:
    """Without class token and pooler, the first token is a corner of the image."""
    config = transformers.SiglipVisionConfig(**VISION, vision_use_head=False)
    save_hf(transformers.SiglipVisionModel(config), tmp_path / "m")
    with pytest.raises(ConfigError, match="has no class token: take pool=avg"):
        open_teacher(f"hf:{tmp_path / 'm'}")
    assert open_teacher(f"hf:{tmp_path / 'm'}?pool=avg").dim == 16
