"""The authors' released whitenings and students become whiteners and students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor

import whiten
from command_line import Captured, fails, prints
from whiten.errors import (
    ConfigError,
    RankDeficientError,
    TeacherError,
    WhitenError,
    WhiteningError,
)
from whiten.models.published import convert, read_published_student, read_published_whitening
from whiten.utils.arrays import normalize_rows
from whiten.whitening.whitener import Whitener

RNG = np.random.default_rng(0)
# Ten strong axes and two far below 1e-5 of the strongest, in unit vectors.
SAMPLES = RNG.standard_normal((300, 12)) * np.geomspace(3, 0.3, 12)
SAMPLES = normalize_rows(SAMPLES + np.eye(12)[0])
SAMPLES[:, 10:] *= 1e-4


def whitening_state(samples: np.ndarray, dim: int) -> dict[str, Tensor]:
    """What the authors' module holds after its fit, computed as they describe it."""
    mean = samples.mean(axis=0)
    covariance = (samples - mean).T @ (samples - mean) / len(samples)
    d, v = np.linalg.eigh(covariance)
    least = d.max() * 1e-5
    kept = np.argsort(np.maximum(d, least))[::-1][:dim]
    dvt = v[:, kept].T / np.sqrt(np.maximum(d, least)[kept])[:, None]
    return {
        "dim1": torch.tensor(samples.shape[1]),
        "dim2": torch.tensor(dim),
        "whit": torch.tensor(0.5),
        "d": torch.tensor(d, dtype=torch.float32),
        "v": torch.tensor(v, dtype=torch.float32),
        "n_0": torch.tensor(int((d < least).sum())),
        "mean": torch.tensor(mean[None], dtype=torch.float32),
        "dvt": torch.tensor(dvt, dtype=torch.float32),
    }


def save(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


# --- whitenings -------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [8, 12])
def test_whitening_transforms_as_the_authors_do(dim: int, tmp_path: Path) -> None:
    state = whitening_state(SAMPLES, dim)
    assert state["n_0"] == 2
    whitener = read_published_whitening(save(state, tmp_path / "gem_pca.pt"))
    vectors = torch.tensor(SAMPLES[:50], dtype=torch.float32)
    theirs = ((vectors - state["mean"]) @ state["dvt"].T).numpy()
    np.testing.assert_allclose(whitener.transform(vectors).numpy(), theirs, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(whitener.transform(vectors.numpy()), theirs, atol=1e-5, rtol=1e-5)
    whitener.save(tmp_path / "w.safetensors")
    again = Whitener.load(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(again.projection_, whitener.projection_)
    assert again.metadata == {"source": "gem_pca.pt"}


def test_whitening_takes_other_settings(tmp_path: Path) -> None:
    """As a fit on the same samples would, as far as the file's float32 goes."""
    whitener = read_published_whitening(save(whitening_state(SAMPLES, 10), tmp_path / "w.pt"))
    fitted = Whitener(6, shrinkage=0.3).fit(SAMPLES)
    changed = whitener.with_settings(dim=6, shrinkage=0.3)
    ours, expected = changed.transform(SAMPLES), fitted.transform(SAMPLES)
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-3)
    exact = whitener.with_settings(dim=6)
    np.testing.assert_allclose(exact.projection_, whitener.projection_[:6], rtol=1e-12)
    with pytest.raises(WhiteningError, match="cannot be fitted further"):
        whitener.partial_fit(SAMPLES)
    flat = Whitener.from_arrays(np.zeros(3), np.eye(3), np.array([1, 1, 0.0]), spectrum_mean=1)
    with pytest.raises(RankDeficientError):
        flat.with_settings(shrinkage=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dvt": None}, "has no 'dvt'"),
        ({"v": None}, "lacks v:"),
        ({"extra": torch.zeros(2)}, "has unknown extra"),
        ({"mean": torch.zeros(12)}, r"has mean \[12\] instead of \[1, 12\]"),
        ({"dim2": torch.tensor(7)}, r"has dvt \[8, 12\] instead of \[7, 12\]"),
        ({"dim1": torch.zeros(2)}, r"dim1 \[2\] instead of \[\]"),
        ({"d": "text"}, "no tensor at d"),
        ({"mean": torch.full((1, 12), torch.nan)}, "NaN or infinity in mean"),
        ({"whit": torch.tensor(0.25)}, "whit 0.25"),
        ({"dvt": torch.zeros(8, 12)}, "is no PCA-whitening"),
    ],
)
def test_other_whitenings_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {**whitening_state(SAMPLES, 8), **change}
    path = save({k: v for k, v in state.items() if v is not None}, tmp_path / "w.pt")
    with pytest.raises(WhiteningError, match=message) as caught:
        read_published_whitening(path)
    assert "\n" not in str(caught.value)


# --- students ---------------------------------------------------------------------------


def make_student(name: str, dim: int = 512) -> torchvision.models.ResNet:
    """Weights unlike any start, so that no tensor can be in another's place unnoticed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(torchvision.models, name)(num_classes=dim)
        for key, value in net.state_dict().items():
            if "running_var" in key:
                value.uniform_(0.8, 1.2)
            elif value.ndim == 1:
                value += 0.1 * torch.randn(value.shape)
    return net.eval()


def checkpoint(net: torchvision.models.ResNet, **more: Tensor) -> dict[str, Any]:
    state = {f"module.base_encoder.{key}": value for key, value in net.state_dict().items()}
    return {
        "epoch": 200,
        "state_dict": {**state, **more},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
        "lr_scheduler": {"T_max": 10, "_last_lr": [1e-6]},
        "loss_fn": {},
    }


def plain_forward(net: torchvision.models.ResNet, images: Tensor, p: float) -> Tensor:
    """GeM, L2 normalisation and projection, written out over torchvision's own layers."""
    x = net.maxpool(F.relu(net.bn1(net.conv1(images))))
    x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    pooled = x.mean(dim=(2, 3)) if p == 1 else x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
    return net.fc(F.normalize(pooled, dim=1))


@pytest.mark.parametrize(("name", "p"), [("resnet18", 3.0), ("resnet34", 1.0), ("resnet18", 2.5)])
def test_student_embeds_as_the_authors_network(name: str, p: float, tmp_path: Path) -> None:
    net = make_student(name)
    path = save(checkpoint(net), tmp_path / "student.pt")
    assert convert(path, tmp_path / "student", p=p, size=64).source == name
    encoder = whiten.load(tmp_path / "student", runtime="torch")  # at any size
    teacher = encoder.parts[0].teacher
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    pixels = noise[:, 8:72] if p != 1 else None
    with torch.inference_mode():
        images = torch.randn(2, 3, 70, 90, generator=torch.Generator().manual_seed(1))
        expected = plain_forward(net, images, p)
        actual = teacher.forward(images)
        assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()
        if pixels is not None:  # the middle square of an image that already has the height
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            inputs = ((torch.tensor(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
            reference = F.normalize(plain_forward(net, inputs, p), dim=1).numpy()
            embedding = encoder.embed(Image.fromarray(noise))
            np.testing.assert_allclose(embedding, reference, atol=1e-5)
    assert teacher.licence == "unknown"


@pytest.mark.slow
def test_student_says_where_it_is_from(tmp_path: Path) -> None:
    net = make_student("resnet18", dim=16)
    landmarks, videos = (
        read_published_student(save(checkpoint(net), tmp_path / f"{name}.pt"))[1]
        for name in ("ro_re_to_r18_ep3k", "mc_bt_to_r18_ep3k")
    )
    assert [t["uri"] for t in landmarks.teachers] == [
        "paper:resnet101_dolg",
        "paper:resnet101_delg",
    ]
    assert [t["licence"] for t in videos.teachers] == ["CC-BY-NC-4.0"] * 2
    assert landmarks.training["epochs"] == 200
    assert landmarks.training["file"] == "ro_re_to_r18_ep3k.pt"
    assert (landmarks.pool, landmarks.preprocess.size, landmarks.dim) == (
        "gem-fixed",
        (512, 512),
        16,
    )
    assert (videos.pool, videos.preprocess.size) == ("avg", (224, 224))
    assert videos.training["gem_power"] == 1
    convert(tmp_path / "mc_bt_to_r18_ep3k.pt", tmp_path / "student")
    card = (tmp_path / "student/README.md").read_text()
    assert "released by the authors of Whiten-MTD" in card
    assert "| `paper:mocov3` | CC-BY-NC-4.0 |" in card
    assert whiten.load(tmp_path / "student").parts[0].teacher.licence == "CC-BY-NC-4.0 + unknown"


def test_tensors_of_the_training_module_are_left_out(tmp_path: Path) -> None:
    net = make_student("resnet18", dim=4)
    path = save(checkpoint(net, **{"module.queue": torch.zeros(3)}), tmp_path / "s.pt")
    student, _ = read_published_student(path, size=32)
    torch.testing.assert_close(student.projection.weight, net.fc.weight)


@pytest.mark.slow
def test_other_students_are_refused(tmp_path: Path) -> None:
    whole = checkpoint(make_student("resnet18", dim=4))
    path, key = tmp_path / "s.pt", "module.base_encoder."
    for change, message in (
        ({f"{key}bn1.bias": None}, rf"lacks {key}bn1.bias:"),
        ({f"{key}fc.bias": None}, rf"lacks {key}fc.bias; has .*fc.weight \[4, 512\]"),
        ({f"{key}layer9.weight": torch.zeros(1)}, rf"has unknown {key}layer9.weight"),
        ({"queue": torch.zeros(1)}, "has unknown queue"),
        ({f"{key}conv1.weight": torch.zeros(2)}, rf"has {key}conv1.weight \[2\] instead of"),
    ):
        state = {**whole["state_dict"], **change}
        save({"state_dict": {k: v for k, v in state.items() if v is not None}}, path)
        with pytest.raises(TeacherError, match=message) as caught:
            read_published_student(path)
        assert "\n" not in str(caught.value)
    bottleneck = torchvision.models.resnet50(num_classes=4).state_dict()
    save({"state_dict": {key + name: value for name, value in bottleneck.items()}}, path)
    with pytest.raises(TeacherError, match=r"has unknown .*layer1\.0\.conv3\.weight"):
        read_published_student(path)
    for content, message in (
        (torch.zeros(1), "has no 'state_dict' with tensors, but no mapping:"),
        ({}, "has no 'state_dict' with tensors, but nothing:"),
        ({"epoch": 3, "model_state": {}}, "with tensors, but epoch, model_state:"),
        (
            {"state_dict": {"fc.bias": torch.zeros(1)}},
            r"under module\.base_encoder\., but fc\.bias:",
        ),
    ):
        save(content, path)
        with pytest.raises(TeacherError, match=message):
            read_published_student(path)
    save(whole, path)
    for options in ({"p": 0.0}, {"p": float("nan")}, {"size": 8}):
        with pytest.raises(ConfigError, match="must be above 0 and size="):
            read_published_student(path, **options)


# --- the command line -------------------------------------------------------------------


@pytest.mark.slow
def test_convert_recognises_both(capsys: Captured, tmp_path: Path) -> None:
    pca = save(whitening_state(SAMPLES, 8), tmp_path / "pca.pt")
    out, _ = prints(capsys, "convert", pca, "--out", tmp_path / "new" / "w.safetensors")
    assert out.splitlines()[0] == "kind    whitening"
    assert Whitener.load(tmp_path / "new" / "w.safetensors").projection_.shape == (8, 12)
    student = save(checkpoint(make_student("resnet18", dim=4)), tmp_path / "s.pt")
    command = ("convert", student, "--out", tmp_path / "s", "--p", "3", "--size", "64", "--json")
    facts = json.loads(prints(capsys, *command)[0])
    assert facts == {
        "kind": "student",
        "out": str(tmp_path / "s"),
        "dim": 4,
        "source": "resnet18",
    }
    assert whiten.load(f"whiten:{tmp_path / 's'}").name == "s"
    described = json.loads(prints(capsys, "teachers", f"whiten:{tmp_path / 's'}", "--json")[0])
    assert (described["dim"], described["input"][:5]) == (4, "64x64")


def test_convert_refuses(capsys: Captured, tmp_path: Path) -> None:
    pca = save(whitening_state(SAMPLES, 8), tmp_path / "pca.pt")
    assert "exists" in fails(capsys, "convert", pca, "--out", pca)
    assert "for students" in fails(capsys, "convert", pca, "--out", tmp_path / "w", "--p", "3")
    assert "does not exist" in fails(capsys, "convert", "none.pt", "--out", tmp_path / "w")
    below = pca / "w"  # below a file nothing can be
    assert "cannot write" in fails(capsys, "convert", pca, "--out", below)
    for value, has in (({"model_state": {}}, "model_state"), (torch.zeros(1), "no mapping")):
        with pytest.raises(WhitenError, match=f"neither .* it has {has}: .* opens as paper:NAME"):
            convert(save(value, tmp_path / "x.pt"), tmp_path / "w")
    assert not (tmp_path / "w").exists()
