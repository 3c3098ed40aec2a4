"""open_clip image towers as teachers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from hf_models import MEAN, STD
from teacher_helpers import Explosive, check_same, make_pixels, normalise, shake
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_teacher
from whiten.models.sources import openclip
from whiten.views.rendering import Preprocess

pytestmark = pytest.mark.usefixtures("empty_caches")

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


@pytest.mark.parametrize("name", ["whiten-tiny", "whiten-coca"])
def test_openclip_embeds_as_encode_image_does(name: str, tmp_path: Path) -> None:
    model = save_openclip(tmp_path / "w.pt", name)
    teacher = open_teacher(f"openclip:{name}?weights={tmp_path / 'w.pt'}")
    pixels = make_pixels(32)
    with torch.no_grad():
        images = normalise(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
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
        images = normalise(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
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
    file = tmp_path / "whiten-tiny.json"  # other heads, and the same shapes of weights
    vision = TOWERS["vision_cfg"]
    for vision_cfg, is_same in ((vision | {"head_width": 16}, False), (vision, True)):
        file.write_text(json.dumps(TOWERS | {"vision_cfg": vision_cfg}))
        open_clip.add_model_config(tmp_path)
        assert (open_teacher(first.uri).fingerprint() == first.fingerprint()) is is_same
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
        check_same(teacher.embed(pixels), quick.encode_image(normalise(pixels, MEAN, STD)))


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
        ("ViT-B-32?pretrained=0&state=ema", "add &weights=FILE, or leave it out"),
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
